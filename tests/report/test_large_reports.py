"""A report of a million kernels: small files that lose nothing, whatever happens between writing the two."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.reports import finding, history
from lightning_deadkernel.report import report as report_module
from lightning_deadkernel.report.arrays import MOST_CHANNELS, moved, put_back
from lightning_deadkernel.report.codec import from_json, to_json
from lightning_deadkernel.report.console import print_document
from lightning_deadkernel.report.describe import describe, describe_briefly
from lightning_deadkernel.report.document import KernelMap
from lightning_deadkernel.report.html import to_html
from lightning_deadkernel.report.records import ChannelValues
from lightning_deadkernel.report.report import Report

MILLION = 1_000_000


def wide(*channels: int, seed: int = 0) -> Report:
    """Layers of so many channels, of which every code is possible and every number is known."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    layers = tuple((f"blocks.{place}.fc", "Linear", count, "relu") for place, count in enumerate(channels))
    report = history(layers, windows=1)[-1]
    filled, found = [], []
    for layer in report.layers:
        numbers = torch.rand(4, layer.channels, generator=generator)
        numbers[0, ::7] = math.nan
        values = ChannelValues(*[row.tolist() for row in numbers])
        codes = bytes(rng.choices([0, 1, 0x10, 0x21, 0x41, 0x82], k=layer.channels))
        filled.append(replace(layer, values=values, codes=codes))
        for kind in ("dead_channels", "zero_kernels", "dormant_channels"):
            found.append(finding(kind, layer.name, range(layer.channels)))
    return replace(report, layers=tuple(filled), findings=tuple(found))


@pytest.fixture(scope="module")
def vocabulary() -> Report:
    return wide(4096, MILLION)


def same(report: Report, other: Report) -> None:
    """Equal in every number; NaN is equal to NaN, as in text."""
    assert report.compact() == other.compact()
    assert [repr(layer.values) for layer in report.layers] == [repr(layer.values) for layer in other.layers]


@pytest.mark.parametrize("channels", [(4096, MILLION), (10_000,) * 100], ids=["a vocabulary", "a model of 1 B"])
def test_a_million_kernels_are_ten_megabytes_of_json_at_most_and_nothing_is_lost(
    channels: tuple[int, ...], tmp_path: Path
) -> None:
    report = wide(*channels)
    report.save(tmp_path / "report.json")
    text, companion = sorted(tmp_path.iterdir(), key=lambda path: path.suffix)
    assert text.name == "report.json"
    assert text.stat().st_size < 1e6
    assert companion.stat().st_size < 50 * sum(channels)
    same(Report.load(text), report)


def test_pages_and_tables_of_a_million_kernels_stay_small(vocabulary: Report, tmp_path: Path) -> None:
    assert len(to_html(describe(vocabulary))) < 2e6
    assert len(vocabulary._repr_html_()) < 2e6
    assert len(vocabulary.to_markdown()) < 2e4
    for document in (describe(vocabulary), describe_briefly(vocabulary)):
        with (tmp_path / "console").open("w") as file:
            print_document(document, file)
        assert (tmp_path / "console").stat().st_size < 2e4


def test_a_cell_that_stands_for_several_kernels_shows_the_worst_of_them() -> None:
    report = wide(100_001)
    only = bytes(0x20 if channel == 7 else 1 if channel == 100_000 else 0 for channel in range(100_001))
    layer = replace(report.layers[0], codes=only, values=None)
    blocks = describe(replace(report, layers=(layer,))).blocks
    (drawn,) = [part for block in blocks for part in getattr(block, "blocks", ()) if isinstance(part, KernelMap)]
    assert drawn.per_cell == 3
    names = [drawn.legend[place].name for place in drawn.strips[0].cells]
    assert len(names) == 33_334
    assert {place: name for place, name in enumerate(names) if name != "active"} == {2: "rare", 33_333: "dead"}


