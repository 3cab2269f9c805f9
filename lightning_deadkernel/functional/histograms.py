"""Histograms cut from the floats' own bits: counted on the device, exact, and safe for NaN and infinities."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FEW, TOGETHER = 1 << 11, 256
"""Entries of a tensor that is counted together with others, and how many of them at once."""


def block_size(x: Tensor) -> int:
    """Entries per block: two buffers of 1 MiB fit a core's cache; at most 2**24, up to which float32 counts exactly."""
    return 1 << 18 if x.device.type == "cpu" else 1 << 24


def flat_view(x: Tensor) -> Tensor:
    """All entries in the order of memory: a view of any dense tensor."""
    x = x.detach()
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).reshape(-1)


def tally(counts: Tensor, part: Tensor, shift: int, scratch: Tensor) -> None:
    """Add to `counts` how often each value of the high ``32 - shift`` bits occurs in a float32 block."""
    high = torch.bitwise_right_shift(part.view(torch.int32), shift, out=scratch[: part.numel()])
    high.bitwise_and_(counts.numel() - 1)
    if part.device.type == "cpu":  # bincount takes two thirds of the time, but checks the range and so waits for a GPU
        counts += torch.bincount(high, minlength=counts.numel())
    else:
        counts.index_add_(0, high, counts.new_ones(()).expand(part.shape))


def tables(x: Tensor, bins: int) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """An empty table of `bins` counts, int32 scratch for one block, and all entries of `x` in blocks."""
    flat = flat_view(x)
    counts = torch.zeros(bins, dtype=torch.int64, device=x.device)
    scratch = torch.empty(min(block_size(x), flat.numel()), dtype=torch.int32, device=x.device)
    return counts, scratch, torch.split(flat, block_size(x))


def bit_histogram(x: Tensor) -> Tensor:
    """Counts of all entries in half-octave bins cut from the float's own bits: (1024,) int64.

    Bin ``(bits >> 22) & 0x3ff``: sign, exponent and one bit of mantissa of float32; exact and NaN-safe. float16 and
    bfloat16 widen exactly; float64 rounds to float32, so beyond 3.4e38 it counts as infinite and below 1.2e-38 with
    the zeros. See `to_edges` for the bins in order of value.
    """
    counts, scratch, blocks = tables(x, 1 << 10)
    for part in blocks:
        tally(counts, part.to(torch.float32), 22, scratch)
    return counts


def bit_histograms(parts: Sequence[Tensor]) -> list[Tensor]:
    """`bit_histogram` of each of several tensors on one device; small ones are counted at once."""
    small = [place for place, part in enumerate(parts) if part.numel() <= FEW]
    found = {place: bit_histogram(part) for place, part in enumerate(parts) if part.numel() > FEW}
    for start in range(0, len(small), TOGETHER):
        places = small[start : start + TOGETHER]
        some = [parts[place].detach().reshape(-1).to(torch.float32) for place in places]
        sizes = torch.tensor([len(part) for part in some], dtype=torch.int32)
        offsets = torch.arange(len(some), dtype=torch.int32) << 10
        bins = torch.cat(some).view(torch.int32).bitwise_right_shift(22).bitwise_and_(0x3FF)
        counts = torch.zeros(len(some) << 10, dtype=torch.int64, device=bins.device)
        if bins.numel():
            bins += offsets.repeat_interleave(sizes).to(bins.device)
            counts += torch.bincount(bins, minlength=len(counts))
        found.update(zip(places, counts.view(-1, 1 << 10).unbind(), strict=True))
    return [found[place] for place in range(len(parts))]


@lru_cache(maxsize=1)
def histogram_edges() -> tuple[float, ...]:
    """The 1018 edges of the 1017 finite bins of `bit_histogram` in order of value.

    The bin in the middle holds zeros and denormals, ``(-2**-126, 2**-126)``. Positive bins own their lower edge,
    negative ones their upper.
    """
    positive = [math.ldexp(half, exponent) for exponent in range(-126, 128) for half in (1.0, 1.5)] + [2.0**128]
    return (*(-edge for edge in reversed(positive)), *positive)


@lru_cache(maxsize=1)
def _edges() -> Any:
    """`histogram_edges` as (1018,) float64."""
    return np.array(histogram_edges())


class Buckets(NamedTuple):
    """A histogram in order of value, as TensorBoard's `add_histogram_raw` takes it."""

    low: float
    """Left edge of the first bucket."""
    limits: list[float]
    """Right edge of each bucket."""
    counts: list[int]
    left_out: int
    """NaN and infinite entries, which are in no bucket."""


_NOT_FINITE = [510, 511, 1022, 1023]
"""The bins of infinity and NaN."""


@lru_cache(maxsize=1)
def _ascending() -> Any:
    """The finite bins in order of value, (1017,) int64: the negative ones, that of +0, the positive ones."""
    return torch.tensor([*reversed(range(514, 1022)), 0, *range(2, 510)]).numpy()


def filled_bins(counts: Tensor) -> tuple[Any, Any, int]:
    """The counts of `bit_histogram` in order of value, empty ends trimmed; reads from the device.

    Returns:
        (n + 1,) float64 edges and (n,) int64 counts, n = 0 where nothing finite was counted; and how many NaN and
        infinite entries there are, which are in no bin.
    """
    # NumPy's small operations take a tenth of the time of PyTorch's, and a window has four histograms per layer
    by_bits = counts.cpu().numpy()
    by_value = by_bits[_ascending()]
    by_value[508] += by_bits[1] + by_bits[512] + by_bits[513]  # denormals and -0, to which +0 belongs
    filled = by_value.nonzero()[0]
    first, end = (filled[0], filled[-1] + 1) if len(filled) else (508, 508)
    return _edges()[first : end + 1], by_value[first:end], int(by_bits[_NOT_FINITE].sum())


def to_edges(counts: Tensor) -> Buckets:
    """The counts of `bit_histogram` as finite buckets in order of value, empty ends trimmed; reads from the device."""
    edges, filled, left_out = filled_bins(counts)
    if not len(filled):
        return Buckets(0.0, [], [], left_out)
    return Buckets(float(edges[0]), edges[1:].tolist(), filled.tolist(), left_out)


def histogram_quantiles(counts: Tensor, q: Sequence[float]) -> list[float]:
    """Quantiles `q` in [0, 1] of what `bit_histogram` counted, interpolated in its bin; reads from the device.

    NaN where nothing finite was counted. For loggers without histograms.
    """
    low, limits, bucket_counts, _ = to_edges(counts)
    reached = list(accumulate(bucket_counts))
    quantiles = []
    for share in q:
        if not reached:
            quantiles.append(math.nan)
            continue
        bucket = bisect_left(reached, max(share * reached[-1], 1))
        left = limits[bucket - 1] if bucket else low
        within = (share * reached[-1] - reached[bucket] + bucket_counts[bucket]) / bucket_counts[bucket]
        quantiles.append(left + (limits[bucket] - left) * max(within, 0.0))
    return quantiles
