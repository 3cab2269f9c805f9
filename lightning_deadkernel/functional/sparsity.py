"""How sparse a layer's weights are, from as few passes over them as is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_deadkernel.functional.histograms import bit_histogram, bit_histograms, flat_view, tables, tally

NEAR_ZERO = 1e-2
"""A weight is near zero below this share of its layer's rms; a Gaussian has 2 Phi(0.01) - 1 = 0.0080 of them."""


@dataclass(frozen=True)
class WeightSummary:
    """A layer's weights in a few numbers, NaN where undefined."""

    zeros: float
    """Share of exact zeros."""
    near_zeros: float
    """Share of \\|w\\| < 1e-2 rms, exact zeros among them; a Gaussian has 0.0080."""
    gini: float
    """Gini index of \\|w\\| (Hurley and Rickard 2009, arXiv 0811.4706): Gaussian sqrt(2) - 1, uniform 1/3."""
    hoyer: float
    """(sqrt(n) - l1 / l2) / (sqrt(n) - 1) (Hoyer 2004, JMLR 5): Gaussian 1 - sqrt(2 / pi), uniform 1 - sqrt(3) / 2."""
    rms: float
    histogram: Tensor
    """(1024,) int64 on the CPU, see `bit_histogram`."""


@lru_cache(maxsize=1)
def _magnitudes() -> Any:
    """Middles of the finite bins of float32's 14 bits after the sign, ascending, the first 0: (16320,) float64."""
    lower = np.arange(0xFF << 6, dtype=np.int32) << 17
    middles = (lower + (1 << 16)).view(np.float32).astype(np.float64)
    middles[0] = 0.0
    return middles


SORTED = 1 << 14
"""Weights of a layer that are sorted, as long as that is faster than to look through the bins."""


def weight_summaries(weights: Sequence[Tensor]) -> list[WeightSummary]:
    """`weight_summary` of several layers; small ones are read from the device at once."""
    small = [w for w in weights if w.numel() <= SORTED and w.dtype != torch.float64]
    if not small or len({w.device for w in small}) > 1:
        return [weight_summary(w) for w in weights]
    flat = [w.detach().reshape(-1).to(torch.float32) for w in small]
    pieces = np.split(torch.cat(flat).cpu().numpy(), np.cumsum([len(w) for w in flat])[:-1])
    read = iter(zip(pieces, [counts.cpu() for counts in bit_histograms(flat)], strict=True))
    return [
        _of_sorted(*next(read)) if w.numel() <= SORTED and w.dtype != torch.float64 else weight_summary(w)
        for w in weights
    ]


def _of_sorted(weights: Any, histogram: Tensor) -> WeightSummary:
    """Of (n,) float32 in NumPy, whose small operations take a fifth of the time of PyTorch's."""
    sizes = np.sort(np.abs(weights))
    finite = sizes[: sizes.searchsorted(np.inf)].astype(np.float64)
    count, l1, squares = len(finite), finite.sum(), finite.dot(finite)
    with np.errstate(all="ignore"):  # of no weights, and of zeros alone, some are not defined
        rms, root = np.sqrt(squares / np.float64(count)), np.sqrt(np.float64(count))
        zeros = finite.searchsorted(0.0, "right")
        near = max(zeros, finite.searchsorted(rms * NEAR_ZERO))
        return WeightSummary(
            zeros=float(np.float64(zeros) / len(sizes)),
            near_zeros=float(np.float64(near) / len(sizes)),
            gini=float(2 * np.arange(0.5, count).dot(finite) / (l1 * count) - 1),
            hoyer=float(np.clip((root - l1 / np.sqrt(squares)) / (root - 1), 0, 1)),
            rms=float(rms),
            histogram=histogram,
        )


def weight_summary(weights: Tensor) -> WeightSummary:
    """All statistics of a layer's weights, which are read from the device once.

    Few weights are sorted. More are passed over twice: squares, then float-bit counts and near zeros. Counts are taken
    by the high 15 bits of float32, so every weight is known to 2**-7 of itself. Zeros are exact but for denormals below
    1.9e-40, which count as zeros. The Gini index of weights at the middles of their bins is within
    2**-6 / (1 - 2**-7) of that of the sorted weights (measured on Gaussian weights: 1e-4), without the second that
    sorting ten million takes; Hoyer's takes its l1 from the bins too. Non-finite weights are left out of rms, Gini and
    Hoyer; with them, or with an rms outside [1e-17, 1e17], whose squares float32 cannot hold, rms and near zeros
    come from the bins.
    """
    if weights.dtype == torch.float64:
        summary = _summary(_scaled(weights))
        return replace(summary, rms=summary.rms / float(_scale(weights)), histogram=bit_histogram(weights).cpu())
    return weight_summaries([weights])[0] if weights.numel() <= SORTED else _summary(weights)


def _scale(weights: Tensor) -> Tensor:
    """The power of two that brings the largest finite size of float64 weights to between 1 and 2."""
    largest = torch.where(weights.isfinite(), weights, 0).abs().max()
    return torch.exp2(-torch.frexp(largest)[1].double() + 1)


def _scaled(weights: Tensor) -> Tensor:
    """float64 weights within float32's range: every share of them is the same."""
    return weights.detach() * _scale(weights)


def _summary(weights: Tensor) -> WeightSummary:
    counts, scratch, blocks = tables(weights, 1 << 15)
    flat = flat_view(weights)
    length = flat.numel() // 4096 * 4096
    dtype = torch.promote_types(flat.dtype, torch.float32)
    # sums of 4096 squares keep float32's rounding near 1e-6
    parts = (flat[:length].view(-1, 4096), flat[length:].view(1, -1))
    norms = torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=dtype) for part in parts]).double()
    rms_of_all = (norms.dot(norms) / flat.numel()).sqrt()
    limit, near = (rms_of_all * NEAR_ZERO).float(), torch.zeros_like(rms_of_all)
    for part in blocks:
        single = part.to(torch.float32)
        tally(counts, single, 17, scratch)
        size = torch.abs(single, out=scratch.view(torch.float32)[: part.numel()])
        near += torch.lt(size, limit, out=size).sum()
    rms, near_zeros = torch.stack([rms_of_all, near]).tolist()
    # NumPy's small operations take a fifth of the time of PyTorch's
    by_bits = counts.cpu().numpy()
    by_size = by_bits[: 1 << 14] + by_bits[1 << 14 :]
    filled = (by_size[: 0xFF << 6] != 0).nonzero()[0]
    finite, middles = by_size[filled].astype(np.float64), _magnitudes()[filled]
    with np.errstate(all="ignore"):  # of no weights, and of zeros alone, some are not defined
        total, binned = finite.sum(), finite * middles
        l1 = binned.sum()
        if not 1e-17 < rms < 1e17:
            rms = float(np.sqrt(binned.dot(middles) / total))
            near_zeros = float(finite[middles < rms * NEAR_ZERO].sum())
        zeros, root = float(by_size[0]), np.sqrt(total)
        return WeightSummary(
            zeros=float(np.divide(zeros, flat.numel())),
            near_zeros=float(np.divide(max(near_zeros, zeros), flat.numel())),  # nothing is below an rms of zero
            gini=float(2 * (finite.cumsum() - finite / 2).dot(binned) / (l1 * total) - 1),
            hoyer=float(np.clip((root - l1 / (rms * root)) / (root - 1), 0, 1)),
            rms=rms,
            histogram=counts.view(1024, 32).sum(1).cpu(),
        )
