"""What would be saved if the channels went whose output is zero for every input seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.records import LayerReport, Savings


def _removable(layer: LayerWindow, report: LayerReport, seen: bool) -> Tensor:
    """(C,) bool: what leaves the channel is zero for every input seen, so that nothing changes when it goes.

    `seen` says whether a graph was: before, the depth of a layer is not known. A zero kernel alone is not enough: with
    a positive shift it hands on a constant, which must be folded into the consumer first, and as long as a gradient
    reaches it, it may yet learn. Nor is a dead one, whose activation hands on 0, if what follows makes a constant of it
    or if it holds down a sum with something else, which may be no layer.
    """
    removable = torch.zeros(layer.channels, dtype=torch.bool)
    if layer.excluded is not None or (seen and layer.depth == 0 and not layer.consumers):
        return removable  # an output unit stands for something, whatever its value
    if not (report.dead or report.zero_kernels):
        return removable
    if layer.passes_zero and layer.joined is None:
        removable[report.dead] = True
    nothing = torch.zeros(layer.channels, dtype=torch.bool)
    if layer.largest is not None and layer.norm_scale is None:
        nothing |= layer.largest == 0
    if layer.norm_scale is not None:
        nothing |= layer.norm_scale == 0
    if layer.shift is not None:
        nothing &= layer.shift == 0
    if layer.shared_statistics or not layer.stays_zero:  # what is zero there counts in the mean of the others
        return removable
    some, none = layer.gradient_seen
    return removable | (nothing & none & ~some)


def savings(window: Window, layers: Sequence[LayerReport]) -> Savings:
    """What would be saved if the channels went whose output is zero, with what their consumers hold for them.

    Consumers that add several layers up hold one slice for all of them, which goes only if the channel is removable in
    each. Where a consumer's channel goes as well, what both share is counted once.
    """
    reports = {report.name: report for report in layers}
    observed = {layer.name: layer for layer in window.layers}
    removable = {
        layer.name: _removable(layer, reports[layer.name], window.index > 0 or window.audited)
        for layer in window.layers
    }
    channels, parameters, bytes_, unknown = 0, 0.0, 0.0, []
    slices: dict[str, float] = {}
    for layer in window.layers:
        gone = removable[layer.name]
        count = int(gone.sum())
        if not count:
            continue
        channels += count
        own = layer.parameters * count / layer.channels
        parameters, bytes_ = parameters + own, bytes_ + own * layer.bytes_per_parameter
        if layer.consumers is None:
            unknown.append(layer.name)
        for consumer in layer.consumers or ():
            freed = _freed(layer.name, consumer.layer, observed, removable)
            if freed is None:
                unknown.append(layer.name)
            else:
                slices[consumer.layer] = slices.get(consumer.layer, 0.0) + freed * consumer.parameters_per_channel
    for name, freed in slices.items():
        kept = 1.0 - float(removable[name].float().mean())
        parameters, bytes_ = parameters + freed * kept, bytes_ + freed * kept * observed[name].bytes_per_parameter
    return Savings(channels, round(parameters), round(bytes_), tuple(dict.fromkeys(unknown)))


def _freed(
    producer: str, consumer: str, observed: dict[str, LayerWindow], removable: dict[str, Tensor]
) -> float | None:
    """Slices of the consumer that go with the producer's channels; None where the graph does not tell."""
    reader = observed.get(consumer)
    if reader is None or reader.producers is None or producer not in reader.producers:
        return None
    inputs = [observed[name] for name in reader.producers if name in observed]
    if len(inputs) != len(reader.producers):
        return None
    widths = [
        link.parameters_per_channel * layer.channels
        for layer in inputs
        for link in layer.consumers or ()
        if link.layer == consumer
    ]
    if len(inputs) == 1 or sum(widths) <= reader.parameters:  # alone, or side by side
        return float(removable[producer].sum())
    shapes = {layer.channels for layer in inputs}
    if len(shapes) != 1:
        return None
    together = torch.stack([removable[layer.name] for layer in inputs]).all(0)
    return float(together.sum()) / len(inputs)  # summed up: each of the inputs brings its share of the one slice
