"""Why no gradient comes back to a kernel: each cause with its premise, mostly asked of what reads the layer.

Past 300 lines because each rules out those before it: they are read, and tried, in one order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, CauseKind
from lightning_deadkernel.diagnosis.context import LayerContext
from lightning_deadkernel.diagnosis.weight_causes import ChannelCause, channel_cause
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
    return causes.UNDERFLOW.because(
        f"{above}{100 * layer.underflow_share:.3g}% of its float16 gradient entries are exactly zero: too small to be"
        " held",
        "Train with precision='16-mixed' (its loss scaling lifts gradients into range) or with bfloat16.",
        references.MIXED,
        {"underflow_share": layer.underflow_share},
    )


def _readers(layer: LayerContext) -> str:
    return ", ".join(consumer.layer for consumer in layer.observed.consumers or ())


def _by_readers(
    kind: CauseKind,
    holds: Callable[[LayerContext, LayerContext, Consumer], Tensor],
    explanation: str,
    advice: str,
    reference: str,
    named_as: str = "consumers",
) -> ChannelCause:
    """A cause that lies in what reads the layer.

    Args:
        kind: of the cause.
        holds: (C,) bool, of the layer, one that reads it, and the link to that: must be so for all that do.
        explanation: in which `{names}` are those that read it, and `{layer}` is its own.
        advice: the same.
        reference: where this is written up.
        named_as: what the evidence calls those that read it.
    """

    def premise(layer: LayerContext) -> Tensor:
        links = layer.observed.consumers or ()
        known = [(reader, link) for link in links if (reader := layer.network.by_name.get(link.layer)) is not None]
        if not known or len(known) < len(links):
            return layer.everywhere(False)
        return torch.stack([holds(layer, reader, link) for reader, link in known]).all(0)

    def explain(layer: LayerContext, channels: Tensor) -> Cause:
        names = _readers(layer)
        text, what_to_do = (sentence.format(names=names, layer=layer.name) for sentence in (explanation, advice))
        return kind.because(text, what_to_do, reference, {named_as: names})

    return ChannelCause(kind, premise, explain)


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


@channel_cause(causes.OTHER_SUMMAND, _fires_by_another)
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
        return causes.OTHER_SUMMAND.because(
            f"{_beside(layer)}: one of them is taken, and {names} {'gets' if one else 'get'} a gradient there while"
            " this layer gets none: what it makes is never taken, or only where what follows is off",
            f"Look at how large what {layer.name} makes is beside what {names} {'makes' if one else 'make'}.",
            references.AUTOGRAD_DOCS,
            {"together": ", ".join(layer.observed.together)},
        )
    return causes.OTHER_SUMMAND.because(
        f"{_beside(layer)}: what fires is read of all together, and {names} {'gets' if one else 'get'} a gradient there"
        " while this layer gets none: what feeds it, or a factor behind it, is zero wherever a gradient comes back",
        f"Look at what feeds {layer.name} on the samples on which they fire together, and at a scale between it and"
        " them; what it is joined with, and all that reads them, is sound.",
        references.AUTOGRAD_DOCS,
        {"together": ", ".join(layer.observed.together)},
    )


# -- what lies in its readers -----------------------------------------------------------------------------------------


def _is_dead(layer: LayerContext, reader: LayerContext, link: Consumer) -> Tensor:
    """The whole layer that reads it is, or all kernels of the channel's group."""
    whole, groups = layer.everywhere(reader.wholly("dead")), reader.observed.groups
    if groups == 1:
        return whole
    return whole | _where_it_reads(layer, link, reader.mask(reader.report.dead).view(groups, -1).all(1))


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


def _is_zero(layer: LayerContext, reader: LayerContext, link: Consumer) -> Tensor:
    """All weights that read the channel are zero, or all kernels of the layer that reads it are."""
    whole, largest = layer.everywhere(reader.wholly("zero_kernels")), reader.observed.input_largest
    return whole if largest is None else whole | _where_it_reads(layer, link, largest == 0)


