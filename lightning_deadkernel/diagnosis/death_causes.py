"""What kills a kernel: each cause of a death, what shows it, and what helps against it.

Past 300 lines because each rules out those before it: they are read, and tried, in one order.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.classify import SHRUNK
from lightning_deadkernel.diagnosis.context import LayerContext, span
from lightning_deadkernel.diagnosis.gradient_causes import dead_inputs
from lightning_deadkernel.diagnosis.inputs import (
    entrance,
    is_all_but_constant,
    is_large,
    is_next_to_zero,
    is_off_centre,
    off_scale,
)
from lightning_deadkernel.diagnosis.layer_past import NEVER, PLAIN
from lightning_deadkernel.diagnosis.weight_causes import (
    against_shrinking,
    channel_cause,
    decayed,
    decayed_first,
    has_scale_fallen,
    is_zero,
    pruned,
    scale_collapsed,
    scale_decayed,
    worn_away,
    zero_at_initialisation,
)
from lightning_deadkernel.functional.adam import step_after_quiet

MOST_BY_CHANCE, CHANCE_SHARE = 0.44, 0.5
"""Healthy He-initialised networks, 20 layers deep and 64 wide, have up to 44 % of a deep layer dead from the first draw
and ordinary drift."""
SHIFT_REACH = 3.0
"""A normalised input rarely passes three standard deviations: a shift below -3 |gamma| keeps the rectifier shut."""
BARE_SHIFT_REACH = 10.0
"""Without a norm the input's size is unknown: ten times what an input of unit rms reaches leaves room for that."""
ALWAYS = 0.99
"""A kernel that fires for more than this share of inputs, or for less than the rest, does not tell them apart."""
NEARLY_ALL = 0.9
"""In a layer so many of whose kernels do not, what they read makes no difference."""
SHORT_MEMORY = 0.95
"""The beta2 of most large language models: a running mean of squares over twenty steps instead of a thousand."""
FIRST_RATE = 0.5
"""Half of the inputs is what the draw of the initial weights gives a channel: the rate of its first window is a mean
over the way down from there."""
FADED_RATE = 0.3
"""In healthy He-initialised networks, 20 layers deep and 64 wide, the channels that drift off fired on 0.05 to 24 % of
inputs in their last window."""


@channel_cause(
    causes.UPSTREAM_DEAD,
    lambda layer: layer.everywhere(
        bool(layer.observed.producers)
        and all(layer.network.wholly(name, "dead") for name in layer.observed.producers or ())
    ),
)
def _upstream_dead(layer: LayerContext, channels: Tensor) -> Cause:
    """All layers that feed this one are wholly dead."""
    names = ", ".join(layer.observed.producers or ())
    return causes.UPSTREAM_DEAD.because(
        f"every channel of what feeds this layer is dead ({names}), so it sees a constant zero",
        f"Revive {names} first; this layer follows by itself or shows a cause of its own then.",
        references.LU,
        {"producers": names},
    )


def _is_knocked_out(layer: LayerContext) -> Tensor:
    """It fired until a window in which, or right after which, an update was reckless."""
    return (layer.past.last_fired > 0) & (layer.past.reckless > layer.thresholds.update_large)


def _knocked_out_when(layer: LayerContext, channels: Tensor) -> str:
    past, line = layer.past, layer.thresholds.update_large
    return (
        f"fired until {layer.when(past.last_fired[channels])}, when one optimizer step changed the weights by"
        f" {span(past.reckless[channels])} of their own norm (above {line:g} is reckless)"
    )


def _is_knocked_out_by_inputs(layer: LayerContext) -> Tensor:
    """The step was that of an optimizer whose steps grow with gradients, and these with what enters the network."""
    grows = layer.observed.optimizer in PLAIN and entrance(layer, is_large) is not None
    return _is_knocked_out(layer) if grows else layer.everywhere(False)


@channel_cause(causes.OFF_SCALE_INPUTS, _is_knocked_out_by_inputs)
def _knocked_out_by_inputs(layer: LayerContext, channels: Tensor) -> Cause:
    where = entrance(layer, is_large)
    assert where is not None
    return off_scale(
        where,
        is_large,
        f"{_knocked_out_when(layer, channels)}; ",
        ", and gradients grow with it",
        f", then train anew; if steps are reckless all the same, lower {layer.highest_rate}",
    )


