"""The table of states: every word once, and colours that every eye tells apart."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.states import (
    BY_NAME,
    COLOURS,
    COUNTED,
    FLAGS,
    STATES,
    WORD_OF_CODE,
    WORDS,
    word_of,
    worst,
)

SIGHT = {
    "trichromacy": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""Machado et al. 2009, severity 1.0: matrices on linear sRGB."""
WHITE, DARK = "#FFFFFF", "#111418"


def linear(colours: list[str]) -> np.ndarray:
    """(n, 3) linear sRGB."""
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """(n, 3) CIELAB under D65."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = rgb @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """CIEDE2000 of two CIELAB colours (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean_c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean_c**7 / (mean_c**7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    mean_h = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(np.radians(mean_h - 30)) + 0.24 * np.cos(np.radians(2 * mean_h))
    t += 0.32 * np.cos(np.radians(3 * mean_h + 6)) - 0.2 * np.cos(np.radians(4 * mean_h - 63))
    scale_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    scale_c, scale_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    rotation = (
        -np.sin(np.radians(60 * np.exp(-(((mean_h - 275) / 25) ** 2)))) * 2 * np.sqrt(mean_c**7 / (mean_c**7 + 25**7))
    )
    dl, dc, dh = (l2 - l1) / scale_l, (c2 - c1) / scale_c, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / scale_h
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + rotation * dc * dh))


def test_the_difference_is_that_of_the_published_pairs() -> None:
    """Three pairs of Sharma, Wu and Dalal's table 1."""
    for one, other, expected in (
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ):
        assert difference(np.array(one, float), np.array(other, float)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sight", SIGHT)
def test_all_colours_stay_apart_from_each_other_and_from_paper(sight: str) -> None:
    seen = lab((linear([*COLOURS.values(), WHITE, DARK]) @ np.array(SIGHT[sight]).T).clip(0, 1))
    names = [*COLOURS, "white", "dark"]
    pairs = [(difference(seen[i], seen[j]), names[i], names[j]) for i in range(len(names)) for j in range(i)]
    least = {"paper": min(p for p in pairs if p[2] in ("white", "dark") or p[1] in ("white", "dark"))}
    least["each other"] = min(p for p in pairs if not {"white", "dark"} & set(p[1:]))
    assert least["each other"][0] >= 13, least
    assert least["paper"][0] >= 10, least


def test_the_colour_of_active_kernels_is_seen_on_white() -> None:
    luminance = linear([*COLOURS.values()]) @ np.array([0.2126, 0.7152, 0.0722])
    contrast = 1.05 / (luminance + 0.05)
    assert contrast[list(COLOURS).index("active")] >= 1.5
    assert contrast.min() >= 1.4


def test_every_word_is_in_the_table_once_and_has_a_property() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert len({word.gravity for word in BY_NAME.values()}) == len(BY_NAME)
    assert {*STATES, *FLAGS} == {*(word.name for word in COUNTED), "active", "excluded"}
    layer = LayerReport(name="x", kind="Linear", channels=0, codes=b"")
    assert all(getattr(layer, word.attribute) == [] for word in COUNTED)
    assert worst(["active", "rare", "dead", "silent"]) == "dead"


def test_every_code_is_shown_as_a_word() -> None:
    assert [WORDS[place] for place in WORD_OF_CODE] == [word_of(code) for code in range(256)]
    assert word_of(0) == "active"
    assert word_of(FLAGS["dormant"] | FLAGS["rare"]) == "dormant"
    assert word_of(STATES.index("dead") | FLAGS["dormant"]) == "dead"
    assert word_of(15) == "unknown"
