"""Weights that are NaN or infinite.

## What it finds

Kernels that hold NaN or infinity before the first step, or in a file that is audited. During training such kernels have
gradients that are not finite either, which is the finding that names them then.

## Why it matters

One such weight makes all that its kernel computes NaN, and with the next layer all that the network computes.

## What to do

Go back to the last checkpoint with finite weights, and lower the learning rate or clip the gradient norm from there on.
Where it is so before training, look at what initialised or loaded them.

## Reference

- Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule


@rule("{of} NaN or infinite", causes.OVERFLOW, at_initialisation=True, in_files=True)
def non_finite_weights(context: WindowContext) -> Iterator[Found]:
    """Kernels whose norm is not a number, where no gradient has been looked at."""
    if context.window.index:
        return
    for layer in context.watched:
        if layer.observed.norms is None:
            continue
        lost = ~layer.observed.norms.isfinite()
        if bool(lost.any()):
            cause = causes.OVERFLOW.because(
                "a NaN or infinite weight makes all that its kernel computes NaN",
                "Go back to the last file with finite weights; lower the learning rate or clip the gradient norm there."
                if context.window.audited
                else "Look at what initialised or loaded these weights.",
                references.MIXED,
            )
            yield Found(layer, "error", cause, channels=lost)
