"""What a node is for the channels of an argument: an activation, a mask, a gate of itself, a norm over them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from lightning_deadkernel.graph.activations import ACTIVATIONS, Reader, mask
from lightning_deadkernel.graph.channel_axis import Shape, is_shared_by_channels
from lightning_deadkernel.graph.ops import peek
from lightning_deadkernel.graph.parts import Part
from lightning_deadkernel.graph.paths import Trace
from lightning_deadkernel.graph.topology import Topology


def blends(graph: Topology, index: int, parts: tuple[Part, ...]) -> bool:
    """Whether a norm's statistics are taken over several of these channels."""
    node, name, shape = graph.nodes[index], graph.names[index], graph.shapes[index][0]
    axis = parts[0].at.axis
    if "Batch" in name or "Instance" in name:
        return axis != 1
    statistics = peek(node, "result1")
    if "Group" in name:
        return axis != 1 or statistics is None or bool(statistics.shape[1] < shape[1])
    if statistics is None or statistics.ndim != len(shape):
        return True
    return bool(statistics.shape[axis] == 1 and shape[axis] > 1)


def reader_of(graph: Topology, index: int, position: int, trace: Trace, shape: Shape) -> Reader | None:
    """How a node is read as an activation of the channels that its argument at `position`, of `shape`, holds apart."""
    name = graph.names[index]
    if graph.shapes[index][0] != shape:
        return None  # it meets a larger tensor, over whose entries it is repeated
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    alone = not any(value for place, value in enumerate(graph.inputs[index]) if place != position)
    if name == "Mul" and alone and trace.parts:
        return _hand_made_mask(graph, index, position, trace)
    if name == "Where" and alone and trace.parts:
        return _full_mask(graph, index, "condition", trace, keeps=position == 0)
    if name == "MaskedFill" and trace.parts:
        return _full_mask(graph, index, "mask", trace, keeps=False)
    return None


def self_gate(graph: Topology, index: int, trace: Trace, held: Sequence[Trace]) -> tuple[int, str] | None:
    """Of ``x * f(x)``: the node and the label of f, an activation of the same channels in the same places."""
    node = graph.nodes[index]
    gate = next((other for other in held if other.behind is not None and other.channels & trace.channels), None)
    if graph.names[index] != "Mul" or gate is None or not trace.parts or gate.parts != trace.parts:
        return None
    sides = [peek(node, "self"), peek(node, "other")]
    if not all(isinstance(side, Tensor) for side in sides) or sides[0].shape != sides[1].shape:
        return None
    return gate.behind


def _full_mask(graph: Topology, index: int, saved: str, trace: Trace, keeps: bool) -> Reader | None:
    """A mask with an entry for each of the channels' own."""
    held, shape = peek(graph.nodes[index], saved), graph.shapes[index][0]
    axes = {part.at.axis - len(shape) for part in trace.parts}
    if not isinstance(held, Tensor) or any(is_shared_by_channels(held, axis) for axis in axes):
        return None
    if tuple(held.shape) != shape:
        return None
    return mask(saved, keeps, {"Mul": "mask", "Where": "where", "MaskedFill": "masked_fill"}[graph.names[index]])


def _hand_made_mask(graph: Topology, index: int, position: int, trace: Trace) -> Reader | None:
    """A product with a mask of nothing but 0 and 1 that was made without a gradient: x * (x > 0)."""
    saved = "other" if position == 0 else "self"
    other = peek(graph.nodes[index], saved)
    if not isinstance(other, Tensor) or other.numel() <= 1 or other.numel() != prod(graph.shapes[index][0]):
        return None  # a constant, or one value for many entries: no mask of each channel and position
    if other.dtype is not torch.bool:
        # Dropout scales what it keeps by 1/(1-p) > 1; a hand-made mask x * (x > 0) keeps it as it is.
        kept = other[other != 0]
        # One that keeps nothing may be of the kernels' making or data, a schedule's zero: nothing tells which.
        if not kept.numel() or kept.numel() == other.numel() or not bool((kept == 1).all()):
            return None
    return _full_mask(graph, index, saved, trace, keeps=True)
