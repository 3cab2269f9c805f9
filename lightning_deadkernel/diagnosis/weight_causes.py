"""Why kernels are zero: each cause with its premise, a (C,) bool over the channels of a layer, and its explanation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, CauseKind
from lightning_deadkernel.diagnosis.classify import SHRUNK
from lightning_deadkernel.diagnosis.context import LayerContext, span
from lightning_deadkernel.diagnosis.layer_past import PLAIN
from lightning_deadkernel.report.states import ZERO_KERNEL


@dataclass(frozen=True)
class ChannelCause:
    """A cause that holds for some channels of a layer."""

    kind: CauseKind
    holds: Callable[[LayerContext], Tensor]
    """Its premise, (C,) bool."""
    explain: Callable[[LayerContext, Tensor], Cause]
    """What it says of the channels, (C,) bool, for which it holds."""


def channel_cause(
    kind: CauseKind, holds: Callable[[LayerContext], Tensor]
) -> Callable[[Callable[[LayerContext, Tensor], Cause]], ChannelCause]:
    """Makes what a function explains a cause, see `ChannelCause`; the function's docstring says its premise."""
    return lambda explain: ChannelCause(kind, holds, explain)


def assign(
    layer: LayerContext,
    channels: Tensor,
    causes: Sequence[ChannelCause],
    otherwise: Callable[[LayerContext, Tensor], Cause],
) -> list[tuple[Tensor, Cause]]:
    """Give each channel the first cause that holds, and group the channels, (C,) bool, by cause."""
    groups, left = [], channels.clone()
    for cause in causes:
        here = left & cause.holds(layer)
        if bool(here.any()):
            groups.append((here, cause.explain(layer, here)))
            left &= ~here
    if bool(left.any()):
        groups.append((left, otherwise(layer, left)))
    return groups


# -- pruned -----------------------------------------------------------------------------------------------------------


@channel_cause(
    causes.PRUNED, lambda layer: layer.everywhere(False) if layer.observed.masked is None else layer.observed.masked
)
def pruned(layer: LayerContext, channels: Tensor) -> Cause:
    """A mask holds the whole kernel at zero."""
    return causes.PRUNED.because(
        "a pruning mask holds the whole kernel at zero, as was asked for",
        "Nothing to fix. Remove the channels physically to turn the mask into saved memory and time.",
        references.PRUNE_DOCS,
    )


# -- zero at initialisation -------------------------------------------------------------------------------------------


def is_zero(layer: LayerContext) -> Tensor:
    """The kernel, or its norm's scale, is zero or next to it."""
    return layer.mask(layer.report.zero_kernels)


def _was_zero(layer: LayerContext) -> Tensor:
    """The kernel was zero before the first step, or its norm's scale next to it when it was first seen."""
    return layer.past.first_zero | (layer.past.first_scale < layer.thresholds.norm_scale)


@channel_cause(causes.ZERO_AT_INITIALISATION, lambda layer: is_zero(layer) & _was_zero(layer) & layer.past.from_start)
def zero_at_initialisation(layer: LayerContext, channels: Tensor) -> Cause:
    """It was zero before its first step, or next to it, and is so now."""
    what, first = what_is_zero(layer, channels), layer.past.first_scale[channels]
    when = "zero before the first step"
    if not bool(layer.past.first_zero[channels].all()):  # the norm that follows is known by the graph alone
        when = f"next to zero when first seen, after the first window ({span(first[first.isfinite()])})"
    return causes.ZERO_AT_INITIALISATION.because(
        f"the {what} was {when} and still is; training did not do it",
        "Initialise these kernels with random values (kaiming_normal_); if the zeros are on purpose, see that a"
        " gradient reaches them: a zero kernel learns only if what follows it lets one through."
        if what == KERNEL
        else "Initialise the norm's scale to one; if the zeros are on purpose (residual branches), see that a gradient"
        " reaches them: a scale of zero learns only where its channel passes on what it makes.",
        references.HE,
        {"first_norm": _largest(layer.past.first_norm[channels])},
    )


KERNEL, SCALE = "kernel", "norm's scale (gamma)"


def what_is_zero(layer: LayerContext, channels: Tensor) -> str:
    """The kernel itself where that is so for all of them, else the scale of the norm that follows."""
    if layer.observed.norm_scale is None or layer.observed.norms is None:
        return KERNEL
    return KERNEL if bool(_is_kernel_zero(layer)[channels].all()) else SCALE


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else float("nan")