def _makes_no_difference(layer: LayerContext) -> bool:
    """Nearly every kernel of the layer fires for nearly all inputs or for nearly none."""
    rate = layer.observed.channel_firing_rate
    if rate is None or not bool((rate > ALWAYS).any()):
        return False
    return float(((rate < 1 - ALWAYS) | (rate > ALWAYS)).float().mean()) >= NEARLY_ALL


def _inputs_without_effect(layer: LayerContext) -> Cause | None:
    """What enters the network is so small, or so far off, that it makes no difference to which kernels fire."""
    same = _makes_no_difference(layer)
    where = entrance(layer, is_off_centre if same else is_all_but_constant)
    then = ", and train anew"
    if where is not None:
        after = ", so that its mean alone decides whether a kernel fires, for all inputs or for none"
        return off_scale(where, is_off_centre, "fires for no input: ", after, then)
    where = entrance(layer, is_next_to_zero) if same else None
    if where is None or where.observed.shift is None or not bool(where.observed.shift.any()):
        return None
    before = "fires for no input, while others of the layer do for nearly all: "
    return off_scale(where, is_next_to_zero, before, ", so that biases alone decide which do", then)


@channel_cause(causes.OFF_SCALE_INPUTS, lambda layer: layer.everywhere(_inputs_without_effect(layer) is not None))
def _shut_by_inputs(layer: LayerContext, channels: Tensor) -> Cause:
    cause = _inputs_without_effect(layer)
    assert cause is not None
    return cause


@channel_cause(
    causes.SHRUNKEN_WEIGHTS,
    lambda layer: _is_knocked_out(layer) & (layer.past.stop_norm < SHRUNK * layer.past.first_norm),
)
def _knocked_out_when_small(layer: LayerContext, channels: Tensor) -> Cause:
    """The step was large beside weights that had shrunk to a tenth or less."""
    left = (layer.past.stop_norm / layer.past.first_norm)[channels]
    return causes.SHRUNKEN_WEIGHTS.because(
        f"{_knocked_out_when(layer, channels)}; that norm had fallen to {span(left, '.1e')} of what it was at first",
        against_shrinking(layer),
        references.MEHTA,
        {"norm_left": float(left.min()), "update_ratio_max": float(layer.past.reckless[channels].max())},
    )


@channel_cause(causes.KNOCKED_OUT, _is_knocked_out)
def _knocked_out(layer: LayerContext, channels: Tensor) -> Cause:
    past = layer.past
    ratio = past.reckless[channels]
    return causes.KNOCKED_OUT.because(
        _knocked_out_when(layer, channels),
        f"Lower {layer.highest_rate} three- to tenfold, or warm it up over the first few hundred steps; clip the"
        " gradient norm if the jump came late in training.",
        f"{references.WARMUP}; {references.CS231N}",
        {"last_fired_in_window": int(past.last_fired[channels].max()), "update_ratio_max": float(ratio.max())},
    )


@channel_cause(causes.SLINGSHOT, lambda layer: (layer.past.last_fired > 0) & (layer.past.slung > 0))
def _slingshot(layer: LayerContext, channels: Tensor) -> Cause:
    """It fired until a window in which, or right after which, gradients outgrew Adam's running mean of squares."""
    past, adam = layer.past, layer.observed.adam
    times = past.slung[channels]
    betas = "" if adam is None else f" with betas=({adam.beta1:g}, {adam.beta2:g})"
    first = 0.9 if adam is None else adam.beta1
    return causes.SLINGSHOT.because(
        f"fired until {layer.when(past.last_fired[channels])}, when a step of {layer.observed.optimizer or 'Adam'} was"
        f" {span(times, '.2g')} times its steady size: gradients had been quiet{betas}, its running mean of squares was"
        " far behind those that came; a usual step is small enough",
        f"Set betas=({first:g}, {SHORT_MEMORY:g}), under which a step after a quiet spell is at most"
        f" {step_after_quiet(first, SHORT_MEMORY):.2g} times the learning rate; or clip the gradient norm near what it"
        " is while it is quiet; or warm the learning rate up again where data, loss or layers change in the middle of"
        " training.",
        f"{references.STABLE_ADAMW}; {references.WARMUP}",
        {
            "last_fired_in_window": int(past.last_fired[channels].max()),
            "times_steady_step": float(times.max()),
            "update_ratio_max": float(past.reckless[channels].max()),
        },
    )


