"""The heart: reads from this step's autograd graph which activations hear each kernel.

`walk` lists the live nodes of a step and a key of the graph's shape; `GraphMap` is what that shape means, worked out
once per shape. Nothing is registered on the model, and no tensor is read here but a dropout mask, once per shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.channel_axis import carried, output_shape
from lightning_deadkernel.graph.layers import Layer, LayerTable
from lightning_deadkernel.graph.ops import (
    ACTIVATIONS,
    CHECKPOINTS,
    COMPILED,
    CONVOLUTIONS,
    MATMULS,
    MIXERS,
    NORMS,
    REDUCTIONS,
    SEQUENCE_OPS,
    canonical,
)
from lightning_deadkernel.graph.paths import Cut, Follower, Ways

Value = tuple[int, int]
"""(index of the node that made it, which of its outputs)."""

_ACCUMULATE: Any = type(torch.zeros((), requires_grad=True).expand(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]


def walk(root: Any) -> tuple[list[Any], Hashable]:
    """All nodes of the graph under `root` in a fixed order, and a key that is equal for graphs of the same shape."""
    nodes, place = [root], {root: 0}
    shape: list[Any] = []
    for node in nodes:
        kind = type(node)
        shape.append(kind)
        if kind is _ACCUMULATE:
            shape.append(id(node.variable))
            continue
        for child, slot in node.next_functions:
            if child is None:
                shape.append(None)
                continue
            index = place.get(child)
            if index is None:
                index = place[child] = len(nodes)
                nodes.append(child)
            shape.append(index if not slot else (index, slot))
    return nodes, tuple(shape)


@dataclass
class LayerInGraph:
    """What one graph shows of one layer."""

    layer: Layer
    depth: int
    order: int
    ways: Ways
    bias: nn.Parameter | None = None
    shift: nn.Parameter | None = None
    scale: nn.Parameter | None = None
    normed: bool = False
    penalised: bool = False
    producers: set[int] | None = None
    """Activation nodes that are the only inputs; None where anything else enters."""


class GraphMap:
    """What a graph of one shape means: every layer's place, norm, activations and neighbours."""

    def __init__(self, nodes: list[Any], table: LayerTable) -> None:
        self.nodes = nodes
        self.table = table
        self.names = [canonical(node) for node in nodes]
        place = {node: index for index, node in enumerate(nodes)}
        self.inputs: list[list[Value | None]] = [
            [None if child is None else (place[child], slot) for child, slot in node.next_functions] for node in nodes
        ]
        self.readers: list[list[tuple[int, int]]] = [[] for _ in nodes]
        for index, values in enumerate(self.inputs):
            for position, value in enumerate(values):
                if value is not None:
                    self.readers[value[0]].append((index, position))
        self.leaves = {id(table.parameter(n.variable)): i for i, n in enumerate(nodes) if type(n) is _ACCUMULATE}
        self.rank = self._topological()
        self.parameters = self._parameters_below()
        self.kernels = dict(self._kernel_ops())
        self.depth, self.feeds = self._depths()
        self.compiled = any(name in COMPILED for name in self.names)
        self.checkpointed = any(name in CHECKPOINTS for name in self.names)
        self.ways_after: dict[Cut, Ways] = {}
        self.found = self._find_layers()
        self.nodes = []  # the map outlives the step: keep no node, and so no activation, alive

    # -- the graph as a whole ------------------------------------------------------------------------------------

    def _topological(self) -> list[int]:
        """Rank of each node with inputs before outputs (forward order)."""
        rank = [-1] * len(self.nodes)
        stack, count = [(0, 0)], 0
        seen = {0}
        while stack:
            node, position = stack.pop()
            values = self.inputs[node]
            while position < len(values):
                value = values[position]
                position += 1
                if value is not None and value[0] not in seen:
                    stack.append((node, position))
                    seen.add(value[0])
                    stack.append((value[0], 0))
                    break
            else:
                rank[node] = count
                count += 1
        self.order = sorted(range(len(rank)), key=rank.__getitem__)
        return rank

    def _parameters_below(self) -> list[frozenset[int] | None]:
        """The few parameters that alone make a node's output; None where data or many parameters do."""
        below: list[frozenset[int] | None] = [None] * len(self.nodes)
        for index in self.order:
            if type(self.nodes[index]) is _ACCUMULATE:
                below[index] = frozenset({id(self.table.parameter(self.nodes[index].variable))})
                continue
            name, values = self.names[index], self.inputs[index]
            if name in CONVOLUTIONS or name in SEQUENCE_OPS or "Embedding" in name:
                continue
            parts = [below[value[0]] for value in values if value is not None]
            if name in MATMULS and None in (values[MATMULS[name][0]], values[MATMULS[name][1]]):
                # The side without a graph is data, unless a parametrization makes a weight so (spectral norm's W v).
                union = frozenset().union(*(part or () for part in parts))
                owners = [self.table.by_leaf.get(parameter) for parameter in union]
                made = any(o is not None and o.reparametrized for o in owners) and self._is_weight_side(index)
                below[index] = union if made else None
                continue
            if parts and None not in parts:
                union = frozenset().union(*(part for part in parts if part is not None))
                below[index] = union if len(union) <= 6 else None
        return below

    def _weight_behind(self, value: Value | None) -> Layer | None:
        below = None if value is None else self.parameters[value[0]]
        owners = {id(o): o for o in (self.table.by_leaf.get(p) for p in below or ()) if o is not None}
        if len(owners) > 1:  # e.g. a low-rank adapter added to the weight: the layer with the largest parameter
            return max(owners.values(), key=lambda layer: layer.main.numel())
        return next(iter(owners.values()), None)

    def _kernel_ops(self) -> Iterator[tuple[int, tuple[Layer | None, int, int, int | None]]]:
        """Kernel ops: index -> (layer or None, place of the data, of the weight, of the bias)."""
        for index, name in enumerate(self.names):
            values = self.inputs[index]
            if name in CONVOLUTIONS:
                yield index, (self._weight_behind(values[1]), 0, 1, 2)
            elif name in MATMULS:
                left, right, bias = MATMULS[name]
                if name in ("Linear", "MkldnnLinear"):
                    yield index, (self._weight_behind(values[right]), left, right, bias)
                    continue
                right_owner = self._weight_behind(values[right])
                left_owner = None if right_owner is not None else self._weight_behind(values[left])
                data, weight = (right, left) if left_owner is not None else (left, right)
                if self.parameters[index] is not None:
                    continue  # a product inside a parametrization (spectral norm's W v), not a layer's own op
                yield index, (right_owner or left_owner, data, weight, bias)

    def _is_weight_side(self, index: int) -> bool:
        """Whether a product of parameters first meets another kernel op as its weight, not as its input."""
        frontier, seen = [index], {index}
        while frontier:
            for reader, position in self.readers[frontier.pop()]:
                name = self.names[reader]
                if name in CONVOLUTIONS or name in MATMULS:
                    weight = 1 if name in CONVOLUTIONS else MATMULS[name][1]
                    return position == weight
                if reader not in seen:
                    seen.add(reader)
                    frontier.append(reader)
        return False

    def _depths(self) -> tuple[list[int], list[bool]]:
        """Kernel ops on the longest way to the loss, and whether any lies on a way at all."""
        depth, feeds = [0] * len(self.nodes), [False] * len(self.nodes)
        for index in reversed(self.order):
            for reader, _ in self.readers[index]:
                kernel = reader in self.kernels or self.names[reader] in MIXERS
                depth[index] = max(depth[index], depth[reader] + (reader in self.kernels))
                feeds[index] = feeds[index] or feeds[reader] or kernel
        return depth, feeds

    # -- one layer -----------------------------------------------------------------------------------------------

    def _find_layers(self) -> list[LayerInGraph]:
        found = []
        for index in sorted(self.kernels, key=self.rank.__getitem__, reverse=True):  # so that ways after are known
            layer, data, weight, bias = self.kernels[index]
            if layer is None or layer.excluded is not None:
                continue
            at = self._output_axis(index, layer, weight)
            if at is None:
                layer.note = (
                    layer.note or "its ops use parts of the weight or mix its axes: no channel can be told apart"
                )
                found.append(LayerInGraph(layer, self.depth[index], self.rank[index], Ways(lost=self.names[index])))
                continue
            ways = self.follow(index, at)
            entry = LayerInGraph(layer, self.depth[index], self.rank[index], ways)
            entry.bias, entry.shift, entry.scale, entry.normed = self._sources(index, bias, at)
            entry.producers = self._producers(self.inputs[index][data])
            entry.penalised = self._is_penalised(layer)
            ways.consumers, ways.shared = self._consumers(index, at)
            found.append(entry)
        return found[::-1]

    def _output_axis(self, index: int, layer: Layer, weight: int) -> ChannelAxis | None:
        """Where the layer's channels are in the output of its op; corrects the table's channel axis on the way."""
        out = output_shape(self.nodes[index])
        if self.names[index] in CONVOLUTIONS:
            groups = int(getattr(self.nodes[index], "_saved_groups", layer.groups))
            transposed = bool(getattr(self.nodes[index], "_saved_transposed", layer.transposed))
            if layer.main.ndim <= transposed or layer.main.shape[transposed] * (groups if transposed else 1) != out[1]:
                return None
            layer.groups, layer.transposed = groups, transposed
            layer.channel_dim, layer.channels = int(transposed), out[1]
            return ChannelAxis(1, out[1])
        if len(out) not in (1, 2, 3) or (len(out) == 3 and out[0] != 1 and layer.main.ndim > 2):
            return None
        mat1 = MATMULS[self.names[index]][0]
        axis = len(out) - (2 if weight == mat1 and len(out) > 1 else 1)
        value = self.inputs[index][weight]
        assert value is not None
        operand = output_shape(self.nodes[value[0]], value[1])
        wanted = len(operand) - (2 if weight == mat1 else 1)
        if self.names[index] in ("Linear", "MkldnnLinear"):
            wanted = 0
        for dim in range(layer.main.ndim):
            if self._axis_from_leaf(layer, dim, value) == wanted:
                layer.channel_dim, layer.channels = dim, layer.main.shape[dim]
                return ChannelAxis(axis, out[axis]) if out[axis] == layer.channels else None
        return None

    def _axis_from_leaf(self, layer: Layer, dim: int, operand: Value) -> int | None:
        """Follows the weight's own axis `dim` from its parameter to the operand of the op."""
        index, shape = self.leaves.get(id(layer.main)), tuple(layer.main.shape)
        if index is None or len(shape) < 2:
            return None
        at: ChannelAxis | None = ChannelAxis(dim, shape[dim])
        while at is not None and index != operand[0]:
            readers = [r for r, _ in self.readers[index] if r == operand[0] or self.parameters[r] is not None]
            readers = [r for r in readers if self._leads_to(r, operand[0])]
            if not readers:
                return None
            after = output_shape(self.nodes[readers[0]])
            try:
                at = carried(self.nodes[readers[0]], self.names[readers[0]], at, shape)
            except LookupError:
                at = at if after == shape else None  # weight norm, masks and the like keep the weight's shape
            index, shape = readers[0], after
        return None if at is None or at.outer != 1 or at.inner != 1 else at.axis

    def _leads_to(self, start: int, goal: int) -> bool:
        frontier, seen = [start], {start}
        while frontier:
            node = frontier.pop()
            if node == goal:
                return True
            for reader, _ in self.readers[node]:
                if self.rank[reader] <= self.rank[goal] and reader not in seen:
                    seen.add(reader)
                    frontier.append(reader)
        return False

    def _single_parameter(self, value: Value | None, channels: int) -> nn.Parameter | None:
        """The (C,) parameter behind an argument, through casts, views and repeats."""
        below = None if value is None else self.parameters[value[0]]
        if value is None or below is None or len(below) != 1:
            return None
        index = value[0]
        while type(self.nodes[index]) is not _ACCUMULATE:
            index = next(v[0] for v in self.inputs[index] if v is not None)
        parameter = self.table.parameter(self.nodes[index].variable)
        return parameter if parameter.numel() == channels and parameter.ndim == 1 else None

    def _sources(
        self, index: int, bias_at: int | None, at: ChannelAxis
    ) -> tuple[nn.Parameter | None, nn.Parameter | None, nn.Parameter | None, bool]:
        """Bias of the op; shift and scale of the norm that alone follows it; whether a norm follows at all."""
        values = self.inputs[index]
        channels = at.size
        bias = (
            self._single_parameter(values[bias_at], channels) if bias_at is not None and bias_at < len(values) else None
        )
        node, position, shape = index, at, output_shape(self.nodes[index])
        while len(self.readers[node]) == 1:
            reader, argument = self.readers[node][0]
            name = self.names[reader]
            if name in NORMS:
                arguments = self.inputs[reader]
                scale = self._single_parameter(arguments[1], channels) if argument == 0 and len(arguments) > 1 else None
                shift = self._single_parameter(arguments[2], channels) if argument == 0 and len(arguments) > 2 else None
                over_last = "Layer" in name or "Rms" in name
                if position.axis != (len(shape) - 1 if over_last else 1):
                    scale = shift = None  # as many numbers by chance, for another axis than the channels'
                return bias, shift, scale, True
            if name == "Add" and bias is None:
                others = [v for p, v in enumerate(self.inputs[reader]) if p != argument]
                bias = next((p for p in (self._single_parameter(v, channels) for v in others) if p is not None), None)
                if bias is None:
                    break
            elif sum(value is not None for value in self.inputs[reader]) > 1:
                break
            try:
                after = carried(self.nodes[reader], name, position, shape)
            except LookupError:
                break
            if after is None or name in REDUCTIONS or name in ACTIVATIONS:
                break
            node, position, shape = reader, after, output_shape(self.nodes[reader])
        return bias, None, None, False

    def _is_penalised(self, layer: Layer) -> bool:
        """Whether the weight also reaches the loss past its own op, as an L2 term in the loss does."""
        frontier = [self.leaves[id(leaf)] for leaf in layer.leaves if id(leaf) in self.leaves]
        seen = set(frontier)
        while frontier:
            current = frontier.pop()
            if current == 0:
                return True
            for reader, _ in self.readers[current]:
                if reader not in seen and reader not in self.kernels:
                    seen.add(reader)
                    frontier.append(reader)
        return False

    def _producers(self, value: Value | None) -> set[int] | None:
        if value is None:
            return None
        frontier, seen, found = [value[0]], {value[0]}, set()
        while frontier:
            node = frontier.pop()
            if self.names[node] in ACTIVATIONS:
                found.add(node)
                continue
            if node in self.kernels or self.names[node] in MIXERS or type(self.nodes[node]) is _ACCUMULATE:
                return None
            values = [v for v in self.inputs[node] if v is not None]
            if not values or "Embedding" in self.names[node]:
                return None
            # scales and shifts of norms enter as parameters, not as inputs
            for child, _ in values[:1] if self.names[node] in NORMS else values:
                if self.parameters[child] is None and child not in seen:
                    seen.add(child)
                    frontier.append(child)
        return found or None

    def _consumers(self, index: int, at: ChannelAxis) -> tuple[list[tuple[int, int]], bool]:
        ways = self.follow(index, at, beyond=True)
        return ways.consumers, ways.shared or bool(ways.unknown) or ways.lost is not None

    # -- all ways of one output ----------------------------------------------------------------------------------

    def follow(self, start: int, at: ChannelAxis, beyond: bool = False) -> Ways:
        """All ways of the channels at `at` in the output of node `start`.

        Args:
            start: node whose first output is followed.
            at: where the channels are in it.
            beyond: pass through activations too and collect the kernel ops that consume the channels.
        """
        return Follower(self, beyond).follow(start, at)
