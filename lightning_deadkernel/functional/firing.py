"""What fires: reductions of activations to one number per channel, in any layout and without a copy.

Pure functions like those of `statistics.py`, where they are to be found too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadkernel.functional.histograms import block_size

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}

IN_BLOCKS = {"cpu"}
"""Devices on which entries are read block by block, each small enough for a cache."""
PIECE = 1 << 25
"""Entries that are read at once on others."""


def why_unreadable(x: Tensor) -> str | None:
    """Why the numbers of a tensor cannot be read, in words that follow its name; None if they can."""
    if x.dtype not in _BITS:
        return f"is of type {str(x.dtype).removeprefix('torch.')}, which is not read"
    return None if x.layout == torch.strided else "is sparse, which is not read"


def bits_of(x: Tensor) -> Tensor:
    """The bit patterns of `x` as signed integers: a view. Raises TypeError for what is no float of 2, 4 or 8 bytes."""
    if x.dtype not in _BITS:
        raise TypeError(f"Expected a float16, bfloat16, float32 or float64 tensor, but got {x.dtype}.")
    return x.detach().view(_BITS[x.dtype])


@dataclass(frozen=True)
class ChannelAxis:
    """Where channels run in a tensor: along dimension `axis`, whose size there is ``outer * size * inner``.

    Channel ``c`` owns the indices ``(o * size + c) * inner + i``. Instance norm's ``(1, N*C, H, W)`` has ``outer=N``;
    a flattened feature map has ``inner=H*W``.
    """

    axis: int
    size: int
    outer: int = 1
    inner: int = 1


class _Layout(NamedTuple):
    """A tensor seen as (outer, fold * C, inner) without a copy."""

    shape: tuple[int, int, int]
    stride: tuple[int, int, int]
    fold: int
    """Outer rows laid side by side, so that few channels in a row still fill the vector registers."""
    repeats: int
    """How often each entry was repeated by expanded dimensions, which are looked at once."""


def _joined(dims: list[tuple[int, int]]) -> tuple[int, int] | None:
    """(size, stride) of dimensions, slowest first, as a single one; None where strides forbid it."""
    if any(a[1] != b[0] * b[1] for a, b in pairwise(dims)):
        return None
    return math.prod(size for size, _ in dims), dims[-1][1] if dims else 1


@lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], stride: tuple[int, ...], at: ChannelAxis, itemsize: int) -> _Layout | None:
    """How to see such a tensor as (outer, fold * C, inner); None where only a copy could be seen so."""
    axis = at.axis % len(shape)
    if shape[axis] != at.outer * at.size * at.inner:
        raise ValueError(f"Expected {at.outer} * {at.size} * {at.inner} entries along dimension {axis} of {shape}.")
    own = stride[axis] * at.inner
    dims = [(n, s) for d, (n, s) in enumerate(zip(shape, stride, strict=True)) if d != axis]
    dims += [(at.outer, own * at.size), (at.inner, stride[axis])]
    repeats = math.prod(n for n, s in dims if s == 0)
    dims = sorted(((n, s) for n, s in dims if n > 1 and s != 0), key=lambda dim: -dim[1])
    outer = _joined([] if at.size == 1 else [dim for dim in dims if dim[1] >= own])
    inner = _joined([dim for dim in dims if at.size == 1 or dim[1] < own])
    if outer is None or inner is None:
        return None
    fold = 1
    if inner[0] == 1 and outer[1] == at.size * own:
        while fold * at.size * itemsize < 256 and outer[0] % (2 * fold) == 0:
            fold *= 2
    return _Layout((outer[0] // fold, fold * at.size, inner[0]), (outer[1] * fold, own, inner[1]), fold, repeats)


def _by_channel(x: Tensor, at: ChannelAxis) -> tuple[Tensor, int, int]:
    """`x` as (outer, fold * C, inner), the fold, and the repeats; a view wherever strides allow one."""
    layout = _layout(tuple(x.shape), x.stride(), at, x.element_size())
    if not x.numel():
        return x.new_empty(0, at.size, 1), 1, 1
    if layout is not None:
        return x.as_strided(layout.shape, layout.stride), layout.fold, layout.repeats
    return x.movedim(at.axis, -1).reshape(-1, at.size, at.inner), 1, 1


def channel_max(x: Tensor, at: ChannelAxis) -> Tensor:
    """Largest value of each channel in the order of bit patterns: all that "has it fired?" needs to read.

    Positive floats order as their bits do and every negative one has a negative pattern as a signed integer, so an
    integer maximum, which vectorises, answers what a float comparison would.

    Args:
        x: any layout, also expanded; float16, bfloat16, float32 or float64.
        at: where its channels run.

    Returns:
        (C,) of the dtype of `x`. Above 0 iff an entry is, denormals and +inf among them. A positive NaN in the batch
        comes through, so that it is no evidence for that channel; a negative one (x86 makes those of inf - inf) only
        where the channel holds nothing from +0 upwards, and hides nothing. Where nothing fired, and of a batch without
        samples, it is not above 0, and means nothing else.

    Raises:
        TypeError: for another dtype.
        ValueError: if `x` has no such channels.
    """
    return largest_of(tuple(x.shape), x.stride(), x.dtype, x.is_cpu, at)(x)


@lru_cache(maxsize=4096)
def largest_of(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, on_cpu: bool, at: ChannelAxis
) -> Callable[[Tensor], Tensor]:
    """`channel_max` of tensors of one layout."""
    if dtype not in _BITS:
        bits_of(torch.empty(0, dtype=dtype))
    layout, kind = _layout(shape, stride, at, dtype.itemsize), _BITS[dtype]
    if not math.prod(shape):
        return lambda x: x.new_full((at.size,), -0.0)
    outer, _, inner = (math.prod(shape) // at.size // at.inner, 0, at.inner) if layout is None else layout.shape
    # Measured on 2 cores with AVX-512, torch 2.13, int32 (int16), microseconds, one amax over both dimensions against
    # samples first: (64,128,7,7) 105:30 (330:20), (64,64,8,8) 26:25 (64:19), (64,512,2,2) 140:20 (185:16),
    # (64,32,14,14) 37:27 (43:23), (64,64,16,16) 196:167 (98:62), (64,64,32,32) 620:633 (348:467), (2,64,112,112)
    # 280:688 (141:303). Few channels last, 16 of them: 1615 (825), folded 119 (43). The same order on two threads.
    samples_first = on_cpu and outer >= 4 and inner > 1 and inner * dtype.itemsize < 1024

    def largest(x: Tensor) -> Tensor:
        bits = x.detach().view(kind)
        if layout is None:
            bits = bits.movedim(at.axis, -1).reshape(-1, at.size, at.inner)
        else:
            bits = bits.as_strided(layout.shape, layout.stride)
        found = bits.amax(0).amax(1) if samples_first else bits.amax((0, 2))
        return (found if layout is None or layout.fold == 1 else found.view(layout.fold, -1).amax(0)).view(dtype)

    return largest


def _channel_blocks(x: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(outer, C, inner) in blocks, in at least float32, with the channels of each and scratch like it."""
    outer, channels, inner = x.shape
    limit = block_size(x)
    rows, columns = max(1, limit // max(1, channels * inner)), max(1, limit // max(1, inner))
    dtype = torch.promote_types(x.dtype, torch.float32)
    # one allocation for all blocks: touching fresh memory costs as much as the arithmetic
    scratch = torch.empty(min(limit, x.numel()), dtype=dtype, device=x.device)
    if 0 < x.numel() <= limit:
        yield slice(None), x.to(dtype), scratch.view(x.shape)
        return
    wide = torch.empty_like(scratch) if x.dtype != dtype else scratch
    for c in range(0, channels, columns):
        part = x[:, c : c + columns]
        for o in range(0, outer, rows):
            for i in range(0, inner, limit):
                block = part[o : o + rows, :, i : i + limit]
                size = block.numel()
                if block.dtype != dtype:
                    block = wide[:size].view(block.shape).copy_(block)
                yield slice(c, c + columns), block, scratch[:size].view(block.shape)


def _channel_sums(x: Tensor) -> Tensor:
    outer, _, inner = x.shape
    return x.sum(0).sum(1) if outer >= 4 and 1 < inner < 32 else x.sum((0, 2))


Measure = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""(block, scratch of its shape) -> tensors of that shape to be added up, each before the next is made."""


def _summed(x: Tensor, count: int, measure: Measure) -> Tensor:
    """(count, C) float64 sums over all blocks of (outer, C, inner) of what `measure` makes of one."""
    sums: Tensor | None = None
    for channels, values, scratch in _channel_blocks(x):
        part = torch.stack([_channel_sums(made) for made in measure(values, scratch)]).double()
        if sums is None and values.numel() == x.numel():  # most activations are one block
            return part
        sums = x.new_zeros(count, x.shape[1], dtype=torch.float64) if sums is None else sums
        sums[:, channels] += part
    return x.new_zeros(count, x.shape[1], dtype=torch.float64) if sums is None else sums


def firing(h: Tensor, at: ChannelAxis, nonnegative: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """How often and how strongly each channel fires.

    Args:
        h: an activation, any layout.
        at: where its channels run; each has ``h.numel() // C`` entries.
        nonnegative: no entry is below zero, which saves half of the passes.

    Returns:
        (C,) counts of entries > 0; (C,) sums of |h|, not finite where an entry is not; (C,) counts of exact zeros (+0
        and -0). All float64. Where the sum is not finite, the counts may be others.
    """
    h, fold, repeats = _by_channel(h.detach(), at)
    if h.device.type not in IN_BLOCKS:
        positive, total, zeros = _firing_in_few_launches(h, nonnegative)
    else:
        positive, total, zeros = _firing_in_blocks(h, nonnegative)
    if fold > 1 or repeats > 1:
        positive, total, zeros = torch.stack([positive, total, zeros]).view(3, fold, at.size).sum(1) * repeats
    return positive, total, zeros


def samples_on(x: Tensor, along: int, axis: int) -> Tensor:
    """(C,) float64 counts of the samples on which a channel is > 0 somewhere.

    Args:
        x: any layout; float16, bfloat16, float32 or float64.
        along: dimension of the samples.
        axis: dimension of the channels.
    """
    bits = bits_of(x)
    others = [dim for dim in range(x.ndim) if dim not in (along, axis % x.ndim)]
    if not bits.numel():
        return x.new_zeros(x.shape[axis], dtype=torch.float64)
    largest = bits.amax(others) if others else bits
    return (largest > 0).sum(0 if along < axis % x.ndim else 1, dtype=torch.float64)


def _firing_in_blocks(h: Tensor, nonnegative: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`firing` of (outer, C, inner) from signs."""
    sums = _summed(h, 2 if nonnegative else 3, _signs if nonnegative else _signs_and_sizes)
    entries = h.shape[0] * h.shape[2]
    if nonnegative:
        total, positive = sums
        return positive, total, entries - positive
    total, balance, filled = sums
    return (balance + filled) / 2, total, entries - filled


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """(outer, C, inner) in pieces, so that what is made of one on the way takes little of a GPU's memory."""
    if x.numel() <= PIECE:
        return (x,)
    along = 0 if x.shape[0] >= x.shape[2] else 2
    return x.split(max(1, PIECE * x.shape[along] // x.numel()), along)  # type: ignore[no-untyped-call,no-any-return]


def _firing_in_few_launches(h: Tensor, nonnegative: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`firing` of (outer, C, inner) on a device with memory so fast that launches and temporaries are what costs."""
    entries, dtype = h.shape[0] * h.shape[2], torch.promote_types(h.dtype, torch.float32)
    pieces = _pieces(h)
    positive: Any = sum((part > 0).sum((0, 2)) for part in pieces)
    total: Any = sum((part if nonnegative else part.abs()).sum((0, 2), dtype=dtype).double() for part in pieces)
    zeros: Any = entries - positive if nonnegative else sum((part == 0).sum((0, 2)) for part in pieces)
    return positive.double(), total, zeros.double()


def _signs(values: Tensor, scratch: Tensor) -> Iterator[Tensor]:
    yield values
    yield torch.sign(values, out=scratch)


def _signs_and_sizes(values: Tensor, scratch: Tensor) -> Iterator[Tensor]:
    yield torch.abs(values, out=scratch)
    yield torch.sign(values, out=scratch)
    yield scratch.abs_()


def count_outside(x: Tensor, at: ChannelAxis, low: float, high: float, inclusive: bool = False) -> Tensor:
    """(C,) float64 count of the entries of each channel < low or > high; `inclusive`: <= or >=. NaN is neither.

    Of an activation's input it counts saturated entries (+-5 for sigmoid and tanh, whose slope is then below 0.7 % of
    its largest); of a bounded activation's output, inclusive, those at a bound.
    """
    below, above = (torch.le, torch.ge) if inclusive else (torch.lt, torch.gt)

    def outside(values: Tensor, scratch: Tensor) -> Iterator[Tensor]:
        # as floats, whose sums vectorise where those of bool do not
        yield below(values, low, out=scratch)
        yield above(values, high, out=scratch)

    x, fold, repeats = _by_channel(x.detach(), at)
    if x.device.type in IN_BLOCKS:
        found = _summed(x, 2, outside).sum(0)
    else:
        late: Any = sum((below(part, low) | above(part, high)).sum((0, 2)) for part in _pieces(x))
        found = late.double()
    return found.view(fold, at.size).sum(0) * repeats
