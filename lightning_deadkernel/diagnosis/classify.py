"""From a layer's evidence to one code per channel: its state, the first that matches, and its flags."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.history import History, LayerPast, gradient_seen
from lightning_deadkernel.functional.kernels import dormant_scores
from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.states import DORMANT, FROZEN, RARE, STATE_BITS, STATES, ZERO_KERNEL, State
from lightning_deadkernel.thresholds import Thresholds

SHRUNK = 0.1
"""A kernel has shrunk once its norm has fallen to a tenth; where that came first, it is the likelier cause."""


def classify(layer: LayerWindow, window: Window, history: History, thresholds: Thresholds) -> Tensor:
    """One code per channel: the first state that matches, and the flags.

    Returns:
        (C,) uint8; see `report.STATES` and the flags beside it.
    """
    codes = torch.zeros(layer.channels, dtype=torch.uint8)
    if layer.excluded is not None:
        return codes + STATES.index("excluded")
    if window.index > 0:
        frozen = _unchanged(layer, window)
        codes = _states(layer, frozen, thresholds)
        codes = _hold(codes, layer, history.get(layer.name))
        for flag, channels in (
            (FROZEN, frozen),
            (DORMANT, _dormant(layer, thresholds)),
            (RARE, _rare(layer, thresholds)),
        ):
            codes[channels] |= flag
    codes[_zero_kernel(layer, history.get(layer.name), thresholds)] |= ZERO_KERNEL
    return codes


def _states(layer: LayerWindow, frozen: Tensor, thresholds: Thresholds) -> Tensor:
    """The table of states: the first that matches, "active" where none does."""
    some, none = gradient_seen(layer)
    nowhere = torch.zeros(layer.channels, dtype=torch.bool)
    rules: list[tuple[State, Tensor]]
    if layer.gating is None or layer.fired is None:
        rules = [("zero-gradient", none)]
    else:
        fires, off = layer.fired, ~layer.fired
        # sampled steps may have missed the batch on which a channel fires: there the gradient must agree
        dead = off if layer.exact else off & none
        stuck = _stuck(layer, none, thresholds)
        # what leaves a leaky activation below zero is heard by whatever listens, so no gradient means that nothing does
        starved = none & (fires if layer.gating != "leaky" else torch.ones_like(fires))
        rules = [
            ("dead", dead if layer.gating == "rectifier" else nowhere),
            ("saturated", stuck | (off & none if layer.gating in ("smooth", "bounded") else nowhere)),
            ("silent", off & some if layer.gating != "rectifier" else nowhere),
            ("starved", starved),
            ("frozen", fires & frozen),
        ]
    codes = torch.zeros(layer.channels, dtype=torch.uint8)
    for state, channels in reversed(rules):
        codes[channels] = STATES.index(state)
    return codes


def _stuck(layer: LayerWindow, none: Tensor, thresholds: Thresholds) -> Tensor:
    if layer.saturated_share is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    if layer.gating == "bounded":
        return layer.saturated_share > thresholds.saturated_share
    # one-sided activations rest on a flat end by design: only where all inputs do does that explain a missing gradient
    return (layer.saturated_share >= 1.0) & none


def _unknown(layer: LayerWindow) -> Tensor:
    """(C,) bool: NaN or infinity has touched the channel, so that what it did not show proves nothing."""
    unknown = torch.full((layer.channels,), layer.non_finite_gradients > 0)
    for values in (layer.norms, layer.gradient, layer.activation_mean):
        if values is not None:
            unknown |= ~values.isfinite()
    return unknown


def _hold(codes: Tensor, layer: LayerWindow, past: LayerPast | None) -> Tensor:
    """NaN neither revives nor kills: a channel it has touched stays what it was, unless it was seen to fire."""
    unknown = _unknown(layer)
    active = codes == STATES.index("active")
    before = torch.zeros_like(codes) if past is None or past.codes.numel() != codes.numel() else past.codes & STATE_BITS
    fires = layer.fired if layer.fired is not None else torch.zeros_like(unknown)
    return torch.where(unknown & ~(active & fires) & (codes != before), before, codes)


def _unchanged(layer: LayerWindow, window: Window) -> Tensor:
    """(C,) bool: a gradient reached the kernel, the optimizer stepped, and not one bit of the kernel changed."""
    stepped = window.optimizer_steps > 0 and not 0 < window.sampled_steps <= window.skipped_steps
    asked = not layer.in_optimizer or (layer.learning_rate or 0.0) > 0
    if layer.unchanged is None or not (stepped and asked):
        return torch.zeros(layer.channels, dtype=torch.bool)
    some, _ = gradient_seen(layer)
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
    return dormant_scores(layer.activation_mean.float())


def _dormant(layer: LayerWindow, thresholds: Thresholds) -> Tensor:
    scores = activity(layer)
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
        small = layer.norms < thresholds.zero_kernel * layer.norms.nan_to_num(nan=0.0).amax()
        if past is not None and past.codes.numel() == layer.channels:
            # beside a kernel that has blown up all others look small: they are not, unless they have shrunk themselves
            small &= past.first_zero | ~(layer.norms >= SHRUNK * past.first_norm)
        zero |= small
    if layer.norm_scale is not None:
        zero |= layer.norm_scale < thresholds.norm_scale
    return zero
