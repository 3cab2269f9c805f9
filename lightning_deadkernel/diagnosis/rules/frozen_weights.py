"""Kernels that get a gradient and did not change in one bit.

## What it finds

Kernels whose weights are bitwise the same at the window's end as at its start, though optimizer steps were taken, the
learning rate was positive, no mask holds them, and a gradient reached them. Weights with `requires_grad=False` are not
meant: they are listed as not watched.

## Why it matters

Their backward pass is paid for and nothing is learned. Either no optimizer holds the parameter, or its steps are
smaller than the number format can resolve and are rounded away, maybe as the schedule has left nothing of the learning
rate.

## What to do

Pass the parameter to the optimizer, look at the schedule, keep float32 master weights (`bf16-mixed` in place of
`bf16-true`), or raise a gradient that is too small.

## Reference

- Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740
- PyTorch documentation, torch.optim, https://pytorch.org/docs/stable/optim.html
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.rules._small_gradient import is_normalised, is_vanishing, is_weak
from lightning_deadkernel.diagnosis.rules._steps import (
    LOOK_AT_SCHEDULE,
    RESOLUTION,
    against_rounding,
    is_annealed,
    what_shrinks,
)

SPREAD = 16.0
"""Gradients of the kernels of one layer differ by more than this factor, and so do their steps."""
HALF = 0.5
"""Below this share of a layer, kernels that stand still are no more than worth knowing: their inputs may be zero."""


@rule(
    "{of} frozen: not one bit changed",
    causes.NOT_IN_OPTIMIZER,
    causes.RATE_SPENT,
    causes.CLIPPED,
    causes.EPSILON_DOMINATES,
    causes.BELOW_RESOLUTION,
    causes.UNKNOWN,
)
def frozen_weights(context: WindowContext) -> Iterator[Found]:
    """Channels flagged as frozen."""
    for layer, channels in context.having("frozen"):
        cause = _why(layer, channels)
        # a small gradient is a finding of its own, and the root of this one
        few = is_vanishing(layer) or is_weak(layer) or float(channels.float().mean()) < HALF
        usual = cause.kind in (causes.UNKNOWN, causes.CLIPPED, causes.EPSILON_DOMINATES, causes.RATE_SPENT)
        usual |= cause.kind is causes.BELOW_RESOLUTION and layer.observed.bytes_per_parameter > 2
        evidence: Evidence = {"optimizer_steps": layer.window.optimizer_steps}
        yield Found(layer, "info" if few and usual else "warning", cause, evidence, channels)


def _why(layer: LayerContext, channels: Tensor) -> Cause:
    observed = layer.observed
    if not observed.in_optimizer:
        came = layer.past.first_step if layer.past.first_window else 0
        others = any(other.observed.in_optimizer for other in layer.network.layers)
        advice = (
            "Pass the parameter to the optimizer in configure_optimizers, or set requires_grad=False if it is frozen"
        )
        advice += " on purpose (that saves its backward pass as well)."
        if came:
            advice = (
                f"Make {layer.name} before the optimizer is made (in __init__, not in forward()), or add its weights"
            )
            advice += " with optimizer.add_param_group."
        elif not others:
            advice = "Make the optimizer of self.parameters() in configure_optimizers, and replace no layer after that."
        return causes.NOT_IN_OPTIMIZER.because(
            "a gradient reaches the weight, but no optimizer holds it, so no step can change it"
            + (
                f"; the weight is a new one since step {came:,}, and the optimizer holds those of before"
                if came
                else ""
            )
            + ("" if others else "; none of the network's weights is in one: it may hold a copy, or those of before"),
            advice,
            references.OPTIM_DOCS,
        )
    gradient = observed.weight_gradient if observed.weight_gradient is not None else observed.gradient
    assert gradient is not None
    rate, size = observed.learning_rate or 0.0, float(gradient[channels].max())
    if observed.gradient_rms:  # of all entries none is larger than this, while a shift's own gradient may be by far
        most = SPREAD if observed.weight_gradient is None else observed.parameters**0.5
        size = min(size, most * observed.gradient_rms)
    largest = float(observed.largest[channels].max()) if observed.largest is not None else float("nan")
    evidence: Evidence = {
        "learning_rate": rate,
        "largest_gradient": size,
        "largest_weight": largest,
        "bytes_per_parameter": observed.bytes_per_parameter,
    }
    half = observed.bytes_per_parameter == 2
    resolution = RESOLUTION.get(observed.bytes_per_parameter, RESOLUTION[4])
    step = observed.update_ratio  # of the whole layer, from which some kernels depart
    expected = rate * (1.0 if is_normalised(layer) else size)
    if is_annealed(layer) and expected < RESOLUTION[4] * largest:  # of two bytes, the format may be to blame
        return causes.RATE_SPENT.because(
            f"the learning rate is down to {rate:.1e} from {layer.past.largest_learning_rate:g}: steps of that size"
            " round away in the weights",
            LOOK_AT_SCHEDULE,
            references.SCHEDULE_DOCS,
            evidence,
        )
    tiny = step is not None and step < SPREAD * resolution
    if tiny and (known := what_shrinks(layer)) is not None:
        return known
    rounds = expected < (SPREAD if half else 1.0) * resolution * largest
    if tiny and step:  # zero may be what is left where something has taken the gradient
        return causes.BELOW_RESOLUTION.because(
            f"a typical step at learning rate {rate:g} changes the layer by {step:.1e} of its weights, which"
            f" resolve {resolution:.0e}: smaller ones round away",
            against_rounding(layer),
            references.MIXED,
            evidence | {"update_ratio": step},
        )
    if rounds or (half and step is None):
        return causes.BELOW_RESOLUTION.because(
            f"steps at learning rate {rate:g} on gradients up to {size:.1e} round away in weights of up to"
            f" {largest:.2g} held in {observed.bytes_per_parameter} bytes",
            against_rounding(layer),
            references.MIXED,
            evidence,
        )
    return causes.UNKNOWN.because(
        "ruled out: missing from the optimizer, learning rate zero, a pruning mask, steps below the weights'"
        " resolution",
        "Look for code that writes the weights back after each step, for a gradient zeroed before the step (by a hook,"
        " or by zero_grad() in the wrong place), or for an optimizer that does not step in this phase. Of a few kernels"
        " it is normal where their inputs are zero whenever they fire.",
        references.OPTIM_DOCS,
        evidence,
    )
