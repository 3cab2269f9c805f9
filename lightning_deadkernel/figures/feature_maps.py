"""What a layer makes of one sample, map by map: which are dark on this sample only, and which on all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_deadkernel.figures.canvas import (
    MEDIUM,
    SMALL,
    basis,
    figure_of,
    inches_of,
    one_axes,
    spaced,
    state_legend,
)
from lightning_deadkernel.figures.cells import colour_table, places_of
from lightning_deadkernel.figures.tiles import MARGIN, MOST_TILES, Grid, Tile, draw_tiles
from lightning_deadkernel.figures.titles import HARMLESS, words_of
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.paths import ActivationRead
from lightning_deadkernel.graph.reader import GraphReader
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_UNITS = 128
_HIGHEST = 7.0
"""Inches."""


def plot_feature_maps(module: nn.Module, batch: Any, layer: str, report: Report, sample: int = 0) -> Figure:
    """The activations of one layer on a batch: "for this image, or for all of them?"

    A convolution's maps are shown for one sample beside its input; units of a sequence over its positions, and units
    of a vector over the samples of the batch. Maps that are dead in the report are framed in that colour; of one that
    is dark here, it is said on how many samples of the batch it fires.

    The module runs once, in evaluation mode and with autograd, whose graph is read as in training: nothing is
    registered on it, and its weights, buffers, gradients and mode stay as they are.

    Args:
        module: the network, on any device.
        batch: the input (N, *), or a sequence that begins with it, as loaders give it.
        layer: its name in the report.
        report: of the window that tells each kernel's state.
        sample: index in the batch.

    Raises:
        KeyError: if the report has no such layer; names the near ones.
        TypeError: if the batch does not begin with a tensor.
        ValueError: if no activation of this layer can be read; the message names those that can.
    """
    inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(f"Expected `batch` to be a tensor or to begin with one, but got {type(inputs).__name__}.")
    shown = report[layer]
    maps = activations_of(module, inputs, layer)
    if maps.shape[1] != shown.channels:
        raise ValueError(f"Expected {shown.channels} channels in {layer}, as in the report, but got {maps.shape[1]}.")
    if maps.ndim == 4:
        return _as_images(maps, inputs[sample], shown, report, sample)
    return _as_heat(maps, shown, report, sample)


def activations_of(module: nn.Module, inputs: Tensor, layer: str) -> Tensor:
    """(N, C, *) what follows a layer, as its graph shows it.

    Raises:
        ValueError: where none can be read.
    """
    mode = {part: part.training for part in module.modules()}
    like = next(module.parameters(), inputs)
    module.eval()
    try:
        with torch.enable_grad():
            made = module(inputs.to(like.device, like.dtype if inputs.is_floating_point() else None))
            tensors = [made] if isinstance(made, Tensor) else list(made.values() if isinstance(made, dict) else made)
            total = sum(part.sum() for part in tensors if isinstance(part, Tensor) and part.requires_grad)
            if not isinstance(total, Tensor):
                raise ValueError("Expected the module's output to depend on weights that are trained.")
            nodes, found, _ = GraphReader(LayerTable.of(module, None, None)).read(total.grad_fn)
            for names, read in found.reads:
                if layer in names:
                    activation = read.live(nodes[read.node])
                    saved = activation.saved_tensor(nodes[read.node])
                    return _by_channel(activation.output(saved), read).detach().float().cpu()
    finally:
        for part, training in mode.items():
            part.training = training
    readable = sorted({name for names, _ in found.reads for name in names})
    raise ValueError(f"Expected a layer whose activation can be read ({', '.join(readable)}), but got {layer!r}.")


def _by_channel(activation: Tensor, read: ActivationRead) -> Tensor:
    """(N, C, *): the channels' own axis in second place."""
    activation, at = read.laid_out(activation)
    places = [place for _, place in sorted(zip(read.part.channels, read.part.places, strict=True))]
    if read.part.is_cut:
        return activation[places].movedim(0, 1)
    shape = activation.shape
    split = activation.reshape(*shape[: at.axis], at.outer, at.size, at.inner, *shape[at.axis + 1 :])
    channels = split.movedim(at.axis + 1, 1)[:, places]
    return channels if at.outer * at.inner > 1 else channels.squeeze(at.axis + 2).squeeze(at.axis + 1)


