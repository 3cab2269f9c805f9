"""Which kernels are freed by which change: a row for each training of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from lightning_deadkernel.errors import printable
from lightning_deadkernel.figures.canvas import SMALL, WIDTH, Panel, state_legend
from lightning_deadkernel.report.states import COLOURS
from lightning_deadkernel.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CELLS = 100
"""Kernels that have a cell each; of more, a row's colours are shares."""
_LINE, _GAP = 0.17, 0.6
"""Inches of a training's row, and rows between two arms."""
_LETTER, _LONGEST = 0.068, 34
"""Inches of a letter, and letters of a name."""
SHOWS, FREE = COLOURS["dead"], COLOURS["active"]

Column = tuple[str, int]
"""A kernel; of a whole layer the channel is -1."""


@dataclass(frozen=True)
class Row:
    """An arm."""

    name: str
    text: str
    """At its right."""
    found: Sequence[Mapping[str, Sequence[int]]]
    """Of each training, layer -> the channels that show the finding; an empty list: the layer as a whole."""


def draw_trial(
    rows: Sequence[Row], named: Mapping[str, Sequence[int]], title: str, below: str, words: tuple[str, str]
) -> Figure:
    """A column for each kernel that is named, layer by layer, then for those that show the finding in some training.

    Args:
        rows: the arms, from top to bottom; each training is a line.
        named: layer -> the channels that are asked about; an empty list: the layer as a whole.
        title: what was found.
        below: the answer.
        words: for what shows the finding, and for what is free of it.
    """
    lines = sum(len(row.found) for row in rows) + _GAP * (len(rows) - 1)
    left = 0.2 + _LETTER * max(len(shortened(row.name, _LONGEST)) for row in rows)
    right = 0.2 + _LETTER * max(len(row.text) for row in rows)

    def draw(axes: Axes) -> None:
        _draw_rows(axes, rows, _blocks(rows, named), lines)
        state_legend(axes, dict(zip(words, (SHOWS, FREE), strict=True)), 0.42)

    return Panel(title, below, lines * _LINE, draw, left, min(right, WIDTH - left - 1.5), bottom=0.75).alone()


def _draw_rows(axes: Axes, rows: Sequence[Row], blocks: Sequence[tuple[str, list[Column]]], lines: float) -> None:
    columns = sum(len(block) + 1 for _, block in blocks) - 1
    by_cell = columns <= MOST_CELLS
    names, middles, start = [], [], 0.0
    for row in rows:
        for place, found in enumerate(row.found):
            shows = _columns(found)
            cell = 0
            for _, block in blocks:
                states = [column in shows for column in block]
                for shown, width in _runs(states if by_cell else sorted(states, reverse=True)):
                    colour = SHOWS if shown else FREE
                    axes.barh(start + place + 0.5, width, 0.94, cell, color=colour, edgecolor="white", linewidth=0)
                    cell += width
                cell += 1
        names.append(printable(shortened(row.name, _LONGEST)))
        middles.append(start + len(row.found) / 2)
        axes.text(columns * 1.012, middles[-1], row.text, fontsize=SMALL, va="center")
        start += len(row.found) + _GAP
    axes.set(xlim=(0, columns), ylim=(lines, 0))
    axes.set_yticks(middles, names, fontsize=SMALL)
    _name_blocks(axes, blocks)
    if by_cell:
        axes.vlines(range(1, columns), 0, lines, color="white", linewidth=0.6 if columns < 50 else 0.3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _columns(found: Mapping[str, Sequence[int]]) -> set[Column]:
    return {(layer, channel) for layer, where in found.items() for channel in (where or (-1,))}


def _blocks(rows: Sequence[Row], named: Mapping[str, Sequence[int]]) -> list[tuple[str, list[Column]]]:
    """The named of each layer, then all others; a name below each."""
    whole = all(not where for where in named.values())
    blocks = [("named" if whole else layer, sorted(_columns({layer: where}))) for layer, where in named.items()]
    if whole:
        blocks = [("named", [column for _, block in blocks for column in block])]
    first = {column for _, block in blocks for column in block}
    others = sorted({column for row in rows for found in row.found for column in _columns(found)} - first)
    return [*blocks, ("others", others)] if others else blocks


def _runs(states: Sequence[bool]) -> list[tuple[bool, int]]:
    """What follows one another and is alike: ``[(True, 3), (False, 1)]``."""
    return [(shown, len(list(run))) for shown, run in groupby(states)]


def _name_blocks(axes: Axes, blocks: Sequence[tuple[str, list[Column]]]) -> None:
    cell, places, labels = 0, [], []
    for name, block in blocks:
        places.append(cell + len(block) / 2)
        labels.append(f"{printable(shortened(name, 18))}: {len(block):,}")
        cell += len(block) + 1
    axes.set_xticks(places, labels, fontsize=SMALL)
