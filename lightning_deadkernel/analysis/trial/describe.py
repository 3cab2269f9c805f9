"""From a trial to the document that says it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from lightning_deadkernel.analysis.trial.records import ArmOutcome, TrialRecord
from lightning_deadkernel.report.document import Block, Bullets, Document, Name, Paragraph, Section, Table, Text
from lightning_deadkernel.report.text import NOT_OBSERVED, number, ranges

_READING = (
    "Free: of the named, over the runs of an arm. In all: how many show it, of all that could. p: Fisher's exact test"
    " of the latter against chance, one-sided, adjusted for the number of changes (Holm); it takes kernels to be"
    " independent of one another. Sufficient: all named are free in every run, and p is below 0.05. As by chance: no"
    " difference from chance was seen."
)
_SHORT = {"no difference from chance": "as by chance"}
"""For a table's cell."""


def describe_trial(trial: TrialRecord) -> Document:
    """The answer, what it rests on, a table of arms, what was changed, and what could not be tried."""
    changed: list[Text] = [
        (Name(arm.name), f": {' '.join(arm.changes)}") for arm in trial.arms if arm.changes and arm.role == "change"
    ]
    failed: list[Text] = [(Name(arm.name), f": {arm.error}") for arm in trial.arms if arm.error]
    untried: list[Text] = [(Name(one.name), f": {one.why}") for one in trial.untried]
    asked = "; ".join(f"{layer}: {ranges(where)}" if where else layer for layer, where in trial.named.items())
    sections: tuple[tuple[str, Block | None], ...] = (
        ("Arms", _table(trial.arms, trial)),
        ("Changed", Bullets(tuple(changed)) if changed else None),
        ("Failed", Bullets(tuple(failed)) if failed else None),
        ("Not tried", Bullets(tuple(untried)) if untried else None),
        ("Notes", Bullets(tuple(trial.notes)) if trial.notes else None),
    )
    return Document(
        title=f"Trial: {trial.title}",
        verdict=trial.conclusion[0],
        blocks=(
            *(Paragraph(sentence) for sentence in trial.conclusion[1:]),
            Paragraph(f"Named: {asked}."),
            *([Paragraph(f"Stopped before its end: {trial.stopped}.", "strong")] if trial.stopped else []),
            *(Section(title, (block,)) for title, block in sections if block is not None),
            Paragraph(_READING),
        ),
    )


def _table(arms: Sequence[ArmOutcome], trial: TrialRecord) -> Table:
    named = sum(max(1, len(where)) for where in trial.named.values())
    metric = shown_metric(arms)
    columns: list[tuple[str, list[str]]] = [
        ("arm", [arm.name for arm in arms]),
        ("free", [_free(arm, named) for arm in arms]),
        ("in all", [_in_all(arm, trial.kernels) for arm in arms]),
        ("p", [number(arm.p_value) for arm in arms]),
        ("verdict", [_SHORT.get(arm.verdict, arm.verdict) or arm.role for arm in arms]),
    ]
    if any(run.problems for arm in arms for run in arm.runs if arm.role in ("change", "together")):
        columns.append(("problems", [_span([len(run.problems) for run in arm.runs]) for arm in arms]))
    if metric:
        columns.append((metric, [_mean([run.metrics.get(metric) for run in arm.runs]) for arm in arms]))
    steps = {run.steps for arm in arms for run in arm.runs}
    if len(steps) > 1:
        columns.append(("steps", [_span([run.steps for run in arm.runs]) for arm in arms]))
    headings, cells = zip(*columns, strict=True)
    right = tuple(heading not in ("arm", "verdict") for heading in headings)
    return Table(headings, tuple(zip(*cells, strict=True)), right)


def shown_metric(arms: Sequence[ArmOutcome]) -> str:
    """What the runs are compared by beside the finding: a loss on held-out data, else any loss; empty without one."""
    known = [set(run.metrics) for arm in arms for run in arm.runs]
    common = sorted(set.intersection(*known)) if known else []
    losses = [name for name in common if "loss" in name.lower()]
    return next((name for name in losses if "val" in name.lower()), losses[0] if losses else "")


def _free(arm: ArmOutcome, named: int) -> str:
    if not arm.runs or arm.role == "seed":
        return NOT_OBSERVED
    return f"{sum(run.free for run in arm.runs):,} of {named * len(arm.runs):,}"


def _in_all(arm: ArmOutcome, kernels: int) -> str:
    if not arm.runs:
        return NOT_OBSERVED
    found = sum(max(1, len(where)) for run in arm.runs for where in run.found.values())
    return f"{found:,} of {kernels * len(arm.runs):,}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return number(fmean(known)) if known else NOT_OBSERVED


def _span(values: Sequence[int]) -> str:
    if not values:
        return NOT_OBSERVED
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"
