"""The page: complete, harmless whatever a layer is called, and as seen by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.example_reports import MALICIOUS, healthy_report, malicious_report, sick_report
from helpers.reports import codes
from lightning_deadkernel.report.html import Strip, strip, to_html, told
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import COLOURS

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cfc0f01f000500"
    "01ff56c72f0d0000000049454e44ae426082"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements, attributes and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def layer(channels: int, marks: dict[str, tuple[int, ...]]) -> LayerReport:
    return LayerReport(
        name="wide", kind="Linear", channels=channels, depth=0, activation="relu", codes=codes(channels, marks)
    )


def cells(drawn: Strip) -> dict[int, str]:
    """Channel -> what it is shown as, read back from the outlines."""
    read = {}
    for word, path in drawn.paths:
        for x, y, width, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path):
            assert width == back
            for place in range(int(x), int(x) + int(width)):
                read[int(y) * drawn.columns + place] = word
    return read


def test_the_findings_come_before_the_map_and_the_table() -> None:
    text = Page(to_html(sick_report(), {})).text
    places = [
        text.index(part) for part in ("In all: 1 error", "Advice", "Kernel map", "zero activations", "Not watched")
    ]
    assert places == sorted(places)


def test_the_page_needs_no_network_and_no_script() -> None:
    page = Page(to_html(sick_report(), {"Gradient flow": PIXEL}))
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert [value[:22] for key, value in page.attributes if key == "src" and value] == ["data:image/png;base64,"]
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "url(http" not in to_html(sick_report(), {})


def test_a_malicious_report_has_the_elements_of_a_harmless_one() -> None:
    page = Page(to_html(malicious_report(), {MALICIOUS: PIXEL}))
    assert set(page.tags) <= set(Page(to_html(sick_report(), {"": PIXEL})).tags)
    assert page.text.count("<script>alert(1)</script>") >= 12
    assert {value for key, value in page.attributes if key == "alt"} == {MALICIOUS}


def test_all_findings_notes_and_unwatched_layers_are_on_the_page() -> None:
    report = sick_report()
    text = Page(to_html(report)).text
    for finding in report.findings:
        for part in (finding.cause, finding.advice, finding.reference):
            assert part in text
    assert "requires_grad is False" in text
    assert report.notes[0] in text
    assert "save 2,314 parameters" in text


def test_a_healthy_page_has_its_verdict_and_no_findings() -> None:
    page = Page(to_html(healthy_report()))
    assert "Nothing found: 42 kernels in 2 layers watched over 12,000 samples." in page.text
    assert "Findings" not in page.text
    assert "article" not in page.tags


def test_the_legend_explains_what_is_shown_and_no_more() -> None:
    legend = re.search(r'<ul class="legend">(.*?)</ul>', to_html(sick_report()), flags=re.DOTALL)
    assert legend is not None
    assert re.findall(r"<b>([^<]*)</b>", legend.group(1)) == [
        "active",
        "dead",
        "zero-gradient",
        "dormant",
        "rare",
        "zero kernel",
    ]


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 256, 257, 1024, 1025, 5000])
def test_each_channel_has_one_cell_of_its_own_colour(channels: int) -> None:
    dead, starved = tuple(range(0, channels, 3)), tuple(range(1, channels, 7))
    shown = layer(channels, {"dead": dead, "starved": tuple(c for c in starved if c % 3)})
    drawn = strip(shown)
    assert cells(drawn) == dict(enumerate(shown.states))
    assert drawn.columns * drawn.cell <= 640
    assert drawn.rows * drawn.columns >= channels > (drawn.rows - 1) * drawn.columns


def test_zero_kernels_have_a_dot_at_their_cell() -> None:
    drawn = strip(layer(100, {"zero_kernel": (0, 66)}))
    assert drawn.marks.count("z") == 2
    assert "M2.3 1.5" in drawn.marks
    assert strip(layer(5000, {"zero_kernel": (0, 66)})).marks == ""


def test_every_colour_of_the_map_is_defined_on_the_page() -> None:
    html = to_html(sick_report())
    for word, colour in COLOURS.items():
        assert f"--{word}: {colour};" in html
    assert "prefers-color-scheme: dark" in html


def test_a_strip_is_also_told_in_words() -> None:
    assert told(sick_report().layers[0]) == ["2 dead: 3, 11", "2 zero kernel: 3, 11", "2 dormant: 3, 11", "1 rare: 7"]
    assert told(healthy_report().layers[0]) == ["all active"]
    assert told(layer(3, {"frozen": (1,)})) == ["1 frozen: 1"]


def test_a_layer_without_channels_and_a_report_without_layers_do_no_harm() -> None:
    assert "Kernel map" not in to_html(replace(healthy_report(), layers=()))
    assert "all active" in to_html(replace(healthy_report(), layers=(layer(0, {}), layer(2, {}))))


def test_saving_as_html_writes_the_page_with_its_pictures(tmp_path: Path) -> None:
    sick_report().save(tmp_path / "report.html", {"Gradient flow": PIXEL})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == to_html(sick_report(), {"Gradient flow": PIXEL})


def test_without_jinja2_one_clear_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"needs jinja2.*lightning-deadkernel\[plots\]"):
        sick_report().save(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def browse(path: Path, profile: Path, *options: str) -> str:
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("hostile", [False, True], ids=["sick", "malicious"])
def test_a_browser_shows_the_findings_and_makes_no_element_of_a_name(hostile: bool, tmp_path: Path) -> None:
    report: Report = malicious_report() if hostile else sick_report()
    path = tmp_path / "report.html"
    report.save(path, {"Gradient flow": PIXEL})
    dom = browse(path, tmp_path / "profile", "--dump-dom")
    page = Page(dom)
    assert "script" not in page.tags
    assert page.tags.count("article") == len(report.findings)
    assert page.tags.count("html") == page.tags.count("main") == page.tags.count("img") == 1
    for finding in report.findings:
        assert finding.advice.split("\n")[0] in page.text
        assert finding.layer is not None
        assert finding.layer.split("\n")[0] in page.text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_paints_the_states_in_their_colours(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib reads the picture")
    path, picture = tmp_path / "report.html", tmp_path / "page.png"
    shown = replace(healthy_report(), layers=(layer(64, {"dead": tuple(range(32))}),))
    shown.save(path)
    browse(path, tmp_path / "profile", "--window-size=1100,900", "--hide-scrollbars", f"--screenshot={picture}")
    pixels = (plt.imread(picture)[..., :3] * 255).round().astype(int)
    painted = {}
    for word in ("dead", "active", "starved"):
        red, green, blue = (int(COLOURS[word][start : start + 2], 16) for start in (1, 3, 5))
        painted[word] = int((abs(pixels - [red, green, blue]).max(-1) <= 2).sum())
    assert painted["dead"] > 32 * 30
    assert painted["active"] > 32 * 30
    assert painted["starved"] == 0
