"""From a layer's evidence to one code per channel: its state, the first that matches, and its flags."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.layer_past import LayerPast
from lightning_deadkernel.functional.kernels import dormant_scores
from lightning_deadkernel.observation import Gating, LayerWindow, Window
from lightning_deadkernel.report.states import DORMANT, FROZEN, RARE, STATES, ZERO_KERNEL, State
from lightning_deadkernel.thresholds import Thresholds

SHRUNK = 0.1
"""A kernel has shrunk once its norm has fallen to a tenth; where that came first, it is the likelier cause."""


def classify(
    layer: LayerWindow, window: Window, history: History, thresholds: Thresholds, scores: Tensor | None
) -> Tensor:
    """One code per channel: the first state that matches, and the flags.

    Args:
        layer: what was observed of it.
        window: of the whole network.
        history: the windows before.
        thresholds: where the lines are drawn.
        scores: the layer's `activity`.

    Returns:
        (C,) uint8; see `report.STATES` and the flags beside it.
    """
    codes = torch.zeros(layer.channels, dtype=torch.uint8)
    if layer.excluded is not None:
        return codes + STATES.index("excluded")
    if window.audited:
        codes += STATES.index("unknown")
        if layer.certified_dead is not None:  # all that can be told of states without a run
            codes.masked_fill_(layer.certified_dead, STATES.index("dead"))
    if window.index > 0:
        frozen = _unchanged(layer, window)
        codes = _states(layer, frozen, thresholds)
        for gating, channels in layer.other_gatings.items():
            codes = torch.where(channels, _states(replace(layer, gating=gating), frozen, thresholds), codes)
        if window.index == 1:
            woken = _woken(layer, history.layers.get(layer.name))
            codes.masked_fill_((codes == STATES.index("dead")) & woken, STATES.index("silent"))
        for flag, channels in (
            (FROZEN, frozen),
            (DORMANT, _dormant(layer, scores, thresholds)),
            (RARE, _rare(layer, thresholds)),
        ):
            codes |= channels * flag
    codes |= _zero_kernel(layer, history.layers.get(layer.name), thresholds) * ZERO_KERNEL
    return codes


def _states(layer: LayerWindow, frozen: Tensor, thresholds: Thresholds) -> Tensor:
    """The table of states: the first that matches; what no row fits was not seen well enough, and is unknown."""
    some, none = layer.gradient_seen
    nowhere = torch.zeros(layer.channels, dtype=torch.bool)
    rules: list[tuple[State, Tensor]]
    if layer.gating is None or layer.fired is None:
        rules = [("zero-gradient", none), ("active", some)]
    else:
        fires, off = layer.fired, ~layer.fired
        if layer.gating != "bounded" and bool((fires & some & ~frozen).all()):  # as in most layers
            return torch.full((layer.channels,), STATES.index("active"), dtype=torch.uint8)
        dead, silent, active = _without_firing(layer, off, some, none)
        # what leaves a leaky activation below zero is read by whatever listens, so no gradient means that nothing does
        starved = none & (fires if layer.gating != "leaky" else torch.ones_like(fires))
        untold = off & none if layer.shared_statistics and layer.gating == "rectifier" else nowhere
        if layer.joined == "compared":  # what fires may be what was taken in its place
            starved, untold = nowhere, untold | starved
        rules = [
            ("dead", dead),
            ("saturated", _stuck(layer, none, thresholds) | (off & none if layer.gating in FLAT_BELOW else nowhere)),
            ("silent", silent),
            ("starved", starved),
            ("zero-gradient", untold),
            ("frozen", fires & frozen),
            ("active", (fires & some) | active),
        ]
    codes = torch.full((layer.channels,), STATES.index("unknown"), dtype=torch.uint8)
    for state, channels in reversed(rules):
        codes.masked_fill_(channels, STATES.index(state))  # writing by index would take thrice as long
    return codes


FLAT_BELOW: tuple[Gating, ...] = ("smooth", "bounded")
"""Activations whose output and slope both fade out on the off side."""


def _without_firing(layer: LayerWindow, off: Tensor, some: Tensor, none: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the channels that were not seen to fire are dead, which silent, which active after all.

    Two witnesses are needed for a death: a channel that was never seen to fire, behind a rectifier, is dead only if its
    own gradient was zero as well, but for what a penalty in the loss adds. Where it has a gradient, it is silent if the
    reason is known (`off_gradient`): a norm whose statistics depend on the kernel passes the kernel a gradient and its
    shift none, and a clamp passes one where its input is exactly zero. Otherwise the witnesses contradict each other,
    and it is unknown.
    """
    nowhere = torch.zeros_like(off)
    if layer.gating != "rectifier":
        return nowhere, off & some, nowhere
    own = layer.weight_gradient if layer.weight_gradient is not None else layer.gradient
    if own is None:
        return nowhere, nowhere, nowhere
    if layer.off_gradient is not None:
        # what the others of its norm make of a kernel shows in no gradient where the kernel's own inputs are zero,
        # which they were not where its neighbours' rows have one
        had_inputs = layer.weight_gradient is None and layer.groups == 1 and not layer.penalised and bool(some.any())
        others = layer.shared_statistics and bool((~off).any())
        # a mask takes a kernel's gradient, whatever came back to it
        held = torch.ones_like(off) if not had_inputs else nowhere if layer.masked is None else layer.masked
        return off & none & ~held if others else off & none, off & some, nowhere
    if not layer.exact:
        # sampled steps may have missed the batch on which a channel fires, which its gradient then shows
        return off & none, nowhere, nowhere if layer.penalty_seen else off & some
    penalty = own.isfinite() if layer.penalty_seen else nowhere
    silent = nowhere
    if layer.norm_scale is not None and layer.gradient is not None and layer.weight_gradient is not None:
        silent = (layer.weight_gradient > 0) & (layer.gradient == 0)
    if layer.largest is not None and layer.shift is not None and layer.norm_scale is None:
        silent = silent | (some & (layer.largest == 0) & (layer.shift == 0))
    return off & (none | penalty), off & silent & ~penalty, nowhere


