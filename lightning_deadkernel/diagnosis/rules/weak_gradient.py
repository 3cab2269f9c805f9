"""Layers whose gradient is small beside the network's largest.

## What it finds

Layers with R = rms(gradient) / largest rms(gradient) between 1e-6 and 1e-3 on at least half of the window's sampled
steps.

## Why it matters

Under plain SGD such a layer learns a thousand times slower than the fastest one. Where its updates are healthy all the
same, as an optimizer that normalises its steps (Adam and its kin) makes them, it is no more than worth knowing. It is
the early form of a vanishing gradient.

## What to do

The same as for a vanishing gradient: norms, skip connections, He initialisation, activations with a slope.

## Reference

- Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks,
  https://proceedings.mlr.press/v9/glorot10a.html
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.rules._small_gradient import CAUSES, WEAK, explained, is_weak

MARGIN = 0.1
"""Where no step was measured, a gradient less than tenfold below the line is worth knowing, and no more."""


@rule("the gradient is weak", *CAUSES)
def weak_gradient(context: WindowContext) -> Iterator[Found]:
    """Layers whose gradient is below the line of weak and above that of vanishing."""
    yield from explained(context, [layer for layer in context.layers if is_weak(layer)], WEAK, MARGIN, "warning")
