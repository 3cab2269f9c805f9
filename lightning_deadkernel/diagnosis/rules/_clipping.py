"""What the rules of small steps share: whether the clipping of gradients makes them so."""

from __future__ import annotations

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import CLIPPED, Cause
from lightning_deadkernel.diagnosis.context import LayerContext
from lightning_deadkernel.diagnosis.rules._epsilon import epsilon_dominates
from lightning_deadkernel.diagnosis.rules._small_gradient import is_normalised

FAR = 10.0
"""Clipping that takes less than this from a gradient is what it is for."""


def clipped(layer: LayerContext) -> Cause | None:
    """The cause, where clipping leaves a tenth of the gradients or less and the optimizer makes smaller steps of it."""
    limit, norm = layer.window.gradient_clip, layer.window.gradient_norm
    if limit is None or norm is None or norm < FAR * limit:
        return None
    if is_normalised(layer) and epsilon_dominates(layer) is None:  # it divides by the size that is left
        return None
    return CLIPPED.because(
        f"the gradients of a step have a norm of {norm:.2g}, which gradient_clip_val={limit:g} brings down to that:"
        f" {limit / norm:.1e} of the step is left",
        "Raise gradient_clip_val of the Trainer (1.0 is usual): it is there for steps out of line, not for all.",
        references.CLIPPING,
        {"gradient_norm": norm, "gradient_clip": limit},
    )
