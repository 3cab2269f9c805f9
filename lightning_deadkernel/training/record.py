"""What the closed windows left: reports, history and warnings given; and its part of a checkpoint."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.diagnose import first_sight
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.observation import Window
from lightning_deadkernel.report.codec import pack, unpack
from lightning_deadkernel.report.records import Finding
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.training.checkpoint import joined, parted

VERSION = 1
MOST_WINDOWS = 512
"""Reports that are kept of a run, however long: more than a picture of it can show."""
LEAST_WINDOWS = 32
MOST_BYTES = 128_000_000
"""What they may take in memory: of wide or deep networks fewer are kept."""


class Closed(NamedTuple):
    """All windows closed so far."""

    reports: list[Report]
    history: History


class Record:
    """The closed windows of a training, over all of its fits.

    What grows with the windows is a row of numbers each, and their end by the clock in the history.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A new training begins: not the one that the reports are about."""
        self._closed = Closed([], History())
        self.warned: set[tuple[str, str | None]] = set()
        """Kinds and layers of the findings that need not be told again."""
        self.since: dict[str, str] = {}
        """Layer -> since when it is frozen; or since when it is watched, and why, where that was not from the start."""
        self.gone: list[str] = []
        """Which layers left the model in the open window, and when."""
        self._packed: dict[int, Tensor] = {}
        """Window -> its packed report, kept from one checkpoint to the next: a long run has hundreds of them."""
        self._names: list[str] = []
        """Of the numbers in a row."""
        self._rows = array("d")
        """Summaries, one window after another; beyond the closed ones that of a window whose closing was cut short."""

    @property
    def reports(self) -> list[Report]:
        """The reports that are kept, oldest first; index 0 is the state at initialisation."""
        return self._closed.reports

    @property
    def next_index(self) -> int:
        """Index of the window that is open, or is to be opened."""
        return self.reports[-1].window + 1 if self.reports else 0

    def copy_of_history(self) -> History:
        """To be added to while a window closes: an interrupt in the middle of that leaves the record as it was."""
        return self._closed.history.copy()

    def append(self, report: Report, history: History) -> None:
        """A window has closed; all of it is here, or nothing."""
        before = [*self.reports[:-1], *(last.compact() for last in self.reports[-1:])]
        summary = report.summary()
        self._names = list(summary)
        self._rows[len(summary) * report.window :] = array("d", summary.values())
        self._closed, self.gone = Closed(_thinned([*before, report]), history), []

    def summaries(self) -> list[dict[str, float]]:
        """One row a closed window, oldest first: ``window``, ``epoch``, ``global_step``, and the report's summary."""
        wide = len(self._names)
        rows = []
        for window in range(self.next_index):
            epoch, step = self._closed.history.clock(window)
            numbers = zip(self._names, self._rows[wide * window : wide * (window + 1)], strict=True)
            rows.append({"window": window, "epoch": epoch, "global_step": step, **dict(numbers)})
        return rows

    def restrict(self, channels: Mapping[str, int]) -> list[str]:
        """Fits the history to the layers that there are (name -> channels); gives those whose history is dropped."""
        return self._closed.history.restrict(channels)

    def follow(self, names: Mapping[str, str], came: Window, thresholds: Thresholds) -> None:
        """Takes up the layers that there are now: all of it is here, or nothing. `names`: what those that stay were
        called -> what they are; `came`: the weights of those that have come."""
        history = self.copy_of_history()
        history.follow(names)
        first_sight(came, history, thresholds)
        self._closed = Closed(self.reports, history)
        self.warned = {(kind, layer and names[layer]) for kind, layer in self.warned if layer is None or layer in names}
        self.since = {names[name]: since for name, since in self.since.items() if name in names}

    def add_warned(self, findings: Sequence[Finding]) -> None:
        """These need not be told again."""
        self.warned = self.warned | {(finding.kind, finding.layer) for finding in findings}

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, lists, strings and numbers, as weights-only loading asks."""
        known = self._packed
        self._packed = {r.window: known[r.window] if r.window in known else pack(r) for r in self.reports}
        rows = np.array(self._rows)[: len(self._names) * self.next_index]
        return {
            "version": VERSION,
            "reports": list(self._packed.values()),
            "summaries": {"names": list(self._names), "rows": torch.from_numpy(rows)},
            "history": joined(self._closed.history.state_dict()),
            "since": dict(self.since),
            "gone": list(self.gone),
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
        history.load_state_dict(parted(state["history"]))
        warned = {(str(kind), layer) for kind, layer in state["said"]}
        reports = [unpack(Report, packed) for packed in state["reports"]]
        names, rows = _rows(reports, state.get("summaries"))
        self._closed, self._names, self._rows = Closed(reports, history), names, rows
        self.warned, self._packed = warned, {}
        self.since = {str(name): str(since) for name, since in state.get("since", {}).items()}
        self.gone = [str(text) for text in state.get("gone", ())]


def _rows(reports: Sequence[Report], saved: Mapping[str, Any] | None) -> tuple[list[str], array[float]]:
    """The summaries' names and rows, as of this version; of a checkpoint that has none, those of its reports."""
    summaries = [report.summary() for report in reports]
    names = list(summaries[-1]) if summaries else []
    if saved is None:
        return names, array("d", [value for summary in summaries for value in summary.values()])
    columns = dict(zip(saved["names"], saved["rows"].view(-1, max(1, len(saved["names"]))).unbind(1), strict=False))
    closed = reports[-1].window + 1 if reports else 0
    if any(len(column) != closed for column in columns.values()):
        raise ValueError(f"expected {closed} summaries, but got {sorted({len(column) for column in columns.values()})}")
    unknown = torch.full((closed,), math.nan, dtype=torch.float64)
    table = [columns.get(name, unknown) for name in names]
    return names, array("d", torch.stack(table, 1).flatten().tolist() if table else [])


def _thinned(reports: list[Report]) -> list[Report]:
    """The newer half of what may be kept, and of the older windows every second, fourth, eighth, ..."""
    last = reports[-1].window
    most = max(LEAST_WINDOWS, min(MOST_WINDOWS, MOST_BYTES // _size(reports[-1])))
    recent, stride = most // 2, 1
    while (last - recent) // stride > recent:
        stride *= 2
    return [report for report in reports if last - report.window < recent or report.window % stride == 0]


def _size(report: Report) -> int:
    """About how many bytes of memory a compact report takes."""
    codes = sum(layer.channels for layer in report.layers)
    indices = sum(len(finding.channels) for finding in report.findings)
    return 1024 * (1 + len(report.layers) + len(report.findings)) + codes + 36 * indices
