"""What the graphs seen so far say of each layer, and which activations have to be read in a step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from lightning_deadkernel.evidence.channel_evidence import SiteKey, Source
from lightning_deadkernel.graph.channel_axis import output_shape
from lightning_deadkernel.graph.layers import Layer, LayerTable
from lightning_deadkernel.graph.paths import Tap
from lightning_deadkernel.graph.topology import GraphMap, LayerInGraph, walk
from lightning_deadkernel.observation import Consumer, Gating

MAPS = 64
"""Graphs of different shape whose maps are kept (stochastic depth makes a new shape almost every step)."""


@dataclass
class Knowledge:
    """One layer, over all graphs seen."""

    layer: Layer
    depth: int = 0
    order: int = -1
    labels: set[str] = field(default_factory=set)
    gatings: set[Gating] = field(default_factory=set)
    sites: set[SiteKey] = field(default_factory=set)
    open: bool = False
    unknown: list[str] = field(default_factory=list)
    lost: str | None = None
    unreadable: str | None = None
    source: Source | None = None
    scale: Any = None
    penalised: bool = False
    producers: set[str] | None = field(default_factory=set)
    consumers: dict[str, int] | None = field(default_factory=dict)

    @property
    def gating(self) -> Gating | None:
        """The weakest gating of all its activations; None where a verdict by activation is not possible."""
        if self.open or self.unknown or self.lost or self.unreadable or not self.gatings:
            return None
        order: tuple[Gating, ...] = ("leaky", "smooth", "bounded", "rectifier")
        return next(gating for gating in order if gating in self.gatings)

    @property
    def activation(self) -> str | None:
        """Label of the activation; None where none follows; ``"unknown"`` where it cannot be read."""
        if self.unknown or self.lost or self.unreadable:
            return "unknown"
        if self.open or not self.labels:
            return None
        return "+".join(sorted(self.labels))

    @property
    def note(self) -> str | None:
        """Why the activation cannot be read, in words."""
        if self.unreadable:
            return f"its activation is not read: {self.unreadable}"
        if self.unknown:
            return f"what follows cannot be read ({', '.join(dict.fromkeys(self.unknown))})"
        if self.lost:
            return f"its channels are mixed with others before the next activation ({self.lost})"
        return self.layer.note

    def learn(self, seen: LayerInGraph) -> None:
        """Adds one use of the layer in one graph."""
        ways = seen.ways
        self.depth = max(self.depth, seen.depth)
        self.order = seen.order if self.order < 0 else min(self.order, seen.order)
        self.open = self.open or ways.open
        self.unknown += [name for name in ways.unknown if name not in self.unknown]
        self.lost = self.lost or ways.lost
        self.penalised = self.penalised or seen.penalised
        self.labels.update(tap.activation.label for tap in ways.taps)
        self.gatings.update(tap.activation.gating for tap in ways.taps)
        source = _source(seen)
        if self.source is None:
            self.source, self.scale = source, seen.scale
        elif self.source.parameter is not source.parameter:
            self.source, self.scale = Source(self.layer), None  # used with several norms: the kernel itself speaks


def _source(seen: LayerInGraph) -> Source:
    """The cheapest faithful place of a layer's gradient; never a bias before a norm, whose gradient is rounding."""
    if seen.shift is not None and seen.shift.requires_grad:
        return Source(seen.layer, seen.shift, "shift")
    if seen.bias is not None and seen.bias.requires_grad and not seen.normed and not seen.ways.composed_norm:
        return Source(seen.layer, seen.bias, "bias")
    return Source(seen.layer)


@dataclass
class StepMap:
    """A graph's shape, reduced to what a step has to do: read these activations."""

    taps: list[tuple[SiteKey, Tap]]
    names: frozenset[str]
    """Layers in the graph."""
    compiled: bool

    @property
    def sized(self) -> list[Tap]:
        """The taps whose channels were found for feature maps of one size only."""
        return [tap for _, tap in self.taps if tap.shape is not None]


