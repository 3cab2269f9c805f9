"""Pictures of reports, for a look by hand. What there is to draw, `lightning_deadkernel.figures` says."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAW: dict[str, Callable[[Sequence[Any]], Figure | None]] = {}
"""Kind of picture -> what draws it of one report per window. Filled by the package that imports this one."""


class Plot(NamedTuple):
    """A picture, which a notebook's cell shows."""

    figure: Figure
    axes: Axes | list[Axes]
    """The one that is on the figure, or all."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.figure.savefig(png, format="png")
        return png.getvalue()


def plot(reports: Sequence[Any], kind: str) -> Plot:
    """One kind of picture, of one report per window, oldest first.

    Raises:
        ValueError: if there is no such kind, or no report, or the reports have nothing for it.
        ImportError: where matplotlib is not installed.
    """
    if not reports:
        raise ValueError("There is no report to draw: the first is made when a fit begins.")
    if kind not in DRAW:
        kinds = ", ".join(map(repr, DRAW)) or "those of lightning_deadkernel.figures, which is not imported"
        raise ValueError(f"Expected `kind` to be one of {kinds}, but got {kind!r}.")
    try:
        figure = DRAW[kind](reports)
        if figure is None:
            there = ", ".join(name for name, draw in DRAW.items() if draw(reports) is not None) or "none"
            why = "" if reports[-1].tensors else " (weights and images are in the latest report of a training alone)"
            raise ValueError(f"The report has nothing for the picture {kind!r}{why}; pictures that it has: {there}.")
    except ModuleNotFoundError as error:
        raise ImportError("Pictures need matplotlib: pip install 'lightning-deadkernel[plots]'.") from error
    axes = figure.axes
    return Plot(figure, axes[0] if len(axes) == 1 else axes)
