"""The pictures: each answers one question about the kernels of a network, and its title says the answer.

A new picture is one function ``(Sequence[Report]) -> Figure | None`` in one file, and one line in `PICTURES`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lightning_deadkernel.figures.canvas import png
from lightning_deadkernel.figures.flow import gradient_flow, update_ratios
from lightning_deadkernel.figures.kernel_map import kernel_map
from lightning_deadkernel.figures.kernels import first_layer_kernels
from lightning_deadkernel.figures.life_lines import life_lines
from lightning_deadkernel.figures.overview import overview
from lightning_deadkernel.figures.weights import weights
from lightning_deadkernel.report.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "MOST_CHANNELS",
    "PICTURES",
    "draw_all",
    "first_layer_kernels",
    "gradient_flow",
    "kernel_map",
    "life_lines",
    "overview",
    "png",
    "update_ratios",
    "weights",
    "why_none",
]

MOST_CHANNELS = 20_000
"""Networks beyond this many kernels are drawn only when asked for: it takes seconds at a window's end."""

PICTURES: dict[str, Callable[[Sequence[Report]], Figure | None]] = {
    "overview": overview,
    "kernel_map": kernel_map,
    "life_lines": life_lines,
    "gradient_flow": gradient_flow,
    "update_ratios": update_ratios,
    "weights": weights,
    "first_layer_kernels": first_layer_kernels,
}
"""Every picture by name, in the order in which to look at them."""


def why_none(report: Report, asked: bool = False) -> str | None:
    """Why no pictures are drawn, in one line; None if they are.

    Args:
        report: any of the run's reports.
        asked: pictures were asked for, however large the network is.

    """
    if importlib.util.find_spec("matplotlib") is None:
        return "No pictures: matplotlib is not installed; pip install 'lightning-deadkernel[plots]' brings it."
    if report.channels > MOST_CHANNELS and not asked:
        return (
            f"No pictures during training: the network has {report.channels:,} kernels, and drawing more than "
            f"{MOST_CHANNELS:,} would hold it up."
        )
    return None


def draw_all(reports: Sequence[Report]) -> dict[str, Figure]:
    """Every picture that the reports have something for, by name.

    Args:
        reports: one report per window, oldest first; the last with its `tensors` for weights and kernels.

    """
    drawn = {name: draw(reports) for name, draw in PICTURES.items()} if reports else {}
    return {name: figure for name, figure in drawn.items() if figure is not None}