def _is_born_dead(layer: LayerContext) -> Tensor:
    """It was watched from its first step and has not fired once."""
    return (layer.past.last_fired == NEVER) & layer.past.from_start


def _beginning(layer: LayerContext) -> str:
    """When the layer was first seen."""
    step = layer.past.first_step
    return f"it came at step {step:,}" if step else "training began at step 0"


def _is_shift_out_of_reach(layer: LayerContext) -> Tensor:
    """The shift lies below what the input can make up for."""
    observed, bare = layer.observed, torch.where(_is_born_dead(layer), SHIFT_REACH, BARE_SHIFT_REACH)
    if observed.shift is None:
        return layer.everywhere(False)
    if observed.norm_scale is not None:
        # beside a scale that has fallen any shift looks large: then it is the scale that is to blame
        scale = torch.where(has_scale_fallen(layer), layer.past.first_scale, observed.norm_scale)
        return (observed.shift < 0) & (observed.shift < -SHIFT_REACH * scale)
    if observed.norms is None:
        return layer.everywhere(False)
    # beside a kernel that is small among its layer's, or has shrunk, any bias looks large: then that is to blame; the
    # bias of a channel that has never fired need not be so far, as no usual draw makes it thrice a norm
    norms = observed.norms.float().fmax(layer.past.first_norm)
    return observed.shift < -bare * norms.clamp(min=float(norms.median()))


@channel_cause(causes.SHIFT_NEGATIVE, _is_shift_out_of_reach)
def _shift_negative(layer: LayerContext, channels: Tensor) -> Cause:
    observed, born = layer.observed, bool(_is_born_dead(layer)[channels].all())
    assert observed.shift is not None
    normed = observed.norm_scale is not None
    reach = observed.norm_scale if observed.norm_scale is not None else observed.norms
    assert reach is not None
    name, against = ("norm's shift (beta)", "|gamma|") if normed else ("bias", "kernel norm")
    return causes.SHIFT_NEGATIVE.because(
        f"the {name} is {span(observed.shift[channels])} against a {against} of {span(reach[channels])}: no usual input"
        " lifts the channel above zero"
        + f"; it has not fired once since {_beginning(layer)}, so that the shift was there from the start"
        * born,
        "Set the shift of these channels to 0 to revive them"
        + (
            ", and look at how it is initialised: training has not moved it there."
            if born
            else f"; if it happens again, lower {layer.highest_rate} or warm it up."
        ),
        f"{references.CS231N}; {references.BATCH_NORM}" if normed else references.CS231N,
        {"shift": float(observed.shift[channels].min()), "reach": float(reach[channels].max())},
    )


_shift_negative_at_first = replace(
    _shift_negative, holds=lambda layer: _is_born_dead(layer) & _is_shift_out_of_reach(layer)
)
"""Apart from the others, as training has not moved it there."""


def _is_it_normal(layer: LayerContext) -> str:
    """The dead share of a layer, but for what a mask holds at zero, against what healthy networks have."""
    share = float((layer.mask(layer.report.dead) & ~pruned.holds(layer)).float().mean())
    if share >= CHANCE_SHARE:
        return f"{share:.0%} of the layer dead is more than healthy networks have (44% in a deep layer at most). "
    near = "within" if share <= MOST_BY_CHANCE else "a little above"
    return f"{share:.0%} of the layer dead is {near} what healthy deep networks without norms have (up to 44%). "


@channel_cause(causes.BORN_DEAD, _is_born_dead)
def _born_dead(layer: LayerContext, channels: Tensor) -> Cause:
    """See `_is_born_dead`."""
    return causes.BORN_DEAD.because(
        f"has not fired once since {_beginning(layer)}: the draw of the initial weights put it there",
        _is_it_normal(layer)
        + "Where it is much: put a norm before the activation, make the layer wider, or use He initialisation,"
        " LeakyReLU or GELU.",
        f"{references.LU}; {references.HE}",
    )


def _rate(rates: Tensor) -> str:
    """Firing rates for a sentence; they are from sampled steps, so that of what fired seldom they may be zero."""
    low, high = float(rates.min()), float(rates.max())
    if high == 0:
        return "too few samples for the sampled steps to see"
    span_ = f"at most {100 * high:.2g}" if low == 0 else span(rates * 100, ".2g")
    return f"{span_}% of samples and positions"