def _reads_at_known_inputs(layer: LayerContext) -> bool:
    """It is known of all that reads the layer at which inputs it does, and how large its weights are there."""
    links = [(link, layer.network.by_name.get(link.layer)) for link in layer.observed.consumers or ()]
    return all(link.slices is not None and other and other.observed.input_largest is not None for link, other in links)


def _gets_zeros(layer: LayerContext, reader: LayerContext, link: Consumer) -> Tensor:
    """It has zeros for inputs, though all of these fire: its shift has a gradient, and none of its weights."""
    rate = layer.observed.channel_firing_rate
    # some channel fires wherever one looks, thus also where its reader has a gradient
    fires = rate is not None and float(rate.nan_to_num(0.0).sum()) >= 1
    alone = reader.observed.producers == (layer.name,) and fires and bool(layer.without_gradient.all())
    # behind a rectifier it may be shut just where these fire
    open_ = reader.observed.gating != "rectifier" or _computes_constants(reader.observed)
    return layer.everywhere(alone and open_ and _has_gradient_at_shift_alone(reader.observed))


FAINT = 1e-20
"""Gradients below may be zero elsewhere, as float32 holds no product of two of them."""


def _has_gradient_at_shift_alone(layer: LayerWindow) -> bool:
    """Its shift has a gradient, and its weights had none on the steps that were looked at."""
    if layer.gradient is None or layer.gradient_rms != 0 or layer.penalised or underflow(layer) is not None:
        return False
    return bool((layer.gradient > FAINT).any())


# -- what lies in itself or the loss ----------------------------------------------------------------------------------


@channel_cause(causes.UNDERFLOW, lambda layer: layer.everywhere(underflow(layer.observed) is not None))
def _underflow(layer: LayerContext, channels: Tensor) -> Cause:
    cause = underflow(layer.observed)
    assert cause is not None
    return cause


def _is_ignored_by_loss(layer: LayerContext) -> Tensor:
    """Only the loss reads the layer, and not one of its channels got a gradient, nor what it is summed with.

    A sum with what is no layer (the log-sum-exp of a distribution) hands on all that comes back to it.
    """
    others = [layer.network.by_name.get(name) for name in layer.observed.together]
    all_without = [other is not None and bool(other.without_gradient.all()) for other in others]
    alone = layer.observed.joined in (None, "summed") if not others else all(all_without)
    none = layer.is_output and bool(layer.without_gradient.all())
    return layer.everywhere(alone and none and _would_show_a_gradient(layer))


def _would_show_a_gradient(layer: LayerContext) -> bool:
    """A gradient that came back to its output would show: at its shift, or at weights whose inputs are not all zero."""
    observed, by_name = layer.observed, layer.network.by_name
    feeds = [by_name[name].observed.fired for name in observed.producers or () if name in by_name]
    fed = (observed.entering is not None and observed.entering.rms > 0) or any(
        fired is not None and bool(fired.any()) for fired in feeds
    )
    return observed.shift is not None or fed


@channel_cause(causes.IGNORED_BY_LOSS, _is_ignored_by_loss)
def _ignored_by_loss(layer: LayerContext, channels: Tensor) -> Cause:
    last = layer.past.last_gradient[channels]
    came = bool((last > 0).all())  # what has learned all that is asked of it gets none either
    return causes.IGNORED_BY_LOSS.because(
        "only the loss reads this layer, and it sends back exactly zero: its part of the loss has a weight of zero, is"
        " clamped, or is on a plateau" + (f"; the last gradient came in {layer.when(last)}" if came else ""),
        f"Check the term of the loss that {layer.name} enters: its weight, its mask and its margin."
        + (" Where all that it asks for is met by now, nothing is wrong." if came else ""),
        references.AUTOGRAD_DOCS,
    )


# -- dead inputs ------------------------------------------------------------------------------------------------------


