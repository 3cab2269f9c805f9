"""Where a report goes: files, loggers, console. Rank zero only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from weakref import WeakKeyDictionary

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_deadkernel import figures
from lightning_deadkernel.loggers import RunLog, report_folder
from lightning_deadkernel.report.console import print_document, write
from lightning_deadkernel.report.describe import describe_briefly
from lightning_deadkernel.report.report import Report, write_atomically
from lightning_deadkernel.training.description import why_command
from lightning_deadkernel.training.never_raise import warn_internal
from lightning_deadkernel.training.options import Options
from lightning_deadkernel.training.trainer import end_progress_bar

DRAWING, WRITING = (0.02, 1.5), (0.01, 0.02)
"""Of pictures, and of files and words: the share of the run's time that they may take at window ends, so that short
windows are not held up, and the seconds that the first time is taken to need. At the end of a run they are always made.
"""

LONG = 2.0
"""Seconds after which the next window's end says what it is doing."""

_folders: WeakKeyDictionary[Any, set[Path]] = WeakKeyDictionary()
"""Trainer -> the folders that its monitors write to: two of them do not write over one another."""


class Budget:
    """Time for one kind of work: while what it has taken, and will take if it takes as long again, is within a share of
    the time that has passed.

    Args:
        share: of that time.
        expected: seconds that the first time will take.
    """

    def __init__(self, share: float, expected: float) -> None:
        self._share, self._expected = share, expected
        self._began, self._spent = time.monotonic(), 0.0

    def allows(self) -> bool:
        """Whether there is time now."""
        return self._spent + self._expected <= self._share * (time.monotonic() - self._began)

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Around the work."""
        began = time.monotonic()
        try:
            yield
        finally:  # what fails has taken its time as well
            self._expected = time.monotonic() - began
            self._spent += self._expected


class Outputs:
    """One run's outlets. Each part (a file, a picture, the loggers, the console) is apart from the others: one that
    fails is named once, and is tried again at the next window."""

    def __init__(self, options: Options, trainer: Any) -> None:
        self._options, self._trainer = options, trainer
        self._drawing, self._writing = Budget(*DRAWING), Budget(*WRITING)
        self._took = 0.0
        self._drawn = figures.Drawn({}, {}, {})
        self._drawn_window = 0
        self._step = 0
        self._window = -1
        self._done: set[str] = set()
        """Parts of this window's output that were tried."""
        self._named: set[str] = set()
        """Parts that failed, and what else need not be told again."""
        self._folder: Path | None = None
        self._log: RunLog | None = None

    def window(self, reports: list[Report], step: int) -> None:
        """A window has closed: log it, and save and draw it if there is time for that. Called again for the same
        window, it goes on where it was interrupted."""
        if not self._trainer.is_global_zero:
            return
        began, report = time.monotonic(), reports[-1]
        self._turn_to(report)
        self._step = step
        self._tell("logging")
        self._to_loggers("scalars", lambda log: log.scalars(report, step))
        self._to_loggers("histograms", lambda log: log.histograms(report, step))
        if report.window and self._writing.allows():
            self.save(reports)
        if self._can_draw(report) and self._drawing.allows():
            self._try("the pictures", lambda: self._draw(reports))
        self._took = time.monotonic() - began

    def save(self, reports: list[Report]) -> None:
        """Writes the last report to its files and in words to the loggers, if that is not done yet."""
        if not self._trainer.is_global_zero or not reports:
            return
        report = reports[-1]
        self._turn_to(report)
        self._tell("saving the report")
        with self._writing.spent():
            self._save("report.json", report.save)
            self._try("the report in words", lambda: self._describe(report))

    def end(self, reports: list[Report]) -> None:
        """Training has ended: the report, the last pictures, and both as one page."""
        if not self._trainer.is_global_zero:
            return
        report = reports[-1]
        self.save(reports)
        if self._drawn_window < report.window and self._can_draw(report):
            self._say("drawing the pictures ...")
            self._try("the last pictures", lambda: self._draw(reports))
        self._save_page(report)
        if (folder := self._folder) is not None:
            self._to_loggers("files", lambda log: log.files(folder))

    def last_word(self, reports: list[Report], in_full: bool) -> None:
        """The last that is seen on the console: the table, and where all of it is.

        Args:
            reports: all, oldest first.
            in_full: the training has come to its end; else where the report is, of what was seen until it broke off.
        """
        if not self._trainer.is_global_zero or not reports or not reports[-1].window:
            return
        end_progress_bar(self._trainer)
        if in_full:
            self._try("the table", lambda: print_document(describe_briefly(reports[-1])))
        else:
            self._save_page(reports[-1])
        command = why_command(self._trainer) if in_full and reports[-1].problems else ""
        if command:
            write(f"Which change would have spared them: {command}\n", sys.stdout)
        if (place := self._place()) and in_full:  # in a line of its own, however long: it is there to be copied
            write(f"The whole report: {place}\n", sys.stdout)
        elif place:
            self._say(f"the report of what was seen until then: {place}")

    def _turn_to(self, report: Report) -> None:
        if self._window != report.window:
            self._window, self._done = report.window, set()

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
        if self._options.save_report and not self._trainer.fast_dev_run:
            folder = report_folder(self._trainer.loggers, self._trainer.default_root_dir)
            taken = _folders.setdefault(self._trainer, set())
            if folder in taken:
                folder = folder / f"monitor_{len(taken) + 1}"
            folder.mkdir(exist_ok=True)
            with TemporaryFile(dir=folder):  # one that takes no files is told once, and not for each of them
                pass
            taken.add(folder)
            self._folder = folder

    def _find_loggers(self) -> None:
        layers, histograms = self._options.log_layers, self._options.log_histograms
        self._log = RunLog(self._trainer.loggers, layers=layers, histograms=histograms)

    def _describe(self, report: Report) -> None:
        if self._folder is not None or self._trainer.loggers:
            whole, narrow = report.to_markdown(), report.to_markdown(narrow=True)
            self._save("report.md", lambda path: write_atomically(path, whole))
            self._to_loggers("the report in words", lambda log: log.text(narrow, self._step))

    def _save(self, name: str, write: Callable[[Path], None]) -> None:
        if self._folder is None:
            self._try("the report's folder", self._find_folder)
        if (folder := self._folder) is not None:
            self._try(name, lambda: write(folder / name))

    def _save_page(self, report: Report) -> None:
        self._save("report.html", lambda path: report.save(path, self._drawn.for_page()))

    def _to_loggers(self, part: str, write: Callable[[RunLog], None]) -> None:
        if self._log is None and self._trainer.loggers:
            self._try("to the loggers", self._find_loggers)
        if (log := self._log) is not None:
            self._try(f"{part} to the loggers", lambda: write(log))

    def _can_draw(self, report: Report) -> bool:
        if not self._options.log_figures or report.window == 0:
            return False
        reason = figures.why_none()
        if reason is not None:
            self._say_once(reason, reason)
        return reason is None

    def _draw(self, reports: list[Report]) -> None:
        self._tell("drawing")
        with self._drawing.spent():
            self._drawn = figures.draw_all(reports)
        for name, fault in self._drawn.faults.items():
            self._say_once(f"picture {name}", f"the picture {name} could not be drawn ({fault}); the others were.")
        self._drawn_window = reports[-1].window
        for name, picture in self._drawn.pictures.items():
            self._save(f"{name}.png", partial(write_atomically, content=picture))
        self._to_loggers("the pictures", lambda log: log.pictures(self._drawn.pictures, self._step))

    def _say_once(self, part: str, text: str) -> None:
        if part not in self._named:
            self._named.add(part)
            self._say(text)

    def _tell(self, what: str) -> None:
        if self._took > LONG:
            self._say(f"{what} ...")

    def _say(self, text: str) -> None:
        rank_zero_info(f"DeadKernelMonitor: {text}")
