"""How the weights of each layer are spread, beside the Gaussian that they would be if only their size counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_deadkernel.figures.canvas import (
    DPI,
    GREY,
    GRID,
    LINE,
    MEDIUM,
    PALE,
    SMALL,
    Filled,
    Panel,
    basis,
    fill,
    finite,
    inches_of,
    rectangle,
)
from lightning_deadkernel.figures.names import labels_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.functional.histograms import to_edges
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAUSSIAN_NEAR_ZEROS = 0.0080
"""Share of |w| < 1e-2 rms in a Gaussian: erf(1e-2 / sqrt 2)."""
_MOST_LAYERS = 24
_OCTAVES = 10
"""Half-octave buckets reach this many octaves below the largest weight; what is smaller is one bucket at zero."""
_ROW = 0.34
_LABEL = 0.38
"""Inches that a number under the axis needs."""


@dataclass(frozen=True)
class Spread:
    """A layer's weights: how many there are per half octave, and all those near zero in one bucket."""

    edges: list[float]
    density: list[float]
    """Share per half octave of size; of the bucket at zero, the share in it."""
    gaussian: list[float]
    """The same of a Gaussian of the same rms."""
    center: int | None
    """Place of the bucket at zero."""


def spread_of(counts: Tensor, smallest: float) -> Spread | None:
    """A layer's weight histogram with all buckets within +-`smallest` joined; None if there is nothing finite.

    Args:
        counts: (1024,) counts as of `histograms.bit_histogram`.
        smallest: a power of two.

    """
    low, limits, filled, _ = to_edges(counts)
    total = sum(filled)
    if not total:
        return None
    edges, squares = [low], 0.0
    kept: list[int] = []
    for left, right, count in zip([low, *limits], limits, filled, strict=False):
        squares += count * ((left + right) / 2) ** 2
        if left >= -smallest and right <= smallest and kept and edges[-1] > -smallest:
            kept[-1] += count
            edges[-1] = right
        else:
            kept.append(count)
            edges.append(right)
    scale = math.sqrt(2 * squares / total)
    below = [0.5 * (1 + math.erf(edge / scale)) if scale else float(edge > 0) for edge in edges]
    inside = [abs(low + high) <= smallest for low, high in pairwise(edges)]
    # bins are halves of an octave by value, 1 to 1.5 and 1.5 to 2, so not of one width on a log axis
    widths = [
        1.0 if near or low * high <= 0 else 2 * abs(math.log2(high / low))
        for near, (low, high) in zip(inside, pairwise(edges), strict=True)
    ]
    density = [n / total / width for n, width in zip(kept, widths, strict=True)]
    gaussian = [(b - a) / width for (a, b), width in zip(pairwise(below), widths, strict=True)]
    return Spread(edges, density, gaussian, inside.index(True) if True in inside else None)


def _chosen(report: Report, histograms: dict[str, Tensor]) -> list[LayerReport]:
    layers = [layer for layer in report.watched if layer.name in histograms]
    if len(layers) <= _MOST_LAYERS:
        return layers
    sparse = sorted(layers, key=lambda layer: -(layer.weight_near_zeros or 0.0))[:_MOST_LAYERS]
    return [layer for layer in layers if layer in sparse]


def weights_headline(report: Report) -> str:
    """Whether most weights are near zero somewhere, and whether that is unusual."""
    seen = [(layer.weight_near_zeros or 0.0, layer) for layer in report.watched if finite(layer.weight_near_zeros)]
    if not seen:
        return "How the weights are spread"
    near, layer = max(seen, key=lambda pair: pair[0])
    if layer.weight_sparsity and layer.weight_sparsity > 0.05:
        return f"{layer.name}: {percent(layer.weight_sparsity)} of the weights are exactly zero"
    usual = f"(a Gaussian has {percent(GAUSSIAN_NEAR_ZEROS)})"
    if near > 0.05:
        return f"{layer.name}: {percent(near)} of the weights are near zero {usual}"
    return f"Few weights are near zero: at most {percent(near)}, in {layer.name} {usual}"


