"""Which pictures there are: each registers itself, above the function that draws it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lightning_deadkernel.figures.canvas import as_written
from lightning_deadkernel.report.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = TypeVar("Draw", bound=Callable[..., Any])


@dataclass(frozen=True)
class Picture:
    """One kind of picture."""

    place: int
    """Among the others: in this order they are to be looked at."""
    draw: Callable[[Sequence[Report]], Figure | None]
    """Draws it of one report per window, oldest first; None where the reports have nothing for it."""

    @property
    def name(self) -> str:
        """Of its file and in its tag."""
        return self.draw.__name__

    @property
    def title(self) -> str:
        """Its name in words."""
        return self.name.replace("_", " ").capitalize()

    @property
    def description(self) -> str:
        """What it shows, in a sentence: the first of its docstring."""
        return " ".join((inspect.getdoc(self.draw) or "").split("\n\n")[0].split())


_FOUND: list[Picture] = []


def picture(place: int) -> Callable[[Draw], Draw]:
    """Registers a function ``(Sequence[Report]) -> Figure | None`` of this package as a picture."""

    def register(draw: Draw) -> Draw:
        @functools.wraps(draw)
        def drawn(*args: Any, **options: Any) -> Figure | None:
            figure: Figure | None = draw(*args, **options)
            return None if figure is None else as_written(figure)

        _FOUND.append(Picture(place, drawn))
        return cast("Draw", drawn)

    return register


def registered() -> dict[str, Picture]:
    """Every picture by name, in the order in which to look at them."""
    return {found.name: found for found in sorted(_FOUND, key=lambda found: found.place)}
