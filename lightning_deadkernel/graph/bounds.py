"""Where values lie for every input: small expressions of parameters, worked out with the weights of then.

`bounding` reads them from a graph. A channel's place in a bound is its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_deadkernel.functional import certificates
from lightning_deadkernel.functional.certificates import Interval, Precision
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.parts import Part

Change = Callable[[Interval, Tensor], Interval]
"""Where the values of a function lie, from where its arguments lie, and the rows that these are."""


class Bound:
    """Where each of some channels lies."""

    batch: int | None = None
    """Values of a channel up to which it holds if so many are normalised together; None: for any number."""

    def interval(self, rows: Tensor, unlimited: bool = False) -> Interval:
        """Of some rows, (R,) int64: (R,) each, on the CPU; `unlimited` for any number of values, not for `batch`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Normalised(Bound):
    """What a norm hands on."""

    values: float
    """Normalised together."""
    centred: bool
    gain: Tensor | None
    shift: Tensor | None
    precision: Precision
    is_vector: bool
    """They are the channels of one vector."""
    batch: int | None = None
    dropped: float | None = None
    """A dropout follows, which scales by this."""

    def interval(self, rows: Tensor, unlimited: bool = False) -> Interval:
        """See `Bound`."""
        values = math.inf if unlimited and self.batch else self.values
        limit = certificates.norm_limit(values, self.centred) * (1 + 2 * self.precision.of_norm(self.centred))
        gain = torch.ones(len(rows)).double() if self.gain is None else vector(self.gain, rows).abs()
        reach = torch.where(gain == 0, 0.0, gain * limit)  # of any number of values, too
        shift = torch.zeros(len(rows)).double() if self.shift is None else vector(self.shift, rows)
        reach = reach + self.precision.roundings * self.precision.operands * (reach + shift.abs() * (reach > 0))
        found = Interval(shift - reach, shift + reach)
        return found if self.dropped is None else multiplied(0.0, self.dropped)(found, rows)


@dataclass(frozen=True, eq=False)
class TableRows(Bound):
    """Rows of a table, or what a lookup with a largest norm makes of them, which lies between them and zero: no graph
    shows that norm. No other inputs are there."""

    table: Tensor

    def interval(self, rows: Tensor, unlimited: bool = False) -> Interval:
        """See `Bound`."""
        columns = self.table.detach()[:, rows.to(self.table.device)]
        return Interval(here(columns.amin(0)).clamp(max=0), here(columns.amax(0)).clamp(min=0))


@dataclass(frozen=True, eq=False)
class Anywhere(Bound):
    """What lies between two numbers, in whichever channel."""

    low: float
    high: float

    def interval(self, rows: Tensor, unlimited: bool = False) -> Interval:
        """See `Bound`."""
        return Interval(*(torch.full((len(rows),), end, dtype=torch.float64) for end in (self.low, self.high)))


@dataclass(frozen=True, eq=False)
class Changed(Bound):
    """A function of each value."""

    of: Bound
    change: Change

    @property
    def batch(self) -> int | None:  # type: ignore[override]
        """See `Bound`."""
        return self.of.batch

    def interval(self, rows: Tensor, unlimited: bool = False) -> Interval:
        """See `Bound`."""
        return self.change(self.of.interval(rows, unlimited), rows)


@dataclass(frozen=True)
class Held:
    """What is known of a value."""

    pieces: tuple[tuple[Bound, Part], ...] = ()
    """Bounds of channels, and where these are in it."""
    rest: tuple[float, float] = (-math.inf, math.inf)
    """Where all entries lie."""

    def changed(self, change: Change) -> Held:
        """A function of each entry, the same for all channels."""
        low, high = change(Anywhere(*self.rest).interval(ONE_ROW), ONE_ROW)
        return Held(tuple((Changed(bound, change), part) for bound, part in self.pieces), (float(low), float(high)))

    def along(self, axis: int, size: int, unlimited: bool) -> Interval:
        """Where the entries at each place of an axis of this size lie."""
        ends = Interval(*(torch.full((size,), end, dtype=torch.float64) for end in self.rest))
        for bound, part in self.pieces:
            at = part.at
            if part.is_cut or at.axis != axis or at.outer * at.size * at.inner != size:
                continue
            found, places = bound.interval(torch.tensor(part.channels), unlimited), torch.tensor(part.places)
            for end, new, stricter in zip(ends, found, (torch.maximum, torch.minimum), strict=True):
                view = end.view(at.outer, at.size, at.inner)
                view[:, places] = stricter(view[:, places], new[None, :, None])
        return ends


