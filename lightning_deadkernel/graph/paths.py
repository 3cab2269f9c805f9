"""All paths of one kernel's output through the graph to the loss."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.activations import ACTIVATIONS, Activation
from lightning_deadkernel.graph.channel_axis import Shape, carried, output_shape
from lightning_deadkernel.graph.kernel_ops import KernelOps
from lightning_deadkernel.graph.ops import ARITHMETIC, AVERAGES, CONVOLUTIONS, LOSSES, MIXERS, REDUCTIONS, peek


@dataclass(frozen=True)
class ActivationRead:
    """An activation that a kernel reaches: the node, and where the kernel's channels are in what it saved."""

    node: int
    activation: Activation
    at: ChannelAxis
    ndim: int
    shape: Shape | None
    """Shape the axis was worked out for, where it depends on it."""

    def fits(self, saved: Tensor) -> bool:
        """Whether this step's tensor has its channels where the map says."""
        if self.shape is not None:
            return tuple(saved.shape) == self.shape
        return saved.ndim == self.ndim and saved.shape[self.at.axis] == self.at.size


@dataclass
class Paths:
    """Where a kernel's output goes, all paths to the loss counted."""

    reads: list[ActivationRead] = field(default_factory=list)
    reaches: bool = False
    """Some path reaches a convolution, a linear op or the loss without an activation."""
    unknown: list[str] = field(default_factory=list)
    """Names of ops that cannot be read."""
    lost: str | None = None
    """The op at which channels lose their identity."""
    consumers: list[tuple[int, int]] = field(default_factory=list)
    """(kernel op, weights per channel of one output) reached behind the activations."""
    shared: bool = False
    """On its path the output is added to something else, so that its channels cannot be removed alone."""
    composed_norm: bool = False
    """It passes a norm made of arithmetic."""

    def then(self, rest: Paths) -> Paths:
        """These paths, and the ones that go on from where they end."""
        return Paths(
            self.reads + rest.reads,
            self.reaches or rest.reaches,
            self.unknown + rest.unknown,
            self.lost or rest.lost,
            self.consumers + rest.consumers,
            self.shared or rest.shared,
            self.composed_norm or rest.composed_norm,
        )


Cut = tuple[int, ChannelAxis, bool, bool]
"""A node through which all that is left of the paths goes, where the channels are in it, whether it is averaged, and
whether activations are passed."""


