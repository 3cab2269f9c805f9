"""Where some of a kernel's channels are in a value, through ops that cut, join, pad or reorder the channel axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.channel_axis import Shape, Step, carried, output_shape, signed, unwrapped
from lightning_deadkernel.graph.ops import NORMS, SPLITS, peek
from lightning_deadkernel.observation import InputSlice

STAYS = NORMS | frozenset("Add Sub Rsub Mul Div Neg Clone ToCopy NativeDropout".split())
"""Ops that leave all entries of a value where they are."""

Numbers = range | tuple[int, ...]


def _numbers(values: Iterable[int]) -> Numbers:
    """As a range where they are consecutive, so that what is the same is equal."""
    found = tuple(values)
    run = range(found[0], found[0] + len(found)) if found else range(0)
    return run if found == tuple(run) else found


@dataclass(frozen=True)
class Part:
    """Channels of a kernel, each in a place of its own of an axis, which may hold other things beside them."""

    digits: tuple[ChannelAxis, ...]
    """The axis with all its places. Several where a reshape has cut it: the digits of a place, the first being the
    largest, are places along these."""
    channels: Numbers
    """The kernel's channels that are here."""
    places: Numbers
    """The place of each."""
    slab: tuple[int, int, int] | None = None
    """Dimension, start and size: along it only these entries are the kernel's own; None: all are."""

    @classmethod
    def whole(cls, at: ChannelAxis) -> Part:
        """All channels, and nothing beside them."""
        return cls((at,), range(at.size), range(at.size))

    @property
    def at(self) -> ChannelAxis:
        """The axis of a part that is not cut."""
        return self.digits[0]

    @property
    def is_cut(self) -> bool:
        """Whether its places lie along several dimensions."""
        return len(self.digits) > 1

    @property
    def is_apart(self) -> bool:
        """Whether its digits lie along one dimension each."""
        return len({digit.axis for digit in self.digits}) == len(self.digits)

    @cached_property
    def mask(self) -> int:
        """The channels as a bit mask."""
        if isinstance(self.channels, range):
            return ((1 << len(self.channels)) - 1) << self.channels.start
        return sum(1 << channel for channel in self.channels)

    def moved(self, *digits: ChannelAxis) -> Part:
        """The same places of another axis; as one axis where the digits lie along one, one within the other."""
        order = sorted(range(len(digits)), key=lambda i: -digits[i].inner)
        nested, sizes = [digits[i] for i in order], [digit.size for digit in digits]
        apart = len({digit.axis for digit in digits}) > 1
        if len(digits) == 1 or apart or any(a.inner != b.inner * b.size for a, b in pairwise(nested)):
            return Part(digits, self.channels, self.places)
        weights = [prod(sizes[j] for j in order[order.index(i) + 1 :]) for i in range(len(sizes))]
        places = [sum(v * w for v, w in zip(_digits(p, sizes), weights, strict=True)) for p in self.places]
        at = ChannelAxis(nested[0].axis, prod(sizes), nested[0].outer, nested[-1].inner)
        return Part((at,), self.channels, _numbers(places))

    def runs(self) -> tuple[InputSlice, ...]:
        """Its channels in runs that stand side by side along its axis, which must not be cut."""
        pairs, begun = list(zip(self.channels, self.places, strict=True)), list[int]()
        for at, (channel, place) in enumerate(pairs):
            if not at or (channel - 1, place - 1) != pairs[at - 1]:
                begun.append(at)
        axis = (self.at.size, self.at.outer, self.at.inner)
        return tuple(InputSlice(pairs[a][0], b - a, pairs[a][1], *axis) for a, b in pairwise([*begun, len(pairs)]))

    def only(self, channels: Sequence[int]) -> Part:
        """Of its channels only these."""
        kept = [(c, place) for c, place in zip(self.channels, self.places, strict=True) if c in channels]
        return Part(self.digits, _numbers(c for c, _ in kept), _numbers(place for _, place in kept))

    def cropped(self, axis: int, start: int, size: int) -> tuple[Part, ...] | None:
        """What of it is in the entries [start, start + size) of a dimension, which are all that is left of this.

        A start below zero or an end beyond the dimension pads it. None where a channel would be cut through.
        """
        inner = next(digit.inner for digit in self.digits if digit.axis == axis)
        if start % inner or size % inner:
            return None
        first, width = start // inner, size // inner
        return self.rearranged(axis, width, lambda place: [place - first] if 0 <= place - first < width else [])

    def rearranged(self, axis: int, size: int, to: Callable[[int], Sequence[int]]) -> tuple[Part, ...] | None:
        """Its places along a dimension in another order, some gone, some several times, which makes several parts.

        Args:
            axis: a dimension along which one of the digits lies.
            size: number of places along it thereafter.
            to: a place along it -> where it is thereafter.
        """
        found = [i for i, digit in enumerate(self.digits) if digit.axis == axis]
        if len(found) != 1 or self.digits[found[0]].outer != 1:
            return None
        (which,) = found
        digit = self.digits[which]
        digits = (*self.digits[:which], ChannelAxis(axis, size, 1, digit.inner), *self.digits[which + 1 :])
        low = prod(other.size for other in self.digits[which + 1 :])
        turns: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for channel, place in zip(self.channels, self.places, strict=True):
            high, rest = divmod(place, digit.size * low)
            for turn, new in enumerate(to(rest // low)):
                turns[turn].append((channel, (high * size + new) * low + rest % low))
        return tuple(
            Part(digits, _numbers(c for c, _ in kept), _numbers(p for _, p in kept)) for kept in turns.values()
        )

    def without(self, axis: int, after: Shape) -> Part | None:
        """Where a dimension is gone of which one place was left, in a value of shape `after`."""
        digits = tuple(
            ChannelAxis(digit.axis - (digit.axis > axis), digit.size, digit.outer, digit.inner)
            for digit in self.digits
            if digit.axis != axis
        )
        if not digits and after:  # one channel, whose is all that is left
            digits = (ChannelAxis(0, 1, 1, after[0]),)
        return Part(digits, self.channels, self.places).moved(*digits) if digits else None


def _digits(place: int, sizes: Sequence[int]) -> list[int]:
    found = []
    for size in reversed(sizes):
        place, digit = divmod(place, size)
        found.append(digit)
    return found[::-1]


def follow(step: Step, part: Part) -> tuple[Part, ...] | None:
    """Where channels are behind a node that are at `part` in its argument.

    Returns:
        Empty if none of these channels is there, None if they cannot be told apart any more.

    Raises:
        LookupError: the node is in none of the tables of ops that pass channels on.
    """
    moves = [move for digit in part.digits if (move := _along(step, digit)) is not None]
    parts: tuple[Part, ...] = (part,)
    for move in moves:  # a flip may turn several dimensions
        moved = [move(one) for one in parts]
        if None in moved:
            return None
        parts = tuple(one for group in moved for one in group or ())
    if moves:
        return parts
    digits: list[ChannelAxis] = []
    for digit in part.digits:
        cut = carried(step, digit)
        if cut is None:
            return None
        digits += cut
    return (part.moved(*digits),)


Move = Callable[[Part], tuple[Part, ...] | None]


def _lost(part: Part) -> None:
    return None


def _along(step: Step, at: ChannelAxis) -> Move | None:
    """What a node does along the dimension of a digit; None where it leaves it as it is."""
    node, name, axis, after = step.node, step.name, at.axis, step.after
    if name in ("Slice", "Narrow", *SPLITS) and step.dims() == (axis,):
        if name in ("Unbind", "Select"):
            index = step.slot if name == "Unbind" else signed(node._saved_index) % step.before[axis]
            return lambda part: _picked(part, axis, index, after)
        if name in SPLITS:
            start = sum(output_shape(node, i)[axis] for i in range(step.slot))
        elif getattr(node, "_saved_step", 1) != 1:
            return _lost
        else:
            start = signed(node._saved_start)
            start = start % step.before[axis] if start < 0 else start
        return lambda part: part.cropped(axis, start, after[axis])
    if name == "Cat" and step.dims() == (axis,):
        place = _place_in_cat(step, axis)
        return _lost if place is None else lambda part: part.cropped(axis, -place, after[axis])
    if name == "ConstantPadNd" and any(step.pads(axis)):
        return lambda part: part.cropped(axis, -step.pads(axis)[0], after[axis])
    order = _order(step, axis)
    if order is None or at.inner != 1:
        return None
    to: dict[int, list[int]] = defaultdict(list)
    for new, old in enumerate(order):
        to[old % step.before[axis]].append(new)
    return lambda part: part.rearranged(axis, len(order), lambda place: to[place])


def _picked(part: Part, axis: int, index: int, after: Shape) -> tuple[Part, ...] | None:
    kept = part.cropped(axis, index, 1)
    found = None if kept is None else [one.without(axis, after) for one in kept]
    return None if found is None or None in found else tuple(one for one in found if one is not None)


def _order(step: Step, axis: int) -> Sequence[int] | None:
    """The old place of each new one along a dimension that a node reorders."""
    node, name, size = step.node, step.name, step.before[axis]
    if name == "Flip" and axis in step.dims("dims"):
        return range(size)[::-1]
    if name == "Roll" and axis in step.dims("dims"):
        shift = dict(zip(step.dims("dims"), node._saved_shifts, strict=True))[axis]
        return [(place - signed(shift)) % size for place in range(size)]
    if name in ("ChannelShuffle", "NativeChannelShuffle") and axis == 1:
        groups = int(node._saved_groups)
        return [place % groups * (size // groups) + place // groups for place in range(size)]
    chosen = selection(node, name, len(step.before))
    return None if chosen is None or chosen[0] != axis else chosen[1].flatten().tolist()


def selection(node: Any, name: str, ndim: int) -> tuple[int, Tensor] | None:
    """The dimension along which a node takes entries by a one-dimensional index, and that index."""
    if name == "IndexSelect":
        index = peek(node, "index")
        return None if index is None else (unwrapped(node._saved_dim, ndim)[0], index)
    if name != "Index":
        return None
    indices = list(node._saved_indices or ())
    given = [place for place, index in enumerate(indices) if index is not None]
    if len(given) != 1 or indices[given[0]].ndim != 1 or indices[given[0]].dtype not in (torch.int64, torch.int32):
        return None
    return given[0], indices[given[0]]


def in_its_slab(step: Step, part: Part, moved: Part) -> tuple[Part, bool]:
    """A part as it is behind a node, with the entries of another dimension that alone are the kernel's: those that a
    `stack` or `cat` along it has put there, as long as nothing moves them.

    Args:
        step: through the node.
        part: before it.
        moved: the part behind the node.

    Returns:
        The part, and whether what others make stands among its entries from here on.
    """
    name, before = step.name, step.before
    if name not in ("Cat", "Stack"):
        stays = part.slab is not None and before == step.after and name in STAYS
        return (replace(moved, slab=part.slab), False) if stays else (moved, part.slab is not None)
    (dim,) = step.dims(ndim=len(step.after))
    if any(digit.axis == dim for digit in moved.digits) and part.slab is None:
        return moved, False
    place = _place_in_cat(step, dim) if name == "Cat" else step.position
    if place is None or part.slab is not None:
        return moved, True
    return replace(moved, slab=(dim, place, 1 if name == "Stack" else before[dim])), False


def _place_in_cat(step: Step, axis: int) -> int | None:
    """Where the argument begins; None where arguments of unknown size stand on both sides."""
    sizes = [None if shape is None else shape[axis] for shape in step.shapes]
    before, after = sizes[: step.position], sizes[step.position + 1 :]
    if None not in before:
        return sum(size or 0 for size in before)
    if None not in after:
        return step.after[axis] - step.before[axis] - sum(size or 0 for size in after)
    return None
