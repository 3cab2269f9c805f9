"""What rules about the size of steps share: whether the schedule of the learning rate asks for it."""

from __future__ import annotations

from lightning_deadkernel.diagnosis.context import LayerContext

ANNEALED = 0.01
"""A learning rate below a hundredth of the largest there was is what the schedule asks for."""
ADVICE = (
    "See whether the schedule has ended before the training does (its number of steps, steps counted as epochs, a decay"
    " applied at each step), and log the rate with LearningRateMonitor."
)


def is_annealed(layer: LayerContext) -> bool:
    """Whether the learning rate is a hundredth of its largest or less."""
    return (layer.observed.learning_rate or 0.0) <= ANNEALED * layer.past.largest_learning_rate


def is_scheduled(layer: LayerContext) -> bool:
    """Whether the learning rate is warming up, from window to window or within this one, or annealed."""
    rate, first = layer.observed.learning_rate or 0.0, layer.observed.first_learning_rate
    rising = rate > layer.past.previous_learning_rate or (first is not None and first < rate)
    return rising or is_annealed(layer)