def _stuck(layer: LayerWindow, none: Tensor, thresholds: Thresholds) -> Tensor:
    if layer.saturated_share is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    if layer.gating == "bounded":
        return layer.saturated_share > thresholds.saturated_share
    # one-sided activations rest on a flat end by design: only where all inputs do does that explain a missing gradient
    return (at_the_top(layer) if layer.gating == "rectifier" else layer.saturated_share >= 1.0) & none


def at_the_top(layer: LayerWindow) -> Tensor:
    """(C,) bool: whenever the channel fires, a rectifier that is cut off above (ReLU6) holds it at that bound."""
    share, rate = layer.saturated_share, layer.channel_firing_rate
    if share is None or rate is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    return (rate > 0) & (share >= rate)


def not_finite(layer: LayerWindow) -> Tensor:
    """(C,) bool: its gradient was NaN or infinite on every batch, so that nothing is known of the channel."""
    return torch.zeros(layer.channels, dtype=torch.bool) if layer.gradient is None else layer.gradient.isnan()


def _woken(layer: LayerWindow, past: LayerPast | None) -> Tensor:
    """(C,) bool: zero at initialisation, and not now. No penalty moves a kernel of zero: the loss itself did."""
    if not layer.penalised or layer.norms is None or past is None or len(past.first_norm) != layer.channels:
        return torch.zeros(layer.channels, dtype=torch.bool)
    return (past.first_norm == 0) & (layer.norms > 0)


def _unchanged(layer: LayerWindow, window: Window) -> Tensor:
    """(C,) bool: a gradient reached the kernel, the optimizer stepped, and not one bit of the kernel changed."""
    stepped = window.optimizer_steps > 0 and not 0 < window.sampled_steps <= window.skipped_steps
    asked = not layer.in_optimizer or (layer.learning_rate or 0.0) > 0
    if layer.unchanged is None or not (stepped and asked):
        return torch.zeros(layer.channels, dtype=torch.bool)
    some, _ = layer.gradient_seen
    if layer.weight_gradient is not None:  # the shift may listen while the kernel's own gradient is zero
        some = layer.weight_gradient > 0
    if layer.norm_scale is not None:  # nothing passes a norm of scale zero
        some = some & (layer.norm_scale > 0)
    if layer.gradient_rms == 0:  # not one of the kernels had a gradient of its own on the sampled steps
        some = torch.zeros_like(some)
    frozen = layer.unchanged & some
    return frozen if layer.masked is None else frozen & ~layer.masked


def activity(layer: LayerWindow) -> Tensor | None:
    """(C,) ReDo scores of the layer; None where no activation was read."""
    if layer.activation_mean is None or layer.gating is None:
        return None
    means, most = layer.activation_mean, torch.finfo(torch.float32).max
    if 0 < float(means.sum()) < most:  # finite, as almost always, and then the same in fewer operations
        return means.float() / (means.float().sum() / len(means))
    return dormant_scores(means.float() if bool((means < most).all()) else means)


def _dormant(layer: LayerWindow, scores: Tensor | None, thresholds: Thresholds) -> Tensor:
    if scores is None or layer.depth == 0:
        return torch.zeros(layer.channels, dtype=torch.bool)
    return scores <= thresholds.dormant


def _rare(layer: LayerWindow, thresholds: Thresholds) -> Tensor:
    if layer.fired is None or layer.channel_firing_rate is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    return layer.fired & (layer.channel_firing_rate < thresholds.rare)


def _zero_kernel(layer: LayerWindow, past: LayerPast | None, thresholds: Thresholds) -> Tensor:
    zero = torch.zeros(layer.channels, dtype=torch.bool)
    if layer.largest is not None:
        zero |= layer.largest == 0
    if layer.norms is not None and layer.channels:
        small = layer.norms < thresholds.zero_kernel * layer.norms.nan_to_num(nan=0.0, posinf=0.0).amax()
        if past is not None and past.codes.numel() == layer.channels and bool(small.any()):
            # beside a kernel that has blown up all others look small: they are not, unless they have shrunk themselves
            small &= past.first_zero | ~(layer.norms >= SHRUNK * past.first_norm)
        zero |= small
    if layer.norm_scale is not None:
        # exactly zero is zero by any line
        zero |= layer.norm_scale < max(thresholds.norm_scale, torch.finfo(torch.float32).tiny)
    return zero