def test_reports_up_to_the_documented_width_are_one_file(tmp_path: Path) -> None:
    for count, files in ((MOST_CHANNELS, 1), (MOST_CHANNELS + 1, 2)):
        folder = tmp_path / str(count)
        report = wide(count)
        report.save(folder / "report.json")
        assert len(list(folder.iterdir())) == files
        assert (folder / "report.json").stat().st_size < 10e6
        same(Report.load(folder / "report.json"), report)


def test_without_the_companion_the_report_says_which_file_it_needs(tmp_path: Path) -> None:
    wide(60_000).save(tmp_path / "report.json")
    (companion,) = tmp_path.glob("*.npz")
    companion.unlink()
    with pytest.raises(ValueError, match=rf"report\.json: .* are in {companion.name}, which is not beside it"):
        Report.load(tmp_path / "report.json")


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_a_companion_of_other_content_is_refused_in_words(content: bytes | None, tmp_path: Path) -> None:
    wide(60_000).save(tmp_path / "report.json")
    (companion,) = tmp_path.glob("*.npz")
    whole = companion.read_bytes()
    companion.write_bytes(whole[:-1] if content is None else content)
    with pytest.raises(ValueError, match="is damaged, or is another file"):
        Report.load(tmp_path / "report.json")


@pytest.mark.parametrize("name", ["../secret.0123456789abcdef.npz", "/etc/passwd", 3])
def test_a_companion_is_looked_for_beside_the_report_alone(name: Any, tmp_path: Path) -> None:
    wide(60_000).save(tmp_path / "report.json")
    record = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(record | {"arrays": name}))
    with pytest.raises(ValueError, match="are in another file"):
        Report.load(tmp_path / "report.json")


def test_the_json_alone_says_that_it_needs_its_companion() -> None:
    text = to_json(wide(20)).replace('"version": 2,', '"version": 2, "arrays": "a.npz",')
    with pytest.raises(ValueError, match=r"are in another file, 'a\.npz'"):
        from_json(Report, text)


def test_a_new_report_takes_the_companion_of_the_old_one_away_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "report[1].json"
    (tmp_path / "report1.0123456789abcdef.npz").write_bytes(b"of someone else")
    wide(60_000).save(path)
    (old,) = tmp_path.glob("report[[]1*.npz")
    wide(60_000, seed=1).save(path)
    assert not old.exists()
    same(Report.load(path), wide(60_000, seed=1))
    wide(20).save(path)
    assert {file.name for file in tmp_path.iterdir()} == {"report[1].json", "report1.0123456789abcdef.npz"}


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_write_that_ends_between_the_files_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    path, old = tmp_path / "report.json", wide(60_000)
    old.save(path)
    written: list[Path] = []
    original = report_module.write_atomically

    def failing(target: Path, content: str | bytes) -> None:
        written.append(target)
        if len(written) == fails_at:
            raise OSError("no space left")
        original(target, content)

    monkeypatch.setattr(report_module, "write_atomically", failing)
    with pytest.raises(OSError, match="no space"):
        wide(60_000, seed=1).save(path)
    same(Report.load(path), old)


def test_a_report_that_is_written_anew_while_it_is_read_reads_as_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "report.json", wide(60_000, seed=1)
    wide(60_000).save(path)
    read, done = Path.read_bytes, []

    def reading(of: Path) -> bytes:
        content = read(of)
        if not done:
            done.append(of)
            new.save(path)
        return content

    monkeypatch.setattr(Path, "read_bytes", reading)
    same(Report.load(path), new)


NUMBERS = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(width=32), st.floats(), st.none(), st.integers(0, 9), st.just(math.nan)
)


@given(st.lists(NUMBERS, max_size=60))
def test_lists_come_back_as_they_were(values: list[float | int | None]) -> None:
    arrays: dict[str, Any] = {}
    stand_in = moved(values, arrays)
    if stand_in is None:
        assert len(values) <= 16
        return
    back = put_back({"a": [stand_in]}, arrays)["a"][0]
    for given_number, read in zip(values, back, strict=True):
        assert read == given_number or (read != read and given_number != given_number)
    if set(map(type, values)) == {int}:
        assert back == values
        assert set(map(type, back)) == {int}
