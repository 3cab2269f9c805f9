"""Follows a kernel's output forward through the graph, through parts and blends of its channels, to all its ends.

Past 300 lines because it is one pass over one queue, whose state the handlers of all kinds of nodes share.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from functools import reduce
from operator import or_

from torch import Tensor

from lightning_deadkernel.graph.activations import ACTIVATIONS, ELEMENTWISE, Reader, consumed, largest_of, self_gated
from lightning_deadkernel.graph.channel_axis import Shape, Step, unwrapped
from lightning_deadkernel.graph.kernel_ops import KernelOps
from lightning_deadkernel.graph.ops import (
    ATTENTION,
    CONVOLUTIONS,
    EXTREMES,
    FUNCTIONS,
    LOSSES,
    MIXERS,
    NORMS,
    REDUCTIONS,
    SAVED_DATA,
    SOFT_HINGES,
    adds_up,
    peek,
)
from lightning_deadkernel.graph.parts import Part, follow, in_its_slab
from lightning_deadkernel.graph.paths import ActivationRead, Cut, Paths, Trace
from lightning_deadkernel.graph.recognition import blends, reader_of, self_gate
from lightning_deadkernel.graph.topology import Value

SUMS = ("Add", "Sub", "Rsub", "Lerp", "Addcmul", "Addcdiv")
SPREADS = ("Var", "Std", "VarMean", "StdMean")
CHOICES = ("Maximum", "Minimum", "Fmax", "Fmin", "Where")


class PathTracer:
    """One forward pass over the part of the graph that an output reaches."""

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
        self.traces: dict[Value, Trace] = {}
        self.functions: dict[int, list[ActivationRead]] = {}
        self.queue: list[tuple[int, int]] = []
        self.queued: set[int] = set()
        self.live = 0
        """Queued nodes that some value reads which is not behind an activation."""
        self.live_nodes: set[int] = set()
        self.stretches: list[tuple[Cut, Paths]] = []
        """What was found before each cut, with the cut that ended it."""

    def trace(self, start: int, part: Part) -> Paths:
        """The paths of the channels at `part` in the output of node `start`."""
        self.paths.summed = self.kernels.adds(start)
        self._put((start, 0), Trace(part.mask, (part,)))
        while self.live:
            index = heapq.heappop(self.queue)[1]
            alone = not self.queue
            self.live -= index in self.live_nodes
            self._visit(index)
            if alone and (index, 0) in self.traces and self._is_known_from(index):
                break
        # Layers of one residual stream share all of it but their own beginning: keep what follows each cut.
        for cut, before in reversed(self.stretches):
            self.known[cut] = self.paths
            self.paths = before.then(self.paths)
        return self.paths

    def _is_known_from(self, index: int) -> bool:
        """Ends a stretch at a node that all paths go through; True where another layer went on from there before."""
        trace = self.traces[index, 0]
        if trace.behind is not None or trace.function is not None or len(self.graph.shapes[index]) > 1:
            return False
        cut = (index, trace, self.beyond)
        self.stretches.append((cut, self.paths))
        known = self.known.get(cut)
        self.paths = Paths() if known is None else known
        return known is not None

    # -- values --------------------------------------------------------------------------------------------------

    def _put(self, value: Value, trace: Trace) -> None:
        """Says what a value holds, and lets its readers be visited."""
        self.traces[value] = trace
        graph, live = self.graph, trace.behind is None
        readers = graph.readers[value[0]]
        if not readers and live:
            self._reach([(value, trace)], None)  # the loss itself
        for reader, position in readers:
            if graph.inputs[reader][position] != value:
                continue
            if reader not in self.queued:
                self.queued.add(reader)
                heapq.heappush(self.queue, (graph.rank[reader], reader))
            if live and reader not in self.live_nodes:
                self.live_nodes.add(reader)
                self.live += 1

    def _shape(self, value: Value) -> Shape:
        return self.graph.shape(value)

    def _reads(self, index: int, reader: Reader, parts: tuple[Part, ...], shape: Shape) -> list[ActivationRead]:
        depends = [part.slab or any((digit.outer, digit.inner) != (1, 1) for digit in part.digits) for part in parts]
        return [
            ActivationRead(index, reader, part, len(shape), shape if sized else None)
            for part, sized in zip(parts, depends, strict=True)
        ]

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _visit(self, index: int) -> None:
        name = self.graph.names[index]
        held = [
            (position, value, self.traces[value])
            for position, value in enumerate(self.graph.inputs[index])
            if value is not None and value in self.traces
        ]
        live = [(value, trace) for _, value, trace in held if trace.behind is None]
        if name.endswith("Backward"):
            return  # a derivative of a derivative: what the forward pass made of these values is found elsewhere
        if index in self.kernels.ops:
            self._visit_kernel(index, held)
        elif name in MIXERS:
            self._reach(live, index)
        elif name in LOSSES:
            self._reach(live, None)
        elif not live or not self._activates(index, name, held):
            self._pass(index, name, held)

    def _reach(self, live: list[tuple[Value, Trace]], index: int | None) -> None:
        """Paths end at a node that reads all that it is given; `index` None: the loss."""
        for _, trace in live:
            if trace.gated:
                self.paths.lost = self.paths.lost or trace.blended
            elif trace.function in self.functions and trace.parts and not self.beyond:
                self.paths.reads += self.functions[trace.function]
            else:
                self.paths.reaches |= trace.channels
                self.paths.attention |= index is not None and self._is_attention(index)

    def _is_attention(self, index: int) -> bool:
        return self.kernels.is_attention(index) if index in self.kernels.ops else self.graph.names[index] in ATTENTION

    def _visit_kernel(self, index: int, held: list[tuple[int, Value, Trace]]) -> None:
        op, passing = self.kernels.ops[index], []
        for position, value, trace in held:
            if trace.behind is not None:
                continue
            parts = self.kernels.through(index, position, trace.parts, self._shape(value))
            if parts:
                self.paths.summed |= self.kernels.adds(index)
                passing.append(replace(trace, parts=parts))
                continue
            if position == op.data and self._reads_at_consumer(index, value, trace):
                continue
            self._reach([(value, trace)], index)
            if self.beyond:
                self._consumed(index, position, value, trace)
        if passing:
            channels = reduce(or_, (trace.channels for trace in passing))
            parts = tuple(dict.fromkeys(part for trace in passing for part in trace.parts))
            self._put((index, 0), replace(passing[0], channels=channels, parts=parts))

    def _consumed(self, index: int, position: int, value: Value, trace: Trace) -> None:
        op = self.kernels.ops[index]
        places = {part.at.axis for part in trace.parts}
        if (
            op.layer is None
            or position != op.data
            or places != {1 if self.graph.names[index] in CONVOLUTIONS else len(self._shape(value)) - 1}
        ):
            self.paths.shared = True
            return
        self.paths.consumers += [(index, op.layer.main.numel() // part.at.size, part) for part in trace.parts]

    def _reads_at_consumer(self, index: int, value: Value, trace: Trace) -> bool:
        """An in-place op on a view hides what it does and saves: what it left is read where it is consumed."""
        hidden = trace.function is not None and self.graph.names[trace.function] == "CopySlices"
        saved = SAVED_DATA.get(self.graph.names[index], {}).get(self.kernels.ops[index].data)
        if not hidden or saved is None or not trace.parts or self.beyond:
            return False
        node = self.graph.nodes[index]
        content = peek(node, saved)
        if content is None:
            return False
        rectified = bool((content >= 0).all())  # once for each graph, to find a name
        reader = consumed(saved, "relu" if rectified else "in-place op")
        self.paths.reads += self._reads(index, reader, trace.parts, self._shape(value))
        return True

    def _pass(self, index: int, name: str, held: list[tuple[int, Value, Trace]]) -> None:
        """A node that is no activation: each output holds what it keeps of the channels."""
        graph = self.graph
        # beside a value that has met no activation, those that are behind one change nothing
        held = [item for item in held if item[2].behind is None] or held
        shapes = [None if value is None else self._shape(value) for value in graph.inputs[index]]
        outputs = len(graph.shapes[index])
        axes = {digit.axis for _, _, trace in held for part in trace.parts + trace.cut for digit in part.digits}
        alike = False  # as the steps are into which a recurrence unbinds its input, of which there may be many
        if name == "Unbind":
            alike = axes.isdisjoint(unwrapped(graph.nodes[index]._saved_dim, len(shapes[0] or ())))
        for slot in range(outputs):
            if not slot or not alike:
                kept = self._kept(index, name, held, shapes, slot)
            if kept is None:
                return
            if kept.channels:
                self._hold(index, slot, name, held, kept)

    def _kept(
        self, index: int, name: str, held: list[tuple[int, Value, Trace]], shapes: list[Shape | None], slot: int
    ) -> Trace | None:
        """What an output keeps: channels, where they are, what blended them; None where the op is unknown."""
        channels, parts, cut, blended = 0, list[Part](), list[Part](), None
        for position, value, trace in held:
            step = Step(self.graph.nodes[index], name, self._shape(value), position, shapes, slot)
            kept: list[Part] | None = [] if trace.blended is None or trace.cut else None
            try:
                for part in trace.parts or trace.cut:
                    moved = follow(step, part)
                    if self.graph.is_reordered(index, part, self._shape(value)):
                        moved = None
                    if moved and (part.slab or name in ("Cat", "Stack")):
                        own = [in_its_slab(step, part, to) for to in moved]
                        moved = tuple(to for to, _ in own)
                        mixed = trace.behind is None and any(mixed for _, mixed in own)
                        self.paths.summed |= mixed and name in REDUCTIONS - EXTREMES
                        self.paths.compared |= mixed and name in EXTREMES
                        self.paths.stacked |= mixed and name not in REDUCTIONS
                    kept = None if moved is None or kept is None else [*kept, *moved]
            except LookupError:
                if trace.behind is None:
                    self.paths.unknown.append(name)
                    return None
                kept = list(trace.parts) if name in ACTIVATIONS and name != "Glu" else None
            if kept is None:
                self.paths.averaged |= self.beyond and trace.blended is None and name != "Sum" and adds_up(name)
                blended = trace.blended or name
                channels |= trace.channels
            else:
                channels |= reduce(or_, (part.mask for part in kept), 0)
                parts += [part for part in kept if part not in parts and not part.is_cut]
                cut += [part for part in kept if part not in cut and part.is_cut]
                blended = blended or (trace.blended or name if any(part.is_cut for part in kept) else None)
        return Trace(channels, tuple(parts), blended, cut=tuple(cut))

    def _hold(
        self,
        index: int,
        slot: int,
        name: str,
        held: list[tuple[int, Value, Trace]],
        kept: Trace,
    ) -> None:
        parts, blended = kept.parts, kept.blended
        traces = [trace for _, _, trace in held]
        live = [trace for trace in traces if trace.behind is None]
        apart = [trace for trace in live if trace.parts]
        if live and parts and blended is not None:  # x - mean(x) over channels
            self.paths.statistics = self.paths.composed_norm = True
        if live and parts and name in NORMS and blends(self.graph, index, parts):
            self.paths.statistics = True
        if len({trace.averaged for trace in apart}) > 1 or (apart and name in SPREADS):
            self.paths.composed_norm = True  # x - mean(x), over dimensions other than the channels'
        if self.beyond and name in ("Add", "Sub", "Mul", "Div"):
            two = len({trace.parts for trace in traces}) > 1  # two channels in one place
            self.paths.shared |= two or self._meets_another(index)
        if apart and name in SUMS:
            self.paths.summed |= self._meets_another(index)
        if apart and name in CHOICES:
            self.paths.compared |= self._meets_another(index)
        plain = [trace for trace in apart if not trace.averaged]
        function = next((trace.function for trace in plain or apart if trace.function is not None), None)
        if live and parts and len(apart) == len(traces):
            both = name in ("Mul", "Div") and len(plain) == 2 and plain[0].parts == plain[1].parts
            if (both or function is None) and self._is_function(index, name, both, parts):
                function = index
        self._put(
            (index, slot),
            Trace(
                kept.channels,
                parts,
                None if parts else blended,
                not parts and all(trace.gated for trace in traces),
                None if live else traces[0].behind,
                function,
                bool(apart) and (name in REDUCTIONS or all(trace.averaged for trace in apart)),
                () if parts else kept.cut,
            ),
        )

    def _meets_another(self, index: int) -> bool:
        """Whether a node also reads what neither this kernel nor a parameter alone makes."""
        values = [value for value in self.graph.inputs[index] if value is not None]
        return any(value not in self.traces and self.graph.parameters[value[0]] is None for value in values)

    def _is_function(self, index: int, name: str, both: bool, parts: tuple[Part, ...]) -> bool:
        """Whether the node is a function without an off side that could be read as an activation."""
        node = self.graph.nodes[index]
        if name == "CopySlices":  # with a value beside it, that is what was written there
            return sum(value is not None for value in self.graph.inputs[index]) == 1
        if name not in ELEMENTWISE or (name in ("Mul", "Div") and not both):
            return name in FUNCTIONS
        reader = ELEMENTWISE[name]
        activation = reader(node)
        if activation is None or activation.unreadable(node) is not None:
            return False
        saved_shapes = {
            tuple(peek(node, saved).shape) for saved in activation.names if isinstance(peek(node, saved), Tensor)
        }
        if saved_shapes == {self.graph.shapes[index][0]}:
            self.functions[index] = self._reads(index, reader, parts, self.graph.shapes[index][0])
        return True

    # -- activations ---------------------------------------------------------------------------------------------

    def _activates(self, index: int, name: str, held: list[tuple[int, Value, Trace]]) -> bool:
        """Reads the node if it is an activation of the channels."""
        node = self.graph.nodes[index]
        live = [(position, value, trace) for position, value, trace in held if trace.behind is None]
        position, value, trace = live[0]
        if name in EXTREMES and len(held) == 1 and not self.beyond:
            return self._competes(index, value, trace)
        if trace.blended is not None and len(held) == 1 and name in ACTIVATIONS:
            activation = ACTIVATIONS[name](node)
            if activation is None:
                return False
            if self.beyond:
                self._put((index, 0), trace)
            elif trace.cut and name != "Glu" and not trace.gated and all(part.is_apart for part in trace.cut):
                self.paths.reads += self._reads(index, ACTIVATIONS[name], trace.cut, self._shape(value))
                self._put((index, 0), replace(trace, behind=(index, activation.label)))
            else:
                self._put((index, 0), replace(trace, gated=True, cut=()))
            return True
        if name == "Glu":
            return self._glu(index, value, trace)
        reader = reader_of(self.graph, index, position, trace, self._shape(value))
        gate = self_gate(self.graph, index, trace, [other for _, _, other in held]) if reader is None else None
        if gate is not None:
            inner = next((read for read in self.paths.reads if read.node == gate[0]), None)
            if inner is not None:  # x * f(x) is read at the product, in place of f
                reader = self_gated(gate[1], inner.live(self.graph.nodes[gate[0]]).kind)
        activation = reader(node) if reader is not None and len(live) == 1 and trace.parts else None
        if reader is None or activation is None:
            return False
        if trace.averaged and activation.kind == "bounded" and name in FUNCTIONS:
            return False  # the least that a norm is divided by is no activation
        if self.beyond:
            self._put((index, 0), trace)
            return True
        if (activation.kind == "rectifier" or name in SOFT_HINGES) and self.kernels.is_hinge(index):
            self._reach([(value, trace)], None)
            return True
        if gate is not None:
            self.paths.reads = [read for read in self.paths.reads if read.node != gate[0]]
        self.paths.reads += self._reads(index, reader, trace.parts, self._shape(value))
        self._put((index, 0), Trace(trace.channels, trace.parts, behind=(index, activation.label)))
        return True

    def _competes(self, index: int, value: Value, trace: Trace) -> bool:
        """Channels of which the largest is taken."""
        parts, node, shape = trace.parts or trace.cut, self.graph.nodes[index], self._shape(value)
        dims = unwrapped(getattr(node, "_saved_dim", ()), len(shape))
        among = [digit.axis in dims for part in parts for digit in part.digits]
        if len(dims) != 1 or not any(among) or not all(part.is_apart for part in parts) or trace.gated:
            return False
        reader = largest_of(dims[0])
        self.paths.reads += self._reads(index, reader, parts, shape)
        self._put((index, 0), Trace(trace.channels, behind=(index, "maxout")))
        return True

    def _glu(self, index: int, value: Value, trace: Trace) -> bool:
        """The first half of the axis passes, the second half gates it."""
        node, shape = self.graph.nodes[index], self._shape(value)
        (dim,) = unwrapped(node._saved_dim, len(shape))
        reader = ACTIVATIONS["Glu"]
        if not trace.parts or any(part.at.axis != dim for part in trace.parts):
            return False
        half = shape[dim] // 2
        passes = [part.cropped(dim, 0, half) for part in trace.parts]
        gates = [part.cropped(dim, half, half) for part in trace.parts]
        if None in passes or None in gates:
            return False
        if not self.beyond:
            for part, halves in zip(trace.parts, gates, strict=True):
                read = tuple(part.only(gate.channels) for gate in halves or ())
                self.paths.reads += self._reads(index, reader, read, shape)
        parts = tuple(part for group in passes for part in group or ())
        if parts:
            self._put((index, 0), Trace(reduce(or_, (part.mask for part in parts)), parts))
        return True
