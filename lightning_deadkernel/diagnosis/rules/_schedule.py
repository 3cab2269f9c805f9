"""What rules about the size of steps share: whether the schedule of the learning rate asks for it."""

from __future__ import annotations

from lightning_deadkernel.diagnosis.context import LayerContext

ANNEALED = 0.01
"""A learning rate below a hundredth of the largest there was is what the schedule asks for."""


def is_scheduled(layer: LayerContext) -> bool:
    """Whether the learning rate is warming up, from window to window or within this one, or annealed."""
    rate, first = layer.observed.learning_rate or 0.0, layer.observed.first_learning_rate
    rising = rate > layer.past.previous_learning_rate or (first is not None and first < rate)
    return rising or rate <= ANNEALED * layer.past.largest_learning_rate
