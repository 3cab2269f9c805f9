"""What is told of a trial while it runs: a line for each training that ends, and how long the rest will take."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from typing_extensions import Self

from lightning_deadkernel.analysis.trial.records import Failed, Run
from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.text import count


class Progress:
    """A bar where standard error is a terminal, and lines everywhere."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(
            *columns,
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("trainings", total=0, left="")
        self._planned = self._done = 0
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def add(self, trainings: int) -> None:
        """So many more are to be made."""
        self._planned += trainings
        self._bar.update(self._task, total=self._planned)

    def tick(self) -> None:
        """Time has passed."""
        if self._console.is_terminal:
            self._bar.refresh()

    def ended(self, one: Run | Failed, again: bool, at_a_time: int) -> None:
        """One has ended.

        Args:
            one: the training.
            again: it was made in an earlier trial.
            at_a_time: how many run at once.
        """
        self._done += 1
        if isinstance(one, Run):
            what = one.report.problems[0].title if one.report.problems else "no problem"
            if not again:
                self._seconds.append(one.seconds)
        else:
            what = one.error
        took = "" if isinstance(one, Failed) else " (kept from before)" if again else f" ({one.seconds:.0f} s)"
        left = self._left(at_a_time)
        order = f", run {one.job.order + 1}" if one.job.order else ""
        tail = f"; about {left} left" if left and not self._console.is_terminal else ""
        self._console.print(printable(f"{self._done}/{self._planned} {one.job.arm.name}{order}: {what}{took}{tail}"))
        self._bar.update(self._task, completed=self._done, left=f"about {left} left" if left else "")

    def _left(self, at_a_time: int) -> str:
        if not self._seconds or self._done >= self._planned:
            return ""
        seconds = sum(self._seconds) / len(self._seconds) * -(-(self._planned - self._done) // at_a_time)
        return count(max(1, round(seconds)), "second") if seconds < 100 else count(round(seconds / 60), "minute")
