"""What all pictures share: their paper, their words for time, their legend.

matplotlib is used without pyplot, which keeps global state and is not safe in threads. Past 300 lines because paper,
words and legends depend on one another's sizes.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import epochs
from lightning_deadkernel.report.states import COLOURS, WORDS
from lightning_deadkernel.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Paper: TypeAlias = "Figure | SubFigure"

DPI = 100
WIDTH = 5.8
"""Inches. TensorBoard's cards are 350 pixels wide: more than half of this, so that titles can still be read; two beside
each other at their own size are what a window of 1,600 pixels shows."""
SMALL, MEDIUM, LARGE = 8.5, 10.0, 11.5
"""Font sizes in points."""
_BOLD_EM, _EM = 0.62, 0.58
"""Mean width of a letter in font sizes."""
_AROUND = 3.2
"""Font sizes that a word's patch in a legend takes, with what parts it from others."""
_LONGEST = 80
"""Letters of a name in a title."""
ZERO_KERNEL = "zero kernel"
GREY, GRID, PALE = "#5A6670", "#E8ECEF", "#C9D1D6"
GOOD, LINE, FAINT, BAND = "#009E73", "#0072B2", "#56B4E9", "#E69F00"
"""Colours of lines and bands that stand for no state."""


def in_pixels(inches: float) -> float:
    """As many inches as make whole pixels, so that what is under it is drawn as if it were alone."""
    return math.ceil(inches * DPI) / DPI


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=None, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Panel:
    """One axes under a title, before it is drawn: it is a picture alone, and a part of a page. Sizes in inches."""

    title: str
    """The finding."""
    below: str
    """What it rests on; written under the title."""
    height: float
    """Of the axes."""
    draw: Callable[[Axes], object]
    left: float
    right: float = 0.25
    bottom: float = 0.6
    """Margins, which do not grow with the figure."""

    @property
    def total(self) -> float:
        """Height of all of it."""
        return in_pixels(title_height(self.title, self.below) + 0.24 + self.height + self.bottom)

    def draw_on(self, paper: Paper) -> None:
        """Draws it on a paper of its size."""
        inner = WIDTH - self.left - self.right
        axes = paper.add_axes(
            (self.left / WIDTH, self.bottom / self.total, inner / WIDTH, self.height / self.total), label=self.title
        )
        write_title(paper, self.title, self.below, (WIDTH, self.total))
        plain(axes)
        self.draw(axes)

    def alone(self) -> Figure:
        """It on a figure of its own."""
        figure = new_figure(self.total, WIDTH)
        with as_written(figure):
            self.draw_on(figure)
        return figure


def part_of(figure: Figure, name: str, left: float, top: float, height: float) -> SubFigure:
    """A part of a figure for one panel, in inches from the figure's top left."""
    from matplotlib.transforms import Bbox

    width, total = figure.get_size_inches()
    part: SubFigure = figure.subfigures(squeeze=False)[0, 0]
    part.bbox_relative.set(Bbox.from_bounds(left / width, 1 - (top + height) / total, WIDTH / width, height / total))
    part.set_label(name)
    return part


def wrapped(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Text broken so that it fits into `width` inches at `size` points; very long names are cut in their middle."""
    text = re.sub(rf"\S{{{_LONGEST + 1},}}", lambda name: shortened(name[0], _LONGEST), text)
    return textwrap.wrap(text, int((width - 0.25) * 72 / ((_BOLD_EM if bold else _EM) * size))) or [""]


def title_height(title: str, below: str, width: float = WIDTH, size: float = LARGE) -> float:
    """Inches that a title and what is below it take."""
    large, small = wrapped(title, width, size, bold=True), wrapped(below, width, SMALL)
    return (len(large) * size + len(small) * SMALL) * 1.25 / 72 + 0.16


def write_title(paper: Paper, title: str, below: str, inches: tuple[float, float], size: float = LARGE) -> None:
    """The finding in large letters, and under it small what it rests on.

    Args:
        paper: where.
        title: the finding.
        below: what it rests on.
        inches: width and height of the paper.
        size: of the title, in points.
    """
    width, height = inches
    large, small = wrapped(title, width, size, bold=True), wrapped(below, width, SMALL)
    left, top = 0.12 / width, 1 - 0.1 / height
    paper.suptitle("\n".join(large), x=left, y=top, ha="left", va="top", size=size, weight="bold", linespacing=1.15)
    under = top - (len(large) * size * 1.25 / 72 + 0.02) / height
    paper.text(left, under, "\n".join(small), ha="left", va="top", size=SMALL, color=GREY)


def inches_of(axes: Axes) -> tuple[float, float]:
    """Width and height of an axes."""
    return axes.bbox.width / DPI, axes.bbox.height / DPI


def plain(axes: Axes) -> None:
    """No box, quiet ticks."""
    axes.set_title("", y=1.0)  # a fixed height: else every label is measured to keep the title clear of them
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=SMALL, color=GREY, labelcolor="black")


Filled: TypeAlias = "tuple[Sequence[tuple[float, float]], str]"
"""The corners of a surface, in an axes' units, and its colour."""


def rectangle(left: float, bottom: float, width: float, height: float) -> list[tuple[float, float]]:
    """Its corners."""
    return [(left, bottom), (left + width, bottom), (left + width, bottom + height), (left, bottom + height)]


def fill(axes: Axes, surfaces: Sequence[Filled]) -> None:
    """Draws them as one: hundreds of patches of their own take seconds."""
    from matplotlib.collections import PolyCollection

    corners, colours = zip(*surfaces, strict=True) if surfaces else ((), ())
    axes.add_collection(PolyCollection(corners, facecolors=colours, linewidths=0), autolim=False)


def log_axis(axes: Axes, low: float, high: float, zero: bool) -> None:
    """An upright logarithmic axis; with `zero`, its lower end stands for that."""
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_ylim(low, high)
    near = low * (high / low) ** 0.08 if zero else 0.0  # where a number beside the axis would lie over the zero
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > near else "")
    if zero:
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate("0", (0, 0), (-7, 0), fontsize=SMALL, ha="right", va="center", **place)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


