"""What a trial trains, and in which order, whoever does the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from lightning_deadkernel.analysis.trial.records import Arm, Failed, Job, Run, Untried
from lightning_deadkernel.analysis.trial.target import Target, choose_target
from lightning_deadkernel.analysis.trial.trial import Trial, judge
from lightning_deadkernel.analysis.trial.verdict import Evidence

CONTROL = Arm("control", "control")
AGAIN = Arm("control, again", "control")
PLACEBO = Arm("placebo (other order)", "placebo")
SEED = Arm("another seed", "seed")
TOGETHER = "all together"
RESERVED = (CONTROL.name, AGAIN.name, PLACEBO.name, SEED.name, TOGETHER)

Perform = Callable[[Sequence[Job]], Iterator["Run | Failed"]]
"""Trains jobs, several at a time or one after the other, and yields each as it ends; raises `Stopped` to stop."""


class Stopped(Exception):
    """No more is to be trained; the message says why."""


class TrialError(RuntimeError):
    """There is nothing to hold anything against; the message says why."""


def conduct(
    perform: Perform,
    changes: Callable[[Run, Target], tuple[list[Arm], list[Untried]]],
    seeds: int,
    reported: Run | None = None,
    finding: int | None = None,
    layer: str | None = None,
    combine: Callable[[Sequence[Arm]], tuple[str, ...]] | None = None,
    other_seeds: bool = True,
    notes: Sequence[str] = (),
) -> Trial:
    """Train the run again, unchanged and with each change, and judge what that shows.

    The control comes first. Then each change is trained by the run's own random numbers, then by others, so that a
    trial that is stopped has something of every arm. Where no change suffices alone, all of them are made together, and
    if that suffices, all but each.

    Args:
        perform: trains.
        changes: gives, for the control and what was found in it, the arms to try, the smallest change first, and what
            cannot be tried.
        seeds: runs of each arm.
        reported: the run that is asked about; None: the control is.
        finding: see `choose_target`.
        layer: see `choose_target`.
        combine: what several changes are together; None: they cannot be combined.
        other_seeds: whether to train by other seeds from the start as well.
        notes: what else to know of how it is made.

    Raises:
        TrialError: if the control failed, or was stopped.
        TargetError: if there is nothing of what is asked about.
        ValueError: if two arms have one name.
    """
    ended: list[Run | Failed] = []
    planned: list[Job] = []
    stopped = ""

    def train(jobs: Iterable[Job]) -> None:
        nonlocal stopped
        jobs = list(jobs)
        planned.extend(jobs)
        try:
            for one in perform(jobs) if not stopped else ():
                ended.append(one)
        except Stopped as why:
            stopped = str(why)
        except KeyboardInterrupt:
            stopped = "interrupted"

    train([Job(CONTROL, 0)])
    control = next(iter(ended), None)
    if not isinstance(control, Run):
        raise TrialError(f"the control failed: {control.error}" if control else f"the control was not run: {stopped}")
    reference = reported or control
    target = choose_target(reference.report, finding, layer)
    arms, untried = changes(control, target)
    names = [arm.name for arm in arms]
    if taken := next((name for name in names if name in RESERVED or names.count(name) > 1), None):
        raise ValueError(f"Expected each change to have a name of its own, but got {taken!r}, which is taken.")
    repeats = reported is None or reported.fingerprint != control.fingerprint
    others = range(1, max(2, seeds))
    train(
        [
            *([Job(AGAIN, 0)] if repeats else []),
            Job(PLACEBO, 1),
            *(Job(arm, 0) for arm in arms),
            *([Job(SEED, 1)] if other_seeds else []),
            *(Job(arm, order) for order in range(1, seeds) for arm in ([PLACEBO] if order > 1 else []) + arms),
            *(Job(SEED, order) for order in others if order > 1 and other_seeds),
        ]
    )

    def suffices(arm: Arm) -> bool:
        return any(one.name == arm.name and one.verdict == "sufficient" for one in outcomes)

    outcomes = Evidence(target, reference, ended, planned).outcomes()
    # one that changed nothing is among them: where two causes are each enough, to take away one changes not a bit
    useful = [arm for arm in arms if any(one.name == arm.name and one.runs for one in outcomes)]
    if combine is not None and len(useful) > 1 and not stopped and not any(map(suffices, arms)):
        full = _together(TOGETHER, useful, combine)
        train(Job(full, order) for order in range(seeds))
        outcomes = Evidence(target, reference, ended, planned).outcomes()
        if suffices(full) and len(useful) > 2:
            rest = [
                _together(f"all but {left_out.name}", [arm for arm in useful if arm != left_out], combine)
                for left_out in useful
            ]
            train(Job(arm, order) for order in range(seeds) for arm in rest)
    return judge(Evidence(target, reference, ended, planned), untried, stopped, notes)


def _together(name: str, arms: Sequence[Arm], combine: Callable[[Sequence[Arm]], tuple[str, ...]]) -> Arm:
    return Arm(name, "together", combine(arms), tuple(arm.name for arm in arms))
