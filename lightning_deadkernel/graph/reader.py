"""What the graphs seen so far say of each layer, and which activations have to be read in a step.

Past 300 lines because what a new shape of graph teaches and what a known one asks for are the two halves of one cache.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Container, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadkernel.graph.activations import Activation
from lightning_deadkernel.graph.ahead import Ahead, look_ahead
from lightning_deadkernel.graph.bounding import Bounding, constant
from lightning_deadkernel.graph.channel_axis import output_shape
from lightning_deadkernel.graph.facts import ActivationKey, LayerFacts, LayerUse, Source, cheapest_source
from lightning_deadkernel.graph.kernel_ops import KernelOps, Neighbourhood
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.ops import CONVOLUTIONS, EXTREMES, MATMULS, RECURRENCES, SAVED_DATA, canonical
from lightning_deadkernel.graph.parts import Part, selection
from lightning_deadkernel.graph.paths import ActivationRead, Cut, Paths
from lightning_deadkernel.graph.rows_in_graph import (
    NO_KERNEL_OPS,
    first_ops,
    is_factor,
    lookups_of,
    readers_of,
    rows_in,
)
from lightning_deadkernel.graph.topology import Gathered, Topology, Value, leaves_of, walk
from lightning_deadkernel.graph.tracer import PathTracer
from lightning_deadkernel.graph.zeros import HIDES_OFF, hands_on_zero
from lightning_deadkernel.observation import OF_KERNELS as BY_OP
from lightning_deadkernel.observation import Consumer

MAPS = 64
"""Graphs of different shape whose maps are kept."""
FEW = 8
"""Shapes that are learned at once. Where there are more (sequences of any length, stochastic depth), each costs."""
LEARNING = 64
"""To learn what a node means takes about as long as to walk over so many: where shapes go on to be new, as much time is
spent on learning as on walking."""


class GraphMap:
    """What a graph of one shape means: every layer's place, norm, activations and neighbours."""

    def __init__(
        self,
        nodes: list[Any],
        table: LayerTable,
        gathered: Gathered,
        facts: dict[str, LayerFacts],
        reorders: bool = True,
    ) -> None:
        self.graph = Topology(nodes, table, gathered, reorders)
        self.kernels = KernelOps(self.graph)
        self.bounding = Bounding(self.kernels)
        self.facts = facts
        self.paths_after: dict[Cut, Paths] = {}
        self.axes: dict[str, int] = {}
        self.otherwise: set[str] = set()
        """Layers whose weight some op uses in another orientation than its module does."""
        self.shared: set[str] = set()
        """Layers whose consumers are known not to be all known."""
        self.failures: dict[str, Exception] = {}
        """Layers that could not be read -> why."""
        self.rows = {layer.name: rows_in(self.graph, layer) for layer in table.watched}
        """What the rows of each layer are."""
        self.uses = self._find_uses()
        self.ahead = self._look_ahead()
        """What lies between each node and the loss."""

    def _find_uses(self) -> list[LayerUse]:
        """All uses of the layers that are not excluded, in forward order."""
        kernels, rank = self.kernels, self.graph.rank
        made = sorted(kernels.ops, key=self.graph.times.__getitem__)
        own = sorted((index for index in made if self._is_own(index)), key=rank.__getitem__)
        uses = []
        for index in reversed(own):  # so that the paths after are known
            for layer in self._layers_at(index):
                try:
                    uses.append(self._use(index, layer))
                except Exception as error:  # what surprises at one layer costs this layer alone
                    self.failures.setdefault(layer.name, error)
        return uses[::-1]

    def _layers_at(self, index: int) -> list[Layer]:
        """The watched layers whose rows are the kernels of an op."""
        layer = self.kernels.ops[index].layer
        together = () if layer is None else self.graph.table.spans_of(layer)
        return [la for la in together if self.facts[la.name].excluded is None and self.rows[la.name] in BY_OP]

    def _is_own(self, index: int) -> bool:
        """Whether an op uses a watched weight as its module does: the axis of its channels has one meaning.

        That of a module whose type does not tell is the one of its first use.
        """
        layer = next(iter(self._layers_at(index)), None)
        if layer is None:
            return False
        axis, facts = self.kernels.weight_axis(index), self.facts[layer.name]
        if layer.standard or facts.confirmed:
            own = facts.layer.channel_dim
        else:
            own = self.axes.setdefault(layer.name, axis if axis is not None else layer.channel_dim)
        if axis is not None and axis != own:
            self.otherwise.add(layer.name)
            return False
        return True

    def _use(self, index: int, layer: Layer) -> LayerUse:
        kernels, facts = self.kernels, self.facts[layer.name]
        depth, rank = kernels.depth[index], self.graph.rank[index]
        found = kernels.output_part(index)
        if found is None:
            paths = Paths(lost=self.graph.names[index])
            return LayerUse(layer, depth, rank, paths, (), Neighbourhood(), Source(layer), False, False)
        whole, part = found
        beside = kernels.neighbourhood(index, part.at)
        if not layer.span.name:
            layer = whole
        else:  # its kernels stand among others in the op's output, and its bias among others in the op's
            start = layer.span.start
            part = Part(part.digits, range(layer.channels), range(start, start + layer.channels))
            beside = Neighbourhood()
        paths = PathTracer(kernels, self.paths_after).trace(index, part)
        if facts.consumers is not None and layer.name not in self.shared:
            beyond = PathTracer(kernels, self.paths_after, beyond=True).trace(index, part)
            paths = replace(
                paths,
                consumers=beyond.consumers,
                shared=beyond.shared or bool(beyond.unknown) or beyond.lost is not None,
                averaged=beyond.averaged,
            )
            if paths.shared:  # once is enough, and a recurrence has as many uses as steps
                self.shared.add(layer.name)
        source = cheapest_source(layer, beside, paths)
        gates, unbounded = self.bounding.gates(paths.reads)
        return LayerUse(
            layer,
            depth,
            rank,
            paths,
            tuple(read.live(self.graph.nodes[read.node]) for read in paths.reads),
            beside,
            source,
            penalised=kernels.is_penalised(layer),
            source_penalised=source.parameter is None or kernels.is_used_beside(source.parameter),
            gates=tuple(gates),
            unbounded=unbounded,
        )

    def _look_ahead(self) -> list[Ahead]:
        graph = self.graph
        return look_ahead(
            graph,
            layers={index for index, op in self.kernels.ops.items() if op.layer is not None},
            normed={graph.order[use.order] for use in self.uses if use.paths.composed_norm},
            bounded={
                read.node
                for use in self.uses
                for read, activation in zip(use.paths.reads, use.activations, strict=True)
                if activation.kind == "bounded"
            },
        )

    def producers(self) -> list[set[str] | None]:
        """Of each use, the layers whose activations alone are its inputs; None where anything else enters."""
        names = list(dict.fromkeys(use.layer.name for use in self.uses))
        bits, behind = {name: 1 << place for place, name in enumerate(names)}, dict[int, int]()
        for use in self.uses:
            for read in use.paths.reads:
                behind[read.node] = behind.get(read.node, 0) | bits[use.layer.name]
        made, found = self.kernels.producers(behind), list[set[str] | None]()
        for use in self.uses:
            index = self.graph.order[use.order]
            value = self.graph.inputs[index][self.kernels.ops[index].data]
            layers = None if value is None else made[value[0]]
            found.append({name for name in names if layers & bits[name]} if layers else None)
        return found

    @cached_property
    def _times_used(self) -> Counter[Layer | None]:
        return Counter(op.layer for op in self.kernels.ops.values())

    def consumers(self, use: LayerUse) -> list[Consumer]:
        """What reads a use's channels; empty where that is no layer's op, or nothing, or not known."""
        if use.paths.shared:
            return []
        found: dict[Layer | None, list[tuple[int, Part]]] = {}
        for index, weights, part in use.paths.consumers:
            found.setdefault(self.kernels.ops[index].layer, []).append((weights, part))
        return [
            Consumer(
                layer.name,
                parts[-1][0],
                None if self._times_used[layer] > 1 else tuple(run for _, part in parts for run in part.runs()),
            )
            for layer, parts in found.items()
            if layer is not None and None not in found
        ]

    def used_elsewhere(self, use: LayerUse) -> bool:
        """Whether something reads a parameter of the layer, or of the norm behind it, that is not their own op."""
        weight = self.graph.leaves.get(id(use.layer.main))
        own = set() if weight is None else self.graph.behind_views(weight)
        if not use.layer.reparametrized and own - self.kernels.ops.keys():
            return True
        beside = {id(p) for p in (use.beside.bias, use.beside.shift, use.beside.scale) if p is not None}
        leaves = [self.graph.leaves[one] for one in beside if one in self.graph.leaves]
        return any(len(self.graph.behind_views(leaf)) > max(1, len(own)) for leaf in leaves)

    def entrances(self) -> dict[str, tuple[int, str, int]]:
        """Layers that read nothing but data, which no parameter has made -> the node of their first use, the name under
        which it keeps that data, and the axis along which its features are."""
        found: dict[str, tuple[int, str, int]] = {}
        others: set[str] = set()
        for use in self.uses:
            index = self.graph.order[use.order]
            name, data = self.graph.names[index], self.kernels.ops[index].data
            saved = SAVED_DATA.get(name, {}).get(data)
            if saved is None or not self._is_data(self.graph.inputs[index][data]):
                others.add(use.layer.name)
                continue
            features = 1 if name in CONVOLUTIONS else -1 if data == MATMULS[name][0] else -2
            found.setdefault(use.layer.name, (index, saved, features))
        return {name: entrance for name, entrance in found.items() if name not in others}

    def _is_data(self, value: Value | None) -> bool:
        return value is None or (
            self.graph.is_leaf(value[0]) and id(self.graph.parameter(value[0])) not in self.graph.table.parameters
        )

    def passes_zero(self, use: LayerUse) -> bool:
        """Whether what reads a channel gets exactly 0 of it where its activations are off everywhere."""
        names = {read.node: self.graph.names[read.node] for read in use.paths.reads}
        # the largest of several is the same without one that never is; what an in-place op left is read as it is taken
        off = [node for node, name in names.items() if name not in EXTREMES and node not in self.kernels.ops]
        flat = use.paths.averaged or any(activation.flat_output for activation in use.activations)
        return not flat and hands_on_zero(self.kernels, {node: names[node] not in HIDES_OFF for node in off})

    def stays_zero(self, use: LayerUse) -> bool:
        """The same where its kernel is 0, and what its bias or norm adds."""
        own = frozenset(id(p) for p in (use.beside.bias, use.beside.shift, use.beside.scale) if p is not None)
        return not use.paths.averaged and hands_on_zero(self.kernels, {self.graph.order[use.order]: True}, own)

    def place(self, layer: Layer) -> tuple[int, int, Ahead]:
        """Depth, order and what lies ahead of a layer whose rows are no kernels of one op."""
        graph = self.graph
        leaves = [graph.leaves[id(leaf)] for leaf in layer.leaves if id(leaf) in graph.leaves]
        order = min(graph.rank[reader] for leaf in leaves for reader, _ in graph.readers[leaf])
        ops = readers_of(graph, layer)
        fused = any(graph.names[op] in RECURRENCES for op in ops)
        own = fused or any(op.layer is not None and op.layer.main is layer.main for op in self.kernels.ops.values())
        plain = min(self.ahead[op].plain for op in ops)
        bounded = min(self.ahead[op].bounded for op in ops) + fused
        return max(self.kernels.depth[leaf] for leaf in leaves) - own, order, Ahead(plain, bounded)


