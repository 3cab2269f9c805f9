"""Which kernels are what now: all of them on one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lightning_deadkernel.figures.canvas import GREY, SMALL, basis, figure_of, inches_of, one_axes, short, state_legend
from lightning_deadkernel.figures.cells import EMPTY, Array, colour_table, places_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import state_headline, unhealthy
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import BY_NAME, SHOWN, WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = (32, 64, 128, 256)
_MOST_LINES = 70
_LINE = 0.115
"""Inches per line of cells where there are many."""
_LONE_LINE = 0.28
"""Inches per line of cells at most."""
_TALLEST = 12.0
"""Inches; with more layers than that holds, lines get thinner."""
_GAP = 0.6
"""Lines between two layers, up to..."""
_MOST_SPACED = 70
"""...this many layers."""


def worst_of(places: Array, size: int) -> Array:
    """(C,) words' places to one per `size` neighbours: the worst among them."""
    if size == 1:
        return places
    padded = np.pad(places, (0, -len(places) % size), mode="edge")
    by_gravity = np.argsort([word.gravity for word in SHOWN], kind="stable").astype(np.uint8)
    gravity = np.argsort(by_gravity)[padded].reshape(-1, size)
    return np.asarray(by_gravity[gravity.max(1)])


@dataclass(frozen=True)
class MapLayout:
    """Where the cells of a kernel map are."""

    columns: int
    bin_size: int
    """Channels per cell."""
    starts: tuple[float, ...]
    """Top of each layer, in lines."""
    lines: tuple[int, ...]
    """Lines that each layer takes."""
    total: float


def map_layout(channels: Sequence[int]) -> MapLayout:
    """As few columns as let every layer fit; layers wrap, and beyond that channels share cells."""
    gap = _GAP if len(channels) <= _MOST_SPACED else _GAP / 3
    room = max(_MOST_LINES, math.ceil(len(channels) * (1 + gap)))
    bin_size, columns = 1, _COLUMNS[0]
    while (total := sum(_lines(channels, bin_size, columns)) + gap * (len(channels) - 1)) > room:
        if columns < _COLUMNS[-1]:
            columns = _COLUMNS[_COLUMNS.index(columns) + 1]
        else:
            bin_size *= 2
    lines = _lines(channels, bin_size, columns)
    starts = tuple(float(start) for start in np.cumsum([0.0] + [n + gap for n in lines[:-1]]))
    columns = min(columns, max(math.ceil(count / bin_size) for count in channels))
    return MapLayout(columns, bin_size, starts, lines, total)


def _lines(channels: Sequence[int], bin_size: int, columns: int) -> tuple[int, ...]:
    return tuple(max(1, math.ceil(count / bin_size / columns)) for count in channels)


def draw_kernel_map(axes: Axes, report: Report) -> set[str]:
    """One cell per channel, one row (or more, where it is wide) per layer. Gives the words that were shown."""
    from matplotlib.collections import LineCollection

    layers = report.watched
    layout = map_layout([layer.channels for layer in layers])
    table, shown = colour_table(), set()
    for layer, start, lines in zip(layers, layout.starts, layout.lines, strict=True):
        places = worst_of(places_of(layer.codes), layout.bin_size)
        shown |= {WORDS[place] for place in np.unique(places)}
        cells = np.full(lines * layout.columns, EMPTY, np.uint8)
        cells[: len(places)] = places
        axes.imshow(
            table[cells.reshape(lines, layout.columns)],
            extent=(0, layout.columns, start + lines, start),
            interpolation="nearest",
            aspect="auto",
            label=layer.name,
        )
        _mark_zero_kernels(axes, layer, start, layout)
    if layout.columns <= 128:
        seams = [[(x, 0), (x, layout.total)] for x in range(1, layout.columns)]
        seams += [
            [(0, start + line), (layout.columns, start + line)]
            for start, lines in zip(layout.starts, layout.lines, strict=True)
            for line in range(1, lines)
        ]
        axes.add_collection(LineCollection(seams, colors="white", linewidths=0.7), autolim=False)
    axes.set(xlim=(0, layout.columns), ylim=(layout.total, 0), xticks=[])
    _name_layers(axes, layers, layout)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return shown


def _mark_zero_kernels(axes: Axes, layer: LayerReport, start: float, layout: MapLayout) -> None:
    cells = sorted({channel // layout.bin_size for channel in layer.zero_kernels})
    if cells:
        x = [cell % layout.columns + 0.5 for cell in cells]
        y = [start + cell // layout.columns + 0.5 for cell in cells]
        axes.scatter(x, y, s=7 if layout.columns <= 128 else 3, c="black", linewidths=0, zorder=3, label="zero kernel")


def _name_layers(axes: Axes, layers: Sequence[LayerReport], layout: MapLayout) -> None:
    """Names at the left and counts at the right, those of unhealthy layers in any case, others where there is room."""
    middles = [start + lines / 2 for start, lines in zip(layout.starts, layout.lines, strict=True)]
    inches = inches_of(axes)[1] / layout.total
    least = SMALL / 72 * 0.95 / inches
    found = [unhealthy(layer) for layer in layers]
    order = sorted(range(len(layers)), key=lambda i: not found[i][1])
    named: list[int] = []
    for i in order:
        if all(abs(middles[i] - middles[other]) >= least for other in named):
            named.append(i)
    axes.set_yticks([middles[i] for i in named], [short(layers[i].name) for i in named], fontsize=SMALL)
    for i in named:
        word, bad = found[i]
        count = f"{layers[i].channels:,}"
        axes.text(
            layout.columns * 1.008,
            middles[i],
            f"{len(bad):,} of {count} {BY_NAME[word].text}" if bad else count,
            fontsize=SMALL,
            va="center",
            color="black" if bad else GREY,
            weight="bold" if bad else "normal",
        )


def map_height(report: Report) -> float:
    """Inches that the cells take."""
    total = map_layout([layer.channels for layer in report.watched]).total
    return min(max(min(total * _LONE_LINE, 3.0), total * _LINE), _TALLEST)


@picture(1)
def kernel_map(reports: Sequence[Report]) -> Figure | None:
    """Every watched kernel of the last report as a cell, layers in forward order; None if nothing is watched."""
    report = reports[-1]
    if not report.watched:
        return None
    left = 0.3 + 0.073 * max(len(short(layer.name)) for layer in report.watched)
    axes = one_axes(map_height(report), state_headline(reports), basis(reports) + map_note(report), left, 1.4, 0.5)
    shown = draw_kernel_map(axes, report)
    map_legend(axes, shown, any(layer.zero_kernels for layer in report.watched))
    return figure_of(axes)


def map_note(report: Report) -> str:
    """How wide layers are shown, and what is not."""
    layout = map_layout([layer.channels for layer in report.watched])
    note = "" if layout.bin_size == 1 else f"; each cell is the worst of {layout.bin_size} neighbouring kernels"
    if max(layout.lines) > 1:
        note += f"; {layout.columns} cells a line"
    left_out = len(report.layers) - len(report.watched)
    return note + (f"; {left_out:,} layer{'s' * (left_out > 1)} not watched" if left_out else "")


def map_legend(axes: Axes, shown: set[str], zero_kernels: bool) -> None:
    """The words shown, and the dot."""
    bottom = -0.1 / inches_of(axes)[1]
    state_legend(
        axes,
        sorted(shown),
        zero_kernels,
        loc="upper left",
        bbox_to_anchor=(-0.005, bottom),
        borderaxespad=0,
        ncols=8,
    )
