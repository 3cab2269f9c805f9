"""A window ends: from what was seen to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_deadkernel.diagnosis.diagnose import diagnose
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.problems import find_problems, new_problems
from lightning_deadkernel.diagnosis.pruning import savings
from lightning_deadkernel.errors import DeadKernelError, warn
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.open_window import Checksums, Seen
from lightning_deadkernel.evidence.summarize import summarize
from lightning_deadkernel.observation import ENOUGH_STEPS, Window
from lightning_deadkernel.report.records import Finding, RunDescription
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.text import count
from lightning_deadkernel.training.description import now
from lightning_deadkernel.training.options import OnFinding, Options

PARAMETERS_NAMED = 8


def close_window(
    observer: Observer,
    seen: Seen,
    history: History,
    epochs: tuple[int, int],
    global_step: int,
    optimizers: list[Any],
    options: Options,
    run: RunDescription,
    gone: Sequence[str] = (),
) -> tuple[Report, Checksums]:
    """What the open window says of the whole network. Every rank must call it; the window itself stays as it is.

    Args:
        observer: what was watched.
        seen: what was gathered, over all ranks.
        history: the windows before; this one is added.
        epochs: the window's first and last.
        global_step: at the window's end.
        optimizers: all of the training.
        options: the monitor's.
        run: whose training it is.
        gone: which layers are in the model no more, and since when.

    Returns:
        The report, and the checksums that the next window begins with.
    """
    with_tensors = options.log_histograms or options.log_figures
    window, tensors, checksums = summarize(
        observer, seen, epochs[1], global_step, optimizers, options.thresholds, with_tensors
    )
    window.gradient_clip = run.gradient_clip
    layers, findings = diagnose(window, history, options.thresholds)
    report = Report(
        window=window.index,
        epoch=window.epoch,
        global_step=window.global_step,
        samples=window.samples,
        batches=window.batches,
        optimizer_steps=window.optimizer_steps,
        sampled_steps=window.sampled_steps,
        layers=layers,
        findings=findings,
        problems=find_problems(findings, history.when),
        savings=savings(window, layers),
        notes=(*_notes(observer, seen, window, history), *gone) if window.index else (),
        gradient_norm=window.gradient_norm,
        non_finite_batches=window.non_finite_batches,
        skipped_steps=window.skipped_steps,
        first_epoch=epochs[0] if epochs[0] < epochs[1] else None,
        thresholds=options.thresholds,
        run=replace(run, ended=now()),
        tensors=tensors,
    )
    return report, checksums


def _notes(observer: Observer, seen: Seen, window: Window, history: History) -> tuple[str, ...]:
    """What could not be watched, and why."""
    notes = [
        f"{layer}: what follows cannot be read ({op}); its states rest on gradients"
        for op, layer in observer.reader.unknown_ops.items()
    ]
    known = observer.reader.facts.values()
    parameters = [la.layer.name for la in known if la.holds_no_kernels and la.layer.excluded is None]
    if parameters:
        more = len(parameters) - PARAMETERS_NAMED
        names = ", ".join(parameters[:PARAMETERS_NAMED]) + (f" and {more} more" if more > 0 else "")
        notes.append(f"trained, and no kernels (scales, positions, tokens and the like): {names}")
    if window.compiled:
        notes.append(
            "the model is compiled: activations were read on sampled steps, which ran eagerly"
            if observer.reads_compiled
            else "the model is compiled: no activation was read, states rest on gradients"
        )
    if not seen.counts.backwards:
        notes.append("no backward hook fired: only the weights were watched")
    sampled = history.waits_for_steps()
    if sampled is not None:
        notes.append(
            f"whether a gradient is weak or vanishing is not said yet: it was sampled on {count(sampled, 'step')}, and"
            f" that takes {ENOUGH_STEPS}"
        )
    if window.skipped_steps:
        notes.append(
            f"the gradient scaler skipped {window.skipped_steps} of {window.sampled_steps} sampled steps, "
            "whose gradients overflowed; that is how it finds its scale"
        )
    return tuple(notes)


def warn_new_problems(report: Report, warned: set[tuple[str, str | None]], on_finding: OnFinding) -> Sequence[Finding]:
    """Tells what is new in a report, as the user wants it; gives the findings that need not be told again.

    Raises:
        DeadKernelError: with ``on_finding="raise"``, for the worst problem.
    """
    if on_finding == "raise" and report.problems:
        worst = report.problems[0]
        raise DeadKernelError(f"{worst.findings[0].kind}: {worst.story}")
    fresh = new_problems(report.problems, warned)
    if on_finding == "warn":
        for problem in fresh:
            rank_zero_only(warn)(problem.story)
    return [finding for problem in fresh for finding in problem.findings]
