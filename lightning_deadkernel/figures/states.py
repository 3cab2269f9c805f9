"""Which kernels are what: the map of all of them now, and one layer's life from window to window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_deadkernel.figures.canvas import (
    GREY,
    MEDIUM,
    SMALL,
    WIDTH,
    basis,
    moment,
    one_axes,
    short,
    spaced,
    state_legend,
    times,
)
from lightning_deadkernel.figures.titles import (
    past_of,
    sick_channels,
    state_headline,
    worst_layer,
)
from lightning_deadkernel.palette import COLOURS, WORD_OF_CODE, WORDS
from lightning_deadkernel.report import ZERO_KERNEL, LayerReport, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, Any]

EMPTY = len(WORDS)
"""Place of the paper's colour, after all words."""
_SERIOUSNESS = [
    ("active", "rare", "excluded", "silent", "dormant", "zero-gradient", "frozen", "starved", "saturated", "dead").index(
        word
    )
    for word in WORDS
]
_COLUMNS = (32, 64, 128, 256)
_MOST_LINES = 70
_LINE = 0.115
"""Inches per line of cells where there are many."""
_LONE_LINE = 0.28
"""Inches per line of cells at most."""
_GAP = 0.6
"""Lines between two layers, up to..."""
_MOST_SPACED = 70
"""...this many layers."""
_MOST_CHANNELS_IN_LIFE = 64


def colour_table() -> Array:
    """(words + 1, 3) uint8 colours by a word's place; the last is the paper's."""
    from matplotlib.colors import to_rgb

    return (np.array([to_rgb(COLOURS[word]) for word in WORDS] + [(1, 1, 1)]) * 255).round().astype(np.uint8)


def _places(codes: bytes) -> Array:
    return np.frombuffer(codes.translate(WORD_OF_CODE), np.uint8)


def gravest(places: Array, size: int) -> Array:
    """(C,) words' places to one per `size` neighbours: the gravest among them."""
    if size == 1:
        return places
    padded = np.pad(places, (0, -len(places) % size), mode="edge")
    grave = np.array(_SERIOUSNESS)[padded].reshape(-1, size)
    return np.array([_SERIOUSNESS.index(n) for n in range(len(WORDS))], np.uint8)[grave.max(1)]


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
        places = gravest(_places(layer.codes), layout.bin_size)
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
    """Names at the left and counts at the right, those of sick layers in any case, others where there is room."""
    middles = [start + lines / 2 for start, lines in zip(layout.starts, layout.lines, strict=True)]
    inches = axes.get_position().height * axes.figure.get_size_inches()[1] / layout.total
    least = SMALL / 72 * 0.95 / inches
    order = sorted(range(len(layers)), key=lambda i: not sick_channels(layers[i])[1])
    named: list[int] = []
    for i in order:
        if all(abs(middles[i] - middles[other]) >= least for other in named):
            named.append(i)
    axes.set_yticks([middles[i] for i in named], [short(layers[i].name) for i in named], fontsize=SMALL)
    for i in named:
        word, sick = sick_channels(layers[i])
        said = f"{len(sick):,} of {layers[i].channels:,} {word}" if sick else f"{layers[i].channels:,}"
        axes.text(
            layout.columns * 1.008,
            middles[i],
            said,
            fontsize=SMALL,
            va="center",
            color="black" if sick else GREY,
            weight="bold" if sick else "normal",
        )


def map_height(report: Report) -> float:
    """Inches that the cells take."""
    total = map_layout([layer.channels for layer in report.watched]).total
    return max(min(total * _LONE_LINE, 3.0), total * _LINE)


def kernel_map(reports: Sequence[Report]) -> Figure | None:
    """Every watched kernel of the last report as a cell, layers in forward order; None if nothing is watched."""
    report = reports[-1]
    if not report.watched:
        return None
    left = 0.3 + 0.068 * max(len(short(layer.name)) for layer in report.watched)
    axes = one_axes(map_height(report), state_headline(reports), basis(reports) + map_note(report), left, 1.55, 0.5)
    shown = draw_kernel_map(axes, report)
    map_legend(axes, shown, any(layer.zero_kernels for layer in report.watched))
    return axes.figure  # type: ignore[return-value]


def map_note(report: Report) -> str:
    """How wide layers are shown, and what is not."""
    layout = map_layout([layer.channels for layer in report.watched])
    note = "" if layout.bin_size == 1 else f"; each cell is the gravest of {layout.bin_size} neighbouring kernels"
    if max(layout.lines) > 1:
        note += f"; {layout.columns} cells a line"
    left_out = len(report.layers) - len(report.watched)
    return note + (f"; {left_out:,} layer{'s' * (left_out > 1)} not watched" if left_out else "")


def map_legend(axes: Axes, shown: set[str], zero_kernels: bool) -> None:
    """The words shown, and the dot."""
    bottom = -0.1 / (axes.get_position().height * axes.figure.get_size_inches()[1])
    place = {"loc": "upper left", "bbox_to_anchor": (-0.005, bottom), "borderaxespad": 0, "ncols": 8}
    state_legend(axes, sorted(shown), **place)
    if zero_kernels:
        from matplotlib.lines import Line2D

        legend = axes.get_legend()
        handles = [*legend.legend_handles, Line2D([], [], marker="o", color="black", markersize=3, linestyle="none")]
        labels = [*(text.get_text() for text in legend.get_texts()), "zero kernel"]
        axes.legend(handles, labels, fontsize=SMALL, frameon=False, handlelength=1.2, columnspacing=1.2, **place)


