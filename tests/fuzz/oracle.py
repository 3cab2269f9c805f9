"""What is true of every channel, found without a look at any graph: by gradients, and by putting others in its place.

Three batches are trained on as the monitor's run does. A layer's output is shown to the oracle before anything else has
read it; it takes the gradient there and at the kernel, and may put other values in a channel's place while everything
else is held: weights, batch, random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuzz.network import Batch, Network, batches, build
from fuzz.programs import Program

FURTHER = (1.0, 100.0)
"""How far beyond all its own values a channel is put in the trial of whether it may go."""

ROUNDING = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 3e-2}
"""Sums of the same numbers differ from run to run by where in memory they lie."""


@dataclass
class Truth:
    """One layer over all batches; tensors are (C,)."""

    kernel_gradient: Tensor
    """Largest |gradient| of the loss, a penalty apart, at the kernel."""
    output_gradient: Tensor | None = None
    """The same at the output; None where the layer's own output is not seen from outside (recurrence)."""
    passes: Tensor | None = None
    """The slope of some activation lets something through, or none is on some path."""
    fires: Tensor | None = None
    """Some rectifier that it reaches is positive, or none is on some path to a layer or the loss."""
    bypasses: Tensor | None = None
    """Some path meets no rectifier, or one that fires."""
    arrives: Tensor | None = None
    """It reaches an activation, a layer or the loss at all."""
    low: Tensor | None = None
    high: Tensor | None = None
    """Extremes of what it put out."""
    has_bias: bool = True

    spread: Tensor | None = None
    """The largest difference within a batch."""

    def constant(self) -> Tensor:
        """(C,) bool: it put out the same number throughout each batch."""
        assert self.spread is not None
        return self.spread == 0

    def shut(self) -> Tensor | None:
        """Every path ends at a rectifier that never let anything through."""
        if self.arrives is None or self.bypasses is None or self.passes is None:
            return None
        return (self.arrives > 0) & (self.bypasses == 0) & (self.passes == 0)


def _largest(values: Tensor, axis: int) -> Tensor:
    """(C,) max |x| along everything but the channels, NaN included."""
    return values.detach().abs().double().movedim(axis, 0).flatten(1).amax(1)


@dataclass
class Gradients:
    """Takes the gradients at the outputs of layers."""

    found: dict[str, Tensor] = field(default_factory=dict)
    low: dict[str, Tensor] = field(default_factory=dict)
    high: dict[str, Tensor] = field(default_factory=dict)
    spread: dict[str, Tensor] = field(default_factory=dict)

    def output(self, layer: str, out: Tensor, axis: int) -> Tensor:
        values = out.detach().double().movedim(axis, 0).flatten(1)
        channels = len(values)
        for kept, now, pick in (
            (self.low, values.amin(1), torch.minimum),
            (self.high, values.amax(1), torch.maximum),
            (self.spread, values.amax(1) - values.amin(1), torch.maximum),
        ):
            kept[layer] = pick(kept[layer], now) if layer in kept else now
        self.found.setdefault(layer, torch.zeros(channels, dtype=torch.float64))

        def take(gradient: Tensor) -> None:
            self.found[layer] = torch.maximum(self.found[layer], _largest(gradient, axis))

        if out.requires_grad:
            out = out.clone()  # a hook on a view does not see what is done to it in place
            out.register_hook(take)
        return out

    def read(self, x: Tensor) -> None:
        """Nothing to do."""

    def activation(self, form: Callable[[Tensor], Tensor], x: Tensor, rectifies: bool) -> Tensor:
        return form(x)


