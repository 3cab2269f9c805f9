"""Where a kernel's output goes: the activations and ends on its paths, and what a value holds on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.activations import Activation, Reader
from lightning_deadkernel.graph.channel_axis import Shape
from lightning_deadkernel.graph.parts import Numbers, Part


@dataclass(frozen=True)
class ActivationRead:
    """An activation that a kernel reaches: the node, and where the kernel's channels are in what it saved."""

    node: int
    reader: Reader
    part: Part
    ndim: int
    shape: Shape | None
    """Shape the axis was worked out for, where it depends on it."""

    def live(self, node: Any) -> Activation:
        """The activation with this step's constants.

        Raises:
            LookupError: where the op is none any more.
        """
        activation = self.reader(node)
        if activation is None:
            raise LookupError("its op is no activation that can be read any more")
        return activation

    def fits(self, saved: Tensor) -> bool:
        """Whether this step's tensor has its channels where the map says."""
        if self.shape is not None:
            return tuple(saved.shape) == self.shape
        return saved.ndim == self.ndim and all(saved.shape[digit.axis] == digit.size for digit in self.part.digits)

    def samples_along(self, shape: Sequence[int], rows: int | None) -> int | None:
        """The dimension of what was read along which samples run; None where only positions are known.

        The first of a feature map with its channels second; elsewhere the one whose size is that of the batch, or the
        first if that is a multiple of it (a net that runs on several rows for each of the batch).

        Args:
            shape: of what was read.
            rows: samples in the batch, as Lightning counts them; None: unknown.
        """
        if len(self.part.digits) != 1 or (self.part.at.outer, self.part.at.inner) != (1, 1):
            return None
        if self.part.slab is not None:
            dim, _, size = self.part.slab
            shape = (*shape[:dim], size, *shape[dim + 1 :])
        axis = self.part.at.axis % len(shape)
        if axis == 1 and len(shape) > 2:
            return 0
        if not rows or axis == 0:
            return None
        equal = [dim for dim, size in enumerate(shape) if dim != axis and size == rows]
        if equal:
            return equal[0] if len(equal) == 1 or equal[0] == 0 else None
        return 0 if shape[0] % rows == 0 else None

    def passed(self, saved: Tensor, along: int | None) -> tuple[int, int, int]:
        """What passed through it in a step: samples, positions, and 1 where samples cannot be told from them.

        Args:
            saved: what was read.
            along: dimension of the samples; None: unknown.
        """
        own = self.own(saved)
        positions = own.numel() // max(1, prod(digit.size for digit in self.part.digits))
        return (0, positions, 1) if along is None else (own.shape[along], positions, 0)

    def own(self, values: Tensor) -> Tensor:
        """Of a tensor like the one that was read, the entries that are the kernel's own: a view."""
        return values if self.part.slab is None else values.narrow(*self.part.slab)

    def laid_out(self, values: Tensor) -> tuple[Tensor, ChannelAxis]:
        """A tensor like the one that was read, with all places along one axis, and that axis."""
        digits = self.part.digits
        values = self.own(values)
        if len(digits) == 1:
            return values, digits[0]
        sizes, first = list[int](), list[int]()
        for axis, size in enumerate(values.shape):
            digit = next((digit for digit in digits if digit.axis == axis), None)
            first.append(len(sizes) + 1)
            sizes += [size] if digit is None else [digit.outer, digit.size, digit.inner]
        order = [first[digit.axis] for digit in digits]
        rest = [place for place in range(len(sizes)) if place not in order]
        size = prod(digit.size for digit in digits)
        return values.reshape(sizes).permute(order + rest).flatten(0, len(digits) - 1), ChannelAxis(0, size)

    def by_channel(self, values: Tensor, along: int = 0, most: int | None = None) -> Tensor:
        """(N, C, *) of a tensor like the one that was read: the kernel's channels that are here, in their order.

        Args:
            values: what was read, or as large.
            along: dimension of the samples in what is the kernel's own.
            most: of the samples the first so many; None: all.
        """
        values, at = self.laid_out(values)
        places = [place for _, place in sorted(zip(self.part.channels, self.part.places, strict=True))]
        if self.part.is_cut:
            return values[places].movedim(0, 1)[:most]
        if most is not None:
            values = values.narrow(along, 0, min(most, values.shape[along]))
        values, axis = values.movedim(along, 0), at.axis + (at.axis < along)
        shape = values.shape
        values = values.reshape(*shape[:axis], at.outer, at.size, at.inner, *shape[axis + 1 :]).movedim(axis + 1, 1)
        values = values if places == list(range(at.size)) else values[:, _index(tuple(places), values.device)]
        return values if at.outer * at.inner > 1 else values.squeeze(axis + 2).squeeze(axis + 1)

    def spread(self, values: Tensor, channels: int) -> Tensor:
        """(*, places) values of the axis that was read as (*, C) of the kernel's channels; 0 where there is none.

        Args:
            values: one for each place of the axis.
            channels: of the kernel.
        """
        if self.is_whole(channels):
            return values
        mine, places = self.part.channels, self.part.places
        padded = values.new_zeros(*values.shape[:-1], channels)
        if isinstance(mine, range) and isinstance(places, range):
            padded[..., mine.start : mine.stop] = values[..., places.start : places.stop]
            return padded
        return padded.index_copy_(
            -1, _index(mine, values.device), values.index_select(-1, _index(places, values.device))
        )

    def is_whole(self, channels: int) -> bool:
        """Whether the axis has the kernel's channels, all of them in their order, and nothing else."""
        part = self.part
        return (
            isinstance(part.channels, range)
            and isinstance(part.places, range)
            and len(part.channels) == channels == prod(digit.size for digit in part.digits)
        )


