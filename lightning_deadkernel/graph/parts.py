"""Where some of a kernel's channels are in a value, through ops that cut, join or pad the channel axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.channel_axis import Shape, carried, output_shape, pads, unwrapped
from lightning_deadkernel.graph.ops import SPLITS


@dataclass(frozen=True)
class Part:
    """Consecutive channels of a kernel in consecutive places of an axis, which may hold other things beside them."""

    at: ChannelAxis
    """The axis with all its places; its size is their number."""
    first: int
    """The kernel's first channel that is here."""
    count: int
    offset: int = 0
    """Place of that channel."""

    @classmethod
    def whole(cls, at: ChannelAxis) -> Part:
        """All channels, and nothing beside them."""
        return cls(at, 0, at.size)

    @property
    def is_whole(self) -> bool:
        """Whether nothing else is in the axis."""
        return self.count == self.at.size

    @cached_property
    def channels(self) -> int:
        """The channels as a bit mask."""
        return ((1 << self.count) - 1) << self.first

    def moved(self, at: ChannelAxis) -> Part:
        """The same places of another axis."""
        return Part(at, self.first, self.count, self.offset)

    def cropped(self, axis: int, start: int, size: int) -> tuple[Part, ...] | None:
        """What of it is in the entries [start, start + size) of its axis, which are all that is left.

        A start below zero or an end beyond the axis pads it. None where a channel would be cut through.
        """
        at = self.at
        if at.outer != 1 or start % at.inner or size % at.inner:
            return None
        begin, width = start // at.inner, size // at.inner
        low, high = max(self.offset, begin), min(self.offset + self.count, begin + width)
        if high <= low:
            return ()
        moved = ChannelAxis(axis, width, 1, at.inner)
        return (Part(moved, self.first + low - self.offset, high - low, low - begin),)


def follow(
    node: Any, name: str, part: Part, before: Shape, position: int, shapes: list[Shape | None], slot: int = 0
) -> tuple[Part, ...] | None:
    """Where a part is in one output of a node.

    Args:
        node: a node of the graph.
        name: its canonical name.
        part: where the channels are in one of its inputs.
        before: shape of that input.
        position: place of the input among the arguments.
        shapes: shapes of all arguments; None for those without a gradient.
        slot: which output.

    Returns:
        Empty if none of these channels is there, None if they cannot be told apart any more.

    Raises:
        LookupError: the node is in none of the tables of ops that pass channels on.
    """
    axis = part.at.axis
    if name in SPLITS and name not in ("Unbind", "Select"):
        (dim,) = unwrapped(node._saved_dim, len(before))
        if dim == axis:
            sizes = [output_shape(node, i)[dim] for i in range(len(node._input_metadata))]
            return part.cropped(axis, sum(sizes[:slot]), sizes[slot])
        return (part,)
    if name in ("Slice", "Narrow") and unwrapped(node._saved_dim, len(before))[0] == axis:
        if getattr(node, "_saved_step", 1) != 1:
            return None
        start = int(node._saved_start)
        return part.cropped(axis, start % before[axis] if start < 0 else start, output_shape(node, slot)[axis])
    if name == "Cat" and unwrapped(node._saved_dim, len(before))[0] == axis:
        place = _place_in_cat(position, [None if shape is None else shape[axis] for shape in shapes], node, axis)
        return None if place is None else part.cropped(axis, -place, output_shape(node)[axis])
    if name == "ConstantPadNd" and any(pads(node, axis, len(before))):
        left, _ = pads(node, axis, len(before))
        return part.cropped(axis, -left, output_shape(node)[axis])
    at = carried(node, name, part.at, before)
    return None if at is None else (part.moved(at),)


def _place_in_cat(position: int, sizes: list[int | None], node: Any, axis: int) -> int | None:
    """Where the argument at `position` begins; None where arguments of unknown size stand on both sides."""
    before, after = sizes[:position], sizes[position + 1 :]
    own = sizes[position] or 0
    if None not in before:
        return sum(size or 0 for size in before)
    if None not in after:
        return output_shape(node)[axis] - own - sum(size or 0 for size in after)
    return None
