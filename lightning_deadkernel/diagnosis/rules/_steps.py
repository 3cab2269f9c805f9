"""What the rules about the size of steps share: what makes them small, and what a number format resolves."""

from __future__ import annotations

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.context import LayerContext
from lightning_deadkernel.diagnosis.rules._small_gradient import is_normalised

ANNEALED = 0.01
"""A learning rate below a hundredth of the largest there was is what the schedule asks for."""
LOOK_AT_SCHEDULE = (
    "See whether the schedule has ended before the training does (its number of steps, steps counted as epochs, a decay"
    " applied at each step), and log the rate with LearningRateMonitor."
)
MOST_BELOW_EPSILON = 0.5
"""Share of the weights whose gradients must be below epsilon for it to be the cause."""
FAR = 10.0
"""Clipping that takes less than this from a gradient is what it is for."""
RESOLUTION = {2: 2.0**-8, 4: 2.0**-24, 8: 2.0**-53}
"""Bytes of a weight -> the relative step below which an update is surely rounded away (of two bytes: bfloat16)."""


def is_annealed(layer: LayerContext) -> bool:
    """Whether the learning rate is a hundredth of its largest or less."""
    return (layer.observed.learning_rate or 0.0) <= ANNEALED * layer.past.largest_learning_rate


def is_scheduled(layer: LayerContext) -> bool:
    """Whether the learning rate is warming up, from window to window or within this one, or annealed."""
    rate, first = layer.observed.learning_rate or 0.0, layer.observed.first_learning_rate
    rising = rate > layer.past.previous_learning_rate or (first is not None and first < rate)
    return rising or is_annealed(layer)


def _epsilon_dominates(layer: LayerContext) -> Cause | None:
    """The cause, where most gradients are below epsilon and steps are less than half of what they are above it."""
    adam, step = layer.observed.adam, layer.observed.step_over_rate
    if adam is None or step is None or (adam.below_epsilon or 0.0) <= MOST_BELOW_EPSILON or step >= adam.steady / 2:
        return None
    assert adam.below_epsilon is not None
    return causes.EPSILON_DOMINATES.because(
        f"the gradients of {adam.below_epsilon:.0%} of its weights are below the optimizer's eps={adam.epsilon:g}, so"
        f" that a typical step is {step:.1e} times the learning rate where {adam.steady:.2f} times is usual",
        f"Set eps far below the gradient (rms {layer.observed.gradient_rms or 0.0:.1e}), or scale the loss up; if the"
        " loss is as low as it can be, the training is at its end.",
        references.EPSILON,
        {"below_epsilon": adam.below_epsilon, "eps": adam.epsilon, "step_over_rate": step},
    )


def what_shrinks(layer: LayerContext) -> Cause | None:
    """What makes the layer's steps small beside its gradients: the clipping of these, or Adam's epsilon."""
    return _clipped(layer) or _epsilon_dominates(layer)


def _clipped(layer: LayerContext) -> Cause | None:
    """The cause, where clipping leaves a tenth of the gradients or less and the optimizer makes smaller steps of it."""
    limit, norm = layer.window.gradient_clip, layer.window.gradient_norm
    if limit is None or norm is None or norm < FAR * limit:
        return None
    if is_normalised(layer) and _epsilon_dominates(layer) is None:  # it divides by the size that is left
        return None
    return causes.CLIPPED.because(
        f"the gradients of a step have a norm of {norm:.2g}, which gradient_clip_val={limit:g} brings down to that:"
        f" {limit / norm:.1e} of the step is left",
        "Raise gradient_clip_val of the Trainer (1.0 is usual): it is there for steps out of line, not for all.",
        references.CLIPPING,
        {"gradient_norm": norm, "gradient_clip": limit},
    )


def against_rounding(layer: LayerContext) -> str:
    """What helps where steps are smaller than the weights resolve."""
    if layer.observed.bytes_per_parameter > 2:
        return f"Raise the gradient of this layer (a norm, a shorter path to the loss) or {layer.rate}."
    return (
        "Keep float32 master weights (precision='bf16-mixed' in place of 'bf16-true'), take an optimizer that keeps"
        f" them or rounds stochastically, or raise {layer.rate}."
    )