def has_dead_inputs(layer: LayerContext) -> bool:
    """What enters the layer is zero on all inputs: its shift has a gradient, and none of its weights ever had one."""
    observed = layer.observed
    if observed.producers or not _has_gradient_at_shift_alone(observed):  # the layers before tell whether they fire
        return False
    shut = observed.norm_scale is not None and not bool((observed.norm_scale > 0).all())
    # weights are looked at on some steps, and the shift on all: on those that were, something must have come back
    others = (other.observed for other in layer.network.layers)
    came_back = any(other.depth < observed.depth and (other.gradient_rms or 0.0) > 0 for other in others)
    return not shut and (
        (_computes_constants(observed) and came_back)
        or (observed.unchanged is not None and bool(observed.unchanged.all()))
    )


def gradient_is_taken(layer: LayerContext) -> bool:
    """Its weights have no gradient, though what feeds it alone fires and gets one."""
    observed, by_name = layer.observed, layer.network.by_name
    producers = [by_name.get(name) for name in observed.producers or ()]
    return (
        bool(producers)
        and _has_gradient_at_shift_alone(observed)
        and observed.unchanged is not None
        and bool(observed.unchanged.all())
        and all(
            producer is not None
            and producer.observed.fired is not None
            and producer.observed.gradient is not None
            and _readers(producer) == layer.name
            and bool((producer.observed.fired & (producer.observed.gradient > FAINT)).any())
            for producer in producers
        )
    )


@channel_cause(causes.GRADIENT_TAKEN, lambda layer: layer.everywhere(gradient_is_taken(layer)))
def gradient_taken(layer: LayerContext, channels: Tensor) -> Cause:
    """See `gradient_is_taken`."""
    names = ", ".join(layer.observed.producers or ())
    return causes.GRADIENT_TAKEN.because(
        f"its bias gets a gradient and its weights get none, though {names}, which feeds it, fires and gets one",
        f"Look for what takes the gradient of {layer.name}.weight away before the step (a hook on it, a zero_(), a"
        f" zero_grad() between backward and step), or for what makes zeros of all that {names} gives it.",
        references.OPTIM_DOCS,
    )


def _computes_constants(layer: LayerWindow) -> bool:
    """Each channel fires always or never, whatever enters the layer."""
    rate = layer.channel_firing_rate
    return rate is not None and bool((rate == 1).any()) and bool(((rate == 0) | (rate == 1)).all())


@channel_cause(causes.DEAD_INPUTS, lambda layer: layer.everywhere(has_dead_inputs(layer)))
def dead_inputs(layer: LayerContext, channels: Tensor) -> Cause:
    """See `has_dead_inputs`."""
    return causes.DEAD_INPUTS.because(
        "its bias gets a gradient and none of its weights does: all that enters it is zero, and it computes a constant",
        f"Look at a batch of the data as it enters {layer.name}: a cast to integers, a division or a mask may have made"
        " it all zero.",
        references.AUTOGRAD_DOCS,
    )


NO_GRADIENT_CAUSES = (
    _another_summand,
    _by_readers(
        causes.DEAD_DOWNSTREAM,
        _is_dead,
        "all that reads them is dead ({names}), so no gradient comes back",
        "Revive {names}; this layer is sound and learns again as soon as something listens.",
        references.LU,
    ),
    _underflow,
    _by_readers(
        causes.OUTGOING_ZERO,
        _is_zero,
        "they fire, yet their gradient is exactly zero: the weights that read them are zero ({names}), or the norm's"
        " scale (gamma) after those is",
        "Look at {names} first: give the weights for these channels small random values, or release what holds them at"
        " zero; this layer is sound and learns again as soon as they let a gradient through.",
        references.MEHTA,
    ),
    _by_readers(
        causes.ZEROED_BETWEEN,
        _gets_zeros,
        "they fire, and {names}, which reads them, gets a gradient at its bias and none at its weights: what reaches it"
        " is zero",
        "Look at what lies between {layer} and {names}: a dropout with p=1, a mask, a gate or a scale of zero.",
        references.AUTOGRAD_DOCS,
        named_as="reader",
    ),
    _by_readers(
        causes.SATURATED_DOWNSTREAM,
        lambda layer, reader, link: layer.everywhere(reader.wholly("saturated")),
        "all that reads them lies on a flat end of its activation ({names}), so nothing comes back",
        "Bring {names} off its flat end; this layer is sound and learns again then.",
        references.GLOROT,
    ),
    _ignored_by_loss,
    _by_readers(
        causes.NO_GRADIENT_DOWNSTREAM,
        lambda layer, reader, link: layer.everywhere(bool(reader.without_gradient.all())),
        "what reads them got no gradient itself ({names}): the fault lies between it and the loss",
        "Look at {names} and at its part of the loss first (a weight of zero, a detach(), a loss that is clamped);"
        " this layer is sound.",
        references.AUTOGRAD_DOCS,
    ),
    _by_readers(
        causes.DEAD_DOWNSTREAM,
        lambda layer, reader, link: layer.everywhere(2 * len(reader.report.dead) >= reader.observed.channels),
        "most of what reads them is dead ({names}), and the rest is off, or gets no gradient, whenever they fire",
        "Revive the dead kernels of {names}; this layer is sound.",
        references.LU,
    ),
)
"""In the order in which they are tried."""
NO_GRADIENT_KINDS = (*(cause.kind for cause in NO_GRADIENT_CAUSES), causes.UNKNOWN)


