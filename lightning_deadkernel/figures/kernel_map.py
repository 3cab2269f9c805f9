"""Which kernels are what now: all of them on one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_deadkernel.figures.canvas import (
    GREY,
    SMALL,
    ZERO_KERNEL,
    Filled,
    Panel,
    basis,
    fill,
    legend_height,
    rectangle,
    state_legend,
)
from lightning_deadkernel.figures.cells import EMPTY, colour_table, places_of
from lightning_deadkernel.figures.names import labels_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import FAULTS, state_headline
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.stages import stage_label, stages_of
from lightning_deadkernel.report.states import BY_NAME, SHOWN, WORD_OF_CODE, WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 20_000
"""Kernels that are drawn as a cell each; of more, shares are drawn, however many there are."""
MOST_ROWS = 60
"""Rows of one map; with more layers than that, neighbours share a row."""
_COLUMNS = (32, 64, 128, 256)
_MOST_LINES = 70
_LINE = 0.13
"""Inches per line of cells where there are many."""
_LONE_LINE = 0.28
"""Inches per line of cells at most."""
_GAP = 0.6
"""Lines between two layers."""
_LEAST_GRAVE, _MOST_LETTERS = BY_NAME["dormant"].gravity, 22
"""Of what a row's text tells beside each other, and of that text."""
_LEAST_SHARE = 0.006
"""Of a row's width: narrower parts of a row are drawn this wide, or one dead kernel of 4,096 would not be seen."""


@dataclass(frozen=True)
class MapLayout:
    """Where the rows of a kernel map are."""

    rows: tuple[tuple[LayerReport, ...], ...]
    """Layers of each row."""
    by_cell: bool
    """A cell is a kernel; else the colours of a row are shares of its kernels."""
    columns: int
    """Cells per line."""
    starts: tuple[float, ...]
    """Top of each row, in lines."""
    lines: tuple[int, ...]
    """Lines that each row takes."""

    @property
    def total(self) -> float:
        """Lines in all."""
        return self.starts[-1] + self.lines[-1]

    @property
    def height(self) -> float:
        """Inches that the rows take."""
        return max(min(self.total * _LONE_LINE, 3.0), self.total * _LINE)

    def names(self) -> list[str]:
        """What each row is called."""
        stages = [stage_label([layer.name for layer in row]) for row in self.rows]
        labels = labels_of(stages)
        return [labels[stage] for stage in stages]


def map_layout(layers: Sequence[LayerReport], most: int = MOST_ROWS) -> MapLayout:
    """One row a layer as long as there are few; as few columns as let every layer fit, and wide layers wrap."""
    by_name = {layer.name: layer for layer in layers}
    rows = tuple(tuple(by_name[name] for name in names) for names in stages_of(list(by_name), most))
    by_cell = len(rows) == len(layers) and sum(layer.channels for layer in layers) <= MOST_CELLS
    columns, lines = 1, (1,) * len(rows)
    for columns in _COLUMNS if by_cell else ():
        lines = tuple(math.ceil(row[0].channels / columns) for row in rows)
        if sum(lines) + _GAP * (len(rows) - 1) <= _MOST_LINES:
            break
    if by_cell:
        columns = min(columns, max(layer.channels for layer in layers))
    starts = tuple(float(start) for start in np.cumsum([0.0, *(n + _GAP for n in lines[:-1])]))
    return MapLayout(rows, by_cell, columns, starts, lines)