AT_ONCE = 512
"""Rows that are worked out together, in float64."""
ONE_ROW = torch.zeros(1, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Affine(Bound):
    """What a convolution or a linear op makes of its input."""

    layer: Layer
    """As the op shows it."""
    bias: Tensor | None
    inputs: Held
    axis: int
    """Of the input, along which its channels are."""
    size: int
    """Number of these."""
    dtype: torch.dtype
    missing: bool
    """Some of a patch may be padding."""

    @property
    def batch(self) -> int | None:  # type: ignore[override]
        """See `Bound`."""
        return smallest(bound.batch for bound, _ in self.inputs.pieces)

    def interval(self, rows: Tensor, unlimited: bool = False) -> Interval:
        """See `Bound`."""
        layer, leaf = self.layer, self.layer.main.detach()
        each = self.size // layer.groups
        weight = here(layer.rows(leaf)[rows.to(leaf.device)]).view(len(rows), each, -1).transpose(1, 2)
        bias = None if self.bias is None else vector(self.bias, rows)
        inputs = self.inputs.along(self.axis, self.size, unlimited)
        if layer.groups > 1:
            own = (rows // (layer.channels // layer.groups) * each)[:, None, None] + torch.arange(each)
            inputs = Interval(inputs.low[own], inputs.high[own])
        precision, taps = Precision.of(self.dtype, leaf.device), weight.shape[1]
        low, high = certificates.linear(weight, bias, inputs, precision=precision, missing=self.missing)
        error, lost = precision.of_sum(each * taps), precision.underflow * (weight != 0).sum((1, 2))
        if taps > 1:
            error = certificates.TRANSFORMED * error
            margin = error * certificates.size(weight, bias, inputs)
            low, high = low - margin, high + margin
        for norm, outer, inner in self._norm():
            vectors = weight.reshape(len(rows), taps, outer, -1, inner).movedim(3, -1).flatten(1, 3)
            gain, shift = (None if one is None else here(one).flatten() for one in (norm.gain, norm.shift))
            sizes = certificates.size_after_norm(precision.rounded_up(vectors), bias, gain, shift)
            share = error + norm.precision.roundings * norm.precision.operands
            around = share * (norm.dropped or 1.0) * sizes + lost
            ends = [
                sign
                * certificates.after_norm(
                    sign * vectors,
                    None if bias is None else sign * bias,
                    gain,
                    shift,
                    centred=norm.centred,
                    error=norm.precision.of_norm(norm.centred),
                    dropped=norm.dropped,
                    missing=self.missing,
                )
                for sign in (-1, 1)
            ]
            low, high = torch.maximum(low, ends[0] - around), torch.minimum(high, ends[1] + around)
        for table in self._tables(taps):
            around = error * certificates.size(precision.rounded_up(weight), bias, inputs) + lost
            rows_and_zero = torch.cat([table.detach().cpu(), torch.zeros(1, table.shape[1])])
            high = torch.minimum(high, certificates.over_rows(weight[:, 0], bias, rows_and_zero) + around)
        return Interval(low, high)

    def _norm(self) -> list[tuple[Normalised, int, int]]:
        """The norm that makes all inputs, if one does, and how its vectors lie among them: outer and inner repeats."""
        if len(self.inputs.pieces) != 1 or self.layer.groups != 1:
            return []
        bound, part = self.inputs.pieces[0]
        at, everything = part.at, range(part.at.size)
        if not isinstance(bound, Normalised) or not bound.is_vector or part.is_cut or at.size != bound.values:
            return []
        whole = part.channels == part.places == everything and at.outer * at.size * at.inner == self.size
        return [(bound, at.outer, at.inner)] if whole and at.axis == self.axis else []

    def _tables(self, taps: int) -> list[Tensor]:
        """The table whose rows are all inputs, if one is."""
        if len(self.inputs.pieces) != 1 or taps != 1:
            return []
        bound, part = self.inputs.pieces[0]
        fits = part.channels == part.places == range(self.size) and part.at.axis == self.axis
        return [bound.table] if isinstance(bound, TableRows) and fits else []


@dataclass(frozen=True, eq=False)
class Gate:
    """A rectifier that channels of a layer reach, and what is known of its input."""

    bound: Bound
    rows: dict[int, int]
    """Channel of the layer -> its row of the bound."""

    def highest(self, channel: int) -> float:
        """The largest value that a channel reaches there."""
        return float(self.bound.interval(torch.tensor([self.rows[channel]])).high)

    def opens_for(self, channels: Collection[int], unlimited: bool = False) -> set[int]:
        """Those of its channels for which it cannot be ruled out that some input opens it."""
        channels = sorted(self.rows.keys() & set(channels))
        if not channels:
            return set()
        rows = torch.tensor([self.rows[channel] for channel in channels])
        high = torch.cat([self.bound.interval(some, unlimited).high for some in torch.split(rows, AT_ONCE)])
        return {channel for channel, value in zip(channels, high.tolist(), strict=True) if not value <= 0}


def here(values: Tensor) -> Tensor:
    """In float64 on the CPU."""
    return values.detach().to("cpu", torch.float64)


def vector(parameter: Tensor, rows: Tensor) -> Tensor:
    """Entries of a parameter of one axis, whatever others of size 1 it has beside it."""
    return here(parameter).flatten()[rows]


def smallest(numbers: Iterable[int | None]) -> int | None:
    """Of those that are known."""
    return min((number for number in numbers if number is not None), default=None)


# -- changes -----------------------------------------------------------------------------------------------------------


def multiplied(low: float, high: float) -> Change:
    """By something between two numbers that are not negative, one of them finite and above zero."""

    def change(of: Interval, rows: Tensor) -> Interval:
        least, most = (certificates.products(torch.tensor(by, dtype=torch.float64), of) for by in (low, high))
        return Interval(torch.minimum(least.low, most.low), torch.maximum(least.high, most.high))

    return change


def clipped(low: float, high: float) -> Change:
    """To an interval."""
    return lambda of, rows: Interval(of.low.clamp(low, high), of.high.clamp(low, high))


def at_least(low: float) -> Change:
    """What is between `low` and the larger of 0 and its argument, as GELU and SiLU are."""
    return lambda of, rows: Interval(torch.full_like(of.low, low), of.high.clamp(min=0))


def rounded(precision: Precision) -> Change:
    """To a coarser type."""
    share, least = precision.roundings * precision.operands, precision.smallest * precision.operands * 2

    def change(of: Interval, rows: Tensor) -> Interval:
        low, high = of.low - share * of.low.abs(), of.high + share * of.high.abs()
        return Interval(torch.where(low < 0, low - least, low), torch.where(high > 0, high + least, high))

    return change


def averaged(share: float) -> Change:
    """Means of some of its values and of zeros, with a relative error."""
    return lambda of, rows: Interval(of.low.clamp(max=0) * (1 + share), of.high.clamp(min=0) * (1 + share))


def affine(numbers: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], share: float) -> Change:
    """Each channel by a scale of its own, and an offset added.

    Args:
        numbers: rows -> (R,) scales, offsets, and sizes of what the offsets are computed from.
        share: error of each, relative to its size; a scale of zero makes none.
    """

    def change(of: Interval, rows: Tensor) -> Interval:
        scale, offset, size = numbers(rows)
        low, high = certificates.products(scale, of)
        error = torch.where(scale == 0, 0.0, share)
        return Interval(
            low + offset - _times(error, low.abs() + size), high + offset + _times(error, high.abs() + size)
        )

    return change


def _times(error: Tensor, size: Tensor) -> Tensor:
    """Zero where the error is, whatever the size."""
    return torch.where(error == 0, 0.0, error * size)
