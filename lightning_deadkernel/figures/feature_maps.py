"""What a layer makes of one sample, map by map: which do not fire on this sample only, and which on none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_deadkernel.figures.canvas import (
    MEDIUM,
    SMALL,
    Panel,
    basis,
    inches_of,
    spaced,
    state_legend,
)
from lightning_deadkernel.figures.cells import colour_table, places_of
from lightning_deadkernel.figures.tiles import Grid, Tile, tiled
from lightning_deadkernel.figures.titles import HARMLESS, words_of
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader
from lightning_deadkernel.observation import FeatureMaps
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report, a_report
from lightning_deadkernel.report.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_MAPS, _COLUMNS = 63, 8
_ELSEWHERE = "#9AA5AC"
"""Frame of a map that does not fire on this sample, and does on others."""
_MOST_UNITS = 128
_HIGHEST = 7.0
"""Inches."""
_LONGEST_LABEL = 12
_NEVER = "never"
_NEVER_FIRE, _FIRE = {"dead", "silent"}, {"active", "starved"}
"""States of kernels that fired on no sample of the window, and of those that did on some."""

FiresOn = Callable[[int], str]
"""Channel -> on how many samples it fires, as far as that is known."""


def kept_layers(report: Report) -> list[str]:
    """The layers, in forward order, of which a live report has one sample's maps."""
    kept = report.tensors.feature_maps if report.tensors is not None else {}
    return [la.name for la in report.watched if la.name in kept and kept[la.name].maps.shape[1] == la.channels]


def draw_kept(report: Report, name: str) -> Panel:
    """A layer's maps of the sample that the window's last step saw."""
    assert report.tensors is not None
    layer = report[name]
    states, rates = layer.states, layer.sample_rate

    def fires_on(channel: int) -> str:
        rate = rates[channel]
        if layer.evidence == "activation" and states[channel] in _NEVER_FIRE:
            return _NEVER
        return _of_all(rate, layer.rated_samples) if rate is not None and layer.rated_samples else ""

    looked = f"the {layer.rated_samples:,} samples" if layer.rated_samples else "the samples"
    note = f"on how many of {looked} that were looked at they do"
    return _draw(report.tensors.feature_maps[name], layer, report, fires_on, note)


def _of_all(rate: float, samples: int) -> str:
    text = f"{round(rate * samples):,} of {samples:,}"
    return text if len(text) <= _LONGEST_LABEL else percent(rate)


def plot_feature_maps(module: nn.Module, batch: Any, layer: str, report: Report, sample: int = 0) -> Figure:
    """The activations of one layer on a batch: "for this image, or for all of them?"

    A convolution's maps are shown for one sample beside its input; units of a sequence over its positions, and units
    of a vector over the samples of the batch. Maps that are dead in the report are framed in that colour; of one that
    does not fire here, it is said on how many samples of the batch it does.

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
        TypeError: if the batch does not begin with a tensor, or the report is none.
        ValueError: if no activation of this layer can be read; the message names those that can.
    """
    inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(f"Expected `batch` to be a tensor or to begin with one, but got {type(inputs).__name__}.")
    shown = a_report(report)[layer]
    maps = activations_of(module, inputs, layer)
    if maps.shape[1] != shown.channels:
        raise ValueError(f"Expected {shown.channels} channels in {layer}, as in the report, but got {maps.shape[1]}.")
    fires = (maps > 0).flatten(2).any(2) if maps.ndim > 2 else maps > 0
    one = FeatureMaps(maps[sample : sample + 1] if maps.ndim > 2 else maps[:64], inputs[sample])
    note = "on how many samples of the batch they do"
    return _draw(one, shown, report, lambda c: f"{int(fires[:, c].sum()):,} of {len(maps):,}", note).alone()


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
                    return read.by_channel(activation.output(saved)).detach().float().cpu()
    finally:
        for part, training in mode.items():
            part.training = training
    readable = sorted({name for names, _ in found.reads for name in names})
    raise ValueError(f"Expected a layer whose activation can be read ({', '.join(readable)}), but got {layer!r}.")


# -- drawing -----------------------------------------------------------------------------------------------------------


def _draw(one: FeatureMaps, layer: LayerReport, report: Report, fires_on: FiresOn, note: str) -> Panel:
    maps = one.maps.amax(2) if one.maps.ndim == 5 else one.maps  # a volume as it is seen from above
    if maps.ndim == 4:
        return _as_images(maps[0], one.image, layer, report, fires_on, note)
    return _as_heat(maps, layer, report)


