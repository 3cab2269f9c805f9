"""Layers whose gradient is next to nothing beside the network's largest.

## What it finds

Layers with R = rms(gradient) / largest rms(gradient) below 1e-6 on at least half of the window's sampled steps. R does
not depend on the loss scale, the batch size or the learning rate, so it can be told from the first step on.

## Why it matters

float32 holds about seven digits: one learning rate cannot serve both ends of such a network, and the far end does not
learn while the loss falls by what the near end does alone. Where the layer's updates are healthy all the same, as an
optimizer that normalises its steps (Adam and its kin) makes them, a small gradient is no more than worth knowing.

## What to do

Use ReLU or GELU in hidden layers, He initialisation, norms and skip connections. The finding says which of them the
evidence points to.

## Reference

- Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks,
  https://proceedings.mlr.press/v9/glorot10a.html
- He et al. 2015, Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.rules._small_gradient import CAUSES, VANISHING, explained, is_vanishing

MANY_LAYERS = 3


@rule("the gradient vanishes", *CAUSES)
def vanishing_gradient(context: WindowContext) -> Iterator[Found]:
    """Layers whose gradient is below the line of vanishing."""
    concerned = [layer for layer in context.layers if is_vanishing(layer)]
    many = len(concerned) >= MANY_LAYERS or 2 * len(concerned) >= len(context.layers)
    yield from explained(context, concerned, VANISHING, math.inf, "error" if many else "warning")
