"""Where a cause holds: each sign is a (C,) bool over the channels of a layer, read from evidence and history."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.context import View
from lightning_deadkernel.diagnosis.history import NEVER
from lightning_deadkernel.report.states import ZERO_KERNEL

SHIFT_REACH = 3.0
"""A normalised input rarely passes three standard deviations: a shift below -3 |gamma| keeps the gate shut."""
BARE_SHIFT_REACH = 10.0
"""Without a norm the input's size is unknown: ten times what an input of unit rms reaches leaves room for that."""
FADED_RATE = 0.3
"""In healthy He-initialised networks, 20 layers deep and 64 wide, the channels that drift off fired on 0.05 to 24 % of
inputs in their last window."""
SHRUNK = 0.1
"""A kernel has shrunk once its norm has fallen to a tenth; where that came first, it is the likelier cause."""


def _everywhere(view: View, holds: bool = True) -> Tensor:
    return torch.full((view.layer.channels,), holds)


def pruned(view: View) -> Tensor:
    """A mask holds the whole kernel at zero."""
    return _everywhere(view, False) if view.layer.masked is None else view.layer.masked


def upstream_dead(view: View) -> Tensor:
    """All layers that feed this one are wholly dead."""
    producers = view.layer.producers
    return _everywhere(view, bool(producers) and all(view.wholly_dead(name) for name in producers or ()))


def zero_now(view: View) -> Tensor:
    """The kernel, or its norm's scale, is zero or next to it."""
    return view.mask(view.report.zero_kernels)


def zero_at_initialisation(view: View) -> Tensor:
    """It was zero in the state at initialisation and is so now."""
    return zero_now(view) & view.past.first_zero & (view.past.first_window == 0)


def scale_shrunk(view: View) -> Tensor:
    """The norm's scale has lain near zero for two windows and has fallen to a tenth: it does not just pass through."""
    past = view.past
    return zero_now(view) & ((past.before & ZERO_KERNEL) != 0) & (past.scale < SHRUNK * past.first_scale)


def shrunk(view: View) -> Tensor:
    """Kernel or scale is zero now, was not at first, and is smaller than then."""
    less = scale_shrunk(view)
    if view.layer.norms is not None:
        less = less | (view.layer.norms < view.past.first_norm)
    return zero_now(view) & ~view.past.first_zero & less


def decayed(view: View) -> Tensor:
    """It has shrunk to zero, and its parameter group has weight decay."""
    return shrunk(view) & (view.layer.weight_decay > 0)


def worn_down(view: View) -> Tensor:
    """Decay came first: the norm had fallen far before the gradient stopped."""
    return decayed(view) & (view.past.stop_norm < SHRUNK * view.past.first_norm)


def knocked_out(view: View) -> Tensor:
    """It fired until a window in which, or right after which, an update was reckless."""
    return (view.past.last_fired > 0) & (view.past.reckless > view.thresholds.update_large)


def shift_negative(view: View) -> Tensor:
    """The shift lies below what the input can make up for."""
    layer = view.layer
    if layer.shift is None or (layer.norm_scale is None and layer.norms is None):
        return _everywhere(view, False)
    if layer.norm_scale is not None:
        return (layer.shift < 0) & (layer.shift < -SHIFT_REACH * layer.norm_scale)
    assert layer.norms is not None
    return (layer.shift < 0) & (layer.shift < -BARE_SHIFT_REACH * layer.norms)


def faded(view: View) -> Tensor:
    """It fired on few inputs in its last window and then on none, without a reckless step: ordinary drift."""
    return (view.past.last_fired > 0) & (view.past.rate < FADED_RATE)


def born_dead(view: View) -> Tensor:
    """It was watched from global step 0 and has not fired once."""
    from_start = view.past.first_window == 0 and view.past.first_step == 0
    return (view.past.last_fired == NEVER) & from_start