@contextmanager
def as_written(figure: Figure) -> Iterator[None]:
    """What is drawn within has texts without control characters, and dollars in them are dollars: names of layers are
    no formulas.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    with rc_context({"text.parse_math": False}):
        yield
        for text in figure.findobj(Text):
            text.set_text("\n".join(map(printable, text.get_text().split("\n"))))


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return pngs({"": figure})[""]


def pngs(papers: Mapping[str, Paper]) -> dict[str, bytes]:
    """PNG files of a figure and of parts of it, which is drawn once."""
    from PIL import Image

    canvas: Any = next(iter(papers.values())).get_figure(root=True).canvas  # of Agg, as every `new_figure` has it
    canvas.draw()
    page = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    files = {}
    for name, paper in papers.items():
        left, bottom, right, top = map(round, paper.bbox.extents)
        kept = io.BytesIO()
        box = (left, max(page.height - top, 0), min(right, page.width), page.height - bottom)
        page.crop(box).save(kept, "png", compress_level=3)
        files[name] = kept.getvalue()
    return files


_LEFT_OUT = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_INKS = {
    "stroke: #000000": "stroke: currentColor",
    "stroke: #ffffff": "stroke: var(--paper)",
    GREY.lower(): "var(--soft)",
    GRID.lower(): "var(--line)",
    PALE.lower(): "var(--line)",
}
"""What stands for the ink and the paper -> the page's own, in the light and in the dark."""


def svg(paper: Paper, name: str) -> bytes:
    """A figure or a part of it as SVG to be put into a page, whose ink and paper it takes: its text is text, its ground
    is clear.

    Args:
        paper: what is drawn.
        name: no other picture of the page has it.
    """
    from matplotlib import rc_context

    figure, kept = paper.get_figure(root=True), io.BytesIO()
    others = [] if paper is figure else [part for part in figure.get_children() if part is not paper]
    box = paper.bbox.transformed(figure.dpi_scale_trans.inverted()) if others else None
    for part in others:
        part.set_visible(False)
    try:
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": "DejaVu Sans"}):
            figure.savefig(kept, format="svg", transparent=True, bbox_inches=box, metadata={"Date": None})
    finally:
        for part in others:
            part.set_visible(True)
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


def _legend_rows(words: Sequence[str], room: float) -> int:
    """Lines of a legend that has so many inches beside each other."""
    inches = [(len(word) * _EM + _AROUND) * SMALL / 72 for word in words]
    rows = 1
    while rows < len(words) and sum(max(inches[at : at + rows]) for at in range(0, len(words), rows)) > room:
        rows += 1
    return rows


def legend_height(words: Sequence[str], left: float) -> float:
    """Inches that a legend takes which begins so many inches from the left of a picture."""
    return 0.17 * _legend_rows(words, WIDTH - left)


def state_legend(axes: Axes, words: Collection[str], below: float, zero_kernels: bool = False) -> None:
    """Patches for the words, in the palette's order, and the dot of zero kernels.

    Args:
        axes: under which it stands.
        words: of states and flags; a mapping from any words to colours is taken as it is.
        below: inches from the axes.
        zero_kernels: whether the dot is shown.
    """
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = words if isinstance(words, Mapping) else {word: COLOURS[word] for word in WORDS if word in words}
    handles: list[Artist] = [
        Patch(facecolor=colour, edgecolor=GREY, linewidth=0.4, label=word) for word, colour in colours.items()
    ]
    if zero_kernels:
        handles.append(Line2D([], [], marker="o", color="black", markersize=3, linestyle="none", label=ZERO_KERNEL))
    room = (axes.get_figure(root=False).bbox.x1 - axes.bbox.x0) / DPI  # type: ignore[union-attr]
    rows = _legend_rows([*colours, *[ZERO_KERNEL] * zero_kernels], room)
    axes.legend(
        handles=handles,
        fontsize=SMALL,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
        loc="upper left",
        bbox_to_anchor=(-0.005, -below / inches_of(axes)[1]),
        borderaxespad=0,
        ncols=math.ceil(len(handles) / rows),
    )