@dataclass
class StepMap:
    """A graph's shape, reduced to what a step has to do: read these activations."""

    reads: list[tuple[ActivationKey, ActivationRead]]
    names: frozenset[str]
    """Layers in the graph."""
    compiled: bool
    """Its activations cannot be read: the graph is compiled, or of a shape that is not learned."""
    lookups: dict[str, tuple[int, ...]]
    """Tables all of whose uses are lookups -> the nodes of these, which hold the indices."""
    counted: tuple[bool, ...] = ()
    """Of each read, whether what it reads has not been counted by another: a use of a layer has several activations."""
    image: int | None = None
    """The convolution that comes first and once: what it saved is the input as the network sees it."""
    constants: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Nodes -> what they said of themselves, between two numbers, that certificates rest on."""
    selections: dict[int, Tensor] = field(default_factory=dict)
    """Nodes that channels pass in another order -> the index that says which, kept so that nothing else lies there."""

    starts: dict[int, tuple[str, int]] = field(default_factory=dict)
    """See `Topology.starts`."""
    entrances: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    """See `GraphMap.entrances`."""

    def selects_otherwise(self, nodes: list[Any]) -> bool:
        """Whether channels are taken at other places than those that were learned from; of an index on a device, which
        to compare would wait for, whether it lies elsewhere."""
        if any(getattr(nodes[place], name) != start for place, (name, start) in self.starts.items()):
            return True
        for place, learned in self.selections.items():
            found = selection(nodes[place], canonical(nodes[place]), 1)
            if found is None or found[1].shape != learned.shape:
                return True
            now = found[1]
            same = now.data_ptr() == learned.data_ptr() and now._version == learned._version
            if not same and (now.device.type != "cpu" or not torch.equal(now, learned)):
                return True
        return False

    def says_otherwise(self, nodes: list[Any]) -> bool:
        """Whether what certificates rest on is no longer as it was: a dropout that scales by more, other limits."""
        for place, (low, high) in self.constants.items():
            now = constant(nodes[place], canonical(nodes[place]))
            if now is None or now[0] < low or now[1] > high:
                return True
        return False

    @cached_property
    def sized(self) -> list[ActivationRead]:
        """The reads whose channels were found for feature maps of one size only."""
        return [read for _, read in self.reads if read.shape is not None]


class GraphReader:
    """Learns from each new shape of graph; afterwards only finds this step's live activations."""

    def __init__(
        self, table: LayerTable, compiled: bool = False, before_learning: Callable[[], object] = lambda: None
    ) -> None:
        """Takes what it is to read.

        Args:
            table: the layers.
            compiled: graphs are known to hide what they do.
            before_learning: called where a graph has a new shape: the model may have other layers by now.
        """
        self.table = table
        self.compiled, self.before_learning = compiled, before_learning
        self._walked = self._learned = self._learned_shapes = 0
        """Nodes that were walked over and nodes that were learned, and the shapes of graphs they were in."""
        self.has_dropped = False
        """A map was given up for another."""
        self.has_learned = False
        """Some graph was read."""
        self.facts: dict[str, LayerFacts] = {}
        self.maps: dict[Hashable, StepMap] = {}
        self.reorders = True
        """Channels are followed through slices and indices, as these have been the same so far."""
        self.unknown_ops: dict[str, str] = {}
        """Unknown op -> a layer that met it."""
        self._strangers = 0
        """Weights of two or more axes in a graph that are parameters of no module."""
        self._bare: dict[int, weakref.ref[Tensor]] = {}
        """Tensors of two or more axes in a graph that are no parameters: inputs, or weights."""
        self.forget()

    def forget(self) -> None:
        """Drops all that graphs have taught, but for the layers that had to be given up."""
        known, self.facts, self.maps = self.facts, {}, {}
        self.unknown_ops, self._strangers, self._bare, self.has_dropped = {}, 0, {}, False
        for layer in self.table.layers:
            self.facts[layer.name] = facts = LayerFacts(layer, holds_no_kernels=layer.is_vector)
            if layer.name in known:
                old = known[layer.name]
                facts.since, facts.exclusion, facts.holds_no_kernels = old.since, old.exclusion, old.holds_no_kernels

    def renew(self, table: LayerTable) -> None:
        """Takes another table. Of layers that are as they were, what graphs taught is kept until it is forgotten."""
        known, before, self.table = self.facts, {layer.name: layer for layer in self.table.layers}, table
        as_before = {la.name for la in table.layers if la.name in before and la.is_as(before[la.name])}
        self.facts = {}
        self.forget()
        for name in as_before:
            self.facts[name] = known[name]
            known[name].keep_only(as_before, table.trained)

    @property
    def layers(self) -> list[Layer]:
        """All layers as the graphs show them, in module order."""
        return [facts.layer for facts in self.facts.values()]

    @property
    def watched(self) -> list[Layer]:
        """Those that are not excluded."""
        return [facts.layer for facts in self.facts.values() if facts.excluded is None]

    def read(
        self, loss_node: Any, gathered: Gathered | None = None, looked: Collection[str] = ()
    ) -> tuple[list[Any], StepMap, bool]:
        """This step's nodes, what to read of them, and whether this shape of graph was learned for it.

        Args:
            loss_node: `loss.grad_fn`.
            gathered: see `sharding.unsharded`.
            looked: layers that need not be looked at, however many shapes have been learned: a new one that holds no
                other may be left unread.
        """
        nodes, key = walk(loss_node, self.table.parameters)
        self._walked += len(nodes)
        found = self.maps.get(key)
        if found is not None and any(output_shape(nodes[read.node]) != read.shape for read in found.sized):
            key = (key, tuple(output_shape(nodes[read.node]) for read in found.sized))
            found = self.maps.get(key)
        if found is not None and found.selects_otherwise(nodes):
            self.reorders = False
            self.drop(found)
            found = None
        if found is not None:
            return nodes, found, False
        if self._learned_shapes >= FEW and self._learned * LEARNING > self._walked:
            unread = self._unread(nodes, gathered or {})
            if unread.names <= set(looked):
                return nodes, unread, False
        self.before_learning()
        self._learned += len(nodes)
        self._learned_shapes += 1
        found = self.learn(nodes, gathered or {})
        if len(self.maps) >= MAPS:
            self.maps.pop(next(iter(self.maps)))
            self.has_dropped = True
        self.maps[key] = found
        return nodes, found, True

    def _unread(self, nodes: list[Any], gathered: Gathered) -> StepMap:
        """Of a graph that is not learned: the layers in it."""
        leaves = {id(gathered.get(id(leaf), leaf)) for leaf in leaves_of(nodes)}
        if not leaves <= self.table.parameters.keys():
            self.before_learning()
        names = frozenset(la.name for la in self.watched if any(id(leaf) in leaves for leaf in la.leaves))
        return StepMap([], names, True, {})

    def forget_unused(self) -> None:
        """Drops the activations that no known shape of graph has any more."""
        used = {key for found in self.maps.values() for key, _ in found.reads}
        for facts in self.facts.values():
            facts.activations &= used
        self.has_dropped = False

    def notice(self, key: ActivationKey, activation: Activation, channels: int) -> None:
        """Takes up what an activation of some channels is in this step, which its constants decide."""
        for name in key:
            if not self.facts[name].knows(activation, channels):
                self.facts[name].learn_activation(activation, channels)

    def unbind(self, found: StepMap) -> None:
        """Drops what certificates rest on for the layers of a graph, until graphs teach anew."""
        for name in found.names:
            self.facts[name].unbind()

    def drop(self, found: StepMap) -> None:
        """Drops a map that no longer fits (feature maps of another size), so that the next read learns anew."""
        self.maps = {key: value for key, value in self.maps.items() if value is not found}

    def learn(self, nodes: list[Any], gathered: Gathered) -> StepMap:
        """Works out what a graph of new shape means."""
        found = GraphMap(nodes, self.table, gathered, self.facts, self.reorders)
        graph, self.has_learned = found.graph, True
        self.compiled = self.compiled or graph.compiled
        if not gathered:
            self._note_strangers([nodes[leaf].variable for leaf in graph.leaves.values()])
        for use in found.uses:
            facts = self.facts[use.layer.name]
            facts.learn(use)
            facts.ahead = found.ahead[graph.order[use.order]].least(facts.ahead)
            for name in use.paths.unknown:
                self.unknown_ops.setdefault(name, use.layer.name)
        for name, error in found.failures.items():
            self.facts[name].unreadable = f"{type(error).__name__}: {error}"
        for name in found.otherwise:
            self.facts[name].used_otherwise = True
        reads, counted = self._reads(nodes, found)
        self._neighbours(found)
        present = [la for la in self.watched if any(id(leaf) in graph.leaves for leaf in la.leaves)]
        for layer in present:
            rows = found.rows[layer.name]
            facts = self.facts[layer.name]
            if rows not in BY_OP or (layer.span.name and not facts.confirmed):
                facts.place(replace(layer, span=replace(layer.span, kind=rows)), *found.place(layer))
            elif not facts.confirmed and layer.name not in found.failures:
                self._unconfirmed(facts, graph)
        tables = {layer.name: lookups_of(graph, layer) for layer in present if layer.is_looked_up}
        names = frozenset(layer.name for layer in present)
        looked_up = {name: nodes for name, nodes in tables.items() if nodes}
        return StepMap(
            reads,
            names,
            graph.compiled,
            looked_up,
            counted,
            _sees_input(found),
            found.bounding.constants,
            graph.selections or {},
            graph.starts if graph.selections is not None else {},
            found.entrances(),
        )

    def _reads(
        self, nodes: list[Any], found: GraphMap
    ) -> tuple[list[tuple[ActivationKey, ActivationRead]], tuple[bool, ...]]:
        reached: dict[tuple[int, Part, int], tuple[ActivationRead, set[str], set[int]]] = {}
        for use in found.uses:
            for read, activation in zip(use.paths.reads, use.activations, strict=True):
                reason = activation.unreadable(nodes[read.node])
                if reason is not None:
                    self.facts[use.layer.name].unreadable = reason
                else:
                    place = (read.node, read.part, use.layer.channels)
                    _, names, uses = reached.setdefault(place, (read, set(), set()))
                    names.add(use.layer.name)
                    uses.add(use.order)
        reads, counted, known = [], list[bool](), set[tuple[ActivationKey, int]]()
        for read, names, uses in reached.values():
            for name in names:
                self.facts[name].together |= names - {name}
            # channels that reach further without an activation get no verdict from it, so they need not be read
            names = {name for name in names if self.facts[name].readable & read.part.mask}
            if names:
                key = tuple(sorted(names))
                reads.append((key, read))
                counted.append(not known.issuperset((key, use) for use in uses))
                known.update((key, use) for use in uses)
                for name in names:
                    self.facts[name].activations.add(key)
        return reads, tuple(counted)

    def _neighbours(self, found: GraphMap) -> None:
        for use, producers in zip(found.uses, found.producers(), strict=True):
            facts = self.facts[use.layer.name]
            facts.producers = None if facts.producers is None or producers is None else facts.producers | producers
            facts.used_elsewhere = facts.used_elsewhere or found.used_elsewhere(use)
            try:
                facts.passes_zero = facts.passes_zero and found.passes_zero(use)
                facts.stays_zero = facts.stays_zero and found.stays_zero(use)
            except Exception:  # where what follows surprises, nothing is known to become of it
                facts.passes_zero = facts.stays_zero = False
            if facts.consumers is not None:
                consumers = found.consumers(use)
                for consumer in consumers:
                    known = facts.consumers.setdefault(consumer.layer, consumer)
                    if known.slices != consumer.slices:
                        facts.consumers[consumer.layer] = replace(consumer, slices=None)
                facts.consumers = facts.consumers if consumers else None

    def _note_strangers(self, leaves: list[Tensor]) -> None:
        owned = self.table.parameters
        strange = [leaf for leaf in leaves if leaf.ndim > 1 and id(leaf) not in owned] if owned else []
        self._strangers = max(self._strangers, sum(isinstance(leaf, nn.Parameter) for leaf in strange))
        self._bare = {key: known for key, known in self._bare.items() if known() is not None}
        self._bare.update((id(leaf), weakref.ref(leaf)) for leaf in strange if not isinstance(leaf, nn.Parameter))

    def strangers(self, trained: Container[int]) -> int:
        """How many weights the model does not own. A tensor that is no parameter may be an input: optimizers tell.

        Args:
            trained: ids of what optimizers hold.
        """
        return self._strangers + sum(key in trained and known() is not None for key, known in self._bare.items())

    def _unconfirmed(self, facts: LayerFacts, graph: Topology) -> None:
        """A layer whose weight is in the graph while no kernel op of it was found."""
        if graph.compiled:
            facts.remark = "the graph is compiled"
            return
        if graph.checkpointed:
            facts.remark = "activation checkpointing (reentrant) hides its ops"
            return
        ops = first_ops(graph, facts.layer)
        if facts.layer.standard:
            facts.remark = f"the op that consumes its weight was not recognised ({', '.join(sorted(ops))})"
        elif "Bilinear" in ops or "Trilinear" in ops:
            facts.remark = "a bilinear op consumes it: it is read by its gradient"
        elif ops <= RECURRENCES:
            facts.remark = "a recurrence in one op consumes it: it is read by its gradient"
        elif is_factor(graph, facts.layer):
            facts.remark = "a factor of another weight: it is read by its gradient"
        else:
            facts.holds_no_kernels = ops <= NO_KERNEL_OPS
            facts.exclude(f"its weight is consumed by no convolution or linear op ({', '.join(sorted(ops))})")

    def consumers(self, name: str) -> tuple[Consumer, ...] | None:
        """The layers that read this layer's channels; None where not all are known."""
        consumers = self.facts[name].consumers
        return tuple(consumers.values()) if consumers else None


def _sees_input(found: GraphMap) -> int | None:
    first = next(iter(found.uses), None)
    if first is None or sum(use.layer.name == first.layer.name for use in found.uses) > 1:
        return None
    node = found.graph.order[first.order]
    return node if found.graph.names[node] == "Convolution" else None