@lru_cache(maxsize=256)
def _index(numbers: Numbers, device: torch.device) -> Tensor:
    """On its device once: copying it there waits."""
    return torch.tensor(numbers, device=device)


@dataclass
class Paths:
    """Where a kernel's output goes, all paths to the loss counted. Channels are bit masks."""

    reads: list[ActivationRead] = field(default_factory=list)
    reaches: int = 0
    """Channels some path of which reaches a convolution, a linear op or the loss without an activation."""
    attention: bool = False
    """One of those ends is an attention."""
    unknown: list[str] = field(default_factory=list)
    """Names of ops that cannot be read."""
    lost: str | None = None
    """The op at which channels lost their identity before they met an activation."""
    statistics: bool = False
    """Other channels' values depend on it past its own activation: a norm over channels, a softmax."""
    consumers: list[tuple[int, int, Part]] = field(default_factory=list)
    """(kernel op, weights per channel of one output, where the channels are among its inputs) reached behind the
    activations."""
    shared: bool = False
    """On its path the output is added to something else, so that its channels cannot be removed alone."""
    averaged: bool = False
    """Behind its activations some op averages it with other channels, or compares it with them."""
    composed_norm: bool = False
    """It passes a norm made of arithmetic."""
    summed: bool = False
    """Before an activation something else is added to it, so that what is read there is the sum."""
    compared: bool = False
    """Before an activation the larger of it and something else is taken, or one of them by a condition."""
    stacked: bool = False
    """Before an activation it is put beside something else along another axis, and both are read together."""

    def then(self, rest: Paths) -> Paths:
        """These paths, and the ones that go on from where they end."""
        return Paths(
            self.reads + rest.reads,
            self.reaches | rest.reaches,
            self.attention or rest.attention,
            list(dict.fromkeys(self.unknown + rest.unknown)),
            self.lost or rest.lost,
            self.statistics or rest.statistics,
            self.consumers + rest.consumers,
            self.shared or rest.shared,
            self.averaged or rest.averaged,
            self.composed_norm or rest.composed_norm,
            self.summed or rest.summed,
            self.compared or rest.compared,
            self.stacked or rest.stacked,
        )


@dataclass(frozen=True)
class Trace:
    """What a value holds of the kernel's channels."""

    channels: int
    """Channels it depends on, a bit mask."""
    parts: tuple[Part, ...] = ()
    """Where they are, each apart; empty where they are blended."""
    blended: str | None = None
    """The op that blended them."""
    gated: bool = False
    """The blend has met an activation."""
    behind: tuple[int, str] | None = None
    """The activation, node and label, that stands before all of it."""
    function: int | None = None
    """The last function without an off side that it has passed."""
    averaged: bool = False
    """It holds a mean or the like of the channels."""
    cut: tuple[Part, ...] = ()
    """Where the channels of a blend are that is none, as a reshape has only cut their axis into several."""


Cut = tuple[int, Trace, bool]
"""A value that all that is left of the paths goes through, what it holds, and whether activations are passed."""