def draw_kernel_map(axes: Axes, layout: MapLayout) -> None:
    """One row per layer or stage: its kernels as cells, or as shares, the worst first."""
    bars: list[Filled] = []
    axes.set(xlim=(0, layout.columns), ylim=(layout.total, 0), xticks=[])
    for row, start, lines in zip(layout.rows, layout.starts, layout.lines, strict=True):
        places = np.concatenate([places_of(layer.codes) for layer in row])
        if layout.by_cell:
            cells = np.full(lines * layout.columns, EMPTY, np.uint8)
            cells[: len(places)] = places
            axes.imshow(
                colour_table()[cells.reshape(lines, layout.columns)],
                extent=(0, layout.columns, start + lines, start),
                alpha=(cells != EMPTY).reshape(lines, layout.columns).astype(float) if EMPTY in cells else None,
                interpolation="nearest",
                aspect="auto",
                label=row[0].name,
            )
            _mark_zero_kernels(axes, row[0], start, layout)
        else:
            left = 0.0
            for word, width in shares_of(np.bincount(places, minlength=len(WORDS)).tolist()):
                bars.append((rectangle(left, start, width, 1), BY_NAME[word].colour))
                left += width
    fill(axes, bars)
    if layout.by_cell and layout.columns <= 128:
        _draw_seams(axes, layout)
    axes.set(xlim=(0, layout.columns), ylim=(layout.total, 0), xticks=[])
    _name_rows(axes, layout)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def shares_of(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Each word that is there and its share, the worst first; small ones are widened at the cost of the largest.

    Args:
        counts: kernels by their word's place in `WORDS`.
    """
    total = sum(counts)
    order = sorted(range(len(SHOWN)), key=lambda place: -SHOWN[place].gravity)
    shares = {WORDS[place]: max(counts[place] / total, _LEAST_SHARE) for place in order if counts[place]}
    largest = max(shares, key=shares.__getitem__)
    shares[largest] -= sum(shares.values()) - 1
    return list(shares.items())


def _draw_seams(axes: Axes, layout: MapLayout) -> None:
    from matplotlib.collections import LineCollection

    seams = [[(x, 0), (x, layout.total)] for x in range(1, layout.columns)]
    seams += [
        [(0, start + line), (layout.columns, start + line)]
        for start, lines in zip(layout.starts, layout.lines, strict=True)
        for line in range(1, lines)
    ]
    axes.add_collection(LineCollection(seams, colors="white", linewidths=0.7), autolim=False)


def _mark_zero_kernels(axes: Axes, layer: LayerReport, start: float, layout: MapLayout) -> None:
    if layer.zero_kernels:
        x = [channel % layout.columns + 0.5 for channel in layer.zero_kernels]
        y = [start + channel // layout.columns + 0.5 for channel in layer.zero_kernels]
        axes.scatter(x, y, s=7 if layout.columns <= 128 else 3, c="black", linewidths=0, zorder=3, label="zero kernel")


def _name_rows(axes: Axes, layout: MapLayout) -> None:
    """Names at the left; at the right what is wrong, else how many there are."""
    middles = [start + lines / 2 for start, lines in zip(layout.starts, layout.lines, strict=True)]
    axes.set_yticks(middles, layout.names(), fontsize=SMALL)
    for row, middle in zip(layout.rows, middles, strict=True):
        found = _unhealthy(row)
        text = found or f"{sum(layer.channels for layer in row):,}"
        style: dict[str, Any] = {"color": "black", "weight": "bold"} if found else {"color": GREY}
        axes.text(layout.columns * 1.008, middle, text, fontsize=SMALL, va="center", **style)


def _unhealthy(row: Sequence[LayerReport]) -> str | None:
    """What a row's worst word is true of, ``"20 of 64 dead"``, or all that is grave: ``"6 dead, 14 starved"``."""
    places = b"".join(layer.codes.translate(WORD_OF_CODE) for layer in row)
    found = {word: number for word in FAULTS if (number := places.count(WORDS.index(word)))}
    grave = [f"{found[word]:,} {BY_NAME[word].text}" for word in found if BY_NAME[word].gravity > _LEAST_GRAVE]
    if len(grave) > 1 and len(text := ", ".join(grave)) <= _MOST_LETTERS:
        return text
    return next((f"{number:,} of {len(places):,} {BY_NAME[word].text}" for word, number in found.items()), None)


@picture(4)
def kernel_map(reports: Sequence[Report]) -> Panel | None:
    """Every watched kernel as a cell, layers in forward order; of very many, their shares.

    None if nothing is watched.
    """
    report = reports[-1]
    if not report.watched:
        return None
    layout = map_layout(report.watched)
    left = 0.3 + 0.073 * max(map(len, layout.names()))
    note = basis(reports) + _note(report, layout)
    there = {place for layer in report.watched for place in layer.codes.translate(WORD_OF_CODE)}
    words = [word for place, word in enumerate(WORDS) if place in there]
    dots = layout.by_cell and any(layer.zero_kernels for layer in report.watched)
    bottom = 0.33 + legend_height([*words, *[ZERO_KERNEL] * dots], left)

    def draw(axes: Axes) -> None:
        draw_kernel_map(axes, layout)
        state_legend(axes, words, 0.1, dots)

    right = max(1.6, 0.12 + 0.072 * max(len(_unhealthy(row) or "") for row in layout.rows))
    return Panel(state_headline(reports), note, layout.height, draw, left, right, bottom)


def _note(report: Report, layout: MapLayout) -> str:
    """What a row is, and what is not shown."""
    note = f"; {layout.columns} cells a line" if max(layout.lines) > 1 else ""
    if not layout.by_cell:
        note += "; colours are shares of a row's kernels"
    left_out = len(report.layers) - len(report.watched)
    return note + (f"; {left_out:,} layer{'s' * (left_out > 1)} not watched" if left_out else "")