def unknown_absence(layer: LayerContext, channels: Tensor) -> Cause:
    """No premise holds: what was ruled out."""
    names = _readers(layer)
    heard = any(bool(other.with_gradient.any()) for other in layer.network.layers)
    not_flat = "; ruled out: a flat loss, since other layers have gradients" * heard
    if names:
        weights = "its weights for these channels are" if _reads_at_known_inputs(layer) else "all its weights are"
        text = (
            f"ruled out: that {names} is dead or saturated, that {weights} zero, that it has no gradient itself; what"
            " is left is that it gets none whenever they fire (it is off then, or the loss is flat), or that something"
            " between is zero then"
        )
        advice = (
            f"Look at which inputs {names} fires for, and at a mask or a gate between; where these channels fire"
            " seldom, this is normal."
        )
        readers = [layer.network.by_name.get(link.layer) for link in layer.observed.consumers or ()]
        if all(reader and reader.is_output for reader in readers):
            rectified = all(reader and reader.observed.gating == "rectifier" for reader in readers)
            advice = (
                f"Take away the rectifier after {names}, which makes outputs of the network: where they are off,"
                " nothing comes back to what they read."
                if rectified
                else f"Look for samples on which the loss asks nothing of {names}: a class weight of zero, an ignored"
                " index, a margin that is met."
            )
    elif _beside(layer):
        text = (
            f"{_beside(layer)}, and what fires is read of all together{not_flat}; what is left is that its inputs or a"
            " factor behind it are zero wherever a gradient comes back, or that nothing reads the whole"
        )
        advice = (
            f"Look at a factor behind {layer.name}, and at what feeds it, and whether one of them is zero on the"
            " samples on which they fire together."
        )
    else:
        text = f"the graph does not show what reads them{not_flat}"
        advice = (
            "Look for a detach(), a zero loss weight or zero outgoing weights between this layer and the loss."
            if bool(layer.without_gradient.all())
            else "Others of this layer have a gradient, so that nothing cuts it off. Single outputs that no target asks"
            " for, outgoing weights of zero, and kernels that never fire where no activation can be read look like"
            " this."
        )
        flat = ", ".join(other.name for other in layer.network.layers if other.wholly("saturated"))
        nearer = [other for other in layer.network.layers if other.observed.depth < layer.observed.depth]
        dead = ", ".join(other.name for other in nearer if other.wholly("dead"))
        if flat:  # the parameters of a critic are mostly frozen while the generator learns, and it is not in its graph
            text += f"; {flat} lies wholly on a flat end, which is why if it reads them"
            advice = f"If {flat} reads this layer, bring it off its flat end first. Else: {advice}"
        elif dead:  # behind a sum, say
            text += f"; {dead}, nearer to the loss, is wholly dead, which is why if they pass it"
            advice = f"If what this layer makes passes {dead}, revive that first. Else: {advice}"
    return causes.UNKNOWN.because(text, advice, references.AUTOGRAD_DOCS, {"consumers": names} if names else {})
