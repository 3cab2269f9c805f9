"""Pure functions of tensors, one per definition, each with its source.

They run where their input lives, leave it unchanged, record no autograd, draw no random number and wait for no device;
only `row_norms`, and `weight_summary`, `filled_bins` and what is made of its bins, which end in numbers, read from it.
Large inputs are worked through in blocks that stay in the processor's cache, so no temporary grows with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.functional.firing import bits_of
from lightning_deadkernel.functional.histograms import block_size

ENOUGH = 1 << 20
"""Entries from which the size of data is known well enough."""
SQUARED = 1e-17, 1e17
"""Norms between these are exact: float32 loses squares of less than 1e-19 and overflows at those of more than 1e19."""


def dormant_scores(mean_abs: Tensor) -> Tensor:
    """ReDo's score of each channel, its mean |h| over the layer's average of it: (C,) to (C,).

    Scores average to 1 (Sokar et al. 2023, arXiv 2302.12902, as in their code). An all-zero layer scores zero
    throughout. Non-finite means are left out of the average and score NaN.
    """
    finite = mean_abs.isfinite()
    average = torch.where(finite, mean_abs, 0).sum() / finite.sum().clamp(min=1)
    scores = torch.where(average > 0, mean_abs / average, 0)
    return torch.where(finite, scores, math.nan)


def gradient_ratios(rms: Tensor, weights: Tensor | None = None) -> Tensor:
    """R = rms / max(rms) over the finite ones of a step, for the rms of each parameter's gradient: (*, P) to the same.

    1 at the largest, zeros stay zero, non-finite ones become NaN. Free of the loss's scale.

    Args:
        rms: of each gradient; the last axis has the parameters.
        weights: (P,) bool, which of them to compare with: the gradient of a bias or a gain is summed over
            positions, and so no yardstick for that of a weight. None: all.
    """
    finite = rms.isfinite()
    if not rms.numel():
        return rms.clone()
    yardsticks = finite if weights is None else finite & weights
    yardsticks = torch.where(yardsticks.any(-1, keepdim=True), yardsticks, finite)
    largest = torch.where(yardsticks, rms, 0).amax(-1, keepdim=True)
    ratios = torch.where(largest > 0, rms / largest, 0)
    return torch.where(finite, ratios, math.nan)


def offset_and_spread(data: Tensor, features: int) -> Tensor:
    """rms over features of their mean, and of their standard deviation over all else: float32 or float64 (2,).

    Args:
        data: of any shape; of more than a million entries only as many, from the beginning of the first other axis.
        features: the axis along which they are.
    """
    others = [axis for axis in range(data.ndim) if axis != features % data.ndim]
    some = data.detach()
    if others and data.numel() > ENOUGH:
        each = data.numel() // data.shape[others[0]]
        some = some.narrow(others[0], 0, min(data.shape[others[0]], ENOUGH // each + 1))
    variance, mean = torch.var_mean(some if some.dtype is torch.float64 else some.float(), others, correction=0)
    return torch.stack([mean.square().mean(), variance.mean()]).sqrt()


# -- kernels --------------------------------------------------------------------------------------------------------


SMALL = 1 << 16
"""Entries of a tensor that is worth a copy beside others: an operator costs more than to read so few."""


def by_rows(function: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """(C,) what a function makes of the rows of each matrix (C, K); small ones of one width at once.

    Args:
        function: (C, K) to (C,), each row apart from the others.
        matrices: of any floating dtypes, on any devices.
    """
    groups: dict[Any, list[int]] = {}
    for place, rows in enumerate(matrices):
        key = (rows.shape[1], rows.dtype, rows.device) if rows.numel() <= SMALL else place
        groups.setdefault(key, []).append(place)
    found: dict[int, Tensor] = {}
    for places in groups.values():
        parts = [matrices[place] for place in places]
        values = function(torch.cat(parts) if len(parts) > 1 else parts[0])
        found.update(zip(places, torch.split(values, [len(part) for part in parts]), strict=True))
    return [found[place] for place in range(len(matrices))]


def row_norms(rows: Tensor) -> Tensor:
    """(C,) L2 norm of each row of (C, K), in at least float32, also where it cannot hold the squares; infinite or NaN
    only where the row is.
    """
    rows = rows.detach()
    dtype = torch.promote_types(rows.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    beyond = ~((norms > SQUARED[0]) & (norms < SQUARED[1]))
    if not beyond.any():
        return norms
    some = rows if beyond.all() else rows[beyond]
    largest = row_max(some)
    scalable = (largest > 0) & largest.isfinite()
    if scalable.any():  # rows of zeros, which are many, need no more
        scale = torch.where(scalable, largest, 1)
        exact = torch.linalg.vector_norm(some / scale[:, None], dim=1, dtype=torch.float64) * scale
        norms[beyond] = torch.where(scalable, exact.clamp(max=torch.finfo(dtype).max).to(dtype), norms[beyond])
    return norms


def row_max(rows: Tensor) -> Tensor:
    """(C,) largest |w| of each row of (C, K), in at least float32; zero iff the whole row is. NaN propagates."""
    rows = rows.detach()
    dtype = torch.promote_types(rows.dtype, torch.float32)
    if not rows.numel():
        return rows.new_zeros(rows.shape[0], dtype=dtype)
    # two reductions in cache and no temporary: 6 ms for ResNet-18; abs().amax() takes 8, vector_norm(inf) 40
    parts = torch.split(rows, max(1, block_size(rows) // rows.shape[1]))
    return torch.cat([torch.maximum(part.amax(1), part.amin(1).neg_()) for part in parts]).abs_().to(dtype)


@lru_cache(maxsize=64)
def _odd_constants(length: int, device: torch.device) -> Tensor:
    """The first `length` outputs of splitmix64 (Steele, Lea and Flood 2014, OOPSLA), made odd: (length,) int64."""

    def signed(constant: int) -> int:
        return constant - (1 << 64)

    def mixed(z: Tensor, shift: int) -> Tensor:
        return z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))

    z = torch.arange(1, length + 1, dtype=torch.int64, device="cpu") * signed(0x9E3779B97F4A7C15)
    z = mixed(z, 30) * signed(0xBF58476D1CE4E5B9)
    z = mixed(z, 27) * signed(0x94D049BB133111EB)
    return (mixed(z, 31) | 1).to(device)


def checksums(rows: Tensor) -> Tensor:
    """(C,) int64 checksum of the bits of each row of (C, K): differs if one bit of the row does.

    ``sum_k bits_k * odd_k mod 2**64``, bits as signed integers (float64: with the high half added to the low). One
    changed entry always changes it, as odd constants are invertible; several do but for a chance of about 2**-32, as do
    entries that change places. -0 differs from +0.
    """
    rows = rows.detach()
    count, length = rows.shape
    total = torch.zeros(count, dtype=torch.int64, device=rows.device)
    odd = _odd_constants(1 << max(length - 1, 0).bit_length(), rows.device)
    limit = block_size(rows)
    step, width = max(1, limit // max(1, length)), min(max(1, length), limit)
    scratch = torch.empty(min(limit, rows.numel()), dtype=torch.int64, device=rows.device)
    for c in range(0, count, step):
        for k in range(0, length, width):
            # cast, multiply and sum in cache: 18 ms for ResNet-18, against 40 (100 on two threads) promoted at once
            bits = bits_of(rows[c : c + step, k : k + width])
            wide = scratch[: bits.numel()].view(bits.shape).copy_(bits)
            if bits.dtype == torch.int64:  # a product keeps nothing above bit 63, where float64 has its sign
                wide += wide >> 32
            total[c : c + step] += wide.mul_(odd[k : k + bits.shape[1]]).sum(1)
    return total
