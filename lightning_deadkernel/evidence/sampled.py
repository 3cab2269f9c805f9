"""What a sampled step sums of its activations. Small ones that are alike are summed together: an operator that reads a
few thousand numbers takes as long as one that reads none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
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


def sums_of(group: Sequence[Sample], channels: Sequence[int]) -> Sequence[Tensor]:
    """(C,) float64 of each of `SUMS`, and one that is > 0 where the channel fired; of one activation, or of several
    that are alike, one behind another.

    Of a channel that is not finite the magnitudes are not, and the others mean nothing.

    Args:
        group: the activations.
        channels: of the kernels of each.
    """
    first, *others = group
    saved, lay_out = first.saved, first.read.laid_out
    if others:
        axis = first.read.part.at.axis
        saved = torch.cat([one.read.own(one.saved) for one in group], axis)
        at = ChannelAxis(axis, saved.shape[axis])
        lay_out = lambda values: (values, at)  # noqa: E731 (as short as the method it stands for)
    found = _sums(first.activation, saved, lay_out, first.along)
    if all(one.read.is_whole(own) for one, own in zip(group, channels, strict=True)):
        return found
    pieces = torch.split(torch.stack(found), [one.read.laid_out(one.saved)[1].size for one in group], -1)
    spread = [one.read.spread(piece, own) for piece, one, own in zip(pieces, group, channels, strict=True)]
    return torch.cat(spread, -1).unbind()


def _sums(
    activation: Activation,
    saved: Tensor,
    lay_out: Callable[[Tensor], tuple[Tensor, ChannelAxis]],
    along: int | None,
) -> list[Tensor]:
    values, at = lay_out(activation.output(saved))
    positives, magnitudes, zeros = firing(values, at, activation.rectifies)
    nothing = _each(0, at.size, values.device)
    flat = on = samples = nothing
    if activation.has_flat_ends:
        flat = count_outside(*lay_out(saved), activation.low, activation.high, inclusive=True)
    largest = positives
    if along is not None or not activation.rectifies:
        shown, at = lay_out(activation.positive(saved) if activation.positive else saved)
        if along is not None:
            on, samples = samples_on(shown, along, at.axis), _each(shown.shape[along], at.size, values.device)
        if not activation.rectifies:
            largest = channel_max(shown, at).double()
            largest = torch.where(largest < torch.inf, largest, nothing)
    entries = _each(values.numel() // at.size, at.size, values.device)
    return [positives, magnitudes, zeros, flat, entries, on, samples, largest]


@lru_cache(maxsize=256)
def _each(number: int, channels: int, device: torch.device) -> Tensor:
    """(C,) float64, not to be written to."""
    return torch.full((channels,), number, dtype=torch.float64, device=device)
