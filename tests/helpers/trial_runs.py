"""Runs of a trial made by hand: which kernels are dead in each, and nothing was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

from helpers.example_reports import healthy_report
from helpers.reports import codes, finding
from lightning_deadkernel import Report
from lightning_deadkernel.analysis.trial.conduct import conduct
from lightning_deadkernel.analysis.trial.records import Arm, Failed, Job, Run
from lightning_deadkernel.analysis.trial.trial import Trial
from lightning_deadkernel.report.records import ChannelValues, LayerReport

CHANNELS = 16
_FRESH = count()


def dead_report(dead: Mapping[str, Sequence[int]], mark: float = 0.0, channels: int = CHANNELS) -> Report:
    """A report of conv1 and conv2 with these dead kernels; reports of equal marks are equal to the last bit."""
    layers = tuple(
        LayerReport(
            name=name,
            kind="Conv2d",
            channels=channels,
            depth=0,
            activation="relu",
            codes=codes(channels, {"dead": tuple(dead.get(name, ()))}),
            values=ChannelValues(norms=[mark] * channels),
        )
        for name in ("conv1", "conv2")
    )
    found = tuple(finding("dead_channels", name, where, of=channels) for name, where in dead.items() if where)
    return replace(healthy_report(), layers=layers, findings=found, problems=())


def trial_of(
    outcome: Callable[[Job], object],
    arms: Sequence[str] = ("a change",),
    seeds: int = 2,
    combine: bool = True,
    repeats: bool = True,
    **options: object,
) -> Trial:
    """A trial whose trainings come out as told.

    Args:
        outcome: of a job, layer -> dead kernels; a text: why it failed; an exception: is raised.
        arms: changes to try.
        seeds: runs of each.
        combine: whether changes can be made together.
        repeats: whether what is trained twice is the same to the last bit.
    """

    def perform(jobs: Sequence[Job]) -> Iterator[Run | Failed]:
        for job in jobs:
            given = outcome(job)
            if isinstance(given, BaseException):
                raise given
            if isinstance(given, str):
                yield Failed(job, given)
                continue
            assert isinstance(given, dict)
            unchanged = job.arm.role == "control" and repeats
            yield Run(job, dead_report(given, 0.0 if unchanged else 1.0 + next(_FRESH)))

    made = [Arm(name, "change", (f"--{name}",)) for name in arms]
    together = (lambda some: tuple(change for arm in some for change in arm.changes)) if combine else None
    return conduct(perform, lambda run, target: (made, []), seeds, combine=together, **options)  # type: ignore[arg-type]
