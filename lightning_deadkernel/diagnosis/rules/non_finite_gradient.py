"""Gradients that are NaN or infinite.

## What it finds

Layers that had a NaN or infinite gradient on some step of the window; where all layers had, it is told once of the
network. Steps that a gradient scaler skipped for overflow are how it finds its scale, and are not meant.

## Why it matters

One step with such a gradient makes the weights NaN, and nothing computed with them is a number any more.

## What to do

Go back to the last checkpoint with finite weights; lower the learning rate or clip the gradient norm.
`torch.autograd.set_detect_anomaly(True)` names the operation that made the first NaN.

## Reference

- Pascanu et al. 2013, On the difficulty of training Recurrent Neural Networks, https://arxiv.org/abs/1211.5063
- Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import OVERFLOW, Cause, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule


@rule("gradients are NaN or infinite", causes=(OVERFLOW,))
def non_finite_gradient(context: WindowContext) -> Iterator[Found]:
    """Layers with non-finite gradients, or the network where all have."""
    layers = [layer for layer in context.watched if layer.is_lost or layer.observed.non_finite_gradients]
    groups = [layers] if context.wholly_non_finite else [[layer] for layer in layers]
    for group in groups:
        lost = any(_holds_nan(layer) for layer in group)
        evidence: Evidence = {"entries": sum(layer.observed.non_finite_gradients for layer in group)}
        if context.wholly_non_finite:
            evidence["layers"] = len(group)
        where = None if context.wholly_non_finite else group[0]
        yield Found(
            where, "error" if any(layer.is_lost for layer in group) else "warning", _overflow(context, lost), evidence
        )


def _holds_nan(layer: LayerContext) -> bool:
    return layer.observed.norms is not None and not bool(layer.observed.norms.isfinite().all())


def _overflow(context: WindowContext, lost: bool) -> Cause:
    line = context.thresholds.update_large
    ratios = [layer.observed.update_ratio_max or 0.0 for layer in context.watched]
    largest = max((ratio for ratio in ratios if math.isfinite(ratio)), default=0.0)
    return OVERFLOW.because(
        "the gradient held NaN or infinity"
        + (f", and a step before had changed weights by {largest:.2g} of their norm" if largest > line else "")
        + ("; the weights hold it too: nothing they compute is a number any more" if lost else ""),
        "Go back to the last checkpoint with finite weights and lower the learning rate or clip the gradient norm;"
        " torch.autograd.set_detect_anomaly(True) names the operation that made the first NaN.",
        f"{references.CLIPPING}; {references.MIXED}",
    )
