"""What stands behind a layer, and whether the weights that read its dead channels are free."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_deadkernel.observation import LayerWindow
from lightning_deadkernel.report.records import Entangled, Neighbours


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
