"""What all pictures share: their paper, their words for time, their legend.

matplotlib is used without pyplot, which keeps global state and is not safe in threads.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import epochs
from lightning_deadkernel.report.states import COLOURS, WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
WIDTH = 7.2
"""Inches. TensorBoard's cards are 350 pixels wide: half of this, so that titles can still be read."""
SMALL, MEDIUM, LARGE = 8.5, 10.0, 13.0
"""Font sizes in points."""
_BOLD_EM, _EM = 0.62, 0.58
"""Mean width of a letter in font sizes."""
GREY, GRID, PALE = "#5A6670", "#E8ECEF", "#C9D1D6"
GOOD, LINE, FAINT, BAND = "#009E73", "#0072B2", "#56B4E9", "#E69F00"
"""Colours of lines and bands that stand for no state."""


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=None, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def one_axes(height: float, title: str, below: str, left: float, right: float = 0.25, bottom: float = 0.6) -> Axes:
    """A figure with one axes. Margins are in inches, so that they hold whatever the figure's height.

    Args:
        height: of the axes.
        title: the finding.
        below: what it rests on; written under the title.
        left: margin.
        right: margin.
        bottom: margin.

    """
    top = title_height(title, below) + 0.24
    figure = new_figure(height + top + bottom)
    total = height + top + bottom
    axes = figure.add_axes((left / WIDTH, bottom / total, (WIDTH - left - right) / WIDTH, height / total))
    write_title(figure, title, below)
    plain(axes)
    return axes


def wrapped(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Text broken so that it fits into `width` inches at `size` points."""
    return textwrap.wrap(text, int((width - 0.25) * 72 / ((_BOLD_EM if bold else _EM) * size))) or [""]


def title_height(title: str, below: str, width: float = WIDTH, size: float = LARGE) -> float:
    """Inches that a title and what is below it take."""
    large, small = wrapped(title, width, size, bold=True), wrapped(below, width, SMALL)
    return (len(large) * size + len(small) * SMALL) * 1.25 / 72 + 0.16


def write_title(figure: Figure, title: str, below: str, size: float = LARGE) -> None:
    """The finding in large letters, and under it small what it rests on."""
    width, height = figure.get_size_inches()
    large, small = wrapped(title, width, size, bold=True), wrapped(below, width, SMALL)
    left, top = 0.12 / width, 1 - 0.1 / height
    figure.suptitle("\n".join(large), x=left, y=top, ha="left", va="top", size=size, weight="bold", linespacing=1.15)
    under = top - (len(large) * size * 1.25 / 72 + 0.02) / height
    figure.text(left, under, "\n".join(small), ha="left", va="top", size=SMALL, color=GREY)


def figure_of(axes: Axes) -> Figure:
    """The figure that an axes is on."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def inches_of(axes: Axes) -> tuple[float, float]:
    """Width and height of an axes."""
    width, height = figure_of(axes).get_size_inches()
    place = axes.get_position()
    return place.width * width, place.height * height


def plain(axes: Axes) -> None:
    """No box, quiet ticks."""
    axes.set_title("", y=1.0)  # a fixed height: else every label is measured to keep the title clear of them
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=SMALL, color=GREY, labelcolor="black")


def as_written(figure: Figure) -> Figure:
    """Its texts without control characters, and dollars in them as dollars: names of layers are no formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        if not all(label.isprintable() for label in labels):  # they are set again from the axis when it is drawn
            axis.set_ticklabels(list(map(printable, labels)))
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    kept = io.BytesIO()
    figure.savefig(kept, format="png", dpi=DPI, pil_kwargs={"compress_level": 3})
    return kept.getvalue()


_LEFT_OUT = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_INKS = {
    "stroke: #000000": "stroke: currentColor",
    "stroke: #ffffff": "stroke: var(--paper)",
    GREY.lower(): "var(--soft)",
    GRID.lower(): "var(--line)",
    PALE.lower(): "var(--line)",
}
"""What stands for the ink and the paper -> the page's own, in the light and in the dark."""


def svg(figure: Figure, name: str) -> bytes:
    """The figure as SVG to be put into a page, whose ink and paper it takes: its text is text, its ground is clear.

    Args:
        figure: what is drawn.
        name: no other picture of the page has it.
    """
    from matplotlib import rc_context

    kept = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(kept, format="svg", transparent=True, metadata={"Date": None})
    text = kept.getvalue().decode()
    text = _LEFT_OUT.sub("", text[text.index("<svg") :])
    for drawn, own in _INKS.items():
        text = text.replace(drawn, own)
    return text.encode()


def finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to draw: not None, NaN or infinite."""
    return value is not None and math.isfinite(value)


def by_epoch(reports: Sequence[Report]) -> bool:
    """Windows are epochs: no two share one."""
    ends = [report.epoch for report in reports if report.window]
    return len(set(ends)) == len(ends)


def moment(reports: Sequence[Report], place: int) -> str:
    """A window in few words: ``"epoch 3"``, ``"step 1,200"``, ``"initialisation"``."""
    report = reports[place]
    if report.window == 0:
        return "initialisation"
    return epochs(report) if by_epoch(reports) else f"step {report.global_step:,}"


def times(reports: Sequence[Report]) -> tuple[str, list[str]]:
    """The name of the time axis, and each window's label on it."""
    named = by_epoch(reports)
    labels = [
        "init" if not report.window else f"{report.epoch if named else report.global_step:,}" for report in reports
    ]
    return ("epoch" if named else "global step"), labels


def basis(reports: Sequence[Report]) -> str:
    """What the last report rests on."""
    report = reports[-1]
    if report.audited is not None:
        return f"weights of {report.audited}; nothing was run"
    if not report.window:
        return "at initialisation, before the first optimizer step"
    samples = "unknown number of samples" if report.samples is None else f"{report.samples:,} samples"
    return f"{epochs(report)}, global step {report.global_step:,}, {samples} in this window"


def spaced(count: int, most: int) -> list[int]:
    """At most `most` places evenly among `count`, the last one always among them."""
    step = max(1, math.ceil(count / max(most, 1)))
    return list(range(count - 1, -1, -step))[::-1]


def state_legend(axes: Axes, words: Collection[str], zero_kernels: bool, **place: Any) -> None:
    """Patches for the words, in the palette's order, and the dot of zero kernels.

    Args:
        axes: to put it on.
        words: of states and flags; a mapping from any words to colours is taken as it is.
        zero_kernels: whether the dot is shown.
        place: options of matplotlib's legend.
    """
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = words if isinstance(words, Mapping) else {word: COLOURS[word] for word in WORDS if word in words}
    handles: list[Artist] = [
        Patch(facecolor=colour, edgecolor=GREY, linewidth=0.4, label=word) for word, colour in colours.items()
    ]
    if zero_kernels:
        handles.append(Line2D([], [], marker="o", color="black", markersize=3, linestyle="none", label="zero kernel"))
    axes.legend(handles=handles, fontsize=SMALL, frameon=False, handlelength=1.2, columnspacing=1.2, **place)
