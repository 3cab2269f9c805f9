"""A window ends: from an observer's evidence to the report."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_deadkernel.diagnosis.diagnose import diagnose, new_findings
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.pruning import savings
from lightning_deadkernel.errors import DeadKernelError, DeadKernelWarning
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.summarize import read_window
from lightning_deadkernel.observation import Window
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.training import distributed as ranks
from lightning_deadkernel.training import options


def close_window(
    window: Window,
    observer: Observer,
    history: History,
    thresholds: Thresholds,
    optimizers: list[Any],
    world: int,
    with_tensors: bool,
) -> Report:
    """What the window says of the whole network, from what all ranks saw. Every rank must call it.

    Args:
        window: its index, place in the run and counters; filled on the way.
        observer: what was gathered.
        history: the windows before; this one is added.
        thresholds: where the lines are drawn.
        optimizers: all of the training.
        world: number of ranks.
        with_tensors: whether histograms and pictures are wanted.
    """
    observer.evidence.close()
    with ranks.reduced(world, observer.evidence):
        observed = observer.evidence.segments()
    window, tensors = read_window(observer, window, optimizers, thresholds, with_tensors, observed)
    if window.index:
        window.notes = _notes(observer, window)
    layers, findings = diagnose(window, history, thresholds)
    return Report(
        window=window.index,
        epoch=window.epoch,
        global_step=window.global_step,
        samples=window.samples,
        batches=window.batches,
        optimizer_steps=window.optimizer_steps,
        sampled_steps=window.sampled_steps,
        layers=layers,
        findings=findings,
        savings=savings(window, layers),
        notes=window.notes,
        gradient_norm=window.gradient_norm,
        skipped_steps=window.skipped_steps,
        tensors=tensors,
    )


def _notes(observer: Observer, window: Window) -> tuple[str, ...]:
    """What could not be watched, and why."""
    notes = [
        f"{layer}: what follows cannot be read ({op}); its states rest on gradients"
        for op, layer in observer.reader.unknown_ops.items()
    ]
    if observer.reader.compiled:
        notes.append(
            "the model is compiled: activations were read on sampled steps, which ran eagerly"
            if observer.when_compiled == "sample"
            else "the model is compiled: no activation was read, states rest on gradients"
        )
    if not observer.backwards:
        notes.append("no backward hook fired: only the weights were watched")
    if window.skipped_steps:
        notes.append(
            f"the gradient scaler skipped {window.skipped_steps} of {window.sampled_steps} sampled steps, "
            "whose gradients overflowed; that is how it finds its scale"
        )
    return tuple(notes)


def speak(
    report: Report, said: set[tuple[str, str | None]], on_finding: options.OnFinding
) -> set[tuple[str, str | None]]:
    """Says aloud what is new in a report, as the user wants it; gives what need not be said again.

    Raises:
        DeadKernelError: with ``on_finding="raise"``, for the worst finding that is more than an info.
    """
    worth = [finding for finding in report.findings if finding.severity != "info"]
    if on_finding == "raise" and worth:
        worst = worth[0]
        raise DeadKernelError(f"{worst.kind}: {worst.headline}. {worst.cause} {worst.advice}")
    fresh = [finding for finding in new_findings(report.findings, said) if finding.severity != "info"]
    if on_finding == "warn":
        for finding in fresh:
            rank_zero_warn(f"{finding.headline}. {finding.advice}", category=DeadKernelWarning)
    return {(finding.kind, finding.layer) for finding in fresh}
