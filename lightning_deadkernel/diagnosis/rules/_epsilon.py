"""What the rules of small steps share: whether Adam's epsilon makes them so."""

from __future__ import annotations

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import EPSILON_DOMINATES, Cause
from lightning_deadkernel.diagnosis.context import LayerContext

MOST = 0.5
"""Share of the weights whose gradients must be below epsilon for it to be the cause."""


def epsilon_dominates(layer: LayerContext) -> Cause | None:
    """The cause, where most gradients are below epsilon and steps are less than half of what they are above it."""
    adam, step = layer.observed.adam, layer.observed.step_over_rate
    if adam is None or step is None or (adam.below_epsilon or 0.0) <= MOST or step >= adam.steady / 2:
        return None
    assert adam.below_epsilon is not None
    return EPSILON_DOMINATES.because(
        f"the gradients of {adam.below_epsilon:.0%} of its weights are below the optimizer's eps={adam.epsilon:g}, so"
        f" that a typical step is {step:.1e} times the learning rate where {adam.steady:.2f} times is usual",
        f"Set eps far below the gradient (rms {layer.observed.gradient_rms or 0.0:.1e}), or scale the loss up; if the"
        " loss is as low as it can be, the training is at its end.",
        references.EPSILON,
        {"below_epsilon": adam.below_epsilon, "eps": adam.epsilon, "step_over_rate": step},
    )