class GraphReader:
    """Learns from each new shape of graph; afterwards only finds this step's live activations."""

    def __init__(self, table: LayerTable) -> None:
        self.table = table
        self.known: dict[str, Knowledge] = {layer.name: Knowledge(layer) for layer in table.layers}
        self.maps: dict[Hashable, StepMap] = {}
        self.compiled = False
        self.unknown_ops: dict[str, str] = {}
        """Unknown op -> a layer that met it."""

    def read(self, loss_node: Any) -> tuple[list[Any], StepMap, bool]:
        """This step's nodes, what to read of them, and whether this shape of graph is new."""
        nodes, key = walk(loss_node)
        found = self.maps.get(key)
        if found is not None and any(output_shape(nodes[tap.node]) != tap.shape for tap in found.sized):
            key = (key, tuple(output_shape(nodes[tap.node]) for tap in found.sized))
            found = self.maps.get(key)
        if found is not None:
            return nodes, found, False
        found = self.learn(nodes)
        if len(self.maps) >= MAPS:
            self.maps.pop(next(iter(self.maps)))
        self.maps[key] = found
        return nodes, found, True

    def forget(self, found: StepMap) -> None:
        """Drops a map that no longer fits (feature maps of another size), so that the next read learns anew."""
        self.maps = {key: value for key, value in self.maps.items() if value is not found}

    def learn(self, nodes: list[Any]) -> StepMap:
        """Works out what a graph of new shape means."""
        graph = GraphMap(nodes, self.table)
        self.compiled = self.compiled or graph.compiled
        for seen in graph.found:
            self.known[seen.layer.name].learn(seen)
            seen.layer.confirmed = True
            for name in seen.ways.unknown:
                self.unknown_ops.setdefault(name, seen.layer.name)
        taps = self._taps(nodes, graph)
        self._neighbours(graph)
        for layer in self.table.watched:
            if any(id(leaf) in graph.leaves for leaf in layer.leaves) and not layer.confirmed:
                self._unconfirmed(layer, graph, nodes)
        names = frozenset(
            layer.name for layer in self.table.watched if any(id(leaf) in graph.leaves for leaf in layer.leaves)
        )
        return StepMap(taps, names, graph.compiled)

    def _taps(self, nodes: list[Any], graph: GraphMap) -> list[tuple[SiteKey, Tap]]:
        heard: dict[tuple[int, Any], tuple[Tap, set[str]]] = {}
        for seen in graph.found:
            for tap in seen.ways.taps:
                reason = tap.activation.unreadable(nodes[tap.node])
                if reason is not None:
                    self.known[seen.layer.name].unreadable = reason
                else:
                    heard.setdefault((tap.node, tap.at), (tap, set()))[1].add(seen.layer.name)
        taps = []
        for tap, names in heard.values():
            # a layer that is also heard elsewhere gets no verdict from its activations, so they need not be read
            names = {name for name in names if self.known[name].gating is not None}
            if names:
                site = tuple(sorted(names))
                taps.append((site, tap))
                for name in names:
                    self.known[name].sites.add(site)
        return taps

    def _neighbours(self, graph: GraphMap) -> None:
        hears: dict[int, set[str]] = {}
        for seen in graph.found:
            for tap in seen.ways.taps:
                hears.setdefault(tap.node, set()).add(seen.layer.name)
        for seen in graph.found:
            known = self.known[seen.layer.name]
            if known.producers is not None:
                inputs = None if seen.producers is None else [hears.get(node) for node in seen.producers]
                if inputs is None or None in inputs:
                    known.producers = None
                else:
                    known.producers.update(*(names for names in inputs if names))
            if known.consumers is not None:
                consumers = {graph.kernels[index][0]: weights for index, weights in seen.ways.consumers}
                if seen.ways.shared or None in consumers or not consumers:
                    known.consumers = None
                else:
                    known.consumers.update({la.name: weights for la, weights in consumers.items() if la is not None})

    def _unconfirmed(self, layer: Layer, graph: GraphMap, nodes: list[Any]) -> None:
        """A layer whose weight is in the graph while no kernel op of it was found."""
        if graph.compiled:
            layer.note = "the graph is compiled"
            return
        if graph.checkpointed:
            layer.note = "activation checkpointing (reentrant) hides its ops"
            return
        leaf = next(graph.leaves[id(leaf)] for leaf in layer.leaves if id(leaf) in graph.leaves)
        ops = sorted({graph.names[reader] for reader, _ in graph.readers[leaf]})
        if not layer.standard:
            layer.excluded = f"its weight is consumed by no convolution or linear op ({', '.join(ops)})"
        else:
            layer.note = f"the op that consumes its weight was not recognised ({', '.join(ops)})"

    def windows_consumers(self, name: str) -> tuple[Consumer, ...] | None:
        """The layers that read this layer's channels; None where not all are known."""
        consumers = self.known[name].consumers
        if not consumers:
            return None
        return tuple(Consumer(layer, weights) for layer, weights in consumers.items())
