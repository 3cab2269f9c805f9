"""Why no gradient comes back to a kernel: each cause with its premise, mostly asked of what reads the layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import (
    DEAD_DOWNSTREAM,
    DEAD_INPUTS,
    GRADIENT_TAKEN,
    IGNORED_BY_LOSS,
    NO_GRADIENT_DOWNSTREAM,
    OTHER_SUMMAND,
    OUTGOING_ZERO,
    SATURATED_DOWNSTREAM,
    UNDERFLOW,
    UNKNOWN,
    ZEROED_BETWEEN,
    Cause,
)
from lightning_deadkernel.diagnosis.context import LayerContext
from lightning_deadkernel.diagnosis.weight_causes import ChannelCause
from lightning_deadkernel.observation import Consumer, LayerWindow

UNDERFLOW_SHARE = 0.5
"""Zeros among the entries of a float16 gradient have other sources as well (inputs that are zero, channels that are
off): only where they are most of it is the type to blame."""


def underflow(layer: LayerWindow, above: str = "") -> Cause | None:
    """The gradient is too small for float16; None where it is not, or where it is held in another type.

    Args:
        above: what the explanation begins with.
    """
    if layer.underflow_share is None or layer.underflow_share <= UNDERFLOW_SHARE:
        return None
    return UNDERFLOW.because(
        f"{above}{100 * layer.underflow_share:.3g}% of its float16 gradient entries are exactly zero: too small to be"
        " held",
        "Train with precision='16-mixed' (its loss scaling lifts gradients into range) or with bfloat16.",
        references.MIXED,
        {"underflow_share": layer.underflow_share},
    )


def _consumers(layer: LayerContext) -> list[str]:
    return [consumer.layer for consumer in layer.observed.consumers or ()]


def _names(layer: LayerContext) -> dict[str, float | int | str]:
    return {"consumers": ", ".join(_consumers(layer))}


# -- another summand --------------------------------------------------------------------------------------------------


def _beside(layer: LayerContext) -> str:
    """``"summed with conv1, conv2"``; empty where its activation is its own."""
    if layer.observed.joined is None:
        return ""
    return f"{layer.observed.joined} with {', '.join(layer.observed.together) or 'another value'}"


def _fires_by_another(layer: LayerContext) -> Tensor:
    """What it is summed with has a gradient in the same channel, so one comes back to the sum."""
    others = [layer.network.by_name.get(name) for name in layer.observed.together if layer.observed.joined]
    known = [other.with_gradient for other in others if other and other.observed.channels == layer.observed.channels]
    return torch.stack(known).any(0) if known else layer.everywhere(False)


def _another_summand(layer: LayerContext, channels: Tensor) -> Cause:
    heard = [
        name
        for name in layer.observed.together
        if (other := layer.network.by_name.get(name)) is not None
        and other.observed.channels == layer.observed.channels
        and bool(other.with_gradient[channels].any())
    ]
    names, one = ", ".join(heard), len(heard) == 1
    if layer.observed.joined == "compared":
        return OTHER_SUMMAND.because(
            f"{_beside(layer)}: one of them is taken, and {names} {'gets' if one else 'get'} a gradient there while"
            " this layer gets none: what it makes is never taken, or only where what follows is off",
            f"Look at how large what {layer.name} makes is beside what {names} {'makes' if one else 'make'}.",
            references.AUTOGRAD_DOCS,
            {"together": ", ".join(layer.observed.together)},
        )
    return OTHER_SUMMAND.because(
        f"{_beside(layer)}: what fires is read of all together, and {names} {'gets' if one else 'get'} a gradient there"
        " while this layer gets none: what feeds it, or a factor behind it, is zero wherever a gradient comes back",
        f"Look at what feeds {layer.name} on the samples on which they fire together, and at a scale between it and"
        " them; what it is joined with, and all that reads them, is sound.",
        references.AUTOGRAD_DOCS,
        {"together": ", ".join(layer.observed.together)},
    )


# -- dead downstream --------------------------------------------------------------------------------------------------


def _is_dead_downstream(layer: LayerContext) -> Tensor:
    """All that reads the channel is dead: the whole layer, or all kernels of the channel's group."""
    return _in_all_consumers(layer, _dead_in)


def _dead_in(layer: LayerContext, consumer: LayerContext, link: Consumer) -> Tensor:
    whole, groups = layer.everywhere(consumer.wholly_dead(consumer.name)), consumer.observed.groups
    if groups == 1:
        return whole
    return whole | _where_it_reads(layer, link, consumer.mask(consumer.report.dead).view(groups, -1).all(1))


