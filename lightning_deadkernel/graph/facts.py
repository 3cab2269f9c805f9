"""What the graphs seen so far say of one layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from lightning_deadkernel.graph.activations import Activation
from lightning_deadkernel.graph.ahead import Ahead
from lightning_deadkernel.graph.bounds import Affine, Gate, Normalised, smallest
from lightning_deadkernel.graph.kernel_ops import Neighbourhood
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.layers import FROZEN
from lightning_deadkernel.graph.ops import adds_up
from lightning_deadkernel.graph.paths import Paths
from lightning_deadkernel.observation import Consumer, Gating, Rows

ActivationKey = tuple[str, ...]
"""Names of the layers that reach an activation, sorted. Activations that the same layers reach share one key."""

WEAKEST_FIRST: tuple[Gating, ...] = ("leaky", "smooth", "bounded", "rectifier")

MOST_GATES = 64
"""Rectifiers behind one layer, over all graphs; with more (a recurrence of many steps) it gets no certificate."""

READ_AS: dict[Rows, str] = {
    "gate": "a gate acts within its op: it is read by its gradient",
    "projection": "it is read by attention",
    "table": "its rows are looked up",
    "codes": "its rows are looked up, and compared with what they stand for",
    "experts": "one row an expert",
}
"""How weights are read whose rows are no kernels of one op."""


@dataclass(frozen=True)
class Source:
    """Where a layer's per-step gradient evidence is read: a (C,) parameter, or the rows of its weight."""

    layer: Layer
    parameter: nn.Parameter | None = None
    kind: str = "weight"


@dataclass(frozen=True)
class LayerUse:
    """What one graph shows of one use of a layer."""

    layer: Layer
    depth: int
    order: int
    paths: Paths
    activations: tuple[Activation, ...]
    """What is at `paths.reads`."""
    beside: Neighbourhood
    source: Source
    penalised: bool
    source_penalised: bool
    gates: tuple[Gate, ...] = ()
    """The rectifiers of whose input something is known."""
    unbounded: int = 0
    """Channels that reach one of whose input nothing is; a bit mask."""


def cheapest_source(layer: Layer, beside: Neighbourhood, paths: Paths) -> Source:
    """The cheapest faithful place of a layer's gradient; never a bias before a norm, whose gradient is rounding."""
    if beside.shift is not None and beside.shift.requires_grad:
        return Source(layer, beside.shift, "shift")
    if beside.bias is not None and beside.bias.requires_grad and not beside.normed and not paths.composed_norm:
        return Source(layer, beside.bias, "bias")
    return Source(layer)


