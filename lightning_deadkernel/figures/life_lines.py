"""One layer's kernels from window to window: which died when, and which came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_deadkernel.figures.canvas import (
    MEDIUM,
    SMALL,
    figure_of,
    inches_of,
    one_axes,
    spaced,
    state_legend,
    times,
)
from lightning_deadkernel.figures.cells import EMPTY, colour_table, places_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import FAULTS, HARMLESS, layer_headline, past_of, worst_layer
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import BY_NAME, WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CHANNELS_IN_LIFE = 64
_HARMLESS = [WORDS.index(word) for word in HARMLESS]
_GRAVE = [WORDS.index(word) for word in FAULTS if BY_NAME[word].gravity > BY_NAME["dormant"].gravity]
"""What a kernel comes back to life from."""


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
    """All channels of a narrow layer; of a wide one those that were ever unhealthy, the longest unhealthy first."""
    past = past_of(reports, name)
    channels = max(layer.channels for layer in past if layer is not None)
    words = np.full((channels, len(past)), EMPTY, np.uint8)
    for place, layer in enumerate(past):
        if layer is not None:
            words[:, place] = places_of(layer.codes)
    if channels <= _MOST_CHANNELS_IN_LIFE:
        return Life(name, tuple(range(channels)), 0, words)
    unhealthy = ~np.isin(words, [*_HARMLESS, EMPTY])
    rows = np.flatnonzero(unhealthy.any(1))
    rows = rows[np.argsort(-unhealthy[rows].sum(1), kind="stable")]
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
    inches = inches_of(axes)[1]
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
    return f"{life.always_active:,} channel{'s' * (life.always_active > 1)} never unhealthy, not shown"


def life_headline(reports: Sequence[Report], life: Life) -> str:
    """What the layer's kernels are now, since when, and how many came back."""
    back = np.isin(life.words[:, :-1], _GRAVE).any(1) & np.isin(life.words[:, -1], _HARMLESS)
    text = layer_headline(reports, life.layer)
    return text + (f"; {int(back.sum()):,} came back to life" if back.any() else "")


def most_changed(reports: Sequence[Report]) -> str | None:
    """The layer whose life is shown: the worst now, else the one with most changes of state, else the first."""
    worst = worst_layer(reports[-1])
    if worst is not None:
        return worst.name
    names = [layer.name for layer in reports[-1].watched]

    def changes(name: str) -> int:
        codes = [places_of(layer.codes) for layer in past_of(reports[-20:], name) if layer is not None]
        return sum(int((a != b).sum()) for a, b in pairwise(codes))

    return max(names, key=changes, default=None)


@picture(2)
def life_lines(reports: Sequence[Report], layer: str | None = None) -> Figure | None:
    """One layer's channels from window to window; None if nothing is watched or there is nothing to tell.

    Args:
        reports: one per window.
        layer: its name; None: the layer with most to tell.

    """
    name = layer or most_changed(reports)
    if name is None or not reports[-1].window:
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
    state_legend(
        axes, sorted(shown), False, loc="upper left", bbox_to_anchor=(-0.005, bottom), borderaxespad=0, ncols=8
    )
    return figure_of(axes)
