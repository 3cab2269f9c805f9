"""How large the steps are, beside the weights that they change, over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_deadkernel.figures.canvas import (
    BAND,
    GREY,
    MEDIUM,
    SMALL,
    basis,
    figure_of,
    finite,
    inches_of,
    one_axes,
    short,
    spaced,
    times,
)
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import pasts_of
from lightning_deadkernel.observation import HEALTHY_UPDATE_RATIO
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.text import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ON_LINES = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def updated(report: Report) -> list[LayerReport]:
    """The layers with an update to draw."""
    return [layer for layer in report.watched if finite(layer.update_ratio)]


def update_headline(report: Report) -> str:
    """Whether the steps have a healthy size."""
    limits = report.thresholds
    seen = [(layer.update_ratio or 0.0, layer.name) for layer in updated(report)]
    (least, low), (most, high) = min(seen), max(seen)
    reckless = sum(ratio > limits.update_large for ratio, _ in seen)
    slow = sum(ratio < limits.update_small for ratio, _ in seen)
    of = f"of {len(seen):,} layers"
    if reckless:
        return f"Reckless updates in {reckless:,} {of}: each step changes {high} by {percent(most)}"
    if slow:
        verb = "do not change" if least == 0 else "hardly change"
        return f"The weights of {slow:,} {of} {verb}: update ratio {number(least)} at {low}"
    if len(seen) == 1:
        return f"Update ratio {number(least)} at {low}; about {HEALTHY_UPDATE_RATIO:g} is healthy"
    between = f"between {number(least)} ({low}) and {number(most)} ({high})"
    return f"Update ratios are {between}; about {HEALTHY_UPDATE_RATIO:g} is healthy"


@picture(4)
def update_ratios(reports: Sequence[Report]) -> Figure | None:
    """Update-to-weight ratio of each layer over time; None where no optimizer step was seen in the last window."""
    report = reports[-1]
    seen = updated(report)
    if not seen:
        return None
    note = basis(reports) + "; median over the sampled steps of a window"
    right = 0.35 + 0.07 * max(len(short(layer.name)) for layer in seen)
    axes = one_axes(3.4, update_headline(report), note, 0.95, right, 0.65)
    draw_update_ratios(axes, reports, seen)
    return figure_of(axes)


def draw_update_ratios(axes: Axes, reports: Sequence[Report], layers: Sequence[LayerReport]) -> None:
    """One line a layer; of many layers, the extremes have colour and name, the others are grey."""
    limits = reports[-1].thresholds
    pasts = pasts_of(reports, [layer.name for layer in layers])
    curves = {
        name: [
            layer.update_ratio if layer and finite(layer.update_ratio) and layer.update_ratio else math.nan
            for layer in past
        ]
        for name, past in pasts.items()
    }
    order = sorted((layer.update_ratio or 0.0, layer.name) for layer in layers)
    few = len(order) <= len(_SERIES)
    strong = [name for _, name in (order if few else [*order[:3], *order[-3:]])]
    for name, curve in curves.items():
        if name not in strong:
            axes.plot(curve, color="#B8C2C9", linewidth=0.8, label="_other")
    ends = []
    for place, name in enumerate(strong):
        colour = _SERIES[place]
        axes.plot(
            curves[name],
            color=colour,
            linewidth=1.8,
            marker="o" if len(reports) <= 12 else None,
            markersize=4,
            label=name,
        )
        last = next((value for value in reversed(curves[name]) if value == value), None)
        if last is not None:
            ends.append((last, name, colour))
    values = [value for curve in curves.values() for value in curve if value == value]
    low, high = min([HEALTHY_UPDATE_RATIO / 4, *values]) / 3, max([HEALTHY_UPDATE_RATIO * 4, *values]) * 3
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(low, high)
    axes.axhline(HEALTHY_UPDATE_RATIO, color=GREY, linestyle="--", linewidth=1, label="landmark")
    axes.axhspan(limits.update_large, max(high, limits.update_large) * 10, color=BAND, alpha=0.3, linewidth=0)
    axes.axhspan(min(low, limits.update_small) / 10, limits.update_small, color=BAND, alpha=0.3, linewidth=0)
    name, labels = times(reports)
    at = spaced(len(reports), 12)
    axes.set_xticks(at, [labels[i] for i in at], fontsize=SMALL)
    first = next((i for i, _ in enumerate(reports) if any(curve[i] == curve[i] for curve in curves.values())), 0)
    axes.set_xlim(
        first - 0.5 if len(reports) - first < 3 else first, len(reports) - 1 + (0.5 if len(reports) < 4 else 0)
    )
    axes.text(
        axes.get_xlim()[0],
        HEALTHY_UPDATE_RATIO * 1.06,
        " healthy: about 0.001",
        fontsize=SMALL,
        color=GREY,
        va="bottom",
        bbox=_ON_LINES,
    )
    axes.set_xlabel(name, fontsize=MEDIUM)
    axes.set_ylabel("update ratio  ‖ΔW‖ / ‖W‖", fontsize=MEDIUM)
    axes.grid(axis="y", color="#E8ECEF", linewidth=0.7)
    axes.set_axisbelow(True)
    _name_ends(axes, ends)


def _name_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the ends of the lines, pushed apart where they would overlap."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    inches = inches_of(axes)[1]
    least = SMALL * 1.2 / 72 / inches
    at = -math.inf
    for value, name, colour in sorted(ends):
        y = (math.log10(value) - low) / (high - low)
        at = max(y, at + least)
        axes.annotate(
            short(name),
            (1, y),
            (1.02, at),
            xycoords="axes fraction",
            fontsize=SMALL,
            color=colour,
            va="center",
            annotation_clip=False,
        )
