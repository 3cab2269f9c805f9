"""Following one channel axis through one autograd node: the algebra of shapes behind the graph reader."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.ops import FUNCTIONS, NORMS, PICKS, REDUCTIONS, SAME_SHAPE, SPLITS, VIEWS, peek

Shape = tuple[int, ...]


def output_shape(node: Any, slot: int = 0) -> Shape:
    """Shape of a node's output, which autograd keeps as the shape of the gradient it expects."""
    return tuple(int(size) for size in node._input_metadata[slot].shape)


def through_view(at: ChannelAxis, before: Shape, after: Shape) -> ChannelAxis | None:
    """Where channels are after a reshape, which keeps the row-major order of elements."""
    left = prod(before[: at.axis]) * at.outer
    right = at.inner * prod(before[at.axis + 1 :])
    for axis, size in enumerate(after):
        leading, trailing = prod(after[:axis]), prod(after[axis + 1 :])
        if not leading or not trailing or left % leading or right % trailing:
            continue
        outer, inner = left // leading, right // trailing
        if outer * at.size * inner == size:
            return ChannelAxis(axis, at.size, outer, inner)
    return None


def cut_by_view(at: ChannelAxis, before: Shape, after: Shape) -> tuple[ChannelAxis, ...] | None:
    """The dimensions that channels lie along after a reshape, the slowest first; None where they overlap others'."""
    if 0 in after:
        return None
    low = at.inner * prod(before[at.axis + 1 :])
    high, digits = low * at.size, []
    for axis, size in enumerate(after):
        trailing = prod(after[axis + 1 :])
        begin, end = max(low, trailing), min(high, trailing * size)
        if begin >= end:
            continue
        if begin % trailing or end % begin or trailing * size % end:
            return None
        digits.append(ChannelAxis(axis, end // begin, trailing * size // end, begin // trailing))
    return tuple(digits) if digits and prod(digit.size for digit in digits) == at.size else None


def signed(value: Any) -> int:
    """Autograd saves some integers as unsigned ones of 64 bits."""
    return int(value) - (1 << 64) if value >= 1 << 63 else int(value)


def unwrapped(dims: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions, which autograd saves as they were given, brought to 0..ndim-1."""
    values = tuple(dims) if isinstance(dims, (tuple, list)) else (dims,)
    return tuple(signed(d) % max(ndim, 1) for d in values)


@dataclass(frozen=True)
class Step:
    """From an argument of a node to one of its outputs."""

    node: Any
    name: str
    """Canonical."""
    before: Shape
    """Of the argument."""
    position: int = 0
    """Of the argument among all."""
    shapes: Sequence[Shape | None] = ()
    """Of all arguments; None for those without a gradient."""
    slot: int = 0
    """Which output."""

    @cached_property
    def after(self) -> Shape:
        """Shape of the output; of a norm's the first, as derivatives alone read its statistics."""
        return output_shape(self.node, 0 if self.name in NORMS else self.slot)

    def dims(self, saved: str = "dim", ndim: int | None = None) -> tuple[int, ...]:
        """The dimensions that the node was given, of a value of so many; as many as the argument has if None."""
        return unwrapped(getattr(self.node, f"_saved_{saved}"), len(self.before) if ndim is None else ndim)

    def pads(self, dim: int) -> tuple[int, int]:
        """What a padding op adds before and after the entries of a dimension; below zero where it cuts."""
        pad = self.node._saved_pad if hasattr(self.node, "_saved_pad") else self.node._saved_padding
        place = 2 * (len(self.before) - 1 - dim)
        return (signed(pad[place]), signed(pad[place + 1])) if place < len(pad) else (0, 0)


Digits = tuple[ChannelAxis, ...]


def _to(at: ChannelAxis, axis: int) -> Digits:
    return (ChannelAxis(axis, at.size, at.outer, at.inner),)


def _same_shape(step: Step, at: ChannelAxis) -> Digits | None:
    axis = at.axis + len(step.after) - len(step.before)  # broadcasting aligns dimensions from the right
    if axis >= 0 and step.before[at.axis] == 1:
        return (ChannelAxis(axis, 1, 1, step.after[axis]),)  # a single channel, repeated
    return None if axis < 0 or step.after[axis] != step.before[at.axis] else _to(at, axis)


def _permuted(step: Step, at: ChannelAxis) -> Digits:
    ndim = len(step.before)
    if step.name == "Permute":
        return _to(at, step.dims("dims").index(at.axis))
    a, b = (0, ndim - 1) if step.name == "T" else (*step.dims("dim0"), *step.dims("dim1"))
    return _to(at, {a: b, b: a}.get(at.axis, at.axis))


def _reduced(step: Step, at: ChannelAxis) -> Digits | None:
    """Means and maxima over other dimensions keep the channels; over the channel axis they mix them."""
    if getattr(step.node, "_saved_dim", None) is None or not step.after:
        return None
    gone = step.dims() or tuple(range(len(step.before)))
    if at.axis in gone:
        return None
    return (at,) if len(step.after) == len(step.before) else _to(at, at.axis - sum(d < at.axis for d in gone))


_SPATIAL = re.compile(r"(?:[Pp]ool|Upsample\w*?)([123])D")


def _is_plain_view(node: Any, before: Shape, after: Shape) -> bool:
    """Whether a strided view is a mere reshape of a contiguous tensor."""
    strides = tuple(prod(after[dim + 1 :]) for dim in range(len(after)))
    return (
        prod(before) == prod(after)
        and not node._saved_storage_offset
        and all(size == 1 or a == b for size, a, b in zip(after, node._saved_stride, strides, strict=True))
    )


def is_shared_by_channels(mask: Any, axis: int) -> bool:
    """Whether a mask is the same for all channels (dimension `axis` from the right, below 0): it gates none of them."""
    return mask is not None and (mask.ndim < -axis or mask.shape[axis] == 1 or mask.stride(axis) == 0)


def _mixed_positions(step: Step) -> set[int]:
    """Dimensions along which a pooling, resizing, padding or rolling op mixes or moves entries."""
    ndim, spatial = len(step.before), _SPATIAL.search(step.name)
    if spatial is not None:
        to_size = "Adaptive" in step.name
        # to the size that it has already, it changes nothing
        return {d for d in range(ndim - int(spatial[1]), ndim) if not (to_size and step.before[d] == step.after[d])}
    if "Pad" in step.name:
        return {dim for dim in range(ndim) if any(step.pads(dim))}
    if step.name in ("Flip", "Roll"):
        return set(step.dims("dims")) or set(range(ndim))  # without dims everything is moved
    return set()


def _indexed(step: Step, at: ChannelAxis) -> Digits | None:
    """`x[..., index, index, ...]` over other axes: what the indices make stands in their place if they are neighbours,
    before all that is left if not (NumPy's advanced indexing)."""
    over: list[int] = []
    axis = 0
    for index in step.node._saved_indices or ():
        wide = (
            index.ndim if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        )  # a mask: all its axes
        over += range(axis, axis + wide) if index is not None else ()
        axis += wide
    if not over or at.axis in over:
        return None
    made = len(step.after) - len(step.before) + len(over)
    neighbours = over == list(range(over[0], over[-1] + 1))
    left = sum(axis not in over for axis in range(at.axis))
    return _to(at, left + (made if not neighbours or over[0] < at.axis else 0))


MIX_OR_CUT = frozenset(
    "AsStrided PixelShuffle PixelUnshuffle ChannelShuffle NativeChannelShuffle Glu Im2Col Col2Im".split()
)


def carried(step: Step, at: ChannelAxis) -> Digits | None:
    """Where channels are behind a node: along which dimensions, the slowest first; None: their identity is lost.

    Raises:
        LookupError: the node is in none of the tables of ops that pass channels on.
    """
    node, name, before, after, axis = step.node, step.name, step.before, step.after, at.axis
    if name in SAME_SHAPE or name in FUNCTIONS or name in NORMS or name in ("Flip", "Roll", "CopySlices"):
        return None if axis in _mixed_positions(step) else _same_shape(step, at)
    if name == "MaskedFill" and is_shared_by_channels(peek(node, "mask"), axis - len(before)):
        return _same_shape(step, at)
    if name in VIEWS or (name == "AsStrided" and _is_plain_view(node, before, after)):
        one = through_view(at, before, after)
        return cut_by_view(at, before, after) if one is None else (one,)
    if name in ("Permute", "Transpose", "T"):
        return _permuted(step, at)
    if name in REDUCTIONS:
        return _reduced(step, at)
    if name in PICKS:
        return None if axis in step.dims() else _same_shape(step, at)
    if name == "Index":
        return _indexed(step, at)
    if name in ("Cat", *SPLITS):
        (dim,) = step.dims()
        return None if dim == axis else _to(at, axis - (name in ("Unbind", "Select") and dim < axis))
    if name == "Stack":
        (dim,) = step.dims(ndim=len(before) + 1)
        return _to(at, axis + (dim <= axis))
    if name == "PixelUnshuffle" and axis <= len(before) - 3:
        together = after[-3] // before[-3] if axis == len(before) - 3 else 1
        return (ChannelAxis(axis, at.size, at.outer, at.inner * together),)
    if name == "PixelShuffle" and at == ChannelAxis(len(before) - 3, before[-3]):
        factor = int(node._saved_upscale_factor)
        spread = [ChannelAxis(len(before) - away, factor, before[-away]) for away in (2, 1)]
        return ChannelAxis(axis, after[-3]), *spread
    if name in ("ChannelShuffle", "NativeChannelShuffle") and axis != 1:
        return (at,)
    if name in MIX_OR_CUT:
        return None
    raise LookupError(name)
