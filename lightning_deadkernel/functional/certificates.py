r"""How far a unit's value can rise over every input that there is, from weights alone.

A *certificate* is the proof that a rectifier never opens: the largest value before it is not above zero. The largest
value is exact where a closed form has it, and what rounding can add comes on top, so that a certificate is never wrong.

**After a norm.** A LayerNorm hands on ``y = gain * x + shift`` with ``sum(x) = 0`` and ``sum(x ** 2) <= d``, and some
input comes arbitrarily near any such x. So ``max w.y + b = sqrt(d) |P(w * gain)| + w.shift + b`` by Cauchy-Schwarz,
where P takes the mean away; without P for RMSNorm, whose x has no mean of zero. One entry of n normalised values is at
most ``sqrt(n - 1)`` (Samuelson 1968, How deviant can you be?, JASA 63), ``sqrt(n)`` for RMSNorm.

**Within limits.** Where each input lies in an interval of its own, the sum is largest with each at one of its ends.

**Rounding.** In whatever order n products are added, with fused multiply-adds or without, the computed sum is that of
the exact products, each with a relative error of at most ``n u / (1 - n u)``, u being the unit roundoff of the sums
(Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd ed., (3.3)). That share of the largest value of each
product is added: sums of nothing that is above zero never round to what is. Types of two bytes are added up in float32
(as PyTorch does unless it is told otherwise), so that their own u enters as often as a value is rounded to them:
weight, input, bias, the norm's gain and shift, product and partial sums. Below the normal numbers errors are absolute.
Convolutions of several taps may be computed by Winograd's or Fourier's transform, whose errors are larger, and relative
to the sum of all sizes: they get a multiple of the margin (Lavin and Gray 2016, Fast Algorithms for Convolutional
Neural Networks, table 5, measure sevenfold).

What a norm computes is normalised only as far as its mean and variance are right: those of n numbers have an error of
about u times the depth of their sums times ``1 + |mean| / deviation`` (Chan, Golub and LeVeque 1983, Algorithms for
Computing the Sample Variance). Certificates speak of inputs whose mean is up to `OFFSET` deviations from zero; of
others float32 keeps few of the digits that are to be normalised, and what the norm hands on is noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDINGS = 8
"""Roundings of a value on its way to and through a sum of products, other than the sum's own."""
PARTIAL_SUMS = 32
"""Further ones where a device adds partial sums up in the type of the result (split-K)."""
TRANSFORMED = 64
"""Times the margin of a direct sum that convolutions by a transform stay within."""
OFFSET = 1000.0
"""Deviations that the mean of what is normalised may lie from zero."""
DEPTH = 64
"""Additions one after another in the sums of a norm, which are made in blocks."""


class Interval(NamedTuple):
    """Where values lie: two float64 tensors of one shape, infinite where there is no end."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Precision:
    """How exactly an op computes."""

    operands: float
    """Unit roundoff of the values: 2**-24 for float32."""
    sums: float
    """The same of the type in which they are added up."""
    smallest: float
    """Normal number of the operands' type."""
    underflow: float
    """Error of a product that is too small for the type of the sums."""
    roundings: int = ROUNDINGS

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device) -> Precision:
        """Of an op that puts out this type, with the settings of now: TensorFloat-32 and bfloat16 for float32."""
        operands = torch.finfo(dtype).eps / 2
        sums, roundings = min(operands, 2.0**-24), ROUNDINGS
        if device.type != "cpu" and operands > 2.0**-24:
            roundings += PARTIAL_SUMS
        if dtype is torch.float32:
            try:
                setting = torch.get_float32_matmul_precision()
            except RuntimeError:  # set by two interfaces that contradict each other
                setting = "medium"
            operands = {"medium": 2.0**-8, "high": 2.0**-11}.get(setting, operands)
            operands = max(operands, 2.0**-11) if device.type != "cpu" else operands  # cuDNN's default
        tiny = torch.finfo(dtype).tiny
        return cls(operands, sums, tiny, min(tiny, torch.finfo(torch.float32).tiny), roundings)

    def of_sum(self, terms: int) -> float:
        """Error of a sum of so many products and a bias, as a share of ``sum |w||x| + |b|``; infinite: not known."""
        share = (terms + 1) * self.sums
        return self.roundings * self.operands + (share / (1 - share) if share < 1 else math.inf)

    def of_norm(self, centred: bool) -> float:
        """Error of normalised values, as a share of their norm; of their mean, which is to be zero, just as much."""
        return self.roundings * self.operands + DEPTH * (OFFSET if centred else 1.0) * self.sums

    def rounded_up(self, weight: Tensor) -> Tensor:
        r"""(…) float64, not below \|w\|: u times which is the error of rounding w, also below the normal numbers."""
        size = weight.double().abs()
        return torch.where(size > 0, size.clamp(min=self.smallest), size)


def norm_limit(values: float, centred: bool) -> float:
    """Largest size of one of so many values that are normalised together."""
    return math.sqrt(values - 1 if centred else values)