# -- decayed ----------------------------------------------------------------------------------------------------------

SLACK = 2.0
"""Learning rates are seen on sampled steps: what decay can have done is known within this factor."""


def has_scale_shrunk(layer: LayerContext) -> Tensor:
    """The norm's scale has lain near zero for two windows and has fallen to a tenth: it does not just pass through."""
    past = layer.past
    return is_zero(layer) & ((past.before & ZERO_KERNEL) != 0) & (past.scale < SHRUNK * past.first_scale)


def _is_kernel_smaller(layer: LayerContext) -> Tensor:
    """The kernel itself is zero or next to it, and smaller than at first."""
    norms = layer.observed.norms
    return layer.everywhere(False) if norms is None else _is_kernel_zero(layer) & (norms < layer.past.first_norm)


def _is_kernel_zero(layer: LayerContext) -> Tensor:
    norms, largest = layer.observed.norms, layer.observed.largest
    if norms is None or not norms.numel():
        return layer.everywhere(False)
    zero = norms < layer.thresholds.zero_kernel * norms.nan_to_num(nan=0.0).amax()
    return zero if largest is None else zero | (largest == 0)


def has_decayed(layer: LayerContext) -> Tensor:
    """Kernel or scale is zero now, was not at first, and the weight decay that was applied can have taken it so far."""
    if layer.observed.weight_decay <= 0:
        return layer.everywhere(False)
    past, norms = layer.past, layer.observed.norms
    within = has_scale_shrunk(layer) & _is_within_reach(layer, past.first_scale, past.scale, entries=1)
    if norms is not None:
        within = within | (_is_kernel_smaller(layer) & decay_reaches(layer, norms))
    return is_zero(layer) & ~past.first_zero & within


