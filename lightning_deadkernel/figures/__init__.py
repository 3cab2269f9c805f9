"""The pictures: each answers one question about the kernels of a network, and its title says the answer.

A new picture is one file here, with one function ``(Sequence[Report]) -> Panel | None`` under `registry.picture`.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from lightning_deadkernel.figures.canvas import png, pngs, svg
from lightning_deadkernel.figures.registry import Picture, picture, registered
from lightning_deadkernel.report.plot import DRAW
from lightning_deadkernel.report.report import Report

__all__ = ["PICTURES", "Drawn", "Picture", "Report", "draw_all", "picture", "png", "why_none"]

if TYPE_CHECKING:
    from lightning_deadkernel.figures.canvas import Paper

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

PICTURES: dict[str, Picture] = registered()
"""Every picture by name, in the order in which to look at them."""
DRAW.update(PICTURES)


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
    papers: dict[str, Paper]
    """Name -> what was drawn: a figure, or the part of one."""

    def for_page(self) -> dict[str, bytes]:
        """Name -> SVG for a page; of a picture that cannot be one, PNG. The overview is not among them: what it says
        the page says, and its pictures are there.
        """
        made = {name: png for name, png in self.pictures.items() if name != "overview"}
        for name in made:
            with suppress(Exception):  # the PNG is there
                made[name] = svg(self.papers[name], name)
        return made


def draw_all(reports: Sequence[Report]) -> Drawn:
    """Every picture that the reports have something for, each drawn once; one that cannot be drawn costs itself alone.

    Args:
        reports: one report per window, oldest first; the last with its `tensors` for weights and kernels.

    """
    pictures: dict[str, bytes] = {}
    faults: dict[str, str] = {}
    papers: dict[str, Paper] = {}
    for name, draw in PICTURES.items() if reports else ():
        if name in papers:  # as a part of the overview
            continue
        try:
            figure = draw(reports)
            if figure is not None:
                drawn: dict[str, Paper] = {name: figure, **{str(part.get_label()): part for part in figure.subfigs}}
                pictures |= pngs(drawn)
                papers |= drawn
        except Exception as error:  # whatever it is, the other pictures have nothing to do with it
            faults[name] = f"{type(error).__name__}: {error}"
    return Drawn({name: pictures[name] for name in PICTURES if name in pictures}, faults, papers)