@picture(8)
def weights(reports: Sequence[Report]) -> Panel | None:
    """Distribution per layer on a symmetric-log axis; None where the last report has no weight histograms.

    The Gaussian of the same rms is behind each in grey; shares of zeros and near zeros (|w| < 1e-2 rms) at the right.
    """
    report = reports[-1]
    histograms = report.tensors.histograms.get("weights", {}) if report.tensors else {}
    layers = _chosen(report, histograms)
    if not layers:
        return None
    largest = max(abs(edge) for layer in layers for edge in _ends(histograms[layer.name])) or 1.0
    smallest = 2.0 ** (math.ceil(math.log2(largest)) - _OCTAVES)
    note = basis(reports) + "; grey: the Gaussian of the same rms"
    if len(layers) < len(report.watched):
        note += f"; the {len(layers)} layers with most near zeros of {len(report.watched):,}"
    left = 0.3 + 0.073 * max(map(len, labels_of([layer.name for layer in layers]).values()))

    def draw(axes: Axes) -> None:
        draw_weights(axes, layers, histograms, smallest, largest)

    return Panel(weights_headline(report), note, max(_ROW * len(layers), 1.2) + 0.25, draw, left, 1.7, 0.65)


def _ends(counts: Tensor) -> tuple[float, float]:
    low, limits, _, _ = to_edges(counts)
    return low, limits[-1] if limits else 0.0


def draw_weights(
    axes: Axes, layers: Sequence[LayerReport], histograms: dict[str, Tensor], smallest: float, largest: float
) -> None:
    """One row per layer, first on top; heights are shares per half octave, each row to its own largest."""
    from matplotlib.collections import LineCollection

    axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    axes.minorticks_off()
    axes.set_xlim(-largest * 1.1, largest * 1.1)
    inches = inches_of(axes)[0]
    zeros_at, near_zeros_at = 1 + 0.65 / inches, 1 + 1.5 / inches
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": SMALL, "ha": "right"}
    surfaces, outlines = list[Filled](), list[list[tuple[float, float]]]()
    for row, layer in enumerate(layers):
        spread, base = spread_of(histograms[layer.name], smallest), float(len(layers) - row - 1)
        if spread is None:
            axes.text(0, base + 0.3, "nothing finite", fontsize=SMALL, ha="center", color=GREY)
            continue
        outside = [density for place, density in enumerate(spread.density) if place != spread.center]
        top = max([*outside, *spread.gaussian, 1e-9]) / 0.86
        for values, colour, wide in ((spread.gaussian, PALE, 1.2), (spread.density, LINE, 0.6)):
            heights = [min(value / top, 0.95) for value in values]
            if spread.center is not None:
                # a filled bar for all at zero: as a step of the outline it would be as wide as what lies beside it
                bar = rectangle(-wide * smallest / 2, base, wide * smallest, heights[spread.center])
                surfaces.append((bar, colour))
                heights[spread.center] = 0.0
            steps = _steps(spread.edges, heights, base)
            if colour == PALE:
                surfaces.append((steps, colour))
            else:
                outlines.append(steps)
        for place, value in ((zeros_at, layer.weight_sparsity), (near_zeros_at, layer.weight_near_zeros)):
            strong = value is not None and value > 0.05
            axes.text(place, base + 0.3, percent(value), weight="bold" if strong else "normal", **beside)
    axes.hlines(range(len(layers)), *axes.get_xlim(), color=GRID, linewidth=0.7, zorder=0)
    fill(axes, surfaces)
    axes.add_collection(LineCollection(outlines, colors=LINE, linewidths=1.2), autolim=False)
    for place, word in ((zeros_at, "zeros"), (near_zeros_at, "near zeros")):
        axes.text(place, len(layers) + 0.1, word, color=GREY, **beside)
    axes.set_ylim(0, len(layers) + 0.05)
    labels = list(labels_of([layer.name for layer in layers]).values())
    axes.set_yticks([len(layers) - row - 0.7 for row in range(len(layers))], labels)
    highest = math.floor(math.log10(largest))
    powers, last = list[float](), 0.0
    for power in (10.0**exponent for exponent in range(math.ceil(math.log10(smallest)), highest + 1)):
        (left, _), (right, _) = axes.transData.transform([(last, 0), (power, 0)])
        if right - left >= _LABEL * DPI:
            powers.append(power)
            last = power
    axes.set_xticks([*(-p for p in reversed(powers)), 0.0, *powers])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("weight (symmetric log axis)", fontsize=MEDIUM)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _steps(edges: Sequence[float], heights: Sequence[float], base: float) -> list[tuple[float, float]]:
    """The outline of a histogram that stands on `base`."""
    tops = [(edge, base + height) for *ends, height in zip(edges, edges[1:], heights, strict=False) for edge in ends]
    return [(edges[0], base), *tops, (edges[-1], base)]
