"""Following one channel axis through one autograd node: the algebra of shapes behind the graph reader."""

from __future__ import annotations

import re
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


def cut_apart(node: Any, name: str, at: ChannelAxis, before: Shape, after: Shape) -> tuple[ChannelAxis, ...] | None:
    """The dimensions over which an op spreads channels of one, the slowest first; None where it mixes them."""
    if name in VIEWS:
        return cut_by_view(at, before, after)
    if name != "PixelShuffle" or at != ChannelAxis(len(before) - 3, before[-3]):
        return None
    factor = int(node._saved_upscale_factor)
    spread = [ChannelAxis(len(before) - away, factor, before[-away]) for away in (2, 1)]
    return ChannelAxis(at.axis, after[-3]), *spread


def _at(at: ChannelAxis, axis: int) -> ChannelAxis:
    return ChannelAxis(axis, at.size, at.outer, at.inner)


def signed(value: Any) -> int:
    """Autograd saves some integers as unsigned ones of 64 bits."""
    return int(value) - (1 << 64) if value >= 1 << 63 else int(value)


def unwrapped(dims: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions, which autograd saves as they were given, brought to 0..ndim-1."""
    values = tuple(dims) if isinstance(dims, (tuple, list)) else (dims,)
    return tuple(signed(d) % max(ndim, 1) for d in values)


def pads(node: Any, dim: int, ndim: int) -> tuple[int, int]:
    """What a padding op adds before and after the entries of a dimension; below zero where it cuts."""
    pad = node._saved_pad if hasattr(node, "_saved_pad") else node._saved_padding
    place = 2 * (ndim - 1 - dim)
    return (signed(pad[place]), signed(pad[place + 1])) if place < len(pad) else (0, 0)


def _same_shape(at: ChannelAxis, before: Shape, after: Shape) -> ChannelAxis | None:
    axis = at.axis + len(after) - len(before)  # broadcasting aligns dimensions from the right
    if axis >= 0 and before[at.axis] == 1:
        return ChannelAxis(axis, 1, 1, after[axis])  # a single channel, repeated
    if axis < 0 or after[axis] != before[at.axis]:
        return None
    return _at(at, axis)


def _permuted(node: Any, name: str, at: ChannelAxis, ndim: int) -> ChannelAxis | None:
    if name == "Permute":
        return _at(at, unwrapped(node._saved_dims, ndim).index(at.axis))
    if name == "T":
        return _at(at, ndim - 1 - at.axis)
    a, b = unwrapped((node._saved_dim0, node._saved_dim1), ndim)
    return _at(at, {a: b, b: a}.get(at.axis, at.axis))


def _reduced(node: Any, at: ChannelAxis, before: Shape, after: Shape) -> ChannelAxis | None:
    """Means and maxima over other dimensions keep the channels; over the channel axis they mix them."""
    dims = getattr(node, "_saved_dim", None)
    if dims is None or not after:
        return None
    gone = unwrapped(dims, len(before)) or tuple(range(len(before)))
    if at.axis in gone:
        return None
    if len(after) == len(before):
        return at
    return _at(at, at.axis - sum(d < at.axis for d in gone))


_SPATIAL = re.compile(r"(?:[Pp]ool|Upsample\w*?)([123])D")


def _mixed_positions(node: Any, name: str, before: Shape, after: Shape) -> set[int]:
    """Dimensions along which a pooling, resizing, padding or rolling op mixes or moves entries."""
    ndim, spatial = len(before), _SPATIAL.search(name)
    if spatial is not None:
        to_size = "Adaptive" in name
        # to the size that it has already, it changes nothing
        return {dim for dim in range(ndim - int(spatial[1]), ndim) if not (to_size and before[dim] == after[dim])}
    if "Pad" in name:
        return {dim for dim in range(ndim) if any(pads(node, dim, ndim))}
    if name in ("Flip", "Roll"):
        return set(unwrapped(node._saved_dims, ndim)) or set(range(ndim))  # without dims everything is moved
    return set()


def _split(node: Any, name: str, at: ChannelAxis, before: Shape) -> ChannelAxis | None:
    (dim,) = unwrapped(node._saved_dim, len(before))
    one = name in ("Unbind", "Select")
    uneven = not one and len({tuple(output.shape) for output in node._input_metadata}) > 1
    if dim == at.axis or uneven:  # what follows is worked out from one shape for all outputs
        return None
    return _at(at, at.axis - (one and dim < at.axis))


def _indexed(node: Any, at: ChannelAxis, before: Shape, after: Shape) -> ChannelAxis | None:
    """`x[..., index, index, ...]` over other axes: what the indices make stands in their place if they are neighbours,
    before all that is left if not (NumPy's advanced indexing)."""
    over: list[int] = []
    axis = 0
    for index in node._saved_indices or ():
        wide = (
            index.ndim if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        )  # a mask: all its axes
        over += range(axis, axis + wide) if index is not None else ()
        axis += wide
    if not over or at.axis in over:
        return None
    made, neighbours = len(after) - len(before) + len(over), over == list(range(over[0], over[-1] + 1))
    left = sum(axis not in over for axis in range(at.axis))
    return _at(at, left + (made if not neighbours or over[0] < at.axis else 0))


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


def carried(node: Any, name: str, at: ChannelAxis, before: Shape) -> ChannelAxis | None:
    """Where the channels of an input of shape `before` are in the node's outputs; None: their identity is lost.

    Raises:
        LookupError: the node is in none of the tables of ops that pass channels on.
    """
    after = output_shape(node)
    if name in SAME_SHAPE or name in NORMS or name in FUNCTIONS or name in ("Flip", "Roll", "CopySlices"):
        return None if at.axis in _mixed_positions(node, name, before, after) else _same_shape(at, before, after)
    if name == "MaskedFill" and is_shared_by_channels(peek(node, "mask"), at.axis - len(before)):
        return _same_shape(at, before, after)
    if name in VIEWS:
        return through_view(at, before, after)
    if name in ("Permute", "Transpose", "T"):
        return _permuted(node, name, at, len(before))
    if name in REDUCTIONS:
        return _reduced(node, at, before, after)
    if name in PICKS:
        return None if at.axis in unwrapped(node._saved_dim, len(before)) else _same_shape(at, before, after)
    if name == "Index":
        return _indexed(node, at, before, after)
    if name == "AsStrided":
        return through_view(at, before, after) if _is_plain_view(node, before, after) else None
    if name in SPLITS:
        return _split(node, name, at, before)
    if name == "Cat":
        (dim,) = unwrapped(node._saved_dim, len(before))
        return None if dim == at.axis else at
    if name == "Stack":
        (dim,) = unwrapped(node._saved_dim, len(before) + 1)
        return _at(at, at.axis + (dim <= at.axis))
    if name == "PixelUnshuffle" and at.axis <= len(before) - 3:
        own = at.axis == len(before) - 3
        return ChannelAxis(at.axis, at.size, at.outer, at.inner * (after[-3] // before[-3] if own else 1))
    if name in ("ChannelShuffle", "NativeChannelShuffle") and at.axis != 1:
        return at
    if name in ("PixelShuffle", "PixelUnshuffle", "Glu", "ChannelShuffle", "NativeChannelShuffle", "Im2Col", "Col2Im"):
        return None
    raise LookupError(name)
