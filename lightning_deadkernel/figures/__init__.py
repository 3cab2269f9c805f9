"""The pictures: each answers one question about the kernels of a network, and its title says the answer.

A new picture is one file here, with one function ``(Sequence[Report]) -> Figure | None`` under `registry.picture`.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from lightning_deadkernel.figures.canvas import png, svg
from lightning_deadkernel.figures.registry import Picture, picture, registered
from lightning_deadkernel.report.plot import DRAW
from lightning_deadkernel.report.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "Drawn", "Picture", "Report", "draw_all", "picture", "png", "why_none"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

PICTURES: dict[str, Picture] = registered()
"""Every picture by name, in the order in which to look at them."""
DRAW.update({name: kind.draw for name, kind in PICTURES.items()})


def why_none() -> str | None:
    """Why no pictures can be drawn, in one line; None if they can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No pictures: matplotlib is not installed; pip install 'lightning-deadkernel[plots]' brings it."
    return None


class Drawn(NamedTuple):
    """What could be drawn, and what could not."""

    pictures: dict[str, bytes]
    """Name -> PNG file."""
    faults: dict[str, str]
    """Name -> what went wrong."""
    figures: dict[str, Figure]
    """Name -> what was drawn."""

    def for_page(self) -> dict[str, bytes]:
        """Name -> SVG for a page; of a picture that cannot be one, PNG."""
        made = dict(self.pictures)
        for name, figure in self.figures.items():
            with suppress(Exception):  # the PNG is there
                made[name] = svg(figure, name)
        return made


def draw_all(reports: Sequence[Report]) -> Drawn:
    """Every picture that the reports have something for; one that cannot be drawn costs itself alone.

    Args:
        reports: one report per window, oldest first; the last with its `tensors` for weights and kernels.

    """
    drawn = Drawn({}, {}, {})
    for name, kind in PICTURES.items() if reports else ():
        try:
            figure = kind.draw(reports)
            if figure is not None:
                drawn.pictures[name] = png(figure)
                drawn.figures[name] = figure
        except Exception as error:  # whatever it is, the other pictures have nothing to do with it
            drawn.faults[name] = f"{type(error).__name__}: {error}"
    return drawn
