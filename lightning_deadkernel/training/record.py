"""What the closed windows left: reports, history and warnings given; and its part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.report.codec import pack, unpack
from lightning_deadkernel.report.records import Finding
from lightning_deadkernel.report.report import Report

VERSION = 1


class Closed(NamedTuple):
    """All windows closed so far."""

    reports: list[Report]
    history: History


class Record:
    """The closed windows of a training, over all of its fits."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A new training begins: not the one that the reports are about."""
        self._closed = Closed([], History())
        self.warned: set[tuple[str, str | None]] = set()
        """Kinds and layers of the findings that need not be told again."""
        self._packed: dict[int, Tensor] = {}
        """Window -> its packed report, kept from one checkpoint to the next: a long run has hundreds of them."""

    @property
    def reports(self) -> list[Report]:
        """One report per closed window, oldest first; index 0 is the state at initialisation."""
        return self._closed.reports

    @property
    def next_index(self) -> int:
        """Index of the window that is open, or is to be opened."""
        return self.reports[-1].window + 1 if self.reports else 0

    def copy_of_history(self) -> History:
        """To be added to while a window closes: an interrupt in the middle of that leaves the record as it was."""
        copy = History()
        copy.load_state_dict(self._closed.history.state_dict())
        return copy

    def append(self, report: Report, history: History) -> None:
        """A window has closed; all of it is here, or nothing."""
        before = [*self.reports[:-1], *(last.compact() for last in self.reports[-1:])]
        self._closed = Closed([*before, report], history)

    def restrict(self, channels: Mapping[str, int]) -> list[str]:
        """Fits the history to the layers that there are (name -> channels); gives those whose history is dropped."""
        return self._closed.history.restrict(channels)

    def add_warned(self, findings: Sequence[Finding]) -> None:
        """These need not be told again."""
        self.warned = self.warned | {(finding.kind, finding.layer) for finding in findings}

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, lists, strings and numbers, as weights-only loading asks."""
        for report in self.reports:
            if report.window not in self._packed:
                self._packed[report.window] = pack(report)
        return {
            "version": VERSION,
            "reports": [self._packed[report.window] for report in self.reports],
            "history": self._closed.history.state_dict(),
            "said": [list(pair) for pair in sorted(self.warned, key=str)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces this record by a saved one.

        Raises:
            ValueError: the state was written by a newer version, or is damaged.
        """
        if state.get("version", 0) > VERSION:
            raise ValueError(f"its version is {state['version']}, and this one reads up to {VERSION}")
        history = History()
        history.load_state_dict(state["history"])
        warned = {(str(kind), layer) for kind, layer in state["said"]}
        self._closed = Closed([unpack(Report, packed) for packed in state["reports"]], history)
        self.warned, self._packed = warned, {}
