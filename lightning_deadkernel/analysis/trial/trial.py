"""The trial: what its records say, with the forms in which to look at them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_deadkernel.analysis.trial.conclusion import conclude
from lightning_deadkernel.analysis.trial.describe import describe_trial
from lightning_deadkernel.analysis.trial.records import TrialRecord, Untried
from lightning_deadkernel.analysis.trial.verdict import Evidence
from lightning_deadkernel.figures import png, why_none
from lightning_deadkernel.figures.trial import Row, draw_trial
from lightning_deadkernel.report.console import renderable
from lightning_deadkernel.report.html import to_notebook
from lightning_deadkernel.report.markdown import to_markdown
from lightning_deadkernel.report.report import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

SCHEMA, VERSION = "lightning-deadkernel-trial", 1


@dataclass(frozen=True, repr=False)
class Trial(TrialRecord):
    """What training again showed of a finding."""

    @property
    def verdict(self) -> str:
        """The answer, in a sentence or two."""
        return self.conclusion[0]

    def to_json(self) -> str:
        """Strict JSON, see docs/trials.md."""
        return json.dumps({"schema": SCHEMA, "version": VERSION, **asdict(self)}, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The answer, what it rests on, and every arm."""
        return to_markdown(describe_trial(self))

    def plot(self) -> Figure:
        """One row an arm and run, one column a kernel.

        Raises:
            ImportError: where matplotlib is not installed.
        """
        rows = [
            Row(arm.name, _right(arm.verdict, self, [run.free for run in arm.runs]), [run.found for run in arm.runs])
            for arm in self.arms
            if arm.runs and arm.role != "seed"
        ]
        words = ("dead", "alive") if self.kind == "dead_channels" else ("shows it", "free of it")
        return draw_trial(rows, self.named, self.title, self.verdict, words)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write why.json, why.md and, where matplotlib is installed, why.png."""
        place = Path(folder)
        write_atomically(place / "why.json", self.to_json())
        write_atomically(place / "why.md", self.to_markdown())
        if why_none() is None:
            write_atomically(place / "why.png", png(self.plot()))

    def __str__(self) -> str:
        return "\n".join([self.title, *self.conclusion])

    def __repr__(self) -> str:
        return f"<Trial of {self.title}: {self.verdict}>"

    def _repr_html_(self) -> str:
        return to_notebook(describe_trial(self))

    def __rich__(self) -> RenderableType:
        return renderable(describe_trial(self))


def _right(verdict: str, trial: TrialRecord, free: Sequence[int]) -> str:
    named = sum(max(1, len(where)) for where in trial.named.values())
    return f"{sum(free):,} of {named * len(free):,} free" + (f": {verdict}" if verdict else "")


def judge(evidence: Evidence, untried: Sequence[Untried], stopped: str, notes: Sequence[str]) -> Trial:
    """What the runs show of the target; the rest is as in `TrialRecord`."""
    arms, seeds, target = evidence.outcomes(), evidence.overlap(), evidence.target
    return Trial(
        title=target.title,
        kind=target.kind,
        causes=list(target.causes),
        named=target.by_layer(target.named),
        kernels=target.kernels,
        reproduced=evidence.reproduced,
        bit_for_bit=evidence.bit_for_bit,
        arms=arms,
        seeds=seeds,
        untried=list(untried),
        conclusion=conclude(evidence, arms, seeds),
        stopped=stopped,
        notes=list(notes),
    )
