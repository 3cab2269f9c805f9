"""What a sampled step sums of its activations. Small ones that are alike are summed together: an operator that reads a
few thousand numbers takes as long as one that reads none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadkernel.functional.firing import ChannelAxis, channel_max, count_outside, firing, samples_on
from lightning_deadkernel.graph.activations import Activation
from lightning_deadkernel.graph.facts import ActivationKey
from lightning_deadkernel.graph.paths import ActivationRead

SUMS = ("positives", "magnitudes", "zeros", "flat", "entries", "on", "samples")
"""Per-channel sums of an activation over the sampled steps: of its entries, their number, the samples on some position
of which it was > 0, and their number, 0 where samples cannot be told from positions."""
SMALL = 1 << 16
"""Entries of an activation that is worth a copy beside others."""


class Sample(NamedTuple):
    """One activation of a sampled step."""

    key: ActivationKey
    read: ActivationRead
    activation: Activation
    saved: Tensor
    """What its node keeps for backward."""
    along: int | None
    """Dimension of what is read along which the samples run; None: they are not counted."""

    @property
    def alike(self) -> Any:
        """Equal for those that can be summed together; None for one that is summed alone."""
        if self.saved.numel() > SMALL or len(self.read.part.digits) > 1:
            return None
        at, shape = self.read.part.at, self.read.own(self.saved).shape
        if at.outer != 1 or at.inner != 1:
            return None
        axis = at.axis % len(shape)
        return self.activation, self.saved.dtype, self.saved.device, self.along, axis, shape[:axis], shape[axis + 1 :]


class Sums(NamedTuple):
    """Of one activation or several, one behind another."""

    sums: Tensor
    """(7, C) float64, see `SUMS`; 0 for a channel that is not finite."""
    finite: Tensor
    """(C,) bool."""
    largest: Tensor
    """(C,) > 0 where the channel fired."""

    def spread(self, read: ActivationRead, channels: int) -> Sums:
        """Of the axis that was read as of the kernel's channels, see `ActivationRead.spread`."""
        sums, largest = read.spread(self.sums, channels), read.spread(self.largest, channels)
        return Sums(sums, ~read.spread(~self.finite, channels), largest)


def sums_of(group: Sequence[Sample], channels: Sequence[int]) -> Sums:
    """The sums of one activation, or of several that are alike.

    Args:
        group: the activations.
        channels: of the kernels of each.
    """
    first, *others = group
    if not others:
        found = _sums(first.activation, first.saved, first.read.laid_out, first.along)
        return found.spread(first.read, channels[0])
    axis = first.read.part.at.axis
    parts = [one.read.own(one.saved) for one in group]
    sizes = [part.shape[axis] for part in parts]
    at = ChannelAxis(axis, sum(sizes))
    found = _sums(first.activation, torch.cat(parts, axis), lambda values: (values, at), first.along)
    if all(one.read.is_whole(own) for one, own in zip(group, channels, strict=True)):
        return found
    pieces = zip(*(torch.split(values, sizes, -1) for values in found), strict=True)
    spread = [Sums(*piece).spread(one.read, own) for piece, one, own in zip(pieces, group, channels, strict=True)]
    return Sums(*(torch.cat(values, -1) for values in zip(*spread, strict=True)))


def _sums(
    activation: Activation,
    saved: Tensor,
    lay_out: Callable[[Tensor], tuple[Tensor, ChannelAxis]],
    along: int | None,
) -> Sums:
    values, at = lay_out(activation.output(saved))
    positives, magnitudes, zeros = firing(values, at, activation.rectifies)
    flat = on = samples = torch.zeros_like(zeros)
    if activation.has_flat_ends:
        inputs, at = lay_out(saved)
        flat = count_outside(inputs, at, activation.low, activation.high, inclusive=True)
    entries = torch.full_like(zeros, values.numel() / at.size)
    if along is not None or not activation.rectifies:
        shown, at = lay_out(activation.positive(saved) if activation.positive else saved)
        if along is not None:
            on, samples = samples_on(shown, along, at.axis), samples + shown.shape[along]
    finite = magnitudes.isfinite()
    sums = torch.where(finite, torch.stack([positives, magnitudes, zeros, flat, entries, on, samples]), 0)
    return Sums(sums, finite, sums[0] if activation.rectifies else channel_max(shown, at))
