"""What the rules of frozen weights and lost updates share: how small a step a number format resolves."""

from __future__ import annotations

from lightning_deadkernel.diagnosis.context import LayerContext

EPSILON = {2: 2.0**-8, 4: 2.0**-24, 8: 2.0**-53}
"""Bytes of a weight -> the relative step below which an update is surely rounded away (of two bytes: bfloat16)."""


def advice(layer: LayerContext) -> str:
    """What helps where steps are smaller than the weights resolve."""
    if layer.observed.bytes_per_parameter > 2:
        return f"Raise the gradient of this layer (a norm, a shorter path to the loss) or {layer.rate}."
    return (
        "Keep float32 master weights (precision='bf16-mixed' in place of 'bf16-true'), take an optimizer that keeps"
        f" them or rounds stochastically, or raise {layer.rate}."
    )
