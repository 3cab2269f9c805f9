"""Layers that hardly move though a gradient and the schedule would have it so.

## What it finds

Layers whose typical step changes the weights by less than one in a million of their norm, twice in a row, while the
learning rate is neither rising nor annealed to a hundredth of its largest value. And a network that stands still: the
learning rate is zero for two windows, or no optimizer has taken a step at all; or a part of it, whose own optimizer has
taken none.

## Why it matters

About one in a thousand is healthy. A layer that moves a thousand times slower keeps its initial weights for all
practical purposes.

## What to do

Fix the weak gradient first, if that is why; raise `gradient_clip_val` where it cuts every step; lower the `eps` of Adam
where gradients are below it. Else raise the learning rate of this layer, or freeze it on purpose. A rate of zero comes
from a schedule that has ended or counts steps as epochs; missing steps from a manual optimization.

## Reference

- CS231n course notes, Neural Networks Part 3, ratio of weights:updates, https://cs231n.github.io/neural-networks-3/
- Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities,
  https://arxiv.org/abs/2309.14322
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.inputs import from_small_inputs
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.rules._small_gradient import is_normalised
from lightning_deadkernel.diagnosis.rules._steps import LOOK_AT_SCHEDULE, is_scheduled, what_shrinks

NEVER_ABOVE_ZERO = "was 0 on every step that was looked at, in this window and the one before"


@rule(
    "updates are too small to matter",
    causes.CLIPPED,
    causes.EPSILON_DOMINATES,
    causes.OFF_SCALE_INPUTS,
    causes.SLOW_UPDATES,
    causes.NO_RATE,
    causes.NO_STEP,
)
def update_too_small(context: WindowContext) -> Iterator[Found]:
    """Layers whose median update ratio is below the line, though not by the schedule, and a network at rest."""
    yield from _standing_still(context)
    line = context.thresholds.update_small
    for layer in context.layers:
        observed = layer.observed
        ratio = observed.update_ratio
        if ratio is None or not 0 < ratio < line or not bool(layer.with_gradient.any()) or is_scheduled(layer):
            continue
        again = 0 < layer.past.previous_update_ratio < line
        weak = observed.gradient_ratio is not None and observed.gradient_ratio < context.thresholds.weak_gradient
        cause = what_shrinks(layer) or _from_small_inputs(layer, ratio) or _slow(layer, ratio, weak)
        # where steps are as large as gradients, a weak one is a finding of its own, and the root of this; so are zeros
        follows = (weak and not is_normalised(layer)) or _is_shut(layer)
        yield Found(layer, "warning" if again and not follows else "info", cause)


def _from_small_inputs(layer: LayerContext, ratio: float) -> Cause | None:
    if is_normalised(layer):
        return None
    text = f"a typical step changes the weights by {ratio:.1e} of their norm (1e-3 is usual): "
    return from_small_inputs(layer, text, ratio, layer.thresholds.update_small)


def _slow(layer: LayerContext, ratio: float, weak: bool) -> Cause:
    rate, gradient = layer.observed.learning_rate or 0.0, layer.observed.gradient_ratio
    others = [other.observed.update_ratio for other in layer.network.layers if other is not layer]
    alone = any(other is not None and other >= layer.thresholds.update_small for other in others)
    return causes.SLOW_UPDATES.because(
        f"a typical step at learning rate {rate:g} changes the weights by {ratio:.1e} of their norm (1e-3 is usual)"
        + (f"; its gradient is weak too ({gradient:.1e} of the largest)" if weak else ""),
        "Fix the weak gradient first."
        if weak
        else f"Raise {layer.rate} for {layer.name}, or check that this layer is meant to rest."
        if alone
        else f"Raise {layer.rate}: all layers move as little.",
        references.CS231N,
        {"update_ratio": ratio, "learning_rate": rate},
    )


def _is_shut(layer: LayerContext) -> bool:
    """Its own kernels are zero, or all that it reads is zero or dead."""
    producers = layer.observed.producers or ()
    fed_nothing = bool(producers) and all(layer.network.wholly(name, "zero_kernels", "dead") for name in producers)
    return fed_nothing or layer.wholly("zero_kernels")


def _standing_still(context: WindowContext) -> Iterator[Found]:
    """All that is watched has a gradient and keeps its weights: by a learning rate of zero, or for want of a step."""
    layers = [layer for layer in context.layers if layer.observed.in_optimizer]
    if context.window.index < 2 or not any(bool(layer.with_gradient.any()) for layer in layers):
        return
    if context.window.optimizer_steps:
        rates = {layer.observed.learning_rate for layer in layers} | {
            layer.past.previous_learning_rate for layer in layers
        }
        if rates == {0.0}:
            cause = causes.NO_RATE.because(
                f"the learning rate {NEVER_ABOVE_ZERO}: no weight changes any more",
                LOOK_AT_SCHEDULE,
                references.SCHEDULE_DOCS,
            )
            yield Found(None, "error", cause)
            return
        for layer in layers:
            if layer.observed.learning_rate == layer.past.previous_learning_rate == 0.0:
                cause = causes.NO_RATE.because(
                    f"the learning rate of its parameter group {NEVER_ABOVE_ZERO}, while others learn",
                    "Nothing to fix if it is meant to rest, where requires_grad=False saves its backward pass as well;"
                    " else look at its parameter group, and at its schedule.",
                    references.SCHEDULE_DOCS,
                )
                yield Found(layer, "info", cause)
    unmoved = [layer for layer in layers if _is_as_at_first(layer)]
    some = [layer for layer in unmoved if context.window.optimizer_steps and _waits_for_a_step(layer)]
    names = ", ".join(layer.name for layer in some[:SHOWN]) + (", ..." if len(some) > SHOWN else "")
    if some or (unmoved == layers and not context.window.optimizer_steps):
        cause = causes.NO_STEP.because(
            f"gradients were computed in {context.window.batches:,} batches and more before, "
            + (
                f"the optimizer that holds {names} took no step, though another did, and the weights there"
                if some
                else "no optimizer took a step, and all weights"
            )
            + " are what they were at initialisation",
            "With manual optimization call optimizer.step() and optimizer.zero_grad() after self.manual_backward(loss),"
            " with each optimizer that self.optimizers() returns"
            + (", unless it is to rest for now." if some else "."),
            references.MANUAL_DOCS,
            {"batches": context.window.batches, "layers": len(some or unmoved)},
        )
        yield Found(None, "warning" if some else "error", cause)


SHOWN = 4


def _waits_for_a_step(layer: LayerContext) -> bool:
    """It has a gradient, and not one bit of it changed; of an optimizer that steps, name and rate are known."""
    observed = layer.observed
    still = observed.unchanged is not None and bool(observed.unchanged.all())
    unknown = observed.optimizer is None and observed.learning_rate is None
    return still and unknown and bool(layer.with_gradient.any())


def _is_as_at_first(layer: LayerContext) -> bool:
    norms = layer.observed.norms
    return norms is not None and layer.past.from_start and bool((norms.float() == layer.past.first_norm).all())