def _has_faded(layer: LayerContext) -> Tensor:
    """It fired on few inputs in its last window and then on none, without a reckless step: ordinary drift."""
    past = layer.past
    first = past.last_fired == past.first_window + 1
    few = past.rate < torch.where(first, FIRST_RATE, FADED_RATE)
    return (past.last_fired > 0) & (few | layer.is_output)


@channel_cause(causes.FADED, _has_faded)
def _faded(layer: LayerContext, channels: Tensor) -> Cause:
    past = layer.past
    many = float(channels.float().mean()) >= CHANCE_SHARE  # of those alone: what took others is told of these
    return causes.FADED.because(
        f"fired on {_rate(past.rate[channels])} in {layer.when(past.last_fired[channels])} and then on none, with no"
        " reckless step seen: "
        + (
            "the loss pushes outputs down where what it wants is zero or below"
            if layer.is_output
            else "they faded, and far more of them than by the drift of ordinary training"
            if many
            else "ordinary drift"
        ),
        _is_it_normal(layer)
        + (
            "Look for a term of the loss that pushes activations down (the L1 of a sparse autoencoder): lower it or"
            " warm it up, or draw dead kernels anew. Else lower "
            if many
            else "Some come back. If their number grows from window to window, put a norm before the activation, lower "
        )
        + f"{layer.rate}, or use LeakyReLU or GELU.",
        f"{references.LU}; {references.CS231N}",
        {
            "last_fired_in_window": int(past.last_fired[channels].max()),
            "last_firing_rate": float(past.rate[channels].max()),
        },
    )


def unknown(layer: LayerContext, channels: Tensor) -> Cause:
    """Of channels that none of the causes explains: what was seen, and what is ruled out."""
    past, fired = layer.past, layer.past.last_fired[channels]
    once = bool((fired > 0).any())
    if once:
        text = f"fired until {layer.when(fired[fired > 0])} and then stopped"
        rate = past.rate[channels][fired > 0]
        rate = rate[rate.isfinite()]
        if rate.numel():
            text += f" (on {_rate(rate)} over that window)"
    else:
        text = "has not fired since it is watched, and the run had begun before that"
    measured = bool((past.reckless[channels] > 0).any())
    between = once and measured and layer.window.sampled_steps < layer.window.optimizer_steps
    ruled_out = [
        "a reckless update" if once and measured and not between else "",
        "a zero kernel" if not bool(is_zero(layer)[channels].any()) else "decay of the kernel, which is zero",
        "a shift out of reach" if layer.observed.shift is not None else "",
        "a dead layer before it" if layer.observed.producers else "",
    ]
    return causes.UNKNOWN.because(
        f"{text}; ruled out: {', '.join(filter(None, ruled_out))}"
        + ("; no step that was sampled was reckless, but one between them may have been" if between else ""),
        _is_it_normal(layer)
        + ("Trainer(log_every_n_steps=1) looks at every step's update. " if between else "")
        + f"If their number grows from window to window, lower {layer.rate} or put a norm before the activation; a"
        " small, steady number costs little.",
        f"{references.LU}; {references.CS231N}",
        {"last_fired_in_window": int(fired.max())} if once else {},
    )


def proven(layer: LayerContext, channels: Tensor) -> Cause:
    """Of channels of a file, which has nothing of the past."""
    return causes.UNKNOWN.because(
        "with these weights, and with what stands before the layer, no input lifts them above zero; what made it so,"
        " weights alone do not tell",
        "They can be pruned without changing the output. If they should not be dead, train with DeadKernelMonitor from"
        " the start: it tells since when, and why.",
        references.LU,
    )


CAUSES = (
    pruned,
    _upstream_dead,
    dead_inputs,
    zero_at_initialisation,
    decayed_first,
    _slingshot,
    _knocked_out_when_small,
    _knocked_out_by_inputs,
    _knocked_out,
    _shift_negative_at_first,
    _shift_negative,
    decayed,
    worn_away,
    scale_decayed,
    scale_collapsed,
    _shut_by_inputs,
    _born_dead,
    _faded,
)
"""In the order in which they are tried."""
