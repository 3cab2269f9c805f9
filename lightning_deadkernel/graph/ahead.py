"""What a gradient passes on its way back to a layer: layers without a norm, and activations with flat ends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lightning_deadkernel.graph.ops import NORMS, RECURRENCES
from lightning_deadkernel.graph.topology import Topology


@dataclass(frozen=True)
class Ahead:
    """What lies between a value and the loss: the fewest of all paths, since a gradient takes each of them."""

    plain: int = 0
    """Layers that no norm follows before the next layer."""
    bounded: int = 0
    """Activations with flat ends."""

    def least(self, other: Ahead | None) -> Ahead:
        """What lies ahead where a gradient may take this way or the other."""
        return self if other is None else Ahead(min(self.plain, other.plain), min(self.bounded, other.bounded))


def look_ahead(
    graph: Topology, layers: Collection[int], normed: Collection[int], bounded: Collection[int]
) -> list[Ahead]:
    """What lies between each node's output and the loss, in one pass.

    Args:
        graph: of one step.
        layers: its kernel ops; a fused recurrence is a layer, and has flat ends.
        normed: those of them that a norm made of arithmetic follows.
        bounded: nodes of activations with flat ends.
    """
    count = len(graph.names)
    free, pending, flat = [0] * count, [0] * count, [0] * count
    """Plain layers ahead: where the layer before has met a norm (or there is none), and where it has not yet."""
    for index in reversed(graph.order):
        found = []
        for reader, _ in graph.readers[index]:
            name, ends = graph.names[reader], flat[reader] + (reader in bounded or graph.names[reader] in RECURRENCES)
            if name in NORMS:
                found.append((free[reader], free[reader], ends))
            elif reader in layers or name in RECURRENCES:
                after = free[reader] if reader in normed else pending[reader]
                found.append((after, after + 1, ends))
            else:
                found.append((free[reader], pending[reader], ends))
        free[index], pending[index], flat[index] = map(min, zip(*found, strict=True)) if found else (0, 1, 0)
    return [Ahead(*ahead) for ahead in zip(free, flat, strict=True)]
