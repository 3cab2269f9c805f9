"""Layers whose optimizer steps change too much of the weights.

## What it finds

Layers whose typical step changes the weights by more than a tenth of their norm. Once is worth knowing, since first
steps from small weights look like this; twice in a row is a warning.

## Why it matters

About one in a thousand is healthy. At a tenth, what was learned is overwritten within a few steps, and kernels are
pushed where their activation is off for every input.

## What to do

Lower the learning rate three- to tenfold or warm it up; clip the gradient norm if single batches cause it.

## Reference

- CS231n course notes, Neural Networks Part 3, ratio of weights:updates, https://cs231n.github.io/neural-networks-3/
- Goyal et al. 2017, Accurate, Large Minibatch SGD, https://arxiv.org/abs/1706.02677
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.classify import SHRUNK
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.inputs import entrance, is_large, off_scale
from lightning_deadkernel.diagnosis.layer_past import PLAIN, step_of_decay
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.weight_causes import KERNEL, against_decay, against_shrinking


@rule(
    "updates are recklessly large",
    causes.SHRUNKEN_WEIGHTS,
    causes.DECAYED,
    causes.OFF_SCALE_INPUTS,
    causes.RECKLESS_UPDATES,
)
def update_too_large(context: WindowContext) -> Iterator[Found]:
    """Layers whose median update ratio is above the line."""
    line = context.thresholds.update_large
    for layer in context.layers:
        ratio = layer.observed.update_ratio
        if ratio is None or not ratio > line:
            continue
        again = layer.past.previous_update_ratio > line
        cause = (
            _shrunken(layer, ratio)
            or _decaying(layer, ratio)
            or _from_large_inputs(layer, ratio)
            or _reckless(layer, ratio, again)
        )
        yield Found(layer, "warning" if again else "info", cause)


def _reckless(layer: LayerContext, ratio: float, again: bool) -> Cause:
    return causes.RECKLESS_UPDATES.because(
        f"a typical step changes the weights by {ratio:.2g} of their norm"
        + (", as in the window before" if again else ""),
        f"Lower {layer.rate} three- to tenfold or warm it up; clip the gradient norm if single batches cause it."
        if again
        else "Nothing yet: first steps from small weights look like this. If it is still so in the next window,"
        f" lower {layer.rate}.",
        f"{references.CS231N}; {references.WARMUP}",
        {"update_ratio": ratio, "update_ratio_max": layer.observed.update_ratio_max or ratio},
    )


def _from_large_inputs(layer: LayerContext, ratio: float) -> Cause | None:
    """The cause, where steps grow with gradients, and these with what enters the network."""
    where = entrance(layer, is_large) if layer.observed.optimizer in PLAIN else None
    if where is None:
        return None
    text = f"a typical step changes the weights by {ratio:.2g} of their norm; "
    return off_scale(where, is_large, text, ", and gradients grow with it", f", or lower {layer.rate}")


def _shrunken(layer: LayerContext, ratio: float) -> Cause | None:
    """The cause, where it is not the steps that have grown: the weights have shrunk to a tenth or less."""
    observed = layer.observed
    if observed.norms is None or not float(observed.norms.norm()) < SHRUNK * float(layer.past.first_norm.norm()):
        return None
    left = float(observed.norms.norm()) / float(layer.past.first_norm.norm())
    return causes.SHRUNKEN_WEIGHTS.because(
        f"a typical step changes the weights by {ratio:.2g} of their norm, and that has fallen to {left:.1e} of what it"
        " was when first seen",
        against_shrinking(layer),
        references.MEHTA,
        {"update_ratio": ratio, "norm_left": left},
    )


def _decaying(layer: LayerContext, ratio: float) -> Cause | None:
    """The cause, where weight decay alone makes most of each step."""
    part = step_of_decay(layer.observed)
    if part < ratio / 2:
        return None
    return causes.DECAYED.because(
        f"a typical step changes the weights by {ratio:.2g} of their norm, and weight decay"
        f" {layer.observed.weight_decay:g} alone takes {part:.2g} of it at each step",
        f"{against_decay(layer, KERNEL)}.",
        references.ADAMW,
        {"update_ratio": ratio, "of_decay": part},
    )
