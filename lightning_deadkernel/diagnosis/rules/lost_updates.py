"""Optimizer steps that the number format rounds away.

## What it finds

Layers at least half of whose weights with a gradient were, on the sampled steps, left bitwise unchanged by the
optimizer. A kernel of hundreds of weights changes in some of them on every step, so that no kernel need be frozen for
most of what is learned to be lost. Steps with a learning rate of 0, weights without a gradient, weights that are
exactly zero, and a learning rate that is warming up or annealed by its schedule are not meant. Of parameters with one
axis that are held in two bytes (the gains of norms stand at 1, where bfloat16 resolves no step below 2^-9 down and 2^-8
up) it is told once of the network.

## Why it matters

bfloat16 holds eight bits: a step below 0.2 to 0.4 % of a weight is rounded away, on every step anew, and does not add
up. The loss falls more slowly, or stops early, and no picture of gradients or weights shows why.

## What to do

Keep float32 master weights (`bf16-mixed` in place of `bf16-true`), use an optimizer that keeps them itself or rounds
stochastically, or a larger learning rate. Such an optimizer loses nothing even where single steps leave most weights as
they are: the finding does not know of copies that an optimizer keeps, and may then be left alone.

## Reference

- Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740
- Zamirai et al. 2020, Revisiting BFloat16 Training, https://arxiv.org/abs/2010.06192
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import underflow
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.rules._small_gradient import is_normalised
from lightning_deadkernel.diagnosis.rules._steps import RESOLUTION, against_rounding, is_scheduled, what_shrinks

COARSE = 4.0
"""Steps that are larger than so many times the format's resolution cannot mostly have been rounded away."""
NAMED = 3


@rule(
    "optimizer steps are rounded away",
    causes.CLIPPED,
    causes.EPSILON_DOMINATES,
    causes.BELOW_RESOLUTION,
    causes.UNKNOWN,
)
def lost_updates(context: WindowContext) -> Iterator[Found]:
    """Layers most of whose updates are lost, and the parameters with one axis."""
    line = context.thresholds.lost_updates
    for layer in context.layers:
        share = layer.observed.lost_updates
        if share is None or share < line or is_scheduled(layer):
            continue
        cause = _why(layer, share)
        # in a wide format that is what too small a gradient or learning rate comes to, which have rules of their own
        is_root = cause.kind is causes.BELOW_RESOLUTION and layer.observed.bytes_per_parameter <= 2
        is_root &= underflow(layer.observed) is None  # gradients that float16 has lost are a finding of their own
        yield Found(layer, "warning" if is_root else "info", cause, {"lost_updates": share})
    yield from _elsewhere(context)


def _why(layer: LayerContext, share: float) -> Cause:
    observed = layer.observed
    ratio = observed.update_ratio
    stood = f"on a sampled step {share:.0%} of its weights that had a gradient did not change in one bit"
    if ratio is None or ratio < COARSE * RESOLUTION.get(observed.bytes_per_parameter, RESOLUTION[4]):
        return what_shrinks(layer) or causes.BELOW_RESOLUTION.because(
            f"{stood}: steps at learning rate {observed.learning_rate or 0.0:g} are smaller than"
            f" {observed.bytes_per_parameter} bytes resolve"
            + ("" if ratio is None else f" (an update of {ratio:.1e} of the weights' norm)"),
            against_rounding(layer),
            f"{references.MIXED}; {references.BFLOAT16}",
            {"learning_rate": observed.learning_rate or 0.0, "bytes_per_parameter": observed.bytes_per_parameter},
        )
    others = f"the others change by {ratio:.1e} of the norm"
    written_back = "code that writes weights back after each step: a clamp, a mask, a projection."
    written_back += " Where it is meant to do so, nothing is wrong."
    if not is_normalised(layer):  # each of its steps is as large as its own gradient
        return causes.UNKNOWN.because(
            f"{stood}, while {others}: steps of {observed.optimizer or 'the optimizer'} are as large as the gradients,"
            " and those of these weights may be too small beside the others', or something writes them back",
            "Look at why gradients differ so much from weight to weight (inputs of very different size, a batch norm"
            f" over two values), or for {written_back}",
            references.MIXED,
        )
    return causes.UNKNOWN.because(
        f"{stood}; ruled out: steps below the weights' resolution ({others})",
        f"Look for {written_back}",
        references.MIXED,
    )


def _elsewhere(context: WindowContext) -> Iterator[Found]:
    names = [name for name, share in context.window.lost_elsewhere.items() if share >= context.thresholds.lost_updates]
    if not names or all(is_scheduled(layer) for layer in context.layers):
        return
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
    cause = causes.BELOW_RESOLUTION.because(
        f"on a sampled step most entries of {len(names):,} of {len(context.window.lost_elsewhere):,} gains, shifts and"
        f" biases did not change in one bit ({shown})",
        "Keep them, or all parameters, in float32 (precision='bf16-mixed' in place of 'bf16-true'): at a gain of 1"
        " bfloat16 resolves no step below 0.002 down and 0.004 up.",
        f"{references.MIXED}; {references.BFLOAT16}",
        {"parameters": len(names)},
    )
    yield Found(None, "info", cause)
