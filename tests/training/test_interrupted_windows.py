"""An interrupt at any line of a window's end: what is left is a true report of what was seen till then."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import lightning_deadkernel
from helpers.models import DEAD, Tiny, dead
from helpers.training import quiet
from helpers.twins import train
from lightning_deadkernel import Report
from lightning_deadkernel.training.run import Run

PACKAGE = str(Path(lightning_deadkernel.__file__).parent)
PARTS = ("evidence", "training", "diagnosis", "monitor.py")
"""Where an interrupt could leave something half done; the rest of the package keeps nothing between two calls."""
POINTS = 40
SWAPPING, LAST = ("run.py", "record.py", "schedule.py", "open_window.py"), 400
"""Files where one window gives way to the next, towards the end: there each line is tried."""
ENDLESS = 10**9


class Interruption:
    """Raises at the nth line that the package runs in some methods of a run, once the first window is closed."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines: list[str] = []
        """The file of each line that ran."""
        self.raised = False

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if self.raised or not path.startswith(PACKAGE) or not path[len(PACKAGE) + 1 :].startswith(PARTS):
            return None
        if event == "line":
            self.lines.append(Path(path).name)
            if len(self.lines) == self.at:
                self.raised = True
                raise SystemExit("an interrupt")
        return self.trace

    def traced(self, method: Any) -> Any:
        def run(of: Run, *args: Any, **options: Any) -> None:
            before = sys.gettrace()
            sys.settrace(self.trace if len(of.record.reports) == 2 and not self.raised else before)
            try:
                method(of, *args, **options)
            finally:
                sys.settrace(before)

        return run


def interrupted(monkeypatch: pytest.MonkeyPatch, methods: Sequence[str], at: int) -> tuple[Any, Interruption]:
    """A training that is interrupted in its second window, and its monitor."""
    interruption = Interruption(at)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in methods:
            patch.setattr(Run, name, interruption.traced(getattr(Run, name)))
        monitor = quiet(save_report=True)
        raises = SystemExit if at < ENDLESS else None
        train(Tiny, monitor, raises=raises, max_epochs=2, log_every_n_steps=3, default_root_dir=Path.cwd())
    return monitor, interruption


def check(monitor: Any, whole: list[Report]) -> None:
    """The reports are those of the whole training, but for the batches that the last has not seen."""
    assert [report.window for report in monitor.reports] == list(range(len(monitor.reports)))
    for report, other in zip(monitor.reports, whole, strict=False):
        assert [layer.name for layer in report.layers] == [layer.name for layer in other.layers]
        assert [(f.kind, f.layer) for f in report.findings] == [(f.kind, f.layer) for f in other.findings]
    last = monitor.report
    assert last.samples == 8 * last.batches
    assert dead(last) == DEAD
    newest = Report.load(max(Path().rglob("report.json"), key=lambda path: path.stat().st_mtime_ns))
    assert (newest.window, newest.batches) == (last.window, last.batches)
    assert dead(newest) == DEAD


@pytest.mark.parametrize(
    ("methods", "batches"),
    [(("end_batch",), range(1, 7)), (("begin_batch", "before_backward", "after_backward"), range(7))],
    ids=["a window's end", "a step"],
)
def test_an_interrupt_at_any_line_leaves_a_true_report(
    monkeypatch: pytest.MonkeyPatch, methods: Sequence[str], batches: range
) -> None:
    whole, run = interrupted(monkeypatch, methods, at=ENDLESS)
    assert len(run.lines) > 200
    points = set(range(1, len(run.lines) + 1, max(1, len(run.lines) // POINTS)))
    points |= {at for at, file in enumerate(run.lines, 1) if file in SWAPPING and len(run.lines) - at < LAST}
    for at in sorted(points):
        monitor, interruption = interrupted(monkeypatch, methods, at)
        assert interruption.raised
        check(monitor, whole.reports)
        assert (monitor.report.window, monitor.report.batches) in [(1, 6), *((2, seen) for seen in batches)]