class Probes:
    """Ends every path at the first rectifier that it meets, and notes by which probe something comes back from there.

    Each probe is a sum of random multiples, whose gradient at an output tells whether any term depends on a channel.
    """

    cuts = True
    NAMES = ("passes", "fires", "bypasses", "arrives")

    def __init__(self) -> None:
        self.source = torch.Generator().manual_seed(0)
        self.terms: dict[str, list[Tensor]] = {name: [] for name in self.NAMES}
        self.outputs: list[tuple[str, Tensor, int]] = []
        self.found: dict[str, list[tuple[str, Tensor]]] = {}

    def differentiated(self) -> Probes:
        """Takes the gradients, by probe: (layer, (C,) largest |gradient|) for each use of a layer."""
        for name, terms in self.terms.items():
            self.found[name] = []
            values = [out for _, out, _ in self.outputs]
            gradients: Any = [None] * len(values)
            if terms and values:
                total = torch.stack(terms).sum()
                gradients = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
            for (layer, out, axis), gradient in zip(self.outputs, gradients, strict=True):
                seen = _largest(torch.zeros_like(out) if gradient is None else gradient, axis)
                self.found[name].append((layer, seen))
        self.terms, self.outputs = {}, []
        return self

    def output(self, layer: str, out: Tensor, axis: int) -> Tensor:
        out = out * 1.0  # a value of its own, which nothing changes in place
        if out.requires_grad:
            self.outputs.append((layer, out, axis))
        return out.clone()

    def _add(self, value: Tensor, *probes: str) -> None:
        weights = torch.rand(value.shape, generator=self.source, dtype=torch.float64) + 0.5
        for name in probes:
            if value.requires_grad:
                self.terms[name].append((value.double() * weights).sum())

    def read(self, x: Tensor) -> None:
        self._add(x, "fires", "bypasses", "arrives")

    def end(self, x: Tensor) -> None:
        """What enters the loss as it is."""
        self._add(x, *self.NAMES)

    def activation(self, form: Callable[[Tensor], Tensor], x: Tensor, rectifies: bool) -> Tensor:
        before = x.clone()
        if not rectifies:
            after = form(x)
            self._add(after, "passes")
            self._add(before, "arrives", "bypasses")
            return after
        changed = x.clone()
        after = form(changed)
        self._add(after, "passes")
        self._add(before, "arrives")
        self._add((after.detach() > 0) * before, "fires", "bypasses")
        if after is not changed:
            return after.detach()
        with torch.no_grad():
            x.copy_(after)  # in place: who reads x from here on reads the activation
        return x.detach_()


def probed(net: Network, batch: Batch, number: int) -> Probes:
    """What all probes found in one pass."""
    probes = net.watcher = Probes()
    net.run_step(batch, number)
    for value in net.outputs:
        probes.end(value)
    return probes.differentiated()


class Replace:
    """Puts something in the place of some channels of one layer, in each of its uses.

    Detached copies are held at what they were: no graph shows them, so that no verdict can speak of them.
    """

    def __init__(self, layer: str, channels: list[int], value: Tensor, held: dict[tuple[int, str], Tensor]) -> None:
        self.layer, self.channels, self.value, self.held = layer, channels, value, held

    def output(self, layer: str, out: Tensor, axis: int) -> Tensor:
        if layer != self.layer:
            return out
        changed = out.movedim(axis, -1).clone()
        changed[..., self.channels] = self.value.to(changed.dtype)
        return changed.movedim(-1, axis).contiguous() if axis != -1 else changed

    def read(self, x: Tensor) -> None:
        """Nothing to do."""

    def activation(self, form: Callable[[Tensor], Tensor], x: Tensor, rectifies: bool) -> Tensor:
        return form(x)


def _hidden(program: Program) -> set[str]:
    """Layers whose output another op reads after it was changed in place.

    Of rows the output is a view, and no graph shows what is done in place to a view: what comes after is read in its
    place, another activation or a sum of several channels, be it of that view or of what the op gives.
    """
    from fuzz.ops import OPS

    changed = {op.args[0]: op for op in program.ops if "inplace" in op.name}
    behind = {op.target: op.args[0] for op in changed.values()}
    """Value -> the output that was changed in place, with no layer between."""
    found = set()
    for op in program.ops:
        given = {behind[name] for name in op.args if name in behind}
        kind = OPS[op.name].group if op.name in OPS else "kill"
        if kind == "activation" or op.name == "two_flattens":
            found |= given
        elif kind in ("shape", "norm", "join") and given:
            behind[op.target] = min(given)
        later = [name for name in op.args if name in changed and op is not changed[name]]
        found |= {name for name in later if program.ops.index(op) > program.ops.index(changed[name])}
    return found


