"""How well gradients reach the layers, by depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_deadkernel.figures.canvas import (
    BAND,
    FAINT,
    GREY,
    GRID,
    LINE,
    MEDIUM,
    SMALL,
    Panel,
    basis,
    finite,
    inches_of,
    log_axis,
    spaced,
)
from lightning_deadkernel.figures.names import labels_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import pasts_of
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.stages import stages_of
from lightning_deadkernel.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PAST = 25
"""Past windows drawn as faint lines."""
_MOST_NAMES = 34
_LABEL = 0.24
"""Inches from one slanted label to the next."""
_MOST_STAGES = 12


def _curve(layers: Sequence[LayerReport | None]) -> list[float]:
    ratios = [layer.gradient_ratio if layer else None for layer in layers]
    return [ratio if finite(ratio) and ratio > 0 else math.nan for ratio in ratios]


def measured(report: Report) -> list[LayerReport]:
    """The layers with a gradient to draw."""
    return [layer for layer in report.watched if finite(layer.gradient_ratio)]


def gradient_headline(report: Report) -> str:
    """Whether gradients reach every layer."""
    limits = report.thresholds
    seen = [(layer.gradient_ratio or 0.0, layer.name) for layer in measured(report)]
    least, where = min(seen)
    none = [name for ratio, name in seen if ratio == 0]
    if none:
        more = f" and {len(none) - 1:,} other layers" if len(none) > 1 else ""
        return f"No gradient at all reaches {none[0]}{more}"
    for limit, verb in ((limits.vanishing_gradient, "vanishes"), (limits.weak_gradient, "is weak")):
        below = sum(ratio < limit for ratio, _ in seen)
        if below:
            where = f"in {below:,} of {len(seen):,} layers, smallest at {where}" if len(seen) > 1 else f"at {where}"
            return f"The gradient {verb} {where} (ratio {number(least)})"
    return f"Gradients reach every layer; the smallest ratio is {number(least)}, at {where}"


def draw_gradient_flow(axes: Axes, reports: Sequence[Report]) -> None:
    """Gradient ratio by layer, input to output, on a log axis; past windows faint, the last one strong."""
    report, limits = reports[-1], reports[-1].thresholds
    names = [layer.name for layer in measured(report)]
    places = range(len(names))
    pasts = pasts_of(reports, names)
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
    none = [i for i in places if report[names[i]].gradient_ratio == 0]
    log_axis(axes, bottom, 3, bool(none))
    axes.axhspan(limits.vanishing_gradient, limits.weak_gradient, color=BAND, alpha=0.15, linewidth=0)
    axes.axhspan(
        min(bottom, limits.vanishing_gradient) / 1e3, limits.vanishing_gradient, color=BAND, alpha=0.4, linewidth=0
    )
    edge = len(names) - 1 + 0.02 * len(names)
    for limit, word in ((limits.weak_gradient, "weak"), (limits.vanishing_gradient, "vanishing")):
        if bottom < limit / 3:
            axes.text(edge, limit / 1.25, word, fontsize=SMALL, color=GREY, ha="right", va="top")
    at_axis: dict[str, Any] = {
        "color": "#D55E00",
        "markersize": 8,
        "linestyle": "none",
        "clip_on": False,
        "label": "no gradient",
    }
    axes.plot(none, [bottom] * len(none), marker="v", **at_axis)
    axes.set_xlim(-0.03 * len(names) - 0.2, edge + 0.2)
    axes.set_ylabel("gradient ratio\nrms(grad) / largest rms(grad)", fontsize=MEDIUM)


def name_places(axes: Axes, names: Sequence[str]) -> None:
    """Layer names under a picture that has one place per layer; of many layers, where each stage begins."""
    labels = labels_of(names)
    if len(names) <= _MOST_NAMES:
        slanted = len(names) > 4
        axes.set_xticks(
            range(len(names)), [labels[name] for name in names], fontsize=SMALL, rotation=40 if slanted else 0
        )
    else:
        slanted = True
        stages = stages_of(names, _MOST_STAGES)
        starts = np.cumsum([0, *map(len, stages)])[:-1].tolist()
        least = _LABEL / inches_of(axes)[0] * len(names)
        apart = list[int]()
        for place in reversed(range(len(starts))):  # of two that are close, the one with which a stage begins
            if not apart or starts[apart[-1]] - starts[place] >= least:
                apart.append(place)
        apart.reverse()
        axes.set_xticks([starts[i] for i in apart], [labels[stages[i][0]] for i in apart], fontsize=SMALL, rotation=40)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
    for label in axes.get_xticklabels() if slanted else ():
        label.set(ha="right", rotation_mode="anchor")


def room_for_names(names: Sequence[str]) -> float:
    """Inches that they need below the axis."""
    longest = max(map(len, labels_of(names).values()))
    return 0.075 * longest * 0.65 + 0.5 if len(names) > 4 else 0.5


@picture(6)
def gradient_flow(reports: Sequence[Report]) -> Panel | None:
    """Gradient ratio by depth with the weak and vanishing bands; None where no gradient was looked at."""
    if not measured(reports[-1]):
        return None
    names = [layer.name for layer in measured(reports[-1])]
    note = basis(reports) + ("; earlier windows faint" if len(reports) > 2 else "")

    def draw(axes: Axes) -> None:
        draw_gradient_flow(axes, reports)
        name_places(axes, names)
        axes.set_xlabel("layers from input to output", fontsize=MEDIUM)

    return Panel(gradient_headline(reports[-1]), note, 2.1, draw, 1.1, bottom=room_for_names(names))