def _where_it_reads(layer: LayerContext, link: Consumer, holds: Tensor) -> Tensor:
    """(C,) bool: it is known at which inputs of another layer the channel is read, and it holds at all of them.

    Args:
        layer: whose channels.
        link: to the layer that reads them.
        holds: (I,) bool of that layer's inputs, or of as many runs of them, one behind the other.
    """
    read, fails = layer.everywhere(False), layer.everywhere(False)
    for part in link.slices or ():
        inputs = part.outer * part.places * part.inner
        if not holds.numel() or inputs % holds.numel():
            return layer.everywhere(False)
        fail = ~holds.repeat_interleave(inputs // holds.numel()).view(part.outer, part.places, part.inner)
        channels = slice(part.channel, part.channel + part.count)
        read[channels] = True
        fails[channels] |= fail[:, part.place : part.place + part.count].any(2).any(0)
    return read & ~fails


def _in_all_consumers(layer: LayerContext, holds: Callable[[LayerContext, LayerContext, Consumer], Tensor]) -> Tensor:
    """(C,) bool: all that reads the layer is known, and it holds for each of them."""
    links = layer.observed.consumers or ()
    known = [(consumer, link) for link in links if (consumer := layer.network.by_name.get(link.layer)) is not None]
    if not known or len(known) < len(links):
        return layer.everywhere(False)
    return torch.stack([holds(layer, consumer, link) for consumer, link in known]).all(0)


def _dead_downstream(layer: LayerContext, channels: Tensor) -> Cause:
    names = ", ".join(_consumers(layer))
    return DEAD_DOWNSTREAM.because(
        f"all that reads them is dead ({names}), so no gradient comes back",
        f"Revive {names}; this layer is sound and learns again as soon as something listens.",
        references.LU,
        _names(layer),
    )


# -- underflow --------------------------------------------------------------------------------------------------------


def _underflows(layer: LayerContext) -> Tensor:
    """Most of its float16 gradient is exactly zero."""
    return layer.everywhere(underflow(layer.observed) is not None)


def _underflow(layer: LayerContext, channels: Tensor) -> Cause:
    cause = underflow(layer.observed)
    assert cause is not None
    return cause


# -- zero weights downstream ------------------------------------------------------------------------------------------


def _is_outgoing_zero(layer: LayerContext) -> Tensor:
    """All weights that read the channel are zero, or all kernels of the layer that reads it are."""
    return _in_all_consumers(layer, _zero_in)


def _zero_in(layer: LayerContext, consumer: LayerContext, link: Consumer) -> Tensor:
    whole, largest = layer.everywhere(consumer.wholly_zero(consumer.name)), consumer.observed.input_largest
    return whole if largest is None else whole | _where_it_reads(layer, link, largest == 0)


def _reads_at_known_inputs(layer: LayerContext) -> bool:
    """It is known of all that reads the layer at which inputs it does, and how large its weights are there."""
    links = [(link, layer.network.by_name.get(link.layer)) for link in layer.observed.consumers or ()]
    return all(link.slices is not None and other and other.observed.input_largest is not None for link, other in links)


def _outgoing_zero(layer: LayerContext, channels: Tensor) -> Cause:
    names = ", ".join(_consumers(layer))
    return OUTGOING_ZERO.because(
        f"they fire, yet their gradient is exactly zero: the weights that read them are zero ({names}), or the norm's"
        " scale (gamma) after those is",
        f"Look at {names} first: give the weights for these channels small random values, or release what holds them at"
        " zero; this layer is sound and learns again as soon as they let a gradient through.",
        references.MEHTA,
        _names(layer),
    )


# -- zeroed in between ------------------------------------------------------------------------------------------------


def _is_zeroed_between(layer: LayerContext) -> Tensor:
    """All that reads it has zeros for inputs, though it fires: its shift has a gradient, and none of its weights."""
    if not bool(layer.without_gradient.all()):
        return layer.everywhere(False)
    return _in_all_consumers(layer, lambda layer, other, _: layer.everywhere(_gets_zeros_of(layer, other.observed)))


def _gets_zeros_of(layer: LayerContext, consumer: LayerWindow) -> bool:
    alone = consumer.producers == (layer.name,)
    # behind a rectifier it may be shut just where these fire
    open_ = consumer.gating != "rectifier" or _computes_constants(consumer)
    return alone and open_ and _has_gradient_at_shift_alone(consumer)


FAINT = 1e-20
"""Gradients below may be zero elsewhere, as float32 holds no product of two of them."""


def _has_gradient_at_shift_alone(layer: LayerWindow) -> bool:
    """Its shift has a gradient, and its weights had none on the steps that were looked at."""
    heard = layer.gradient is not None and bool((layer.gradient > FAINT).any())
    return heard and layer.gradient_rms == 0 and not layer.penalised and underflow(layer) is None


def _zeroed_between(layer: LayerContext, channels: Tensor) -> Cause:
    names = ", ".join(_consumers(layer))
    return ZEROED_BETWEEN.because(
        f"they fire, and {names}, which reads them, gets a gradient at its bias and none at its weights: what reaches"
        " it is zero",
        f"Look at what lies between {layer.name} and {names}: a dropout with p=1, a mask, a gate or a scale of zero.",
        references.AUTOGRAD_DOCS,
        {"reader": names},
    )


# -- saturated downstream, nothing downstream -------------------------------------------------------------------------


def _is_saturated_downstream(layer: LayerContext) -> Tensor:
    """All channels of all that reads it are saturated."""
    return _in_all_consumers(layer, lambda layer, other, _: layer.everywhere(_is_wholly_saturated(other)))


def _is_wholly_saturated(layer: LayerContext) -> bool:
    return layer.observed.channels > 0 and len(layer.report.saturated) == layer.observed.channels


def _saturated_downstream(layer: LayerContext, channels: Tensor) -> Cause:
    names = ", ".join(_consumers(layer))
    return SATURATED_DOWNSTREAM.because(
        f"all that reads them lies on a flat end of its activation ({names}), so nothing comes back",
        f"Bring {names} off its flat end; this layer is sound and learns again then.",
        references.GLOROT,
        _names(layer),
    )


def _has_no_gradient_downstream(layer: LayerContext) -> Tensor:
    """All that reads it got no gradient itself."""
    return _in_all_consumers(layer, lambda layer, other, _: layer.everywhere(bool(other.without_gradient.all())))


def _no_gradient_downstream(layer: LayerContext, channels: Tensor) -> Cause:
    names = ", ".join(_consumers(layer))
    return NO_GRADIENT_DOWNSTREAM.because(
        f"what reads them got no gradient itself ({names}): the fault lies between it and the loss",
        f"Look at {names} and at its part of the loss first (a weight of zero, a detach(), a loss that is clamped);"
        " this layer is sound.",
        references.AUTOGRAD_DOCS,
        _names(layer),
    )


def _is_ignored_by_loss(layer: LayerContext) -> Tensor:
    """Only the loss reads the layer, and not one of its channels got a gradient, nor what it is summed with."""
    others = [layer.network.by_name.get(name) for name in layer.observed.together]
    all_without = [other is not None and bool(other.without_gradient.all()) for other in others]
    alone = layer.observed.joined is None or (bool(others) and all(all_without))
    return layer.everywhere(alone and layer.is_output and bool(layer.without_gradient.all()))


def _ignored_by_loss(layer: LayerContext, channels: Tensor) -> Cause:
    return IGNORED_BY_LOSS.because(
        "only the loss reads this layer, and it sends back exactly zero: its part of the loss has a weight of zero, is"
        " clamped, or is on a plateau",
        f"Check the term of the loss that {layer.name} enters: its weight, its mask and its margin.",
        references.AUTOGRAD_DOCS,
    )


# -- dead inputs ------------------------------------------------------------------------------------------------------


def has_dead_inputs(layer: LayerContext) -> bool:
    """What enters the layer is zero on all inputs: its shift has a gradient, and none of its weights ever had one."""
    observed = layer.observed
    if observed.gradient_rms != 0 or observed.penalised or not bool(layer.with_gradient.any()):
        return False
    if observed.producers or underflow(observed) is not None:  # the layers before tell whether they fire
        return False
    shut = observed.norm_scale is not None and not bool((observed.norm_scale > 0).all())
    return not shut and (
        _computes_constants(observed) or (observed.unchanged is not None and bool(observed.unchanged.all()))
    )


def gradient_is_taken(layer: LayerContext) -> bool:
    """Its weights have no gradient, though what feeds it alone fires and gets one through them."""
    observed, by_name = layer.observed, layer.network.by_name
    producers = [by_name.get(name) for name in observed.producers or ()]
    return (
        _has_gradient_at_shift_alone(observed)
        and observed.unchanged is not None
        and bool(observed.unchanged.all())
        and bool(producers)
        and all(
            producer is not None
            and producer.observed.fired is not None
            and _consumers(producer) == [layer.name]
            and bool((producer.observed.fired & producer.with_gradient).any())
            for producer in producers
        )
    )


def _gradient_taken(layer: LayerContext, channels: Tensor) -> Cause:
    names = ", ".join(layer.observed.producers or ())
    return GRADIENT_TAKEN.because(
        f"its bias gets a gradient and its weights get none, though {names}, which feeds it, fires and gets a gradient"
        " through these very weights",
        f"Look for what takes the gradient of {layer.name}.weight away before the step: a hook on it, a zero_(), a"
        " zero_grad() between backward and step.",
        references.OPTIM_DOCS,
    )


BY_TAKEN_GRADIENT = ChannelCause(
    GRADIENT_TAKEN, lambda layer: layer.everywhere(gradient_is_taken(layer)), _gradient_taken
)


def _computes_constants(layer: LayerWindow) -> bool:
    """Each channel fires always or never, whatever enters the layer."""
    rate = layer.channel_firing_rate
    return rate is not None and bool((rate == 1).any()) and bool(((rate == 0) | (rate == 1)).all())


def _dead_inputs(layer: LayerContext, channels: Tensor) -> Cause:
    return DEAD_INPUTS.because(
        "its bias gets a gradient and none of its weights does: all that enters it is zero, and it computes a constant",
        f"Look at a batch of the data as it enters {layer.name}: a cast to integers, a division or a mask may have made"
        " it all zero.",
        references.AUTOGRAD_DOCS,
    )


BY_DEAD_INPUTS = ChannelCause(DEAD_INPUTS, lambda layer: layer.everywhere(has_dead_inputs(layer)), _dead_inputs)


NO_GRADIENT_CAUSES = (
    ChannelCause(OTHER_SUMMAND, _fires_by_another, _another_summand),
    ChannelCause(DEAD_DOWNSTREAM, _is_dead_downstream, _dead_downstream),
    ChannelCause(UNDERFLOW, _underflows, _underflow),
    ChannelCause(OUTGOING_ZERO, _is_outgoing_zero, _outgoing_zero),
    ChannelCause(ZEROED_BETWEEN, _is_zeroed_between, _zeroed_between),
    ChannelCause(SATURATED_DOWNSTREAM, _is_saturated_downstream, _saturated_downstream),
    ChannelCause(IGNORED_BY_LOSS, _is_ignored_by_loss, _ignored_by_loss),
    ChannelCause(NO_GRADIENT_DOWNSTREAM, _has_no_gradient_downstream, _no_gradient_downstream),
)
"""In the order in which they are tried."""


def unknown_absence(layer: LayerContext, channels: Tensor) -> Cause:
    """No premise holds: what was ruled out."""
    names = ", ".join(_consumers(layer))
    if names:
        weights = "its weights for these channels are" if _reads_at_known_inputs(layer) else "all its weights are"
        text = (
            f"ruled out: that {names} is dead or saturated, that {weights} zero, that it has no gradient itself; what"
            " is left is that what reads them is off whenever they fire, or that something between is zero then"
        )
        advice = (
            f"Look at which inputs {names} fires for, and at a mask or a gate between; where these channels fire"
            " seldom, this is normal."
        )
    elif _beside(layer):
        text = (
            f"{_beside(layer)}, and what fires is read of all together; ruled out: a flat loss, since other layers have"
            " gradients; what is left is that its inputs or a factor behind it are zero wherever a gradient comes back,"
            " or that nothing reads the whole"
        )
        advice = f"Look at what feeds {layer.name}, and whether it is zero on the samples on which they fire together."
    else:
        text = "the graph does not show what reads them; ruled out: a flat loss, since other layers have gradients"
        advice = "Look for a detach(), a zero loss weight or zero outgoing weights between this layer and the loss."
        flat = ", ".join(other.name for other in layer.network.layers if _is_wholly_saturated(other))
        if flat:  # the parameters of a critic are mostly frozen while the generator learns, and it is not in its graph
            text += f"; {flat} lies wholly on a flat end, which is why if it reads them"
            advice = f"If {flat} reads this layer, bring it off its flat end first. Else: {advice}"
    return UNKNOWN.because(text, advice, references.AUTOGRAD_DOCS, _names(layer) if names else {})