def decay_reaches(layer: LayerContext, norms: Tensor) -> Tensor:
    """(C,) bool: decay alone can have taken the kernels from the norms that they had at first to these."""
    entries = max(1, layer.observed.parameters // max(1, layer.observed.channels))
    return _is_within_reach(layer, layer.past.first_norm, norms, entries)


def _is_within_reach(layer: LayerContext, first: Tensor, now: Tensor, entries: int) -> Tensor:
    """(C,) bool: decay alone can have taken a norm over so many entries from what it was to what it is.

    Apart from the gradient, decay leaves a factor of prod(1 - lr wd) at least; through the gradient of SGD, one of
    exp(-sum(lr wd) / (1 - momentum)); through that of an optimizer that normalises its steps, each entry moves by about
    the learning rate a step at most, however small the decay.
    """
    observed, past = layer.observed, layer.past
    exponent = past.decay / (1.0 if observed.decoupled_decay else max(1e-3, 1.0 - observed.momentum))
    reached: Tensor = now >= first * math.exp(-min(SLACK * exponent, 700.0))
    if observed.decoupled_decay or observed.optimizer in PLAIN:
        return reached
    near: Tensor = (first - now) / entries**0.5 <= SLACK * past.travel
    return near if observed.decoupled_decay is False else near | reached


def has_worn_away(layer: LayerContext) -> Tensor:
    """Decay can have taken the kernel next to zero beside what it was, as all of a layer may be: it has no norm."""
    norms, past = layer.observed.norms, layer.past
    if layer.observed.weight_decay <= 0 or norms is None or layer.observed.norm_scale is not None:
        return layer.everywhere(False)
    small = norms < layer.thresholds.zero_kernel * past.first_norm
    return layer.everywhere(past.from_start) & small & decay_reaches(layer, norms)


@channel_cause(causes.DECAYED, has_decayed)
def decayed(layer: LayerContext, channels: Tensor) -> Cause:
    """It has shrunk to zero, and decay can have done it."""
    observed, past = layer.observed, layer.past
    stop = past.last_gradient[channels]
    seen = stop[stop > 0]
    still = bool(seen.numel()) and int(seen.max()) == layer.window.index
    if not seen.numel():
        when = "no gradient was seen since training began"
    elif still:
        when = "a gradient still reaches some of them, too weak to hold against the decay"
    else:
        when = f"the last gradient was seen in {layer.when(seen)}"
    what = what_is_zero(layer, channels)
    kernel = what == KERNEL and observed.norms is not None
    now = observed.norms[channels] if kernel and observed.norms is not None else past.scale[channels]
    first = past.first_norm[channels] if kernel else past.first_scale[channels]
    shape = {True: " applied apart from the gradient", False: " applied through the gradient (L2)", None: ""}
    return causes.DECAYED.because(
        f"{when}, and weight decay {observed.weight_decay:g}{shape[observed.decoupled_decay]} has worn"
        f" the {what}"
        # the norm that follows is known by the graph alone, so its scale is first seen after the first window
        f" down ({'norm ' * kernel}{span(first)} {'at the start' if kernel else 'when first seen'}, {span(now)} now)",
        f"{against_decay(layer, what)}. What is already gone can be pruned; fold a constant output into what reads it"
        " first.",
        f"{references.MEHTA}; {references.ADAMW}",
        {
            "weight_decay": observed.weight_decay,
            "first_norm" if kernel else "first_scale": _largest(first),
            "norm" if kernel else "scale": _largest(now),
            **({"gradient_stopped_in_window": int(seen.max())} if seen.numel() and not still else {}),
        },
    )


def against_decay(layer: LayerContext, what: str) -> str:
    """What to change, in the user's own setting."""
    observed = layer.observed
    setting = f"weight_decay={observed.weight_decay:g}"
    own = f"{setting} of {observed.optimizer}" if observed.optimizer else setting
    where = f"{layer.name}.weight" if what == KERNEL else f"the norm after {layer.name}"
    if observed.decoupled_decay is not False or observed.optimizer in PLAIN:
        return f"Lower {own}, or set it to 0 for {where} by a parameter group of its own"
    if observed.optimizer is None:
        return f"Use AdamW, which keeps the decay apart from the gradient, or set weight_decay=0 for {where}"
    other = "AdamW" if observed.optimizer == "Adam" else "an optimizer with decoupled decay"
    return f"Use {other} in place of {own}, or set weight_decay=0 for {where}"


def against_shrinking(layer: LayerContext) -> str:
    """What to do where the weights have shrunk so far that usual steps are large beside them."""
    observed = layer.observed
    if observed.penalised:
        return "Lower the penalty on the weights in the loss."
    if observed.weight_decay > 0 and observed.norms is not None and bool(decay_reaches(layer, observed.norms).all()):
        return f"{against_decay(layer, KERNEL)}."
    return f"Look for what shrinks {layer.name}.weight: a penalty in the loss, a decay or a projection of your own."


# -- scale collapsed --------------------------------------------------------------------------------------------------


def has_scale_fallen(layer: LayerContext) -> Tensor:
    """The norm's scale was a good deal larger when it was first seen."""
    past = layer.past
    if layer.observed.norm_scale is None:
        return layer.everywhere(False)
    return (past.scale < SHRUNK * past.first_scale) & (past.first_scale > layer.thresholds.norm_scale)


def has_scale_decayed(layer: LayerContext) -> Tensor:
    """The norm's scale has fallen, also where it is not next to zero yet, and decay can have taken it so far."""
    past = layer.past
    can = layer.observed.weight_decay > 0
    return layer.everywhere(can) & has_scale_fallen(layer) & _is_within_reach(layer, past.first_scale, past.scale, 1)


decayed_first = replace(
    decayed, holds=lambda layer: has_decayed(layer) & (layer.past.stop_norm < SHRUNK * layer.past.first_norm)
)
"""Decay came first: the norm had fallen far before the gradient stopped."""
worn_away = replace(decayed, holds=has_worn_away)
scale_decayed = replace(decayed, holds=has_scale_decayed)


@channel_cause(causes.SCALE_COLLAPSED, lambda layer: has_scale_fallen(layer) & ~has_scale_decayed(layer))
def scale_collapsed(layer: LayerContext, channels: Tensor) -> Cause:
    """The norm's scale was a good deal larger, and weight decay cannot have taken it to what it is."""
    past, observed = layer.past, layer.observed
    ruled_out = (
        f"weight decay {observed.weight_decay:g}, which leaves more of it in so many steps"
        if observed.weight_decay > 0
        else "weight decay, which is 0 here"
    )
    return causes.SCALE_COLLAPSED.because(
        f"the scale (gamma) of the norm after it fell from {span(past.first_scale[channels])} to"
        f" {span(past.scale[channels])}, so that the channel passes on next to nothing of its input; ruled out:"
        f" {ruled_out}",
        f"Look for an L1 term or another penalty on the norm after {layer.name}, and lower it (network slimming puts"
        " one there on purpose: then prune these channels). To revive a channel set its scale back to 1; its shift"
        " alone does nothing.",
        references.MEHTA,
        {"first_scale": _largest(past.first_scale[channels]), "scale": _largest(past.scale[channels])},
    )
