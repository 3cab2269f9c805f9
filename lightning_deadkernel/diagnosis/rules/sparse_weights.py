"""Layers many of whose weights are zero or next to it.

## What it finds

Layers with more than half of their weights exactly zero, more than a tenth below 1e-2 of their rms (a Gaussian has
0.8 %), or a Gini index above 0.7 (a Gaussian has 0.414).

## Why it matters

It is normal in a trained layer: weight decay and L1 terms make many small weights and a few large ones. It is a fault
only where dead or zero kernels are what makes it so.

## What to do

Nothing where it is normal; such a layer prunes well by magnitude. Else see to the dead or zero kernels first.

## Reference

- Hurley and Rickard 2009, Comparing Measures of Sparsity, https://arxiv.org/abs/0811.4706
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import CauseKind, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.report.records import Severity
from lightning_deadkernel.report.text import count

GAUSSIAN_NEAR_ZERO, GAUSSIAN_GINI = 0.0080, 0.414


@rule(
    "many weights are near zero",
    causes.PRUNED,
    causes.DEAD_CHANNELS,
    causes.DEAD_INPUTS,
    causes.HEAVY_TAILS,
    in_files=True,
)
def sparse_weights(context: WindowContext) -> Iterator[Found]:
    """Layers above one of the three lines of sparsity."""
    lines = context.thresholds
    for layer in context.layers:
        observed = layer.observed
        zeros, near, gini = observed.weight_sparsity or 0.0, observed.weight_near_zeros or 0.0, observed.gini or 0.0
        if not (zeros > lines.zero_share or near > lines.near_zero_share or gini > lines.gini):
            continue
        if observed.largest is None or not bool((observed.largest > 0).any()):
            continue
        gone = len(set(layer.report.dead) | set(layer.report.zero_kernels))
        severity: Severity = "info"
        kind: CauseKind
        if observed.masked is not None:
            kind, verdict, advice = causes.PRUNED, "a pruning mask made it so", "Nothing to fix."
        elif gone and (zeros > lines.zero_share or 2 * gone > near * observed.channels):
            severity, kind = "warning" if zeros > lines.zero_share else "info", causes.DEAD_CHANNELS
            does = "are dead or zero and take their weights with them"
            does = does if gone > 1 else "is dead or zero and takes its weights with it"
            verdict = f"{gone} of {observed.channels} kernels {does}"
            advice = "See to dead and zero kernels first; what they held is capacity lost and can be pruned."
        elif 2 * (columns := _dead_inputs(layer)) > near and columns > 0 and (off := _always_off(layer)):
            kind = causes.DEAD_INPUTS
            verdict = f"{columns:.0%} of its inputs are read by no weight of any size, in no kernel, as {off} leave"
            verdict += " nothing to learn"
            advice = "Nothing to fix in this layer"
            advice += f"; see to {', '.join(observed.producers)}." if observed.producers else "."
        else:
            kind = causes.HEAVY_TAILS
            none = "no kernel is zero" if context.window.audited else "no kernel is dead"
            verdict = "dead or zero kernels do not explain it" if gone else none
            verdict += ", so it is what training, weight decay or an L1 term made of the layer"
            advice = "Normal in a trained layer: nothing to fix. Such a layer prunes well by magnitude."
        evidence: Evidence = {"weight_zeros": zeros, "weight_near_zeros": near, "gini": gini}
        if observed.hoyer is not None:
            evidence["hoyer"] = observed.hoyer
        cause = kind.because(
            f"{zeros:.1%} of the weights are exactly zero, {near:.1%} below 1e-2 of their rms (a Gaussian has"
            f" {GAUSSIAN_NEAR_ZERO:.1%}), Gini {gini:.2f} (a Gaussian has {GAUSSIAN_GINI}); {verdict}",
            advice,
            references.SPARSITY,
            {"dead_or_zero": gone},
        )
        yield Found(layer, severity, cause, evidence)


NEAR_ZERO = 1e-2
"""Of the rms of the weights."""


def _dead_inputs(layer: LayerContext) -> float:
    """Share of inputs all of whose weights are next to zero; 0.0 where it is not known."""
    observed = layer.observed
    if observed.input_largest is None or observed.norms is None or not observed.input_largest.numel():
        return 0.0
    if observed.groups > 1:  # few kernels read an input there: they are zero, and it need not be
        return 0.0
    entries = max(1, observed.parameters // max(1, observed.channels))
    rms = float(observed.norms.square().mean().sqrt()) / entries**0.5
    return float((observed.input_largest < NEAR_ZERO * rms).float().mean())


def _always_off(layer: LayerContext) -> str:
    """Which of its inputs may always be zero: kernels that are dead or zero, or the data; empty where none is."""
    producers = layer.observed.producers
    if not producers:
        return "inputs that are always off (pixels of a border)"
    reports = [report for name in producers if (report := layer.network.reports.get(name)) is not None]
    gone = sum(len(set(report.dead) | set(report.zero_kernels)) for report in reports)
    return f"{count(gone, 'kernel')} of {', '.join(producers)} that are dead or zero" if gone else ""