def after_norm(
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    *,
    centred: bool = True,
    error: float = 0.0,
    dropped: float | None = None,
    missing: bool = False,
) -> Tensor:
    """Largest value of linear units over all inputs of the norm before them: (R,) float64.

    Exact, and some input comes arbitrarily near it; with one of the last three arguments it is an upper bound.

    Args:
        weight: (R, d), or (R, B, d) for B vectors that are normalised one by one, as in the patch of a convolution.
        bias: (R,).
        gain: (d,) of the norm; None: 1.
        shift: (d,) of the norm; None: 0.
        centred: LayerNorm; False: RMSNorm.
        error: of what the norm computes, see `Precision.of_norm`.
        dropped: a dropout between keeps any of the inputs, scaled by up to this; None: there is none.
        missing: any of the B vectors may be zero instead, as in the padding of a convolution.
    """
    w = _patches(weight)
    scaled = w if gain is None else w * gain.double()
    free = scaled.norm(dim=2)
    whole = centred and dropped is None  # what is dropped may be what brings the mean to zero
    size = (scaled - scaled.mean(2, keepdim=True)).norm(dim=2) if whole else free
    reach = math.sqrt(w.shape[2]) * (size + (1 + centred) * error * free)
    shifted = torch.zeros_like(w) if shift is None else w * shift.double()
    if dropped is not None:
        shifted = shifted.clamp(min=0)
    each = (1.0 if dropped is None else dropped) * (reach + shifted.sum(2))
    total = (each.clamp(min=0) if missing else each).sum(1)
    return _plus(total, bias)


def size_after_norm(weight: Tensor, bias: Tensor | None, gain: Tensor | None, shift: Tensor | None) -> Tensor:
    """(R,) largest ``sum |w||x| + |b|`` over the same inputs: see `Precision.of_sum`."""
    w = _patches(weight)
    total = math.sqrt(w.shape[2]) * (w if gain is None else w * gain.double()).norm(dim=2).sum(1)
    if shift is not None:
        total = total + (w * shift.double()).abs().sum((1, 2))
    return _plus(total, None if bias is None else bias.abs())


def linear(
    weight: Tensor,
    bias: Tensor | None,
    inputs: Interval,
    *,
    precision: Precision | None = None,
    missing: bool = False,
) -> Interval:
    """Where the values of linear units lie whose inputs lie in intervals of their own: (R,), exact without the rest.

    Args:
        weight: (R, K), or (R, B, K) for patches of B times K inputs.
        bias: (R,).
        inputs: of a shape that broadcasts to the weight's.
        precision: with which they are computed; None: exactly.
        missing: all K inputs of any of the B may be zero instead.
    """
    w, added = _patches(weight), None if bias is None else Interval(bias.double(), bias.double())
    each = products(w, inputs)
    if precision is not None:
        error = precision.of_sum(w[0].numel() if len(w) else 0)
        sizes = products(w.sign() * precision.rounded_up(w), inputs)
        each = _widened(each, sizes, error, precision.underflow)
        added = None if added is None else _widened(added, added, error, 0.0)
    low, high = (end.sum(2) for end in each)
    if missing:
        low, high = low.clamp(max=0), high.clamp(min=0)
    low, high = low.sum(1), high.sum(1)
    return Interval(low, high) if added is None else Interval(low + added.low, high + added.high)


def _widened(ends: Interval, sizes: Interval, error: float, underflow: float) -> Interval:
    """With a relative error, which lets none pass zero."""
    low = torch.where(ends.low < 0, ends.low - error * sizes.low.abs() - underflow, ends.low * (1 - min(error, 1.0)))
    high = torch.where(
        ends.high > 0, ends.high + error * sizes.high.abs() + underflow, ends.high * (1 - min(error, 1.0))
    )
    return Interval(low, high)


def products(weight: Tensor, inputs: Interval) -> Interval:
    """Where each product of a weight and an input lies; zero times an infinite end is zero."""
    w = weight.double()
    ends = [torch.where((w == 0) | (end == 0), 0.0, w * end) for end in inputs]
    return Interval(torch.minimum(*ends), torch.maximum(*ends))


def size(weight: Tensor, bias: Tensor | None, inputs: Interval) -> Tensor:
    """(R,) largest ``sum |w||x| + |b|`` over the same inputs: see `Precision.of_sum`."""
    each = products(weight, inputs)
    total = torch.maximum(each.low.abs(), each.high.abs()).flatten(1).sum(1)
    return _plus(total, None if bias is None else bias.abs())


def over_rows(weight: Tensor, bias: Tensor | None, table: Tensor) -> Tensor:
    """(R,) largest value of linear units whose only inputs are the rows of a table, (V, K): by enumeration.

    One-hot inputs are the rows of an identity.
    """
    largest = weight.new_full((len(weight),), -math.inf, dtype=torch.float64)
    for rows in torch.split(table, 4096):
        largest = torch.maximum(largest, (weight.double() @ rows.double().T).amax(1))
    return _plus(largest, bias)


def _patches(weight: Tensor) -> Tensor:
    return weight.double() if weight.ndim == 3 else weight.double().unsqueeze(1)


def _plus(total: Tensor, bias: Tensor | None) -> Tensor:
    return total if bias is None else total + bias.double()
