"""A gradient norm far above what the network had before.

## What it finds

A window whose gradient norm is more than 100 times the median of the windows before. The network's own past is the
measure, so the loss's scale does not matter.

## Why it matters

One such step can throw weights far off: it knocks kernels out for good or ends in NaN.

## What to do

Clip the gradient norm and lower the learning rate. A growth without any harm may be the end of a plateau: watch the
next window.

## Reference

- Pascanu et al. 2013, On the difficulty of training Recurrent Neural Networks, https://arxiv.org/abs/1211.5063
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule


@rule("the gradient explodes", causes.RECKLESS_UPDATES, causes.UNKNOWN)
def exploding_gradient(context: WindowContext) -> Iterator[Found]:
    """The network's gradient norm against its own past."""
    norm = context.window.gradient_norm
    if norm is None or not math.isfinite(norm) or any(layer.is_lost for layer in context.watched):
        return
    earlier = context.history.gradient_norms[:-1]  # the last entry is this window's
    if not earlier or median(earlier) <= 0 or norm <= context.thresholds.exploding_growth * median(earlier):
        return
    growth, line = norm / median(earlier), context.thresholds.update_large
    reckless = [layer.name for layer in context.layers if (layer.observed.update_ratio_max or 0.0) > line]
    harm = bool(reckless) or any(layer.observed.non_finite_gradients for layer in context.layers)
    cause = (causes.RECKLESS_UPDATES if harm else causes.UNKNOWN).because(
        f"the gradient norm is {norm:.3g}, {growth:.3g} times the median of the {len(earlier)} windows before"
        + (f", and steps became reckless in {', '.join(reckless[:3])}" if reckless else "")
        + ("" if harm else "; ruled out: reckless or non-finite updates, so it may be the end of a plateau"),
        "Clip the gradient norm (gradient_clip_val=1.0) and lower the learning rate."
        if harm
        else "Watch the next window; clip the gradient norm if it goes on.",
        references.CLIPPING,
        {
            "gradient_norm": norm,
            "growth": growth,
            "largest_gradient_at": context.window.largest_gradient_at or "unknown",
        },
    )
    yield Found(None, "warning" if harm else "info", cause)
