"""From the runs of a trial to what they show: every arm against chance, by exact counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from lightning_deadkernel.analysis.trial.records import (
    Arm,
    ArmOutcome,
    Failed,
    Job,
    Overlap,
    Role,
    Run,
    RunOutcome,
    Site,
)
from lightning_deadkernel.analysis.trial.statistics import SIGNIFICANT, fisher, holm, overlap
from lightning_deadkernel.analysis.trial.target import Target, TargetError

MOST_SEEDS = 30
"""Runs of each arm that are worth proposing."""


class Counts(NamedTuple):
    """How many show the finding."""

    found: int
    runs: int
    kernels: int
    """That could, in each run."""

    @property
    def size(self) -> int:
        """That could, in all runs."""
        return self.runs * self.kernels


class Evidence:
    """The runs of a trial by their arms, held against its target.

    Args:
        target: what is asked about.
        reference: the run in which it was found.
        ended: what was run.
        planned: what was meant to be run.
    """

    def __init__(self, target: Target, reference: Run, ended: Sequence[Run | Failed], planned: Sequence[Job]) -> None:
        self.target, self.reference = target, reference
        self._ended = [_matched(one, target) for one in ended]
        self._planned = planned
        self.arms = list(dict.fromkeys(job.arm for job in planned))
        controls = self._of_role("control")
        again = [run for run in controls if run is not reference]
        prints = [run.fingerprint for run in (reference, *again)]
        self.bit_for_bit = len(set(prints)) < len(prints)
        """Two trainings of the run, with nothing changed, gave the same to the last bit."""
        self.as_reported = reference.fingerprint in prints[1:]
        """One of them is the run in which it was found, to the last bit."""
        self._control = (controls or [reference])[0].fingerprint
        shown = [len(target.named & target.found(run.report)) for run in again]
        self.reproduced = min(shown) if shown else None
        """How many of the named show the finding again with nothing changed; None where that was not run."""
        self.chance = _distinct(self._of_role("placebo") + ([] if self.bit_for_bit else again))
        """Runs that differ from the run by chance alone, a run that came out twice once; the control if it does."""

    def _of_role(self, role: Role) -> list[Run]:
        return [one for one in self._ended if isinstance(one, Run) and one.job.arm.role == role]

    def of_arm(self, arm: Arm) -> list[Run]:
        """The runs of an arm that did not fail, by their order."""
        runs = [one for one in self._ended if isinstance(one, Run) and one.job.arm == arm]
        return sorted(runs, key=lambda run: run.job.order)

    def found(self, runs: Iterable[Run]) -> list[frozenset[Site]]:
        """Who shows the finding in each."""
        return [self.target.found(run.report) for run in runs]

    def frees_all(self, arm: Arm) -> bool:
        """No named kernel shows it in any run of the arm."""
        runs = self.of_arm(arm)
        return bool(runs) and not any(self.target.named & sites for sites in self.found(runs))

    @property
    def is_all_chance(self) -> bool:
        """No named kernel shows it in any run that differs by chance alone."""
        return bool(self.chance) and not any(self.target.named & sites for sites in self.found(self.chance))

    def counts(self, name: str | None = None) -> Counts | None:
        """Of the arm of that name, or by chance: how many show it, over all runs that differ; None without runs."""
        runs = (
            self.chance
            if name is None
            else _distinct(run for arm in self.arms if arm.name == name for run in self.of_arm(arm))
        )
        return Counts(sum(map(len, self.found(runs))), len(runs), self.target.kernels) if runs else None

    # -- arms against chance -----------------------------------------------------------------------------------------

    def outcomes(self) -> list[ArmOutcome]:
        """Of every arm that was planned, with p-values adjusted for the number of its kind: single changes, all of them
        together, and all but one are asked one after the other."""
        adjusted: dict[Arm, float] = {}
        for family in {_family(arm) for arm in self.arms}:
            known = {arm: p_value for arm in self._held(family) if (p_value := self._p_value(arm)) is not None}
            adjusted |= zip(known, holm(list(known.values())), strict=True)
        return [self._outcome(arm, adjusted.get(arm)) for arm in self.arms]

    def _held(self, family: tuple[Role, int]) -> list[Arm]:
        """The arms of a family that ran and are held against chance."""
        return [arm for arm in self.arms if _family(arm) == family and arm.role in _HELD and self.of_arm(arm)]

    def _p_value(self, arm: Arm, found: int | None = None) -> float | None:
        """Of as few kernels that show it, or of `found` in all; None without runs to compare."""
        here, by_chance = self.counts(arm.name), self.counts()
        if here is None or by_chance is None:
            return None
        return fisher(here.found if found is None else found, here.size, by_chance.found, by_chance.size)

    def _outcome(self, arm: Arm, p_value: float | None) -> ArmOutcome:
        errors = [one.error for one in self._ended if isinstance(one, Failed) and one.job.arm == arm]
        runs = self.of_arm(arm)
        outcome = ArmOutcome(
            name=arm.name,
            role=arm.role,
            changes=list(arm.changes),
            verdict="",
            runs=[self._run_outcome(run) for run in runs],
            p_value=p_value,
            error=errors[0] if errors else "",
            missing=sum(job.arm == arm for job in self._planned) - len(runs) - len(errors),
        )
        if not runs:
            return replace(outcome, verdict="failed" if errors else "not run")
        if arm.role not in _HELD:
            return outcome
        if self.bit_for_bit and any(run.same_as_control for run in outcome.runs):
            return replace(outcome, verdict="changed nothing", p_value=None)
        if p_value is not None and p_value < SIGNIFICANT:
            claimed = self.frees_all(arm) and self.reproduced == len(self.target.named) and not self.is_all_chance
            return replace(outcome, verdict="sufficient" if claimed else "helps")
        return replace(outcome, verdict="too few to tell" if self._too_few(arm) else "no difference from chance")

    def _too_few(self, arm: Arm) -> bool:
        """The named are free in every run of the arm, and so few runs could not have told that from chance."""
        if not self.frees_all(arm) or self.is_all_chance:
            return False
        best = self._p_value(arm, found=0)
        return best is None or best * len(self._held(_family(arm))) >= SIGNIFICANT

    def seeds_to_tell(self) -> int | None:
        """Runs of each arm that can tell a change from chance, if they come out as these did; None: too many."""
        by_chance = self.counts()
        tried = len(self._held(("change", 0)))
        if by_chance is None or not by_chance.found:
            return None
        for seeds in range(2, MOST_SEEDS + 1):
            many = round(by_chance.found / by_chance.runs * (seeds - 1))
            best = fisher(0, self.target.kernels * seeds, many, self.target.kernels * (seeds - 1))
            if best * tried < SIGNIFICANT:
                return seeds
        return None

    def _run_outcome(self, run: Run) -> RunOutcome:
        sites = self.target.found(run.report)
        return RunOutcome(
            order=run.job.order,
            free=len(self.target.named - sites),
            found=self.target.by_layer(sites),
            steps=run.report.global_step,
            seconds=round(run.seconds, 1),
            same_as_control=run.fingerprint == self._control,
            metrics=dict(run.metrics),
            problems=[problem.title for problem in run.report.problems],
        )

    # -- other seeds -------------------------------------------------------------------------------------------------

    def overlap(self) -> Overlap | None:
        """Whether the same kernels show it under other seeds; None without such runs, and for whole layers."""
        runs = self._of_role("seed")
        if not runs or self.target.whole:
            return None
        first, *others = self.found([self.reference, *runs])
        sizes = self.target.sizes.items()
        shared = sum(len(first & other) for other in others)
        draws = [(size, _in_layer(first, n), _in_layer(other, n)) for other in others for n, size in sizes]
        expected, p_value = overlap(draws, shared)
        return Overlap(len(runs), [len(other) for other in others], shared, expected, p_value)


_HELD: tuple[Role, ...] = ("change", "together")
"""Against chance."""


def _family(arm: Arm) -> tuple[Role, int]:
    return arm.role, len(arm.parts)


def _matched(one: Run | Failed, target: Target) -> Run | Failed:
    """As one that failed where its kernels cannot be matched with the named."""
    try:
        if isinstance(one, Run):
            target.found(one.report)
    except TargetError as error:
        return Failed(one.job, str(error))
    return one


def _in_layer(sites: Iterable[Site], name: str) -> int:
    return sum(layer == name for layer, _ in sites)


def _distinct(runs: Iterable[Run]) -> list[Run]:
    return list({run.fingerprint: run for run in runs}.values())