class PathTracer:
    """One forward pass over the part of the graph that an output reaches.

    Every value is labelled as one of: *carried* (has the channels at a known axis), a *statistic* of the channels (its
    path must join a carried one again, as in a norm made of arithmetic), or *derived* (behind an activation).
    """

    def __init__(self, kernels: KernelOps, known: dict[Cut, Paths], beyond: bool = False) -> None:
        """Takes what is known of a graph.

        Args:
            kernels: the kernel ops of the graph.
            known: the paths that go on from a cut, over all layers traced so far; what is found is added.
            beyond: pass through activations too and collect the kernel ops that consume the channels.
        """
        self.graph, self.kernels = kernels.graph, kernels
        self.known = known
        self.beyond = beyond
        self.paths = Paths()
        self.carry: dict[int, tuple[ChannelAxis, Shape]] = {}
        self.statistics: dict[int, tuple[str, bool]] = {}
        """node -> (name of its first op, whether anything was averaged on the way)."""
        self.derived: set[int] = set()
        self.averaged: set[int] = set()
        """Carried nodes that hold a mean or the like of the channels."""
        self.queue: list[tuple[int, int]] = []
        self.queued: set[int] = set()
        self.stretches: list[tuple[Cut, Paths]] = []
        """What was found before each cut, with the cut that ended it."""

    def trace(self, start: int, at: ChannelAxis) -> Paths:
        """The paths of the channels at `at` in the output of node `start`."""
        self._carry_on(start, at)
        while self.queue:
            index = heapq.heappop(self.queue)[1]
            alone = not self.queue
            self._visit(index)
            if alone and index in self.carry and self._is_known_from(index):
                break
        # Layers of one residual stream share all of it but their own beginning: keep what follows each cut.
        for cut, before in reversed(self.stretches):
            self.known[cut] = self.paths
            self.paths = before.then(self.paths)
        return self.paths

    def _is_known_from(self, index: int) -> bool:
        """Ends a stretch at a node that all paths go through; True where another layer went on from there before."""
        cut = (index, self.carry[index][0], index in self.averaged, self.beyond)
        self.stretches.append((cut, self.paths))
        known = self.known.get(cut)
        self.paths = Paths() if known is None else known
        return known is not None

    def _push_readers(self, node: int) -> None:
        readers = self.graph.readers[node]
        if not readers and node not in self.derived:
            self.paths.reaches = True  # the loss itself
        for reader, _ in readers:
            if reader not in self.queued:
                self.queued.add(reader)
                heapq.heappush(self.queue, (self.graph.rank[reader], reader))

    def _visit(self, index: int) -> None:
        name = self.graph.names[index]
        values = [value[0] for value in self.graph.inputs[index] if value is not None]
        carried_in = [v for v in values if v in self.carry]
        if index in self.kernels.ops or name in MIXERS:
            self._end_at_kernel(index, carried_in, values)
        elif name in LOSSES:
            self.paths.reaches = self.paths.reaches or not all(v in self.derived for v in values)
        elif carried_in:
            self._visit_carried(index, name, carried_in, values)
        elif any(v in self.statistics for v in values):
            self._visit_statistic(index, name, values)
        else:
            self.derived.add(index)
            self._push_readers(index)

    def _end_at_kernel(self, index: int, carried_in: list[int], values: list[int]) -> None:
        if any(v in self.statistics for v in values):
            self._end_statistics(index, values)
        if not carried_in:
            return  # what is behind an activation was found there
        self.paths.reaches = True
        if self.beyond and index in self.kernels.ops:
            op = self.kernels.ops[index]
            value = self.graph.inputs[index][op.data]
            if op.layer is None or value is None or value[0] not in self.carry:
                self.paths.shared = True
                return
            at, shape = self.carry[value[0]]
            if at.axis == (1 if self.graph.names[index] in CONVOLUTIONS else len(shape) - 1):
                self.paths.consumers.append((index, op.layer.main.numel() // at.size))
            else:
                self.paths.shared = True

    def _end_statistics(self, index: int, values: list[int]) -> None:
        for name, averaged in (self.statistics[v] for v in values if v in self.statistics):
            if averaged:
                self.paths.lost = self.paths.lost or name
            else:
                self.paths.unknown.append(name)

    def _visit_carried(self, index: int, name: str, carried_in: list[int], values: list[int]) -> None:
        graph, node = self.graph, self.graph.nodes[index]
        at, shape = self.carry[carried_in[0]]
        if name in ACTIVATIONS:
            activation = ACTIVATIONS[name](node)
            if activation is not None:
                if self.beyond:
                    self._carry_on(index, at)
                    return
                depends = shape if (at.outer, at.inner) != (1, 1) else None
                self.paths.reads.append(ActivationRead(index, activation, at, len(shape), depends))
                self.derived.add(index)
                self._push_readers(index)
                return
        joined = [self.statistics[v] for v in values if v in self.statistics]
        if joined:
            if not all(averaged for _, averaged in joined):
                self.paths.unknown.append(joined[0][0])
                return
            self.paths.composed_norm = True
        if name == "Mul" and len(values) == 2 and values[0] == values[1]:
            self._visit_unlisted(index, "Pow")
            return
        if name == "Mul":
            reason = self._why_product_is_unreadable(index, at, shape, values)
            if reason is not None:
                self.paths.unknown.append(reason)
                return
        if len({v in self.averaged for v in carried_in}) > 1:
            self.paths.composed_norm = True  # x - mean(x), over dimensions other than the channels'
        if len(carried_in) > 1 and any(self.carry[v][0] != at for v in carried_in[1:]):
            others = {self.carry[v][0].axis - len(self.carry[v][1]) for v in carried_in}
            if len(others) > 1:
                self.paths.lost = self.paths.lost or name
                return
            # a per-channel statistic (1, C, 1, 1) beside the map: the wider one tells the axis
            widest = max(carried_in, key=lambda v: len(self.carry[v][1]))
            at, shape = self.carry[widest]
        if self.beyond and name in ("Add", "Sub", "Mul", "Div", "Cat"):
            foreign = [v for v in values if v not in self.carry and graph.parameters[v] is None]
            self.paths.shared = self.paths.shared or bool(foreign)
        try:
            after = carried(node, name, at, shape)
        except LookupError:
            self._visit_unlisted(index, name)
            return
        if after is not None:
            if name in REDUCTIONS or all(v in self.averaged for v in carried_in):
                self.averaged.add(index)
            self._carry_on(index, after)
        elif name in REDUCTIONS or not self.kernels.feeds[index]:
            self.statistics[index] = (name, True)
            self._push_readers(index)
        else:
            self.paths.lost = self.paths.lost or name

    def _carry_on(self, index: int, at: ChannelAxis) -> None:
        self.carry[index] = (at, output_shape(self.graph.nodes[index]))
        self._push_readers(index)

    def _visit_unlisted(self, index: int, name: str) -> None:
        if name in ARITHMETIC:
            self.statistics[index] = (name, False)
            self._push_readers(index)
        else:
            self.paths.unknown.append(name)

    def _visit_statistic(self, index: int, name: str, values: list[int]) -> None:
        first, averaged = next(self.statistics[v] for v in values if v in self.statistics)
        averaged = any(self.statistics[v][1] for v in values if v in self.statistics)
        if name in REDUCTIONS or name in AVERAGES:
            averaged = True
        elif name not in ARITHMETIC and (name in ACTIVATIONS or not self._passes_on(index, name)):
            if self.kernels.feeds[index]:
                self._end_statistics(index, values)
            else:
                self.paths.reaches = True
            return
        self.statistics[index] = (first, averaged)
        self._push_readers(index)

    def _passes_on(self, index: int, name: str) -> bool:
        try:
            carried(self.graph.nodes[index], name, ChannelAxis(0, 1), (1,))
        except LookupError:
            return False
        except (IndexError, ValueError, AttributeError):
            return True
        return True

    def _why_product_is_unreadable(self, index: int, at: ChannelAxis, shape: Shape, values: list[int]) -> str | None:
        """A product gates its channels if the other side comes from the same channels: x * sigmoid(x), x * (x > 0)."""
        if any(v in self.derived for v in values):
            return "a product of the channels with their own activation"
        node = self.graph.nodes[index]
        if len(values) > 1:
            return None
        other = next((t for t in (peek(node, "other"), peek(node, "self")) if t is not None), None)
        if other is None or other.numel() <= 1 or other.ndim < len(shape) or other.numel() != prod(shape):
            return None  # a constant, or one value for many entries: no gate per channel and position
        if other.dtype is torch.bool:
            return "a product with a mask"
        # Dropout scales what it keeps by 1/(1-p) > 1; a hand-made gate x * (x > 0) keeps it as it is.
        kept = other[other != 0]
        if kept.numel() and bool((kept == 1).all()) and kept.numel() < other.numel():
            return "a product with a mask"
        return None
