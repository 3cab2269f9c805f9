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
    Panel,
    inches_of,
    legend_height,
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

_MOST_ROWS = 40
_HARMLESS = [WORDS.index(word) for word in HARMLESS]
_GRAVE = [WORDS.index(word) for word in FAULTS if BY_NAME[word].gravity > BY_NAME["dormant"].gravity]
"""What a kernel comes back to life from."""


@dataclass(frozen=True)
class Life:
    """One layer's channels from window to window, as far as there is something to see."""

    layer: str
    rows: tuple[tuple[int, ...], ...]
    """The channels of each row: those that were the same in every window share one."""
    words: Any
    """(rows, windows) uint8 places in `WORDS`; `EMPTY` where the layer was not watched."""
    left_out: int
    """Channels beyond the last row."""
    healthy: int
    """Channels left out because nothing was ever wrong with them."""
    came_back: int
    """Channels that are well after something worse than being dormant."""


def life_of(reports: Sequence[Report], name: str) -> Life | None:
    """The channels of a layer that were ever unhealthy, the longest so first; None where none was.

    Channels that fire seldom are not: that comes and goes.
    """
    past = past_of(reports, name)
    channels = max((layer.channels for layer in past if layer is not None), default=0)
    words = np.full((channels, len(past)), EMPTY, np.uint8)
    for place, layer in enumerate(past):
        if layer is not None:
            words[:, place] = places_of(layer.codes)
    words[np.isin(words, _HARMLESS)] = _HARMLESS[0]
    bad = ~np.isin(words, [*_HARMLESS, EMPTY])
    order = np.argsort(-bad.sum(1), kind="stable")
    alike: dict[bytes, list[int]] = {}
    for channel in order[bad[order].any(1)]:
        alike.setdefault(words[channel].tobytes(), []).append(int(channel))
    rows = list(alike.values())[:_MOST_ROWS]
    if not rows:
        return None
    back = np.isin(words[:, :-1], _GRAVE).any(1) & np.isin(words[:, -1], _HARMLESS)
    shown = words[[row[0] for row in rows]]
    left_out = int(bad.any(1).sum()) - sum(map(len, rows))
    return Life(name, tuple(map(tuple, rows)), shown, left_out, int((~bad.any(1)).sum()), int(back.sum()))


def draw_life_lines(axes: Axes, reports: Sequence[Report], life: Life) -> None:
    """Channels as rows, windows as columns."""
    table, (rows, windows) = colour_table(), life.words.shape
    axes.imshow(table[life.words], extent=(-0.5, windows - 0.5, rows, 0), interpolation="nearest", aspect="auto")
    if windows <= 60:
        axes.vlines(np.arange(windows - 1) + 0.5, 0, rows, color="white", linewidth=0.7)
    axes.hlines(range(1, rows), -0.5, windows - 0.5, color="white", linewidth=0.7)
    name, labels = times(reports)
    at = spaced(windows, 12)
    axes.set_xticks(at, [labels[i] for i in at], fontsize=SMALL)
    axes.set_xlabel(name, fontsize=MEDIUM)
    named = spaced(rows, int(inches_of(axes)[1] * 72 / (SMALL * 1.15)))
    axes.set_yticks([i + 0.5 for i in named], [row_label(life.rows[i]) for i in named], fontsize=SMALL)
    axes.set_ylabel("channel", fontsize=MEDIUM)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def row_label(channels: Sequence[int]) -> str:
    """Which channels a row is about, in few letters."""
    return ", ".join(map(str, sorted(channels))) if len(channels) <= 3 else f"{len(channels):,} channels"


def life_note(life: Life) -> str:
    """What a row is, and what is left out."""
    notes = ["rows are channels" + ", those alike together" * any(len(row) > 1 for row in life.rows)]
    notes += [f"{life.left_out:,} more not shown"] if life.left_out else []
    return "; ".join(notes + ([f"{life.healthy:,} always healthy not shown"] if life.healthy else []))


def life_headline(reports: Sequence[Report], life: Life) -> str:
    """What the layer's kernels are now, since when, and how many came back."""
    text = layer_headline(reports, life.layer)
    return text + (f"; {life.came_back:,} came back to life" if life.came_back else "")


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


@picture(5)
def life_lines(reports: Sequence[Report]) -> Panel | None:
    """The worst layer's unhealthy channels from window to window: which died when, and which came back.

    None where nothing was ever wrong with one.
    """
    name = most_changed(reports)
    life = life_of(reports, name) if name is not None and reports[-1].window else None
    if life is None:
        return None
    height = min(max(0.6, 0.2 * len(life.rows)), 7.0)
    windows = reports[-1].window - reports[0].window + 1
    shown = "" if len(reports) == windows else f", {len(reports):,} of them shown"
    below = f"{windows:,} windows{shown}; {life_note(life)}"
    left = 0.5 + 0.073 * max(len(row_label(row)) for row in life.rows)

    words = [WORDS[place] for place in np.unique(life.words) if place != EMPTY]

    def draw(axes: Axes) -> None:
        draw_life_lines(axes, reports, life)
        state_legend(axes, words, 0.48)

    return Panel(life_headline(reports, life), below, height, draw, left, bottom=0.68 + legend_height(words, left))