class Oracle:
    """The truth of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.batches = batches(program)
        self.truths: dict[str, Truth] = {}
        self._train()
        self.turned = {op.options["layer"] for op in program.ops if op.name in ("tied", "conv_tied", "adapted")}
        """Layers whose weight has another use, in which no output of theirs is to be seen."""
        hidden = _hidden(program)
        self.hidden = {name for name in self.truths if name in hidden or name.rpartition("_")[0] in hidden}
        self._held: dict[tuple[int, str], Tensor] = {}
        self._untouched: dict[str, list[list[Tensor]]] = {}
        """By layer: to show an output copies it, and a dropout draws in the order in which values lie in memory."""

    def _train(self) -> None:
        net = build(self.program)
        optimizer, seen = net.configure_optimizers(), Gradients()
        found: list[Probes] = []
        for index in range(len(self.batches)):
            found.append(probed(net, self.batches[index], index))
            net.watcher = seen
            optimizer.zero_grad()
            net.run_step(self.batches[index], index)
            penalty = net.penalty
            assert net.data_loss is not None
            net.data_loss.backward()
            for name, held in self._rows(net).items():
                truth = self.truths.setdefault(name, Truth(held))
                truth.kernel_gradient = torch.maximum(truth.kernel_gradient, held)
            if penalty is not None:
                penalty.backward()
            optimizer.step()
        for name, kernel in net.kernels.items():
            self.truths[name].has_bias = getattr(kernel.owner, "bias", None) is not None
        for name, truth in self.truths.items():
            truth.output_gradient = seen.found.get(name)
            truth.low, truth.high, truth.spread = seen.low.get(name), seen.high.get(name), seen.spread.get(name)
        for probes in found:
            for name in Probes.NAMES:
                self._take(name, probes)

    @staticmethod
    def _rows(net: Network) -> dict[str, Tensor]:
        """(C,) largest |gradient| at each kernel; other parameters of two axes by their rows, under their own name."""
        rows: dict[str, Tensor] = {}
        known: set[int] = set()
        for name, kernel in net.kernels.items():
            leaves = kernel.leaves()
            known.update(id(leaf) for leaf in leaves)
            found = [kernel.rows(leaf.grad).abs().amax(1) for leaf in leaves if leaf.grad is not None]
            rows[name] = torch.stack(found).amax(0).double() if found else torch.zeros(kernel.channels).double()
        for name, leaf in net.named_parameters():
            if id(leaf) not in known and leaf.ndim >= 2:
                gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                rows[name.removesuffix(".weight")] = gradient.detach().flatten(1).abs().amax(1).double()
        return rows

    def _take(self, name: str, probes: Probes) -> None:
        for layer, seen in probes.found[name]:
            before = getattr(self.truths[layer], name)
            setattr(self.truths[layer], name, seen if before is None else torch.maximum(before, seen))

    # -- replacement -------------------------------------------------------------------------------------------------

    def may_go(self, layer: str, channels: list[int]) -> list[int]:
        """Those of the channels whose place may be taken, in some direction, by what they never put out, or by zero."""
        truth = self.truths[layer]
        assert truth.low is not None
        assert truth.high is not None
        low, high = truth.low[channels], truth.high[channels]
        trials = [[low - far for far in FURTHER], [high + far for far in FURTHER], [torch.zeros_like(low)]]
        if channels and any(all(self._same(layer, channels, value) for value in values) for values in trials):
            return channels
        if len(channels) < 2:
            return []
        return [channel for channel in channels if self.may_go(layer, [channel])]

    def _same(self, layer: str, channels: list[int], value: Tensor) -> bool:
        """Whether every output and the loss stay what they were."""
        net = build(self.program)
        if layer not in self._untouched:
            net.watcher = Replace(layer, [], torch.zeros(0), self._held)
            self._untouched[layer] = [self._seen(net, index) for index in range(len(self.batches))]
        net.watcher = Replace(layer, channels, value, self._held)
        near = ROUNDING[self.program.dtype]
        return all(
            torch.allclose(now, then, rtol=near, atol=near, equal_nan=True)
            for index, before in enumerate(self._untouched[layer])
            for now, then in zip(self._seen(net, index), before, strict=True)
        )

    def _seen(self, net: Network, index: int) -> list[Tensor]:
        loss = net.run_step(self.batches[index], index)
        return [loss.detach().clone(), *(value.detach().clone() for value in net.outputs)]
