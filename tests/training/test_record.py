"""The closed windows: however many there are, what is kept of them is little, and no answer changes for it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import Tiny
from helpers.training import quiet
from helpers.twins import train
from lightning_deadkernel.report.codec import pack
from lightning_deadkernel.training import record as record_module
from lightning_deadkernel.training.checkpoint import joined, parted
from lightning_deadkernel.training.record import Record

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from growth import close


@pytest.fixture(scope="module")
def long() -> Record:
    """1,200 windows; channel 0 of the first layer is dead from window 3 on."""
    record = Record()
    for index in range(1201):
        close(record, index, layers=2, channels=4)
    return record


def through_a_file(state: dict[str, Any], path: Path) -> dict[str, Any]:
    torch.save(state, path)
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def test_history_has_a_row_for_every_window_that_is_its_reports_summary() -> None:
    monitor = train(Tiny, quiet(), max_epochs=3).monitor
    assert [row["window"] for row in monitor.history] == [0, 1, 2, 3]
    for row, report in zip(monitor.history, monitor.reports, strict=True):
        expected = {"window": report.window, "epoch": report.epoch, "global_step": report.global_step}
        assert str(row) == str(expected | report.summary())


def test_of_many_windows_the_newest_are_kept_and_the_older_ones_thinned_evenly(long: Record) -> None:
    windows = [report.window for report in long.reports]
    assert len(windows) <= record_module.MOST_WINDOWS
    assert windows[-256:] == list(range(945, 1201))
    assert windows[:-256] == list(range(0, 945, 4))
    assert len(long.state_dict()["reports"]) == len(windows)


def test_when_a_channel_died_is_known_after_any_number_of_windows(long: Record) -> None:
    assert long.reports[-1].layers[0].dead == [0]
    (finding,) = [f for f in long.reports[-1].findings if (f.kind, f.layer) == ("dead_channels", "conv0")]
    assert finding.evidence["since_window"] == 3
    assert any("ince epoch 2 (step 60)" in problem.story for problem in long.reports[-1].problems)


def test_a_long_record_goes_on_from_a_checkpoint_as_if_there_had_been_none(long: Record, tmp_path: Path) -> None:
    fresh = Record()
    fresh.load_state_dict(through_a_file(long.state_dict(), tmp_path / "at.ckpt"))
    assert str(fresh.summaries()) == str(long.summaries())
    assert len(fresh.summaries()) == 1201
    other = Record()
    other.load_state_dict(through_a_file(long.state_dict(), tmp_path / "at.ckpt"))
    for record in (fresh, other):
        close(record, 1201, layers=2, channels=4)
    assert fresh.reports == other.reports
    assert fresh.summaries()[-1]["global_step"] == 1201 * 20
    assert torch.equal(
        parted(fresh.state_dict()["history"])["layers"]["conv0"]["since"], torch.tensor([3, 0, 0, 0], dtype=torch.int32)
    )


def test_a_wide_network_keeps_fewer_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "MOST_BYTES", 300_000)
    record = Record()
    for index in range(200):
        close(record, index, layers=1, channels=2000)
    # 3 kB a report and 1 kB for each of its findings: 300 kB are room for fewer than a hundred of them
    assert record_module.LEAST_WINDOWS <= len(record.reports) <= 100
    assert record.reports[0].window == 0
    assert len(record.summaries()) == 200


def test_a_checkpoint_of_an_earlier_release_has_its_rows_from_its_reports(long: Record) -> None:
    record = Record()
    for index in range(5):
        close(record, index, layers=2, channels=4)
    state = record.state_dict()
    del state["summaries"]
    history = parted(state["history"])  # it was not in one piece
    state["history"] = history | {"clock": history["clock"].tolist()}
    fresh = Record()
    fresh.load_state_dict(state)
    assert str(fresh.summaries()) == str(record.summaries())


def test_rows_that_do_not_fit_the_reports_are_refused(long: Record) -> None:
    state = long.state_dict()
    state["summaries"]["rows"] = state["summaries"]["rows"][:-9]
    with pytest.raises(ValueError, match="expected 1201 summaries, but got \\[1200\\]"):
        Record().load_state_dict(state)


def test_a_row_of_a_window_whose_closing_was_interrupted_is_written_over() -> None:
    record, cut = Record(), Record()
    for index in range(3):
        close(record, index, layers=2, channels=4)
        close(cut, index, layers=2, channels=4)
    history, report = record._closed, record.reports[-1]
    close(cut, 3, layers=2, channels=4)
    cut._closed = history  # the swap did not come
    assert len(cut.summaries()) == 3
    assert len(cut.state_dict()["summaries"]["rows"]) == 3 * len(report.summary())
    close(cut, 3, layers=2, channels=4)
    close(record, 3, layers=2, channels=4)
    assert str(cut.summaries()) == str(record.summaries())


def test_packing_again_packs_the_new_reports_alone(long: Record) -> None:
    long.state_dict()
    sizes = sum(len(packed) for packed in long.state_dict()["reports"])
    assert sizes == sum(len(pack(report)) for report in long.reports)
    assert set(long._packed) == {report.window for report in long.reports}


def test_what_is_joined_comes_apart_as_it_was() -> None:
    state = {
        "numbers": [1, -2.5, math.inf, None, True, "é", 2**60 + 1, 0.1],
        "layer": {"<tensor>": torch.arange(6).view(2, 3), "none": torch.zeros(0, 3), "one": torch.tensor(3.0)},
        "more": [torch.tensor([True, False]), torch.tensor([0.1, math.nan], dtype=torch.float64), [[], {}]],
    }
    whole = parted(joined(state))
    assert str(whole) == str(state)
    assert parted(state) is state, "of an earlier release"


def test_a_deep_network_has_no_more_tensors_in_a_checkpoint_than_a_shallow_one() -> None:
    def pieces(state: Any) -> int:
        values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
        return isinstance(state, torch.Tensor) + sum(map(pieces, values))

    counts = []
    for layers in (2, 40):
        record = Record()
        for index in range(3):
            close(record, index, layers=layers, channels=4)
        counts.append(pieces(record.state_dict()))
    assert counts[0] == counts[1]
