"""The table of ops: what each takes, what options it draws, and how it is run.

A value has one of four forms, told by its shape's meaning: *flat* (N, C), *rows* (N, T, C), *line* (N, C, L) and
*map* (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor

Draw = Callable[[Random, Tensor], dict[str, Any]]

ALL = "flat rows line map"


@dataclass(frozen=True)
class Spec:
    """One op."""

    run: Callable[..., Tensor]
    """(network, op, *values) -> the value it makes, or a term of the loss."""
    group: str
    forms: tuple[str, ...]
    """Forms of its first value; others have the same."""
    to: str | None
    """Form of what it makes; None: that of its first value."""
    values: int
    draw: Draw
    weight: float


OPS: dict[str, Spec] = {}


def _nothing(random: Random, x: Tensor) -> dict[str, Any]:
    return {}


def op(
    group: str,
    forms: str,
    to: str | None = None,
    values: int = 1,
    draw: Draw = _nothing,
    weight: float = 1.0,
    name: str | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Registers a function as the op of its name."""

    def register(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        OPS[name or run.__name__.rstrip("_")] = Spec(run, group, tuple(forms.split()), to, values, draw, weight)
        return run

    return register


def channel_axis(x: Tensor) -> int:
    """Where an op on halves of the channels cuts; of a line, its positions."""
    return 1 if x.ndim == 4 else -1


def width(random: Random, x: Tensor) -> dict[str, Any]:
    """How many channels a layer has."""
    return {"width": random.randint(3, 6)}


def used_before(random: Random, x: Tensor) -> dict[str, Any]:
    """The layer whose module or weight is used again; the generator picks it."""
    return {"layer": None}
