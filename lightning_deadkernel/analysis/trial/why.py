"""A trial of one's own training function, for who has no command line interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning_deadkernel.analysis.trial.conduct import Stopped, conduct
from lightning_deadkernel.analysis.trial.records import Arm, Failed, Job, Run
from lightning_deadkernel.analysis.trial.trial import Trial
from lightning_deadkernel.report.records import ReportRecord


def why(
    fit: Callable[[Any, int], Any],
    arms: Mapping[str, Any],
    seeds: int = 3,
    finding: int | None = None,
    layer: str | None = None,
    max_minutes: float | None = None,
) -> Trial:
    """Train again with one thing changed, to see what dead kernels (or another finding) needed to come about.

    Args:
        fit: trains once and returns its monitor, or the monitor's last report. It is called as ``fit(arm, seed)``:
            `arm` is a value of `arms`, or None for the run unchanged; `seed` is 0 for the run itself, and above 0 for
            other random numbers *after* the initial weights are drawn (the order of the data, say), so that a kernel's
            index means the same kernel in all of them.
        arms: name -> what `fit` takes to make that change, the smallest change first. If all are mappings, they are
            merged where no change suffices alone, to see whether all of them do together.
        seeds: runs of each arm.
        finding: which of the report's findings to ask about, from 1.
        layer: whose findings to ask about; None, and no `finding`: the report's first problem.
        max_minutes: after which no further training begins.

    Returns:
        The trial; its `verdict` is the answer.

    Raises:
        ValueError: if `arms` is empty, a number is not positive, or nothing of what is asked about was found.
        TrialError: if the unchanged run fails.

    Example::

        def fit(weight_decay, seed):
            L.seed_everything(0)
            model = Net(weight_decay=0.02 if weight_decay is None else weight_decay)
            torch.manual_seed(seed)  # the order of the data; the weights are drawn
            monitor = DeadKernelMonitor()
            L.Trainer(max_epochs=5, callbacks=[monitor]).fit(model, data)
            return monitor

        print(why(fit, {"no weight decay": 0.0}))
    """
    for name, value in (("seeds", seeds), ("max_minutes", max_minutes)):
        if value is not None and not value > 0:
            raise ValueError(f"Expected `{name}` to be positive, but got {value!r}.")
    if not arms:
        raise ValueError("Expected `arms` to name at least one change, but got none.")
    merges = all(isinstance(change, Mapping) for change in arms.values())
    ends = time.monotonic() + 60 * max_minutes if max_minutes is not None else None

    def perform(jobs: Sequence[Job]) -> Iterator[Run | Failed]:
        for job in jobs:
            if ends is not None and time.monotonic() > ends:
                raise Stopped(f"{max_minutes:g} minutes were over")
            merged = {key: value for part in job.arm.parts for key, value in arms[part].items()}
            yield _trained(fit, job, merged if job.arm.parts else arms.get(job.arm.name) if job.arm in made else None)

    made = [Arm(name, "change") for name in arms]
    combine: Callable[[Sequence[Arm]], tuple[str, ...]] | None = (lambda arms: ()) if merges else None
    return conduct(perform, lambda *_: (made, []), seeds, None, finding, layer, combine, other_seeds=False)


def _trained(fit: Callable[[Any, int], Any], job: Job, change: Any) -> Run | Failed:
    began = time.monotonic()
    try:
        given = fit(change, job.order)
    except Exception as error:  # one arm's fault is that arm's: the others are still worth training
        return Failed(job, f"{type(error).__name__}: {error}")
    report = given if isinstance(given, ReportRecord) else getattr(given, "report", None)
    if not isinstance(report, ReportRecord):
        return Failed(job, f"`fit` is to return a monitor with a report, or a report, but it returned {given!r:.80}")
    return Run(job, report, time.monotonic() - began)
