"""Where a report goes: files, loggers, console. Rank zero only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_deadkernel import figures
from lightning_deadkernel.loggers import RunLog, report_folder
from lightning_deadkernel.report.console import print_document
from lightning_deadkernel.report.describe import describe_briefly
from lightning_deadkernel.report.report import Report, write_atomically
from lightning_deadkernel.training.options import Options

DRAWING_SHARE = 0.05
"""Pictures are drawn at a window's end only while drawing has taken less than this share of the run's time, so that
short windows are not held up; at the first window's end and at the end of fit they always are."""

LONG = 2.0
"""Seconds after which the next window's end says what it is doing."""


class Outputs:
    """One run's outlets.

    Args:
        options: the monitor's.
        trainer: for its loggers and folders.
    """

    def __init__(self, options: Options, trainer: Any) -> None:
        self.rank_zero: bool = trainer.is_global_zero
        self.with_figures: bool = options.log_figures
        self.folder: Path | None = None
        self._began = time.monotonic()
        self._drawing = 0.0
        self._took = 0.0
        self._pictures: dict[str, bytes] = {}
        self._drawn_window = 0
        self._step = 0
        self._told: set[str] = set()
        if not self.rank_zero:
            return
        if options.save_report and not trainer.fast_dev_run:
            self.folder = report_folder(trainer.loggers, trainer.default_root_dir)
        self._has_loggers = bool(trainer.loggers)
        self.log = RunLog(trainer.loggers, layers=options.log_layers, histograms=options.log_histograms)

    def window(self, reports: list[Report], step: int) -> None:
        """A window has closed: save its report, draw it if there is time for that, and log it.

        Args:
            reports: all so far, oldest first; index 0 is the state at initialisation.
            step: the x-axis of the trainer's own metrics.
        """
        if not self.rank_zero:
            return
        began, report, self._step = time.monotonic(), reports[-1], step
        if self.folder is not None:
            self._tell("saving the report")
            report.save(self.folder / "report.json")
        text = report.to_markdown() if self.folder is not None or self._has_loggers else None
        if self.folder is not None and text is not None:
            write_atomically(self.folder / "report.md", text)
        pictures = self._draw(reports) if self._may_draw(report, began) else {}
        self._tell("logging")
        self.log.log(report, step, text=text, pictures=pictures)
        self._took = time.monotonic() - began

    def end(self, reports: list[Report]) -> None:
        """Fit has ended: the last pictures, the report as one page, and the table on the console."""
        if not self.rank_zero:
            return
        report = reports[-1]
        if self.with_figures and self._drawn_window < report.window:
            self.log.pictures(self._draw(reports), self._step)
        if self.folder is not None:
            report.save(self.folder / "report.html", self._pictures)
            self.log.files(self.folder)
        print_document(describe_briefly(report))
        if self.folder is not None:
            rank_zero_info(f"DeadKernelMonitor: the report is in {self.folder}")

    def _may_draw(self, report: Report, now: float) -> bool:
        if not self.with_figures or report.window == 0:
            return False
        return self._drawn_window == 0 or self._drawing < DRAWING_SHARE * (now - self._began)

    def _draw(self, reports: list[Report]) -> dict[str, bytes]:
        reason = figures.why_none(reports[-1])
        if reason is not None:
            self._say_once(reason)
            self.with_figures = False
            return {}
        self._tell("drawing")
        began = time.monotonic()
        self._pictures, faults = figures.draw_all(reports)
        for name, fault in faults.items():
            self._say_once(f"the picture {name} could not be drawn ({fault}); the others were.")
        if self.folder is not None:
            for name, png in self._pictures.items():
                write_atomically(self.folder / f"{name}.png", png)
        self._drawing += time.monotonic() - began
        self._drawn_window = reports[-1].window
        return self._pictures

    def _tell(self, what: str) -> None:
        if self._took > LONG:
            rank_zero_info(f"DeadKernelMonitor: {what} ...")

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            rank_zero_info(f"DeadKernelMonitor: {text}")