@dataclass
class LayerFacts:
    """One layer, over all graphs seen."""

    layer: Layer
    """With the axes that the graphs show, where they differ from those that its module's type tells."""
    depth: int = 0
    order: int = -1
    ahead: Ahead | None = None
    """What lies between it and the loss, the least over all uses."""
    labels: set[str] = field(default_factory=set)
    kinds: dict[Gating, int] = field(default_factory=dict)
    """Kind of activation -> the channels that reach one, a bit mask."""
    paths: Paths = field(default_factory=Paths)
    """Of all its uses, but for what they read and what consumes them."""
    read: int = 0
    """Channels that reach an activation that can be read; a bit mask, as in `Paths`."""
    activations: set[ActivationKey] = field(default_factory=set)
    reports_flat_ends: bool = False
    flat_output: float = 0.0
    """The largest of its activations, see `Activation.flat_output`."""
    together: set[str] = field(default_factory=set)
    """Layers that it shares an activation with."""
    passes_at_zero: bool = False
    """An activation passes the gradient of an input of exactly 0."""
    used_otherwise: bool = False
    """Its weight is also used in another orientation, or in a derivative that is part of the loss."""
    unreadable: str | None = None
    source: Source | None = None
    scale: nn.Parameter | None = None
    penalised: bool = False
    source_penalised: bool = False
    """The parameter that speaks for the gradient may get one from a penalty, too."""
    confirmed: bool = False
    """A graph showed an op that consumes the weight."""
    producers: set[str] | None = field(default_factory=set)
    consumers: dict[str, Consumer] | None = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    unbounded: int = 0
    """Channels of which no certificate is possible; a bit mask."""
    used_elsewhere: bool = False
    """See `LayerWindow.used_elsewhere`."""
    passes_zero: bool = True
    """See `LayerWindow.passes_zero`."""
    stays_zero: bool = True
    """See `LayerWindow.stays_zero`."""
    exclusion: str | None = None
    """Why it cannot be watched any more."""
    holds_no_kernels: bool = False
    """A scale, a position table or the like."""
    remark: str | None = None
    since: str | None = None
    """When it was frozen; or, of a layer that came or changed in mid-training, since when it is watched, and why."""

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is to train it."""
        return self.layer.excluded == FROZEN

    @property
    def excluded(self) -> str | None:
        """Why the layer is not watched; None where it is."""
        if self.is_frozen and self.since:
            return f"{FROZEN} {self.since}"
        return self.layer.excluded or self.exclusion

    @property
    def _is_hidden(self) -> bool:
        return bool(self.paths.unknown or self.paths.lost or self.unreadable)

    @property
    def readable(self) -> int:
        """Channels with an activation that can be read on each of their paths; a bit mask."""
        if self._is_hidden:
            return 0
        return self.read & ~self.paths.reaches

    @property
    def gating(self) -> Gating | None:
        """The weakest kind of all its activations; None where a verdict by activation is not possible."""
        return next(iter(self.gatings), None)

    @property
    def gatings(self) -> dict[Gating | None, int]:
        """The weakest kind of a channel's activations, weakest first, and None where one path or more shows none, ->
        its channels, a bit mask."""
        left, found = self.readable, dict[Gating | None, int]()
        for kind in WEAKEST_FIRST:
            if channels := self.kinds.get(kind, 0) & left:
                found[kind] = channels
                left &= ~channels
        without = ((1 << self.layer.channels) - 1) & ~self.readable
        return found | {None: without} if without else found

    @property
    def activation(self) -> str | None:
        """Label of the activation; None where none follows; ``"mixed"`` where it is that of several channels together;
        ``"unknown"`` where it cannot be read."""
        if self.paths.lost and adds_up(self.paths.lost) and not (self.paths.unknown or self.unreadable):
            return "mixed"
        if self._is_hidden:
            return "unknown"
        if not self.readable:
            return "attention" if self.paths.attention else None
        return "+".join(sorted(self.labels))

    @property
    def off_gradient(self) -> str | None:
        """Why a kernel that never fires may have a gradient all the same, in words; None where it cannot."""
        reasons = {
            "the values of other channels depend on it, through a norm or the like": self.paths.statistics,
            # beside a penalty in the loss a gradient is no sign of this, unless it is free of that
            "its activation passes the gradient of an input of exactly 0": self.passes_at_zero
            and not (self.penalised and self.source_penalised),
            "its weight is used in another place, too": self.used_otherwise,
        }
        return "; ".join(reason for reason, holds in reasons.items() if holds) or None

    @property
    def note(self) -> str | None:
        """Why the activation cannot be read and since when it is watched, in words."""
        return "; ".join(filter(None, (self._why_unread, None if self.is_frozen else self.since))) or None

    @property
    def _why_unread(self) -> str | None:
        if self.unreadable:
            return f"its activation is not read: {self.unreadable}"
        if self.paths.unknown:
            return f"what follows cannot be read ({', '.join(self.paths.unknown)})"
        if self.paths.lost:
            return f"its channels are mixed with others before the next activation ({self.paths.lost})"
        return self.remark

    def unbind(self) -> None:
        """Drops all that certificates rest on."""
        self.gates, self.unbounded = [], (1 << self.layer.channels) - 1

    def never_open(self, channels: Collection[int]) -> tuple[set[int], int | None]:
        """Which rectifiers no input can open, on any path, with the weights of now.

        Args:
            channels: that are asked about.

        Returns:
            Those of them, and up to how many values of a channel may be normalised together; None: any number.
        """
        sure = self.readable & ~self.unbounded
        left = {channel for channel in channels if sure >> channel & 1}
        for gate in self.gates:
            left -= gate.opens_for(left)
        limited = [gate for gate in self.gates if gate.bound.batch and gate.opens_for(left, unlimited=True)]
        return left, smallest(gate.bound.batch for gate in limited)

    def reach(self, channel: int) -> float | None:
        """How far any input lifts a channel above its shift, with the weights of now; None where that is not known."""
        gates = [gate for gate in self.gates if channel in gate.rows]
        if len(gates) != 1 or not isinstance(gates[0].bound, Affine | Normalised):
            return None
        bound = gates[0].bound
        shift = bound.bias if isinstance(bound, Affine) else bound.shift
        added = 0.0 if shift is None else float(shift.flatten()[gates[0].rows[channel]])
        return gates[0].highest(channel) - added

    def keep_only(self, names: Collection[str], trained: Mapping[int, bool]) -> None:
        """Drops what was learned of layers and parameters that are gone.

        Args:
            names: the other layers of which all that is known still holds.
            trained: id of a parameter of the model -> whether it is trained.
        """
        self.activations = {tuple(name for name in key if name in names) for key in self.activations} - {()}
        self.together &= set(names)
        self.unbind()  # what stands before and behind the layer may be others
        if self.producers is not None:
            self.producers &= set(names)
        if self.consumers is not None:
            self.consumers = {name: consumer for name, consumer in self.consumers.items() if name in names}
        beside = [p for p in (self.scale, None if self.source is None else self.source.parameter) if p is not None]
        if not all(trained.get(id(parameter)) for parameter in beside):
            self.source = self.scale = None  # the next graph shows what stands there now

    def exclude(self, reason: str) -> None:
        """Ends the watch over the layer, once."""
        self.exclusion = self.exclusion or reason

    def knows(self, activation: Activation, channels: int) -> bool:
        """Whether an activation of these channels adds nothing."""
        return activation.label in self.labels and not channels & ~self.kinds.get(activation.kind, 0)

    def learn_activation(self, activation: Activation, channels: int) -> None:
        """Adds what an activation of some channels is, which constants that change from step to step may alter."""
        self.labels.add(activation.label)
        self.kinds[activation.kind] = self.kinds.get(activation.kind, 0) | channels
        self.reports_flat_ends = self.reports_flat_ends or activation.reports_flat_ends
        self.flat_output = max(self.flat_output, activation.flat_output)
        self.passes_at_zero = self.passes_at_zero or activation.passes_at_zero

    def place(self, layer: Layer, depth: int, order: int, ahead: Ahead) -> None:
        """Takes in where a weight is used whose rows are no kernels of one op: gates, projections, tables, experts."""
        self._find(layer, depth, order)
        self.ahead = ahead.least(self.ahead)
        self.remark = self.remark or READ_AS[layer.span.kind]

    def _find(self, layer: Layer, depth: int, order: int) -> None:
        self.layer = layer
        self.confirmed, self.holds_no_kernels = True, False
        self.depth = max(self.depth, depth)
        self.order = order if self.order < 0 else min(self.order, order)

    def learn(self, use: LayerUse) -> None:
        """Adds one use of the layer in one graph."""
        self._find(use.layer, use.depth, use.order)
        self.paths = self.paths.then(replace(use.paths, reads=[], consumers=[]))
        self.penalised = self.penalised or use.penalised
        self.source_penalised = self.source_penalised or use.source_penalised
        self.gates += use.gates
        self.unbounded |= use.unbounded
        if len(self.gates) > MOST_GATES:
            self.unbind()
        for read, activation in zip(use.paths.reads, use.activations, strict=True):
            self.read |= read.part.mask
            self.learn_activation(activation, read.part.mask)
        source = use.source
        if self.source is None:
            self.source, self.scale = source, use.beside.scale
        elif self.source.parameter is not source.parameter:
            self.source, self.scale = Source(self.layer), None  # used with several norms: the kernel itself speaks