@dataclass(frozen=True)
class Life:
    """One layer's channels from window to window."""

    layer: str
    channels: tuple[int, ...]
    """The channels shown, one per row."""
    always_active: int
    """Channels left out, because they were active in every window."""
    words: Any
    """(rows, windows) uint8 places in `WORDS`; `EMPTY` where the layer was not watched."""


def life_of(reports: Sequence[Report], name: str) -> Life:
    """All channels of a narrow layer; of a wide one those that were ever anything but active, the longest ill first."""
    past = past_of(reports, name)
    channels = max(layer.channels for layer in past if layer is not None)
    words = np.full((channels, len(past)), EMPTY, np.uint8)
    for place, layer in enumerate(past):
        if layer is not None:
            words[:, place] = _places(layer.codes)
    if channels <= _MOST_CHANNELS_IN_LIFE:
        return Life(name, tuple(range(channels)), 0, words)
    harmless = [WORDS.index("active"), WORDS.index("rare"), EMPTY]
    ill = ~np.isin(words, harmless)
    rows = np.flatnonzero(ill.any(1))
    rows = rows[np.argsort(-ill[rows].sum(1), kind="stable")]
    return Life(name, tuple(int(row) for row in rows), channels - len(rows), words[rows])


def draw_life_lines(axes: Axes, reports: Sequence[Report], life: Life) -> set[str]:
    """Channels as rows, windows as columns. Gives the words that were shown."""
    table, (rows, windows) = colour_table(), life.words.shape
    axes.imshow(table[life.words], extent=(-0.5, windows - 0.5, rows, 0), interpolation="nearest", aspect="auto")
    if windows <= 60:
        axes.vlines(np.arange(windows - 1) + 0.5, 0, rows, color="white", linewidth=0.7)
    if rows <= 64:
        axes.hlines(range(1, rows), -0.5, windows - 0.5, color="white", linewidth=0.7)
    name, labels = times(reports)
    at = spaced(windows, 12)
    axes.set_xticks(at, [labels[i] for i in at], fontsize=SMALL)
    axes.set_xlabel(name, fontsize=MEDIUM)
    inches = axes.get_position().height * axes.figure.get_size_inches()[1]
    numbered = spaced(rows, int(inches * 72 / (SMALL * 1.15)))
    axes.set_yticks([i + 0.5 for i in numbered], [str(life.channels[i]) for i in numbered], fontsize=SMALL)
    axes.set_ylabel("channel", fontsize=MEDIUM)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return {WORDS[place] for place in np.unique(life.words) if place != EMPTY}


def life_note(life: Life) -> str:
    """What is left out."""
    if not life.always_active:
        return ""
    return f"{life.always_active:,} channel{'s' * (life.always_active > 1)} never ill, not shown"


def life_headline(reports: Sequence[Report], life: Life) -> str:
    """Which died when, and which came back."""
    ill = [WORDS.index(word) for word in ("dead", "saturated", "starved", "frozen", "zero-gradient")]
    now = np.isin(life.words[:, -1], ill)
    before = np.isin(life.words[:, :-1], ill).any(1)
    back = int((before & ~now & (life.words[:, -1] != EMPTY)).sum())
    total = len(life.channels) + life.always_active
    if not now.any():
        said = f"{life.layer}: all {total:,} kernels alive"
    else:
        word = WORDS[int(np.bincount(life.words[now, -1]).argmax())]
        begins = [int(np.flatnonzero(~np.isin(row, ill))[-1:].sum() + (~np.isin(row, ill)).any()) for row in life.words[now]]
        latest = max(begins)
        said = f"{life.layer}: {int(now.sum()):,} of {total:,} kernels {word}, "
        if min(begins) == latest:
            said += "from the start" if latest <= 1 and not reports[0].window else f"all since {moment(reports, latest)}"
        else:
            said += f"the last of them since {moment(reports, latest)}"
    return said + (f"; {back:,} came back to life" if back else "")


def most_told(reports: Sequence[Report]) -> str | None:
    """The layer whose life is shown: the worst now, else the one with most changes of state, else the first."""
    worst = worst_layer(reports[-1])
    if worst is not None:
        return worst.name
    names = [layer.name for layer in reports[-1].watched]

    def changes(name: str) -> int:
        codes = [_places(layer.codes) for layer in past_of(reports[-20:], name) if layer is not None]
        return sum(int((a != b).sum()) for a, b in zip(codes, codes[1:], strict=False))

    return max(names, key=changes, default=None)


def life_lines(reports: Sequence[Report], layer: str | None = None) -> Figure | None:
    """One layer's channels from window to window; None if nothing is watched or there is nothing to tell.

    Args:
        reports: one per window.
        layer: its name; None: the layer with most to tell.

    """
    name = layer or most_told(reports)
    if name is None:
        return None
    life = life_of(reports, name)
    if not life.channels:
        return None
    height = min(max(1.6, 0.16 * len(life.channels)), 6.5)
    note = life_note(life)
    below = f"{len(reports):,} windows, channels as rows" + (f"; {note}" if note else "")
    axes = one_axes(height, life_headline(reports, life), below, 0.75, 0.25, 0.85)
    shown = draw_life_lines(axes, reports, life)
    bottom = -0.48 / height
    state_legend(axes, sorted(shown), loc="upper left", bbox_to_anchor=(-0.005, bottom), borderaxespad=0, ncols=8)
    return axes.figure  # type: ignore[return-value]


