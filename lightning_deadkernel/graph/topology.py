"""The shape of one step's autograd graph: its nodes, how they are joined, and what parameters alone make.

Nothing is registered on the model and no tensor is read.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadkernel.graph.channel_axis import Shape, unwrapped
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.ops import (
    CHECKPOINTS,
    COMPILED,
    CONVOLUTIONS,
    MATMULS,
    NORMS,
    SAVED_DATA,
    SEQUENCE_OPS,
    VIEWS,
    canonical,
    peek,
)
from lightning_deadkernel.graph.parts import Part, selection

Value = tuple[int, int]
"""(index of the node that made it, which of its outputs)."""

Gathered = dict[int, nn.Parameter]
"""id of a parameter that a sharding strategy puts into the graph -> the module's own (see `sharding.unsharded`)."""

_ACCUMULATE: Any = type(torch.zeros((), requires_grad=True).expand(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

SHOWN = VIEWS | frozenset("Transpose Permute T Expand ToCopy Clone Slice Alias".split())
"""Ops that only show a value in another form."""

STARTS = {"Slice": "_saved_start", "Narrow": "_saved_start", "Select": "_saved_index"}
"""Ops that take entries from a place on -> the name under which they keep it."""
MOST_PARAMETERS = 6
"""A weight is computed from this many parameters at most."""


def walk(root: Any, known: Container[int] = ()) -> tuple[list[Any], Hashable]:
    """All nodes of the graph under `root` in a fixed order, and a key that is equal for graphs of the same shape.

    Args:
        root: `loss.grad_fn`.
        known: ids of the model's parameters. Inputs that need a gradient are others at each step, and all alike.
    """
    nodes, place = [root], {root: 0}
    shape: list[Any] = []
    for node in nodes:
        kind = type(node)
        shape.append(kind)
        if kind is _ACCUMULATE:
            leaf = node.variable
            shape.append(id(leaf) if id(leaf) in known or isinstance(leaf, nn.Parameter) else -1)
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


def leaves_of(nodes: list[Any]) -> list[Tensor]:
    """The parameters, and inputs that need a gradient, among the nodes of a graph."""
    return [node.variable for node in nodes if type(node) is _ACCUMULATE]


class Topology:
    """One graph: which node reads which, in which order, and which nodes parameters alone make."""

    def __init__(
        self, nodes: list[Any], table: LayerTable, gathered: Gathered | None = None, reorders: bool = True
    ) -> None:
        self.nodes = nodes
        self.table = table
        self.gathered = gathered or {}
        self.names = [canonical(node) for node in nodes]
        place = {node: index for index, node in enumerate(nodes)}
        self.inputs: list[list[Value | None]] = [
            [None if child is None else (place[child], slot) for child, slot in node.next_functions] for node in nodes
        ]
        self.shapes: list[list[Shape]] = [
            [tuple(map(int, out.shape)) for out in node._input_metadata] for node in nodes
        ]
        """Shapes of each node's outputs, which autograd keeps as those of the gradients that it expects."""
        self.readers: list[list[tuple[int, int]]] = [[] for _ in nodes]
        """(reading node, place among its arguments) of each node."""
        for index, values in enumerate(self.inputs):
            for position, value in enumerate(values):
                if value is not None:
                    self.readers[value[0]].append((index, position))
        self.selections: dict[int, Tensor] | None = {} if reorders else None
        """Nodes that channels pass in another order -> the index that says which; None: they are not followed there."""
        self.starts: dict[int, tuple[str, int]] = {}
        """Slices of channels -> the name under which each keeps where it begins, and that place."""
        self.leaves = {id(self.parameter(i)): i for i in range(len(nodes)) if self.is_leaf(i)}
        self.order = self._forward_order()
        """Nodes with inputs before outputs."""
        self.rank = [0] * len(nodes)
        """Place of each node in that order."""
        for rank, index in enumerate(self.order):
            self.rank[index] = rank
        self.times = self._times()
        """When each node was made, as the step ran."""
        self.parameters = self._parameters_below()
        """The few parameters that alone make a node's output; None where data or many parameters do."""
        self._behind: dict[int, frozenset[int]] = {}
        self.compiled = any(name in COMPILED for name in self.names)
        self.checkpointed = any(name in CHECKPOINTS for name in self.names)

    def shape(self, value: Value) -> Shape:
        """Shape of a value."""
        return self.shapes[value[0]][value[1]]

    def is_reordered(self, index: int, part: Part, shape: Shape) -> bool:
        """Whether a node takes channels at places that are not known to stay from step to step.

        Args:
            index: of the node.
            part: where the channels are in its input.
            shape: of the input.
        """
        node, name, axes = self.nodes[index], self.names[index], {digit.axis for digit in part.digits}
        if name in STARTS and axes.issuperset(unwrapped(node._saved_dim, len(shape))):
            self.starts[index] = STARTS[name], getattr(node, STARTS[name])
            return self.selections is None
        chosen = selection(node, name, len(shape))
        if chosen is None or chosen[0] not in axes:
            return False
        if self.selections is not None:
            self.selections[index] = chosen[1]
        return self.selections is None

    def is_leaf(self, index: int) -> bool:
        """Whether a node stands for a parameter."""
        return type(self.nodes[index]) is _ACCUMULATE

    def parameter(self, leaf: int) -> nn.Parameter:
        """The module's own parameter behind a leaf of the graph."""
        variable: nn.Parameter = self.nodes[leaf].variable
        return self.gathered.get(id(variable), variable)

    def _forward_order(self) -> list[int]:
        order: list[int] = []
        stack, seen = [(0, 0)], {0}
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
                order.append(node)
        return order

    def _times(self) -> list[int]:
        """By the numbers that autograd gives its nodes; these begin anew in each thread, as in that of a CUDA device's
        backward, so what reads a value counts as later than it in any case."""
        times = [0] * len(self.nodes)
        for index in self.order:
            before = [times[value[0]] + 1 for value in self.inputs[index] if value is not None]
            own = 0 if self.is_leaf(index) else self.nodes[index]._sequence_nr()  # a leaf's is beyond all others
            times[index] = max(own, *before, 0)
        return times

    def _parameters_below(self) -> list[frozenset[int] | None]:
        below: list[frozenset[int] | None] = [None] * len(self.nodes)
        for index in self.order:
            name, values = self.names[index], self.inputs[index]
            if self.is_leaf(index):
                key = id(self.parameter(index))
                if key in self.table.parameters:  # an input may have a gradient, too
                    below[index] = frozenset({key})
                continue
            if name in CONVOLUTIONS or name in SEQUENCE_OPS or "Embedding" in name:
                continue
            parts = [below[value[0]] for value in values if value is not None]
            union = frozenset().union(*(part or () for part in parts))
            if name in MATMULS:
                sides = [values[place] for place in MATMULS[name][:2]]
                if None not in [None if side is None else below[side[0]] for side in sides]:
                    made = True
                else:  # what has no gradient is data, unless a parametrization makes a weight so (spectral norm's W v)
                    made = None in sides and self._is_of_parametrization(index, name, union)
                below[index] = union if made and self._is_weight_side(index) else None
            elif parts and None not in parts and not (None in values and self._meets_data(index, name)):
                below[index] = union if len(union) <= MOST_PARAMETERS else None
        return below

    def _meets_data(self, index: int, name: str) -> bool:
        """Whether an argument without a gradient is data and no constant: a parameter grows to the size of a batch."""
        values = self.inputs[index]
        if name in NORMS:
            return values[0] is None
        out = self.shapes[index][0]
        shapes = [self.shape(value) for value in values if value is not None]
        return prod(out) > max(map(prod, shapes)) or len(out) > max(map(len, shapes))

    def _is_of_parametrization(self, index: int, name: str, parameters: frozenset[int]) -> bool:
        """Whether what has no gradient in a product of parameters is a parametrization's: a vector, or a buffer."""
        found = (self.table.by_leaf.get(parameter) for parameter in parameters)
        owners = [owner for owner in found if owner is not None and owner.reparametrized]
        if not owners or len(self.shapes[index][0]) < 2:
            return bool(owners)
        held = {buffer.data_ptr() for owner in owners for buffer in owner.module.buffers()}
        operands = [peek(self.nodes[index], saved) for saved in SAVED_DATA.get(name, {}).values()]
        dense = [one for one in operands if isinstance(one, Tensor) and one.layout is torch.strided]
        return any(one.data_ptr() in held for one in dense)

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

    def behind_views(self, node: int) -> frozenset[int]:
        """The ops that consume a node's output, or that output in another form."""
        if node not in self._behind:
            frontier, found = [node], set()
            while frontier:
                for reader, _ in self.readers[frontier.pop()]:
                    if self.names[reader] in SHOWN:
                        frontier.append(reader)
                    else:
                        found.add(reader)
            self._behind[node] = frozenset(found)
        return self._behind[node]

    def weight_behind(self, value: Value | None) -> Layer | None:
        """The layer whose parameters alone make a value."""
        below = None if value is None else self.parameters[value[0]]
        owners = {id(o): o for o in (self.table.by_leaf.get(p) for p in below or ()) if o is not None}
        if len(owners) > 1:  # e.g. a low-rank adapter added to the weight: the layer with the largest parameter
            return max(owners.values(), key=lambda layer: layer.main.numel())
        return next(iter(owners.values()), None)
