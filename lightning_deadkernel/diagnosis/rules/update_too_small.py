"""Layers that hardly move though a gradient and the schedule would have it so.

## What it finds

Layers whose typical step changes the weights by less than one in a million of their norm, twice in a row, while the
learning rate is neither rising nor annealed to a hundredth of its largest value.

## Why it matters

About one in a thousand is healthy. A layer that moves a thousand times slower keeps its initial weights for all
practical purposes.

## What to do

Fix the weak gradient first, if that is why. Else raise the learning rate of this layer, or freeze it on purpose.

## Reference

- CS231n course notes, Neural Networks Part 3, ratio of weights:updates, https://cs231n.github.io/neural-networks-3/
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import SLOW_UPDATES
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.rules._schedule import is_scheduled
from lightning_deadkernel.diagnosis.rules._small_gradient import is_normalised


@rule("updates are too small to matter", causes=(SLOW_UPDATES,))
def update_too_small(context: WindowContext) -> Iterator[Found]:
    """Layers whose median update ratio is below the line, though not by the schedule."""
    line = context.thresholds.update_small
    for layer in context.layers:
        observed = layer.observed
        ratio = observed.update_ratio
        if ratio is None or not 0 < ratio < line or not bool(layer.with_gradient.any()) or is_scheduled(layer):
            continue
        again = 0 < layer.past.previous_update_ratio < line
        weak = observed.gradient_ratio is not None and observed.gradient_ratio < context.thresholds.weak_gradient
        rate = observed.learning_rate or 0.0
        cause = SLOW_UPDATES.because(
            f"a typical step at learning rate {rate:g} changes the weights by {ratio:.1e} of their norm (1e-3 is usual)"
            + (f"; its gradient is weak too ({observed.gradient_ratio:.1e} of the largest)" if weak else ""),
            "Fix the weak gradient first."
            if weak
            else f"Raise {layer.rate} for {layer.name}, or check that this layer is meant to rest.",
            references.CS231N,
            {"update_ratio": ratio, "learning_rate": rate},
        )
        # where steps are as large as gradients, a weak one is a finding of its own, and the root of this
        follows = weak and not is_normalised(layer)
        yield Found(layer, "warning" if again and not follows else "info", cause)
