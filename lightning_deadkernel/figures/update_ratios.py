"""How large the steps are, beside the weights that they change, over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_deadkernel.figures.canvas import (
    BAND,
    GREY,
    MEDIUM,
    SMALL,
    Panel,
    basis,
    finite,
    inches_of,
    log_axis,
    moment,
    spaced,
    times,
)
from lightning_deadkernel.figures.names import labels_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import pasts_of
from lightning_deadkernel.observation import HEALTHY_UPDATE_RATIO
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.text import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PALE = "#B8C2C9"
_ON_LINES = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


def updated(report: Report) -> list[LayerReport]:
    """The layers with an update to draw."""
    return [layer for layer in report.watched if finite(layer.update_ratio)]


def healthy_for(report: Report) -> bool:
    """Whether `HEALTHY_UPDATE_RATIO` is meant for this run: under plain SGD. Other optimizers size their own steps."""
    return report.run is not None and {optimizer.name for optimizer in report.run.optimizers} == {"SGD"}


def update_headline(reports: Sequence[Report]) -> str:
    """Whether the steps have a healthy size, and had it before."""
    report = reports[-1]
    limits, seen = report.thresholds, [(layer.update_ratio or 0.0, layer.name) for layer in updated(report)]
    (least, low), (most, high) = min(seen), max(seen)
    reckless = sum(ratio > limits.update_large for ratio, _ in seen)
    slow = sum(ratio < limits.update_small for ratio, _ in seen)
    of = f"of {len(seen):,} layers"
    if reckless:
        return f"Reckless updates in {reckless:,} {of}: each step changes {high} by {percent(most)}"
    largest = [
        (layer.update_ratio_max or 0.0, -place, layer.name)
        for place, past in enumerate(reports)
        for layer in past.watched
        if finite(layer.update_ratio_max)
    ]
    if largest and max(largest)[0] > limits.update_large:
        ratio, place, name = max(largest)
        when = f"in {moment(reports, -place)}" if len(reports) > 1 else "here"
        line = percent(limits.update_large)
        return f"A step {when} changed {name} by {percent(ratio)} of its norm; above {line} is reckless"
    if slow:
        verb = "do not change" if least == 0 else "hardly change"
        return f"The weights of {slow:,} {of} {verb}: update ratio {number(least)} at {low}"
    landmark = f"; about {HEALTHY_UPDATE_RATIO:g} is healthy" if healthy_for(report) else ""
    if len(seen) == 1:
        return f"Update ratio {number(least)} at {low}{landmark}"
    return f"Update ratios are between {number(least)} ({low}) and {number(most)} ({high}){landmark}"


@picture(7)
def update_ratios(reports: Sequence[Report]) -> Panel | None:
    """How much a step changes each layer, over time: the median, and the largest, of each window's sampled steps.

    None where no optimizer step was seen in the last window.
    """
    report = reports[-1]
    if not updated(report):
        return None
    note = basis(reports) + "; lines: median over the sampled steps of a window, dots: the largest"
    right = 0.35 + 0.07 * max(map(len, labels_of([layer.name for layer in updated(report)]).values()))
    return Panel(update_headline(reports), note, 2.1, lambda axes: draw_update_ratios(axes, reports), 0.95, right, 0.65)


def _curves(reports: Sequence[Report], names: Sequence[str], statistic: str) -> dict[str, list[float]]:
    """Layer -> its statistic in every report; NaN where there is none."""
    return {
        name: [value if finite(value := getattr(layer, statistic, None)) else math.nan for layer in past]
        for name, past in pasts_of(reports, names).items()
    }


def draw_update_ratios(axes: Axes, reports: Sequence[Report]) -> None:
    """One line a layer; of many layers, the extremes have colour and name, the others are grey."""
    from matplotlib.collections import LineCollection

    layers = updated(reports[-1])
    names = [layer.name for layer in layers]
    medians, peaks = (_curves(reports, names, statistic) for statistic in ("update_ratio", "update_ratio_max"))
    order = sorted((layer.update_ratio or 0.0, layer.name) for layer in layers)
    few = len(order) <= len(_SERIES)
    strong = [name for _, name in (order if few else [*order[:3], *order[-3:]])]
    positive = [v for curve in (*medians.values(), *peaks.values()) for v in curve if v > 0]
    low, high = min([HEALTHY_UPDATE_RATIO / 4, *positive]) / 3, max([HEALTHY_UPDATE_RATIO * 4, *positive]) * 3
    log_axis(axes, low, high, any(value == 0 for curve in medians.values() for value in curve))
    weak = [name for name in names if name not in strong]
    if weak:
        # one collection: hundreds of lines of their own take seconds
        lines = [[(x, y) for x, y in enumerate(medians[name]) if y > 0] for name in weak]
        axes.add_collection(
            LineCollection([line for line in lines if line], colors=_PALE, linewidths=0.8, label="_others"),
            autolim=False,
        )
        windows = zip(*(peaks[name] for name in weak), strict=True)
        tops = [max((peak for peak in window if peak > 0), default=math.nan) for window in windows]
        axes.plot(tops, ".", color=_PALE, markersize=4, label="_largest of others")
    ends = []
    for place, name in enumerate(strong):
        curve, colour = medians[name], _SERIES[place]
        # a median of zero lies on the axis, below every number
        drawn = [low if value == 0 else value for value in curve]
        marker = "o" if len(reports) <= 12 else None
        axes.plot(drawn, color=colour, linewidth=1.8, marker=marker, markersize=4, label=name, clip_on=False)
        _dots(axes, peaks[name], curve, colour)
        last = next((value for value in reversed(drawn) if value == value), None)
        if last is not None:
            ends.append((last, name, colour))
    _draw_time(axes, reports, medians)
    _draw_bands(axes, reports[-1])
    axes.set_ylabel("update ratio  ‖ΔW‖ / ‖W‖", fontsize=MEDIUM)
    _name_ends(axes, ends, labels_of(names))


def _dots(axes: Axes, peaks: Sequence[float], medians: Sequence[float], colour: str) -> None:
    """The largest step of each window, joined with its median."""
    at = [i for i, peak in enumerate(peaks) if peak > 0]
    axes.plot(at, [peaks[i] for i in at], ".", color=colour, markersize=5.5, label="_largest", clip_on=False)
    low = axes.get_ylim()[0]
    bottoms = [medians[i] if medians[i] > 0 else low for i in at]
    axes.vlines(at, bottoms, [peaks[i] for i in at], color=colour, linewidth=0.7, alpha=0.6)


def _draw_time(axes: Axes, reports: Sequence[Report], curves: dict[str, list[float]]) -> None:
    name, labels = times(reports)
    at = spaced(len(reports), 12)
    axes.set_xticks(at, [labels[i] for i in at], fontsize=SMALL)
    first = next((i for i, _ in enumerate(reports) if any(curve[i] == curve[i] for curve in curves.values())), 0)
    margin = 0.5 if len(reports) - first < 4 else 0.1
    axes.set_xlim(first - margin, len(reports) - 1 + margin)
    axes.set_xlabel(name, fontsize=MEDIUM)


def _draw_bands(axes: Axes, report: Report) -> None:
    """Where steps are reckless and where slow, and what is healthy."""
    (low, high), limits = axes.get_ylim(), report.thresholds
    start, end = axes.get_xlim()
    large, small = limits.update_large, limits.update_small
    axes.axhspan(large, max(high, large) * 10, color=BAND, alpha=0.3, linewidth=0)
    axes.axhspan(min(low, small) / 10, small, color=BAND, alpha=0.3, linewidth=0)
    if large < high / 2:
        axes.text(end, large * 1.1, "reckless ", fontsize=SMALL, color=GREY, va="bottom", ha="right")
    if small > low * 2:
        axes.text(end, small / 1.1, "slow ", fontsize=SMALL, color=GREY, va="top", ha="right")
    if healthy_for(report):
        axes.axhline(HEALTHY_UPDATE_RATIO, color=GREY, linestyle="--", linewidth=1, label="landmark")
        text = f" healthy: about {HEALTHY_UPDATE_RATIO:g}"
        axes.text(start, HEALTHY_UPDATE_RATIO * 1.06, text, fontsize=SMALL, color=GREY, va="bottom", bbox=_ON_LINES)


def _name_ends(axes: Axes, ends: list[tuple[float, str, str]], labels: dict[str, str]) -> None:
    """Names beside the ends of the lines, pushed apart where they would overlap."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    least = SMALL * 1.2 / 72 / inches_of(axes)[1]
    at = -math.inf
    for value, name, colour in sorted(ends):
        y = (math.log10(value) - low) / (high - low)
        at = max(y, at + least)
        style: dict[str, Any] = {"fontsize": SMALL, "color": colour, "va": "center", "annotation_clip": False}
        axes.annotate(labels[name], (1, y), (1.02, at), xycoords="axes fraction", **style)
