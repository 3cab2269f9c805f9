"""The first convolution's kernels, as the images they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_deadkernel.figures.canvas import SMALL, WIDTH, basis, figure_of, one_axes, state_legend
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import HARMLESS, layer_headline, unhealthy, words_of
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_KERNELS = 96
_COLUMNS = 16
_NUMBER = 0.17
"""Inches for the number under each."""


def as_image(kernel: Tensor, largest: float) -> np.ndarray[Any, Any]:
    """(I, H, W) weights to an (H, W, 3) or (H, W) image in [0, 1], where 0.5 is a weight of zero.

    Three inputs are shown as red, green and blue; of any other number the mean over the inputs is shown.
    """
    scaled = (0.5 + kernel.detach().float().nan_to_num() / (2 * largest or 1.0)).clamp(0, 1)
    if scaled.shape[0] == 3:
        return np.asarray(scaled.permute(1, 2, 0))
    return np.asarray(scaled.mean(0))


def kernels_headline(reports: Sequence[Report], layer: LayerReport) -> str:
    """Which of them are at fault or zero."""
    zero = f"{len(layer.zero_kernels):,} zero" if layer.zero_kernels else ""
    if unhealthy(layer)[1]:
        return layer_headline(reports, layer.name) + (f", {zero}" if zero else "")
    if zero:
        return f"{layer.name}: {len(layer.zero_kernels):,} of {layer.channels:,} kernels zero"
    return f"{layer.name}: the {layer.channels:,} kernels that see the input, none dead, none zero"


@picture(6)
def first_layer_kernels(reports: Sequence[Report]) -> Figure | None:
    """The first convolution's kernels, those at fault framed in their state's colour; None where there is none."""
    from matplotlib.patches import Rectangle

    report = reports[-1]
    tensors = report.tensors
    if tensors is None or tensors.first_kernels is None or tensors.first_layer is None:
        return None
    layer = next((layer for layer in report.watched if layer.name == tensors.first_layer), None)
    if layer is None or len(tensors.first_kernels) != layer.channels:
        return None
    words, kernels, zeros = words_of(layer), tensors.first_kernels, set(layer.zero_kernels)
    order = sorted(range(len(words)), key=lambda c: c not in zeros and words[c] in HARMLESS)
    shown = sorted(order[:_MOST_KERNELS])
    columns = min(_COLUMNS, max(8, math.ceil(math.sqrt(2 * len(shown)))))
    rows = math.ceil(len(shown) / columns)
    cell = (WIDTH - 0.4) / columns
    note = basis(reports) + ("; red, green, blue as in the input" if kernels.shape[1] == 3 else "")
    if kernels.shape[1] not in (1, 3):
        note += f"; mean over {kernels.shape[1]} inputs"
    if len(shown) < len(words):
        note += f"; {len(shown):,} of {len(words):,} shown"
    title = kernels_headline(reports, layer)
    axes = one_axes(rows * (cell + _NUMBER), title, note, 0.2, 0.2, 0.4)
    # the unit of both axes is an inch, so that kernels are square
    axes.set(xlim=(0, columns * cell), ylim=(rows * (cell + _NUMBER), 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    largest = float(kernels.abs().nan_to_num(posinf=0).max())
    framed = set()
    for place, channel in enumerate(shown):
        row, column = divmod(place, columns)
        left, top, size = (column + 0.07) * cell, row * (cell + _NUMBER), cell * 0.86
        image = as_image(kernels[channel], largest)
        extent = (left, left + size, top + size, top)
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent, aspect="auto")
        fault, zero = words[channel] not in HARMLESS, channel in zeros
        colour = COLOURS[words[channel]] if fault else "black" if zero else "#C9D1D6"
        width = 3.5 if fault or zero else 0.6
        axes.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor=colour, linewidth=width))
        label, weight = f"{channel} zero" if zero else str(channel), "bold" if fault or zero else "normal"
        axes.text(left + size / 2, top + size + 0.03, label, fontsize=SMALL - 1, ha="center", va="top", weight=weight)
        framed |= {words[channel]} if fault else set()
    axes.set(xlim=(0, columns * cell), ylim=(rows * (cell + _NUMBER), 0))
    if framed:
        state_legend(axes, sorted(framed), False, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0.2, ncols=8)
    return figure_of(axes)
