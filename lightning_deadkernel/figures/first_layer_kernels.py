"""The first convolution's kernels, as the images they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_deadkernel.figures.canvas import Panel, basis
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.tiles import MOST_TILES, Grid, Tile, tiled
from lightning_deadkernel.figures.titles import HARMLESS, layer_headline, unhealthy, words_of
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report


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


@picture(1)
def first_layer_kernels(reports: Sequence[Report]) -> Panel | None:
    """The first convolution's kernels, those at fault framed in their state's colour; None where there is none."""
    report = reports[-1]
    tensors = report.tensors
    if tensors is None or tensors.first_kernels is None or tensors.first_layer is None:
        return None
    layer = next((layer for layer in report.watched if layer.name == tensors.first_layer), None)
    if layer is None or len(tensors.first_kernels) != layer.channels:
        return None
    words, kernels, zeros = words_of(layer), tensors.first_kernels, set(layer.zero_kernels)
    order = sorted(range(len(words)), key=lambda c: c not in zeros and words[c] in HARMLESS)
    shown = sorted(order[:MOST_TILES])
    note = basis(reports) + ("; red, green, blue as in the input" if kernels.shape[1] == 3 else "")
    if kernels.shape[1] not in (1, 3):
        note += f"; mean over {kernels.shape[1]} inputs"
    if len(shown) < len(words):
        note += f"; {len(shown):,} of {len(words):,} shown"
    largest = float(kernels.abs().nan_to_num(posinf=0).max())
    tiles = [
        Tile(
            as_image(kernels[channel], largest),
            f"{channel} zero" if channel in zeros else str(channel),
            words[channel],
            frame="black" if channel in zeros else "",
        )
        for channel in shown
    ]
    return tiled(kernels_headline(reports, layer), note, tiles, Grid.of(len(tiles)))
