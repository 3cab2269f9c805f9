"""Which op consumes which weight, where its channels are, and what stands beside it: bias, norm, inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import prod
from operator import or_

from torch import nn

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.activations import ACTIVATIONS
from lightning_deadkernel.graph.channel_axis import Shape, Step, carried
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.ops import (
    ADDS_UP,
    CONVOLUTIONS,
    FUNCTIONS,
    MARGINS,
    MATMULS,
    MIXERS,
    NORMS,
    RECURRENCES,
    REDUCTIONS,
)
from lightning_deadkernel.graph.parts import Part, follow
from lightning_deadkernel.graph.topology import Topology, Value

FUSED_LINEAR = ("Linear", "MkldnnLinear")

ROW_BY_ROW = frozenset({"WeightNormInterface", "WeightNorm", "Mul"})
"""What a parametrization does to each row alone: weight norm, a pruning mask."""


@dataclass(frozen=True)
class KernelOp:
    """A convolution or matmul: the layer whose weight it consumes, if any, and the places of its arguments."""

    layer: Layer | None
    data: int
    weight: int
    bias: int | None


@dataclass(frozen=True)
class Neighbourhood:
    """The parameters beside a kernel: the bias of its op, and the norm that alone follows it."""

    bias: nn.Parameter | None = None
    shift: nn.Parameter | None = None
    scale: nn.Parameter | None = None
    normed: bool = False


class KernelOps:
    """All kernel ops of a graph."""

    def __init__(self, graph: Topology) -> None:
        self.graph = graph
        self.ops = dict(self._find())
        self.depth = self._depths()

    def _find(self) -> Iterator[tuple[int, KernelOp]]:
        graph = self.graph
        for index, name in enumerate(graph.names):
            values = graph.inputs[index]
            if name in CONVOLUTIONS:
                yield index, KernelOp(graph.weight_behind(values[1]), 0, 1, 2)
            elif name in MATMULS:
                left, right, bias = MATMULS[name]
                right_owner = graph.weight_behind(values[right])
                if name in FUSED_LINEAR:
                    yield index, KernelOp(right_owner, left, right, bias)
                    continue
                left_owner = None if right_owner is not None else graph.weight_behind(values[left])
                data, weight = (right, left) if left_owner is not None else (left, right)
                if graph.parameters[index] is not None:
                    continue  # a product inside a parametrization (spectral norm's W v), not a layer's own op
                yield index, KernelOp(right_owner or left_owner, data, weight, bias)

    def _depths(self) -> list[int]:
        """Kernel ops and recurrences in one op on the longest path to the loss."""
        graph, depth = self.graph, [0] * len(self.graph.names)
        for index in reversed(graph.order):
            for reader, _ in graph.readers[index]:
                is_layer = reader in self.ops or graph.names[reader] in RECURRENCES
                depth[index] = max(depth[index], depth[reader] + is_layer)
        return depth

    def weight_axis(self, index: int) -> int | None:
        """Which axis of its layer's weight becomes the channels of an op's output; None where that is unclear."""
        op, graph = self.ops[index], self.graph
        layer, value = op.layer, graph.inputs[index][op.weight]
        assert layer is not None
        assert value is not None
        if graph.names[index] in CONVOLUTIONS:
            return int(getattr(graph.nodes[index], "_saved_transposed", layer.transposed))
        on_the_left = op.weight == MATMULS[graph.names[index]][0]
        operand = graph.shape(value)
        wanted = 0 if graph.names[index] in FUSED_LINEAR else len(operand) - (2 if on_the_left else 1)
        chain = self._chain(layer, value)
        rows = [self._rows(layer, dim, chain) for dim in range(layer.main.ndim)]
        return next((dim for dim, part in enumerate(rows) if part is not None and part.at.axis == wanted), None)

    def output_part(self, index: int) -> tuple[Layer, Part] | None:
        """The layer as this op shows it, and where which channels are in its output; None where that is unclear."""
        op, graph = self.ops[index], self.graph
        layer, dim = op.layer, self.weight_axis(index)
        assert layer is not None
        out, sizes = graph.shapes[index][0], layer.main.shape
        if dim is None or dim >= len(sizes):
            return None
        if graph.names[index] in CONVOLUTIONS:
            groups = int(getattr(graph.nodes[index], "_saved_groups", layer.groups))
            channels = sizes[dim] * (groups if dim else 1)
            layer = replace(layer, groups=groups, transposed=bool(dim), channel_dim=dim, channels=channels)
            if channels == out[1]:
                return layer, Part.whole(ChannelAxis(1, channels))
            return self._some_rows(index, layer, ChannelAxis(1, out[1])) if groups == 1 else None
        if len(out) not in (1, 2, 3) or (len(out) == 3 and out[0] != 1 and len(sizes) > 2):
            return None
        on_the_left = op.weight == MATMULS[graph.names[index]][0]
        axis = len(out) - (2 if on_the_left and len(out) > 1 else 1)
        layer = replace(layer, channel_dim=dim, channels=sizes[dim])
        at = ChannelAxis(axis, out[axis])
        return (layer, Part.whole(at)) if out[axis] == layer.channels else self._some_rows(index, layer, at)

    def _some_rows(self, index: int, layer: Layer, at: ChannelAxis) -> tuple[Layer, Part] | None:
        """The same of an op that is given some rows of the weight."""
        value = self.graph.inputs[index][self.ops[index].weight]
        rows = None if value is None else self._rows(layer, layer.channel_dim, self._chain(layer, value))
        return (layer, replace(rows, digits=(at,))) if rows is not None and rows.at.size == at.size else None

    def _chain(self, layer: Layer, operand: Value) -> list[int] | None:
        """The nodes from the weight's parameter to an operand; None where the parameter does not lead there."""
        graph, parameter = self.graph, id(layer.main)
        leaf, index, chain = graph.leaves.get(parameter), operand[0], []
        if leaf is None:
            return None
        while index != leaf:
            chain.append(index)
            inputs = [
                value for value in graph.inputs[index] if value and parameter in (graph.parameters[value[0]] or ())
            ]
            if not inputs:
                return None
            # of W / norm(W), the way of W itself
            index = max(inputs, key=lambda value: prod(graph.shape(value)))[0]
        return chain[::-1]

    def _rows(self, layer: Layer, dim: int, chain: list[int] | None) -> Part | None:
        """Where the places of the weight's own axis `dim` are at the end of a chain that begins with its parameter."""
        shape = tuple(layer.main.shape)
        if chain is None or len(shape) < 2:
            return None
        parts: tuple[Part, ...] | None = (Part.whole(ChannelAxis(dim, shape[dim])),)
        for index in chain:
            if parts is None or len(parts) != 1:
                return None
            node, after = self.graph.nodes[index], self.graph.shapes[index][0]
            if self.graph.is_reordered(index, parts[0], shape):
                return None
            try:
                parts = follow(Step(node, self.graph.names[index], shape, shapes=[shape]), parts[0])
            except LookupError:
                parts = parts if after == shape else None  # weight norm, masks and the like keep the weight's shape
            shape = after
        if parts is None or len(parts) != 1 or parts[0].is_cut:
            return None
        return parts[0] if (parts[0].at.outer, parts[0].at.inner) == (1, 1) else None

    def is_attention(self, index: int) -> bool:
        """Whether it is a product of two values that data make."""
        op, values = self.ops[index], self.graph.inputs[index]
        sides = [values[op.data], values[op.weight]]
        return op.layer is None and all(v is not None and self.graph.parameters[v[0]] is None for v in sides)

    def adds(self, index: int) -> bool:
        """Whether an op adds something to its product that is no parameter's alone."""
        bias = self.ops[index].bias
        values = self.graph.inputs[index]
        value = values[bias] if bias is not None and bias < len(values) else None
        return value is not None and self.graph.parameters[value[0]] is None

    def through(self, index: int, position: int, parts: tuple[Part, ...], shape: Shape) -> tuple[Part, ...]:
        """Where channels are behind a product over another axis with no layer's weight; empty if they are mixed.

        With an adjacency matrix, say, or attention weights.
        """
        op, name, out = self.ops[index], self.graph.names[index], self.graph.shapes[index][0]
        if name not in MATMULS:
            return ()
        left, _, bias = MATMULS[name]
        if position == bias:  # `addmm` adds it
            moved = [(part, part.at.axis + len(out) - len(shape)) for part in parts]
        elif op.layer is not None or name in FUSED_LINEAR or len(shape) != len(out):
            return ()
        else:
            mixed = len(shape) - (1 if position == left else 2)
            if any(part.at.axis == mixed for part in parts):
                return ()
            moved = [(part, part.at.axis) for part in parts]
        if any(out[axis] != shape[part.at.axis] for part, axis in moved):
            return ()
        return tuple(part.moved(replace(part.at, axis=axis)) for part, axis in moved)

    def _single_parameter(self, value: Value | None, channels: int) -> nn.Parameter | None:
        """The (C,) parameter behind an argument, through casts, views and repeats."""
        graph = self.graph
        below = None if value is None else graph.parameters[value[0]]
        if value is None or below is None or len(below) != 1:
            return None
        index = value[0]
        while not graph.is_leaf(index):
            index = next(v[0] for v in graph.inputs[index] if v is not None)
        parameter = graph.parameter(index)
        return parameter if parameter.numel() == channels and parameter.ndim == 1 else None

    def neighbourhood(self, index: int, at: ChannelAxis) -> Neighbourhood:
        """Bias of the op whose channels are at `at`; shift and scale of the norm that alone follows it."""
        graph, bias_at = self.graph, self.ops[index].bias
        values, channels = graph.inputs[index], at.size
        bias = (
            self._single_parameter(values[bias_at], channels) if bias_at is not None and bias_at < len(values) else None
        )
        node, position = index, at
        while len(graph.readers[node]) == 1:
            reader, argument = graph.readers[node][0]
            name, value = graph.names[reader], graph.inputs[reader][argument]
            shape = graph.shapes[node][0] if value is None else graph.shape(value)
            if name in NORMS:
                arguments = graph.inputs[reader]
                scale = self._single_parameter(arguments[1], channels) if argument == 0 and len(arguments) > 1 else None
                shift = self._single_parameter(arguments[2], channels) if argument == 0 and len(arguments) > 2 else None
                over_last = "Layer" in name or "Rms" in name
                if position.axis != (len(shape) - 1 if over_last else 1):
                    scale = shift = None  # as many numbers by chance, for another axis than the channels'
                return Neighbourhood(bias, shift, scale, True)
            if name == "Add" and bias is None:
                others = [v for p, v in enumerate(graph.inputs[reader]) if p != argument]
                bias = next((p for p in (self._single_parameter(v, channels) for v in others) if p is not None), None)
                if bias is None:
                    break
            elif name in FUNCTIONS or sum(value is not None for value in graph.inputs[reader]) > 1:
                break
            try:
                after = carried(Step(graph.nodes[reader], name, shape), position)
            except LookupError:
                break
            if after is None or len(after) > 1 or name in REDUCTIONS or name in ACTIVATIONS:
                break
            node, position = reader, after[0]
        return Neighbourhood(bias)

    def is_hinge(self, index: int) -> bool:
        """Whether a rectifier, or a soft one, is the loss's own, which adds up what it lets through, and no activation.

        A square of it may be added up, too, if a margin has moved it: else it may be an output that is to be 0.
        """
        graph = self.graph
        before = next(value[0] for value in graph.inputs[index] if value is not None)
        alone = sum(value is not None for value in graph.inputs[before]) == 1
        margin = graph.names[before] in MARGINS and alone
        return self._powers[index] == 1 or (margin and self._powers[index] == 2)

    @cached_property
    def _powers(self) -> list[int]:
        """Of each node: 1 if the loss adds up what it makes, 2 if squares of that, 3 if it does something else."""
        graph = self.graph
        powers = [1] * len(graph.names)
        for index in reversed(graph.order):
            for reader, _ in graph.readers[index]:
                name, values = graph.names[reader], [value for value in graph.inputs[reader] if value is not None]
                if name in ("Pow", "Square") or (name == "Mul" and len(values) == 2 and values[0] == values[1]):
                    power = max(2, powers[reader])
                elif name not in ADDS_UP or (name in ("Mul", "Div") and len(values) > 1):
                    power = 3
                else:
                    power = powers[reader]
                powers[index] = max(powers[index], power)
        return powers

    @cached_property
    def _outside(self) -> set[int]:
        """The nodes from which the loss is reached past all kernel ops."""
        found, frontier = {0}, [0]
        while frontier:
            node = frontier.pop()
            if node not in self.ops:
                new = {value[0] for value in self.graph.inputs[node] if value is not None} - found
                found |= new
                frontier += new
        return found

    def is_penalised(self, layer: Layer) -> bool:
        """Whether the weight also reaches the loss past its own op, as an L2 term in the loss does.

        So does a row of a matrix that is divided by its norm or made orthogonal: through the other rows.
        """
        graph, leaf = self.graph, self.graph.leaves.get(id(layer.main))
        if layer.reparametrized and leaf is not None and {graph.names[i] for i, _ in graph.readers[leaf]} - ROW_BY_ROW:
            return True
        return any(graph.leaves.get(id(leaf)) in self._outside for leaf in layer.leaves)

    def is_used_beside(self, parameter: nn.Parameter) -> bool:
        """Whether the loss depends on a bias or a shift past its own addition, too."""
        leaf = self.graph.leaves.get(id(parameter))
        return leaf is not None and len(self.graph.readers[leaf]) > 1 and leaf in self._outside

    def producers(self, behind: Mapping[int, int]) -> list[int | None]:
        """The layers whose activations alone make each node's output, a bit mask; None where anything else enters.

        Args:
            behind: node of an activation -> the layers before it, a bit mask.
        """
        graph, found = self.graph, list[int | None]([None] * len(self.graph.names))
        for index in graph.order:
            name, values = graph.names[index], [value for value in graph.inputs[index] if value is not None]
            if name in ACTIVATIONS:
                found[index] = behind.get(index)
            elif values and index not in self.ops and name not in MIXERS and "Embedding" not in name:
                # scales and shifts of norms enter as parameters, not as inputs
                inputs = values[:1] if name in NORMS else values
                masks = [found[child] for child, _ in inputs if graph.parameters[child] is None]
                known = [mask for mask in masks if mask is not None]
                found[index] = reduce(or_, known, 0) if len(known) == len(masks) else None
        return found
