"""Kernels that are zero, or next to it.

## What it finds

Kernels whose weights are all zero, whose norm is below 1e-3 of the largest in their layer, or whose following norm has
a scale (gamma) below 1e-3. A norm's scale that starts at zero is one only if it stays there.

## Why it matters

Such a kernel does not look at its input: what leaves it is a constant, or nothing. It costs the same as the others.

## What to do

The finding says whether it was so from the start, whether weight decay did it, or a pruning mask. Against
decay helps AdamW in place of Adam with `weight_decay`, or no decay on norms; against zeros of the initialisation help
random values. What stays zero can be pruned.

## Reference

- Mehta et al. 2019, On Implicit Filter Level Sparsity in Convolutional Neural Networks, https://arxiv.org/abs/1811.12495
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, CauseKind, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.weight_causes import (
    KERNEL,
    SCALE,
    assign,
    decayed,
    has_scale_shrunk,
    pruned,
    scale_collapsed,
    what_is_zero,
    zero_at_initialisation,
)
from lightning_deadkernel.report.records import Severity

AS_OUTPUT = (
    "These are outputs of the network, which are now constants: initialise their weights with random values, and see"
    " whether the loss asks anything of them."
)

ONE_WEIGHT = 2
"""Parameters of a kernel of one weight and a bias: such a weight passes zero on its way from one sign to the other."""


@rule(
    "{of} zero, or next to it",
    causes.PRUNED,
    causes.ZERO_AT_INITIALISATION,
    causes.DECAYED,
    causes.SCALE_COLLAPSED,
    causes.UNKNOWN,
    at_initialisation=True,
    in_files=True,
)
def zero_kernels(context: WindowContext) -> Iterator[Found]:
    """Channels flagged as zero kernels, grouped by cause."""
    for layer, flagged in context.having("zero_kernels"):
        zero = flagged & ~_has_fresh_scale(layer)
        if not bool(zero.any()):
            continue
        shift = layer.observed.shift
        # a file tells a mask, and nothing of the past
        tried = (pruned,) if context.window.audited else (pruned, zero_at_initialisation, decayed, scale_collapsed)
        for channels, cause in assign(layer, zero, tried, _unknown):
            evidence: Evidence = {}
            if shift is not None:
                evidence["constant_output"] = int((channels & (shift > 0)).sum())
            learning = _is_learning(layer) & channels
            if cause.kind is not causes.DECAYED and not context.window.audited:  # decay itself moves a kernel
                evidence["recoverable"] = int(learning.sum())
            if layer.is_output and not cause.kind.on_purpose:
                cause = replace(cause, advice=AS_OUTPUT)
            yield Found(layer, _severity(layer, channels, cause.kind, learning), cause, evidence, channels)


def _has_fresh_scale(layer: LayerContext) -> Tensor:
    """(C,) bool: a norm's scale next to zero that has had no time to move, or moves and only passes through."""
    observed, past = layer.observed, layer.past
    if layer.window.audited or observed.norm_scale is None or observed.norms is None or observed.largest is None:
        return layer.everywhere(False)
    line = layer.thresholds.zero_kernel * observed.norms.nan_to_num(0.0).amax()
    scale_only = (observed.largest > 0) & (observed.norms >= line)
    young = layer.window.index - past.first_window < 2 or not (observed.learning_rate or 0.0) > 0
    begun_at_zero = past.first_scale < layer.thresholds.norm_scale
    passing = past.scale_moved & ~has_scale_shrunk(layer)
    return scale_only & (passing | (begun_at_zero & (past.scale_moved | torch.full_like(past.scale_moved, young))))


def _is_learning(layer: LayerContext) -> Tensor:
    """(C,) bool: a gradient reaches the kernel and the kernel has begun to change."""
    observed = layer.observed
    some = layer.with_gradient if observed.weight_gradient is None else observed.weight_gradient > 0
    return some if observed.unchanged is None else some & ~observed.unchanged


def _severity(layer: LayerContext, channels: Tensor, cause: CauseKind, learning: Tensor) -> Severity:
    whole = bool(channels.all())
    if cause.on_purpose:
        return "info"
    if layer.window.audited:
        return "warning"
    if layer.is_first_window:  # many a start at zero is on purpose (adapters, padding): what counts is whether it stays
        return "info"
    learns = bool((learning == channels).all())
    passing = cause is causes.UNKNOWN and layer.observed.parameters <= ONE_WEIGHT * layer.observed.channels
    if learns and (passing or cause is causes.ZERO_AT_INITIALISATION):
        return "info"
    return "error" if whole and not bool(learning.any()) else "warning"


def _unknown(layer: LayerContext, channels: Tensor) -> Cause:
    if layer.window.audited:
        what = KERNEL if what_is_zero(layer, channels) == KERNEL else f"{KERNEL}, or the {SCALE} after it,"
        return causes.UNKNOWN.because(
            f"the {what} is zero or next to it; weights alone do not tell what made it so",
            "If it should not be, train with DeadKernelMonitor from the start: it tells since when, and why. What stays"
            " zero can be pruned; fold a constant output into what reads it first.",
            references.MEHTA,
        )
    decay, weakest = layer.observed.weight_decay, math.exp(-layer.past.decay)
    known = layer.past.from_start
    ruled_out = "zeros at initialisation, " if known else ""
    ruled_out += f"weight decay ({decay:g} here" + (
        f", which leaves a factor of {weakest:.3g} at least in so many steps)" if decay else ")"
    )
    return causes.UNKNOWN.because(
        f"{'' if known else 'its initialisation was not seen; '}ruled out: {ruled_out}, a mask",
        "Look for code that writes to the weights, an L1 or group penalty in the loss, or a reckless step.",
        references.MEHTA,
        {"weight_decay": decay},
    )
