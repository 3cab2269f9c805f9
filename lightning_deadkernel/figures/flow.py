"""How well the network learns, layer by layer: gradients by depth, updates over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_deadkernel.figures.canvas import (
    BAND,
    FAINT,
    GREY,
    LINE,
    MEDIUM,
    SMALL,
    basis,
    figure_of,
    inches_of,
    one_axes,
    short,
    spaced,
    times,
)
from lightning_deadkernel.figures.titles import past_of
from lightning_deadkernel.report.describe import number, percent
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PAST = 25
"""Past windows drawn as faint lines."""
_MOST_NAMES = 34
LANDMARK = 1e-3
"""Healthy ratio of update to weight, CS231n, https://cs231n.github.io/neural-networks-3/#ratio."""
_ON_LINES = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _curve(layers: Sequence[LayerReport | None]) -> list[float]:
    ratios = [layer.gradient_ratio if layer else None for layer in layers]
    return [math.nan if ratio is None or ratio <= 0 else ratio for ratio in ratios]


def gradient_headline(report: Report) -> str:
    """Whether gradients reach every layer."""
    limits = report.thresholds
    seen = [(layer.gradient_ratio, layer.name) for layer in report.watched if layer.gradient_ratio is not None]
    least, where = min(seen)
    none = [name for ratio, name in seen if ratio == 0]
    if none:
        more = f" and {len(none) - 1:,} other layers" if len(none) > 1 else ""
        return f"No gradient at all reaches {none[0]}{more}"
    for limit, verb in ((limits.vanishing_gradient, "vanishes"), (limits.weak_gradient, "is weak")):
        below = sum(ratio < limit for ratio, _ in seen)
        if below:
            where = f"in {below:,} of {len(seen):,} layers, least at {where}" if len(seen) > 1 else f"at {where}"
            return f"The gradient {verb} {where} (ratio {number(least)})"
    return f"Gradients reach every layer; the smallest ratio is {number(least)}, at {where}"


def draw_gradient_flow(axes: Axes, reports: Sequence[Report]) -> None:
    """Gradient ratio by layer, input to output, on a log axis; past windows faint, the last one strong."""
    report, limits = reports[-1], reports[-1].thresholds
    names = [layer.name for layer in report.watched if layer.gradient_ratio is not None]
    places = range(len(names))
    pasts = {name: past_of(reports, name) for name in names}
    lows = [limits.weak_gradient / 3]
    shown = [i for i in spaced(len(reports), _MOST_PAST + 1) if i != len(reports) - 1]
    for i in shown:
        curve = _curve([pasts[name][i] for name in names])
        lows += [value for value in curve if value == value]
        if any(value == value for value in curve):
            axes.plot(places, curve, color=FAINT, alpha=0.35, linewidth=1, label="_past")
    last = _curve([report[name] for name in names])
    lows += [value for value in last if value == value]
    axes.plot(places, last, color=LINE, linewidth=2, marker="o", markersize=4 if len(names) < 40 else 2.5, label="last")
    bottom = min(lows) / 3
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom, 3)
    axes.axhspan(limits.vanishing_gradient, limits.weak_gradient, color=BAND, alpha=0.15, linewidth=0)
    axes.axhspan(
        min(bottom, limits.vanishing_gradient) / 1e3, limits.vanishing_gradient, color=BAND, alpha=0.4, linewidth=0
    )
    edge = len(names) - 1 + 0.02 * len(names)
    for limit, word in ((limits.weak_gradient, "weak"), (limits.vanishing_gradient, "vanishing")):
        if bottom < limit / 3:
            axes.text(edge, limit / 1.25, word, fontsize=SMALL, color=GREY, ha="right", va="top")
    none = [i for i in places if report[names[i]].gradient_ratio == 0]
    axes.plot(none, [bottom * 1.3] * len(none), "v", color="#D55E00", markersize=8, label="no gradient")
    for i in none[:8]:
        axes.annotate("0", (i, bottom * 1.3), (0, 7), textcoords="offset points", fontsize=SMALL, ha="center")
    axes.set_xlim(-0.03 * len(names) - 0.2, edge + 0.2)
    axes.set_ylabel("gradient ratio\nrms(grad) / largest rms(grad)", fontsize=MEDIUM)
    axes.grid(axis="y", color="#E8ECEF", linewidth=0.7)
    axes.set_axisbelow(True)


def name_places(axes: Axes, names: Sequence[str]) -> None:
    """Layer names under a picture that has one place per layer."""
    at = spaced(len(names), _MOST_NAMES)
    slanted = len(names) > 4
    axes.set_xticks(at, [short(names[i]) for i in at], fontsize=SMALL, rotation=40 if slanted else 0)
    for label in axes.get_xticklabels() if slanted else ():
        label.set(ha="right", rotation_mode="anchor")


def has_gradients(reports: Sequence[Report]) -> bool:
    """Some gradient was looked at in the last window."""
    return any(layer.gradient_ratio is not None for layer in reports[-1].watched)


def gradient_flow(reports: Sequence[Report]) -> Figure | None:
    """Gradient ratio by depth with the weak and vanishing bands; None where no gradient was looked at."""
    if not has_gradients(reports):
        return None
    names = [layer.name for layer in reports[-1].watched]
    below = 0.075 * max(len(short(name)) for name in names) * 0.65 + 0.5 if len(names) > 4 else 0.5
    note = basis(reports) + ("; earlier windows faint" if len(reports) > 2 else "")
    axes = one_axes(3.4, gradient_headline(reports[-1]), note, 0.95, bottom=below)
    draw_gradient_flow(axes, reports)
    name_places(axes, [layer.name for layer in reports[-1].watched if layer.gradient_ratio is not None])
    axes.set_xlabel("layers from input to output", fontsize=MEDIUM)
    return figure_of(axes)


def update_headline(report: Report) -> str:
    """Whether the steps have a healthy size."""
    limits = report.thresholds
    seen = [(layer.update_ratio, layer.name) for layer in report.watched if layer.update_ratio is not None]
    (least, low), (most, high) = min(seen), max(seen)
    reckless = sum(ratio > limits.update_large for ratio, _ in seen)
    slow = sum(ratio < limits.update_small for ratio, _ in seen)
    of = f"of {len(seen):,} layers"
    if reckless:
        return f"Reckless updates in {reckless:,} {of}: each step changes {high} by {percent(most)}"
    if slow:
        said = "do not change" if least == 0 else "hardly change"
        return f"The weights of {slow:,} {of} {said}: update ratio {number(least)} at {low}"
    if len(seen) == 1:
        return f"Update ratio {number(least)} at {low}; about {LANDMARK:g} is healthy"
    return (
        f"Update ratios are between {number(least)} ({low}) and {number(most)} ({high}); about {LANDMARK:g} is healthy"
    )


def update_ratios(reports: Sequence[Report]) -> Figure | None:
    """Update-to-weight ratio of each layer over time; None where no optimizer step was seen in the last window."""
    report = reports[-1]
    seen = [layer for layer in report.watched if layer.update_ratio is not None]
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
    pasts = {layer.name: past_of(reports, layer.name) for layer in layers}
    curves = {
        name: [layer.update_ratio if layer and layer.update_ratio else math.nan for layer in past]
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
    low, high = min([LANDMARK / 4, *values]) / 3, max([LANDMARK * 4, *values]) * 3
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(low, high)
    axes.axhline(LANDMARK, color=GREY, linestyle="--", linewidth=1, label="landmark")
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
        LANDMARK * 1.06,
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