def _headline(layer: LayerReport, dark: Sequence[bool], things: str, where: str) -> str:
    """How many do not fire here, and how many of these on no sample of the window."""
    here = [channel for channel, is_dark in enumerate(dark) if is_dark]
    if not here:
        return f"{layer.name}: all {layer.channels:,} {things} fire on {where.replace('any of', 'some of')}"
    states = [state for state, is_dark in zip(layer.states, dark, strict=True) if is_dark]
    always = sum(state in _NEVER_FIRE for state in states)
    text = f"{layer.name}: {len(here):,} of {layer.channels:,} {things} do not fire on {where}"
    if layer.evidence != "activation":  # not every step was looked at
        return text
    if always == len(here):
        return f"{text}, nor on any other of the window"
    if always:
        return f"{text}, {always:,} of them on no sample of the window"
    return f"{text}, but each on others" if set(states) <= _FIRE else text


def _as_images(
    maps: Tensor, image: Tensor | None, layer: LayerReport, report: Report, fires_on: FiresOn, note: str
) -> Panel:
    """The input, then a map a channel; bright is the layer's largest activation on this sample."""
    words, dark = words_of(layer), (~(maps > 0).flatten(1).any(1)).tolist()
    order = sorted(range(len(words)), key=lambda c: (words[c] in HARMLESS, not dark[c]))
    chosen = sorted(order[:_MOST_MAPS])
    largest = float(maps.nan_to_num(posinf=0).max()) or 1.0
    tiles = [] if image is None else [Tile(_as_picture(image), "input\n", frame="black")]
    labels = {channel: fires_on(channel) if dark[channel] else "" for channel in chosen}
    for channel, label in labels.items():
        bright = (maps[channel].nan_to_num() / largest).clamp(0, 1).numpy()
        frame = _ELSEWHERE if dark[channel] else ""
        tiles.append(Tile(bright, f"{channel}\n{label}", words[channel], frame=frame))
    grid = Grid(len(tiles), _COLUMNS, 1 + any(dark))
    below = basis([report])
    if {*labels.values()} - {_NEVER, ""}:
        below += f"; under maps that do not fire here: {note}"
    if len(chosen) < len(words):
        below += f"; {len(chosen):,} of {len(words):,} shown"
    elsewhere = any(tile.frame == _ELSEWHERE and tile.word in HARMLESS for tile in tiles)
    also = {"fires on other samples": _ELSEWHERE} if elsewhere else None
    return tiled(_headline(layer, dark, "maps", "this sample"), below, tiles, grid, also)


def _as_picture(image: Tensor) -> np.ndarray[Any, Any]:
    """An input (I, H, W), or of any other shape, as (H, W) or (H, W, 3) in [0, 1]."""
    pixels = image.detach().float().cpu().nan_to_num()
    low, high = float(pixels.min()), float(pixels.max())
    pixels = (pixels - low) / ((high - low) or 1.0)
    if pixels.ndim == 3:
        return np.asarray(pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(0))
    return np.asarray(pixels if pixels.ndim == 2 else pixels.reshape(1, -1))


def _as_heat(maps: Tensor, layer: LayerReport, report: Report) -> Panel:
    """Units as rows, over the positions of one sample or over the samples, with each unit's state at the left."""
    sequence = maps.ndim > 2
    values = maps[0].flatten(1) if sequence else maps.T
    words = words_of(layer)
    order = sorted(range(len(words)), key=lambda unit: words[unit] in HARMLESS)
    chosen = sorted(order[:_MOST_UNITS])
    dark = (~(values > 0).any(1)).tolist()
    where = "this sample" if sequence else f"any of {values.shape[1]} samples of this batch"
    note = basis([report]) + (f"; {len(chosen):,} of {len(words):,} units shown" if len(chosen) < len(words) else "")
    height = min(max(1.2, 0.13 * len(chosen)), _HIGHEST)
    picture, across = values[chosen].nan_to_num(posinf=0).numpy(), values.shape[1]

    def draw(axes: Axes) -> None:
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
        state_legend(axes, {words[unit] for unit in chosen}, 0.48)

    return Panel(_headline(layer, dark, "units", where), note, height, draw, 0.75, bottom=0.85)
