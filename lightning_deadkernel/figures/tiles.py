"""Small images side by side, each in the frame of its kernel's state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_deadkernel.figures.canvas import PALE, SMALL, WIDTH, Panel, state_legend
from lightning_deadkernel.figures.titles import HARMLESS
from lightning_deadkernel.report.states import COLOURS, WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TILES = 96
_MARGIN = 0.2
"""Inches at the left and at the right of the tiles."""
_LABEL = 0.17
"""Inches per line of the label under each."""


@dataclass(frozen=True)
class Tile:
    """One image."""

    image: np.ndarray[Any, Any]
    """(H, W), or (H, W, 3), in [0, 1]."""
    label: str
    """Under it; each line as short as the tile is wide."""
    word: str = "active"
    """What its kernel is shown as, which colours its frame."""
    frame: str = ""
    """Colour of a frame that it is worth though its kernel is harmless."""


@dataclass(frozen=True)
class Grid:
    """Where tiles are. Sizes in inches."""

    count: int
    columns: int
    label_lines: int = 1

    @classmethod
    def of(cls, count: int, most_columns: int = 16, label_lines: int = 1) -> Grid:
        """As wide as high, or wider, for that many tiles."""
        return cls(count, min(most_columns, max(8, math.ceil(math.sqrt(2 * count)))), label_lines)

    @property
    def cell(self) -> float:
        """Width of a tile with what is around it."""
        return (WIDTH - 2 * _MARGIN) / self.columns

    @property
    def row(self) -> float:
        """Height of a row."""
        return self.cell + _LABEL * self.label_lines

    @property
    def height(self) -> float:
        """Height of all rows."""
        return math.ceil(self.count / self.columns) * self.row


def tiled(title: str, below: str, tiles: Sequence[Tile], grid: Grid, also: Mapping[str, str] | None = None) -> Panel:
    """Tiles under a title, and what the frames of some mean: their states, and `also` word -> colour."""
    faults = {tile.word for tile in tiles if tile.word not in HARMLESS}
    shown = {word: COLOURS[word] for word in WORDS if word in faults} | dict(also or {})

    def draw(axes: Axes) -> None:
        _draw_tiles(axes, tiles, grid)
        if shown:
            state_legend(axes, shown, 0.03)

    return Panel(title, below, grid.height, draw, _MARGIN, _MARGIN, 0.4)


def _draw_tiles(axes: Axes, tiles: Sequence[Tile], grid: Grid) -> None:
    """Row by row."""
    from matplotlib.patches import Rectangle

    axes.spines[:].set_visible(False)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, grid.columns)
        left, top, size = (column + 0.07) * grid.cell, row * grid.row, grid.cell * 0.86
        extent = (left, left + size, top + size, top)
        axes.imshow(tile.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent, aspect="auto")
        fault = tile.word not in HARMLESS
        colour = COLOURS[tile.word] if fault else tile.frame or PALE
        width = 3.5 if fault or tile.frame else 0.6
        axes.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor=colour, linewidth=width))
        weight = "bold" if fault or tile.frame else "normal"
        middle, below = left + size / 2, top + size + 0.03
        axes.text(middle, below, tile.label, fontsize=SMALL - 1, ha="center", va="top", weight=weight)
    # the unit of both axes is an inch, so that tiles are square
    axes.set(xlim=(0, grid.columns * grid.cell), ylim=(grid.height, 0), xticks=[], yticks=[])
