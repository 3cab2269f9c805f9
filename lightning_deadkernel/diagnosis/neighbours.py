"""What stands behind a layer: whether the weights that read its dead channels are free, and which of them read nothing.

The weights on a dead kernel's channel get no gradient, and decay takes them to zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.records import Entangled, LayerReport, Neighbours
from lightning_deadkernel.report.text import count, number, ranges
from lightning_deadkernel.thresholds import Thresholds


def neighbours(layer: LayerWindow, layers: Mapping[str, LayerWindow]) -> Neighbours | None:
    """What a report says of it; None where no graph was seen.

    Args:
        layer: whose channels are read.
        layers: all of the window, by name.
    """
    if layer.excluded is not None:
        return None
    return Neighbours(layer.norm, layer.consumers or (), _entangled(layer, layers))


def _entangled(layer: LayerWindow, layers: Mapping[str, LayerWindow]) -> Entangled | None:
    if not layer.consumers:
        return "hidden"
    if layer.shared_statistics:
        return "statistics"
    for consumer in layer.consumers:
        reader = layers.get(consumer.layer)
        if consumer.slices is None or reader is None or reader.producers != (layer.name,):
            return "other inputs"
    if layer.used_elsewhere or any(layers[consumer.layer].used_elsewhere for consumer in layer.consumers):
        return "elsewhere"
    return None if layer.passes_zero else "not zero"


def with_cascades(window: Window, reports: Sequence[LayerReport], thresholds: Thresholds) -> tuple[LayerReport, ...]:
    """The reports, each with a note of its weights that read dead or zero kernels and are next to zero themselves.

    Of a file, which does not tell what reads what: of the inputs on which all weights are.
    """
    observed = {layer.name: layer for layer in window.layers}
    notes: dict[str, list[str]] = {name: [] for name in observed}
    for report in reports:
        gone = sorted({*report.dead, *report.zero_kernels})
        for link in observed[report.name].consumers or () if gone else ():
            reader = observed.get(link.layer)
            if reader is not None and reader.input_largest is not None:
                faded = _faded(reader.input_largest, {channel: link.inputs(channel) for channel in gone}, thresholds)
                what = f"{count(len(faded), 'dead or zero kernel')} of {report.name} ({ranges(sorted(faded))})"
                if faded:
                    notes[link.layer].append(
                        f"its weights that read {what} are next to zero, too ({_beside(reader.input_largest, faded)}):"
                        " they go with these"
                    )
    for layer in window.layers if window.audited else ():
        if layer.input_largest is not None and not notes[layer.name]:
            inputs = layer.input_largest
            faded = _faded(inputs, {place: [place] for place in range(len(inputs))}, thresholds)
            if faded:
                notes[layer.name].append(
                    f"its weights on {len(faded):,} of {count(len(inputs), 'input')} ({ranges(sorted(faded))}) are next"
                    f" to zero ({_beside(inputs, faded)}): what makes these may be dead, zero or not used"
                )
    return tuple(
        replace(report, note="; ".join(filter(None, (report.note, *more)))) if (more := notes[report.name]) else report
        for report in reports
    )


def _faded(largest: Tensor, inputs: dict[int, list[int]], thresholds: Thresholds) -> dict[int, float]:
    r"""Of channels that are read at some inputs, those whose weights are all next to zero -> the largest \|w\|."""
    line = thresholds.zero_kernel * float(largest.nan_to_num(nan=0.0, posinf=0.0).max()) if len(largest) else 0.0
    found = {channel: float(largest[places].max()) for channel, places in inputs.items() if places}
    return {channel: value for channel, value in found.items() if value < line}


def _beside(largest: Tensor, faded: dict[int, float]) -> str:
    return f"at most {number(max(faded.values()))} beside {number(float(largest.max()))}"
