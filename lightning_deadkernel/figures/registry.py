"""Which pictures there are: each registers itself, above the function that plans it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lightning_deadkernel.report.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plan(Protocol):
    """What is to be drawn, with all of its sizes."""

    def alone(self) -> Figure:
        """It on a figure of its own."""


@dataclass(frozen=True)
class Picture:
    """One kind of picture. Called, it draws the figure, or gives None where the reports have nothing for it."""

    place: int
    """Among the others: in this order they are to be looked at."""
    plan: Callable[[Sequence[Report]], Plan | None]
    """What it shows of one report per window, oldest first."""

    def __call__(self, reports: Sequence[Report]) -> Figure | None:
        """Draws it."""
        plan = self.plan(reports)
        return None if plan is None else plan.alone()

    @property
    def name(self) -> str:
        """Of its file and in its tag."""
        return self.plan.__name__


_FOUND: list[Picture] = []


def picture(place: int) -> Callable[[Callable[[Sequence[Report]], Plan | None]], Picture]:
    """Registers a function ``(Sequence[Report]) -> Plan | None`` of this package as a picture."""

    def register(plan: Callable[[Sequence[Report]], Plan | None]) -> Picture:
        _FOUND.append(Picture(place, plan))
        return _FOUND[-1]

    return register


def registered() -> dict[str, Picture]:
    """Every picture by name, in the order in which to look at them."""
    return {found.name: found for found in sorted(_FOUND, key=lambda found: found.place)}