def _headline(layer: LayerReport, dark: Sequence[bool], things: str, where: str) -> str:
    """How many are dark here, and how many of these on all samples of the window."""
    dead = set(layer.dead)
    here = [channel for channel, is_dark in enumerate(dark) if is_dark]
    if not here:
        return f"{layer.name}: none of {layer.channels:,} {things} is zero on {where}"
    always = sum(channel in dead for channel in here)
    zero = f"{layer.name}: {len(here):,} of {layer.channels:,} {things} are zero on {where}"
    return f"{zero}, {always:,} of them on all samples of the window"


def _as_images(maps: Tensor, image: Tensor, layer: LayerReport, report: Report, sample: int) -> Figure:
    """The input, then a map a channel; bright is the layer's largest activation on this sample."""
    fires = (maps > 0).flatten(2).any(2)
    words, dark = words_of(layer), (~fires[sample]).tolist()
    order = sorted(range(len(words)), key=lambda c: (words[c] in HARMLESS, not dark[c]))
    chosen = sorted(order[: MOST_TILES - 1])
    largest = float(maps[sample].nan_to_num(posinf=0).max()) or 1.0
    tiles = [Tile(_as_picture(image), "input", marked=True)]
    for channel in chosen:
        picture = (maps[sample, channel].nan_to_num() / largest).clamp(0, 1).numpy()
        label = f"{channel}\non {int(fires[:, channel].sum())} of {len(maps)}" if dark[channel] else f"{channel}\n"
        tiles.append(Tile(picture, label, words[channel]))
    grid = Grid.of(len(tiles), 10, 2)
    note = f"{basis([report])}; under maps that are zero: on how many samples of the batch they fire"
    if len(chosen) < len(words):
        note += f"; {len(chosen):,} of {len(words):,} shown"
    axes = one_axes(grid.height, _headline(layer, dark, "maps", "this sample"), note, MARGIN, MARGIN, 0.4)
    framed = draw_tiles(axes, tiles, grid)
    if framed:
        state_legend(axes, sorted(framed), False, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0.2, ncols=8)
    return figure_of(axes)


def _as_picture(image: Tensor) -> np.ndarray[Any, Any]:
    """An input (I, H, W), or of any other shape, as (H, W) or (H, W, 3) in [0, 1]."""
    pixels = image.detach().float().cpu().nan_to_num()
    low, high = float(pixels.min()), float(pixels.max())
    pixels = (pixels - low) / ((high - low) or 1.0)
    if pixels.ndim == 3:
        return np.asarray(pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(0))
    return np.asarray(pixels if pixels.ndim == 2 else pixels.reshape(1, -1))


def _as_heat(maps: Tensor, layer: LayerReport, report: Report, sample: int) -> Figure:
    """Units as rows, over the positions of one sample or over the samples, with each unit's state at the left."""
    sequence = maps.ndim > 2
    values = maps[sample].flatten(1) if sequence else maps[:64].T
    words = words_of(layer)
    order = sorted(range(len(words)), key=lambda unit: words[unit] in HARMLESS)
    chosen = sorted(order[:_MOST_UNITS])
    dark = (~(values > 0).any(1)).tolist()
    where = "this sample" if sequence else f"all {values.shape[1]} samples of this batch"
    note = basis([report]) + (f"; {len(chosen):,} of {len(words):,} units shown" if len(chosen) < len(words) else "")
    height = min(max(1.2, 0.13 * len(chosen)), _HIGHEST)
    axes = one_axes(height, _headline(layer, dark, "units", where), note, 0.75, 0.25, 0.85)
    picture, across = values[chosen].nan_to_num(posinf=0).numpy(), values.shape[1]
    largest = float(picture.max()) or 1.0
    extent = (0, across, len(chosen), 0)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=largest, extent=extent, interpolation="nearest", aspect="auto")
    strip = colour_table()[places_of(layer.codes)[chosen]][:, None]
    edge = -0.025 * across
    axes.imshow(strip, extent=(edge, 0, len(chosen), 0), interpolation="nearest", aspect="auto")
    axes.set(xlim=(edge, across), ylim=(len(chosen), 0))
    named = spaced(len(chosen), int(inches_of(axes)[1] * 72 / (SMALL * 1.15)))
    axes.set_yticks([row + 0.5 for row in named], [str(chosen[row]) for row in named], fontsize=SMALL)
    axes.set_ylabel("unit", fontsize=MEDIUM)
    axes.set_xlabel("position" if sequence else "sample", fontsize=MEDIUM)
    place = {"loc": "upper left", "bbox_to_anchor": (0, -0.48 / height), "borderaxespad": 0, "ncols": 8}
    state_legend(axes, sorted({words[unit] for unit in chosen}), False, **place)
    return figure_of(axes)
