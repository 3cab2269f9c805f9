"""Where a report goes: files, loggers, console. Rank zero only."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_deadkernel import figures
from lightning_deadkernel.loggers import RunLog, report_folder
from lightning_deadkernel.report.console import print_document
from lightning_deadkernel.report.describe import describe_briefly
from lightning_deadkernel.report.report import Report, write_atomically
from lightning_deadkernel.training.never_raise import warn_internal
from lightning_deadkernel.training.options import Options

DRAWING_SHARE = 0.05
"""Pictures are drawn at a window's end only while drawing has taken less than this share of the run's time, so that
short windows are not held up; at the first window's end and at the end of fit they always are."""

LONG = 2.0
"""Seconds after which the next window's end says what it is doing."""

_folders: WeakKeyDictionary[Any, set[Path]] = WeakKeyDictionary()
"""Trainer -> the folders that its monitors write to: two of them do not write over one another."""


class Outputs:
    """One run's outlets. Each part (a file, a picture, the loggers, the console) is apart from the others: one that
    fails is named once, and is tried again at the next window.

    Args:
        options: the monitor's.
        trainer: for its loggers and folders.
    """

    def __init__(self, options: Options, trainer: Any) -> None:
        self._options, self._trainer = options, trainer
        self._began = time.monotonic()
        self._drawing = 0.0
        self._took = 0.0
        self._pictures: dict[str, bytes] = {}
        self._drawn_window = 0
        self._step = 0
        self._text: str | None = None
        self._window = -1
        self._done: set[str] = set()
        """Parts of this window's output that were tried."""
        self._named: set[str] = set()
        """Parts that failed, and what else need not be told again."""
        self._folder: Path | None = None
        self._log: RunLog | None = None

    def window(self, reports: list[Report], step: int) -> None:
        """A window has closed: save its report, draw it if there is time for that, and log it. Called again for the
        same window, it goes on where it was interrupted.

        Args:
            reports: all so far, oldest first; index 0 is the state at initialisation.
            step: the x-axis of the trainer's own metrics.
        """
        if not self._trainer.is_global_zero:
            return
        began, report = time.monotonic(), reports[-1]
        if self._window != report.window:
            self._window, self._step, self._done = report.window, step, set()
            self._text = None
        self._try("the report's folder", self._find_folder)
        self._try("to the loggers", self._find_loggers)
        self._tell("saving the report")
        self._save("report.json", report.save)
        self._try("the report in words", lambda: self._describe(report))
        if (text := self._text) is not None:
            self._save("report.md", lambda path: write_atomically(path, text))
        if self._can_draw(report) and self._has_time_to_draw(began):
            self._try("the pictures", lambda: self._draw(reports))
        self._tell("logging")
        pictures = self._pictures if self._drawn_window == report.window else {}
        self._to_loggers(
            "to the loggers what they show", lambda log: log.log(report, step, text=text, pictures=pictures)
        )
        self._took = time.monotonic() - began

    def end(self, reports: list[Report]) -> None:
        """Fit has ended: the last pictures, the report as one page, and the table on the console."""
        if not self._trainer.is_global_zero:
            return
        report = reports[-1]
        if self._drawn_window < report.window and self._can_draw(report):
            self._try("the last pictures", lambda: self._draw(reports))
            self._to_loggers("the last pictures to the loggers", lambda log: log.pictures(self._pictures, self._step))
        self._save("report.html", lambda path: report.save(path, self._pictures))
        folder = self._folder
        if folder is not None:
            self._to_loggers("the files to the loggers", lambda log: log.files(folder))
        self._try("the table", lambda: print_document(describe_briefly(report, self._place())))

    # -- parts ---------------------------------------------------------------------------------------------------

    def _try(self, part: str, write: Callable[[], None]) -> None:
        """One part, once a window."""
        if part in self._done:
            return
        try:
            write()
        except Exception as error:  # a full disk, a broken font: nothing of that may reach the training
            if part not in self._named:
                self._named.add(part)
                warn_internal(f"could not write {part} this time: {type(error).__name__}: {error}.")
        self._done.add(part)

    def _place(self) -> str:
        """Where the report is, for the last line on the console; empty where it is not saved."""
        if self._folder is None:
            return ""
        page = self._folder / "report.html"
        return str(page if page.is_file() else self._folder)

    def _find_folder(self) -> None:
        if self._folder is None and self._options.save_report and not self._trainer.fast_dev_run:
            folder = report_folder(self._trainer.loggers, self._trainer.default_root_dir)
            taken = _folders.setdefault(self._trainer, set())
            if folder in taken:
                folder = folder / f"monitor_{len(taken) + 1}"
            taken.add(folder)
            self._folder = folder

    def _find_loggers(self) -> None:
        if self._log is None:
            layers, histograms = self._options.log_layers, self._options.log_histograms
            self._log = RunLog(self._trainer.loggers, layers=layers, histograms=histograms)

    def _describe(self, report: Report) -> None:
        if self._folder is not None or self._trainer.loggers:
            self._text = report.to_markdown()

    def _save(self, name: str, write: Callable[[Path], None]) -> None:
        folder = self._folder
        if folder is not None:
            self._try(name, lambda: write(folder / name))

    def _to_loggers(self, part: str, write: Callable[[RunLog], None]) -> None:
        log = self._log
        if log is not None and self._trainer.loggers:
            self._try(part, lambda: write(log))

    def _can_draw(self, report: Report) -> bool:
        if not self._options.log_figures or report.window == 0:
            return False
        reason = figures.why_none()
        if reason is not None:
            self._say_once(reason, reason)
        return reason is None

    def _has_time_to_draw(self, now: float) -> bool:
        return self._drawn_window == 0 or self._drawing < DRAWING_SHARE * (now - self._began)

    def _draw(self, reports: list[Report]) -> None:
        self._tell("drawing")
        began = time.monotonic()
        self._pictures, faults = figures.draw_all(reports)
        for name, fault in faults.items():
            self._say_once(f"picture {name}", f"the picture {name} could not be drawn ({fault}); the others were.")
        self._drawing += time.monotonic() - began
        self._drawn_window = reports[-1].window
        for name, picture in self._pictures.items():
            self._save(f"{name}.png", partial(write_atomically, content=picture))

    def _say_once(self, part: str, text: str) -> None:
        if part not in self._named:
            self._named.add(part)
            rank_zero_info(f"DeadKernelMonitor: {text}")

    def _tell(self, what: str) -> None:
        if self._took > LONG:
            rank_zero_info(f"DeadKernelMonitor: {what} ...")
