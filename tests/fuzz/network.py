"""Runs a program: a LightningModule whose modules are made on the first pass, each from a seed of its own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from fuzz.programs import Op, Program

LEARNING_RATE = 1e-5
"""Weights change, and nothing else does."""

Batch = dict[str, Tensor]


class Watcher(Protocol):
    """What the oracle is shown of a pass, and may replace in it."""

    def output(self, layer: str, out: Tensor, axis: int) -> Tensor:
        """A layer's output, before anything else has read it."""

    def read(self, x: Tensor) -> None:
        """What a layer, or the loss, is given."""

    def activation(self, form: Callable[[Tensor], Tensor], x: Tensor, rectifies: bool) -> Tensor:
        """An activation; `form` may work in place."""


@dataclass(frozen=True)
class Kernel:
    """A weight whose channels have a meaning."""

    owner: nn.Module
    tensor: str
    axis: int = 0
    groups: int = 1

    def leaves(self) -> list[nn.Parameter]:
        """The parameters behind it: itself, the one under a pruning mask, or direction and length of a weight norm."""
        held = dict(self.owner.named_parameters())
        normed = f"parametrizations.{self.tensor}.original"
        names = (self.tensor, f"{self.tensor}_orig", f"{normed}1", f"{normed}0")
        return [held[name] for name in names if name in held]

    def zero(self, channels: list[int]) -> None:
        """Makes kernels zero."""
        weight = self.leaves()[-1].data  # of a weight norm its length: a direction of zero is not a number
        if self.groups > 1 and self.axis == 1:
            weight = weight.view(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
            for channel in channels:
                weight[divmod(channel, weight.shape[1])] = 0.0
        else:
            weight.movedim(self.axis, 0)[channels] = 0.0

    def rows(self, values: Tensor) -> Tensor:
        """(C, K) of a weight-shaped tensor, one kernel a row."""
        if self.groups > 1 and self.axis == 1:  # a transposed convolution: (inputs, C / groups, ...)
            parts = values.reshape(self.groups, values.shape[0] // self.groups, *values.shape[1:])
            return parts.transpose(1, 2).flatten(0, 1).flatten(1)
        return values.movedim(self.axis, 0).flatten(1)

    @property
    def channels(self) -> int:
        """Number of kernels."""
        return len(self.rows(self.leaves()[0].detach()))


class Network(L.LightningModule):
    """One program as a module. Its first pass makes what it is built of; then kills are done."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.dtype_of_data: torch.dtype = getattr(torch, program.dtype)
        self.kernels: dict[str, Kernel] = {}
        self.constants: dict[str, Tensor] = {}
        self.watcher: Watcher | None = None
        self.values: dict[str, Tensor] = {}
        self.penalty: Tensor | None = None
        self.data_loss: Tensor | None = None
        self.outputs: list[Tensor] = []
        self.step = 0
        """Number of the batch; some constants change with it."""
        self.random_states: list[Tensor] = []
        """Of torch's generator, as each step found it."""

    # -- what ops are written with ---------------------------------------------------------------------------------

    def generator(self, name: str) -> torch.Generator:
        """A source of random numbers of its own for each name."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.program.seed} {name}".encode()))

    def module(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The module of this name, made where it is first asked for."""
        if name not in self._modules:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{self.program.seed} {name}".encode()))
                made = make()
                for parameter in made.parameters():
                    if parameter.ndim == 1 and bool((parameter == parameter[0]).all()):  # scales and shifts of norms
                        with torch.no_grad():
                            parameter.add_(torch.randn_like(parameter), alpha=0.1)
            made = made.to(self.device, self.dtype_of_data)
            if self.program.channels_last:
                made = made.to(memory_format=torch.channels_last)
            self.add_module(name, made)
        return self._modules[name]

    def constant(self, name: str, *shape: int) -> Tensor:
        """A Gaussian constant of this name and shape."""
        if name not in self.constants:
            self.constants[name] = torch.randn(shape, generator=self.generator(name)).to(self.dtype_of_data)
        return self.constants[name].to(self.device)

    def layer(self, name: str, make: Callable[[], nn.Module], x: Tensor, axis: int, weight: str = "weight") -> Tensor:
        """The output of a layer that has one kernel a channel."""
        module = self.module(name, make)
        if name not in self.kernels:
            transposed = getattr(module, "transposed", False)
            turned = transposed or getattr(module, "inputs_first", False)
            self.kernels[name] = Kernel(module, weight, int(turned), module.groups if transposed else 1)
        self.read(x)
        return self.seen(name, module(x), axis)

    def read(self, x: Tensor) -> None:
        """Shows the watcher what a layer or the loss is given."""
        if self.watcher is not None:
            self.watcher.read(x)

    def seen(self, name: str, out: Tensor, axis: int) -> Tensor:
        """Shows the watcher a layer's output; gives what it puts in its place."""
        return out if self.watcher is None else self.watcher.output(name, out, axis)

    def activated(self, form: Callable[[Tensor], Tensor], x: Tensor, rectifies: bool) -> Tensor:
        """An activation, shown to the watcher."""
        return form(x) if self.watcher is None else self.watcher.activation(form, x, rectifies)

    def halted(self, name: str, x: Tensor) -> Tensor:
        """A detached value; a watcher may hold it at what it was."""
        held: dict[tuple[int, str], Tensor] | None = getattr(self.watcher, "held", None)
        return x if held is None else held.setdefault((self.step, name), x.clone()).clone()

    # -- a pass ----------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> Tensor:
        """The loss of one batch. Its two parts, all values, and what enters the loss are left in the attributes."""
        from fuzz.ops import OPS

        self.values, self.outputs, self.penalty = dict(batch), [], None
        terms: list[Tensor] = []
        watcher, live = self.watcher, self.program.live()
        for op in self.program.ops:
            if op.target == "kill":
                continue
            self.watcher = None if op.target not in live and getattr(watcher, "cuts", False) else watcher
            out = OPS[op.name].run(self, op, *(self.values[name] for name in op.args))
            if op.name == "penalty":
                self.penalty = out if self.penalty is None else self.penalty + out
            elif op.target == "loss":
                terms.append(out)
            else:
                self.values[op.target] = out
        self.watcher = watcher
        self.data_loss = torch.stack([term.to(terms[0].dtype) for term in terms]).sum()
        return self.data_loss if self.penalty is None else self.data_loss + self.penalty

    def run_step(self, batch: Batch, number: int) -> Tensor:
        """A pass with the constants and the random numbers of the batch of this number; the batch stays as it is."""
        self.step = number
        torch.manual_seed(number)
        return self.run({name: value.clone() for name, value in batch.items()})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.random_states.append(torch.get_rng_state())
        return self.run_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LEARNING_RATE)


def batches(program: Program, number: int = 3) -> list[Batch]:
    """What the network is trained on: Gaussian inputs, and tokens."""
    made: list[Batch] = [{} for _ in range(number)]
    inputs = [op for op in program.ops if op.name in ("input", "tokens")]
    for op in inputs:
        source = torch.Generator().manual_seed(zlib.crc32(f"{program.seed} {op.target} data".encode()))
        for index, batch in enumerate(made):
            shape = (program.batch_size, *op.options["shape"])
            if op.options.get("grows"):  # sequences and images of another size in each batch
                shape = (
                    (*shape[:-2], shape[-2] + index, shape[-1])
                    if op.options["grows"] == 1
                    else (*shape[:-1], shape[-1] + index)
                )
            if op.name == "tokens":
                batch[op.target] = torch.randint(op.options["vocabulary"], shape, generator=source)
                continue
            x = torch.randn(shape, generator=source).to(getattr(torch, program.dtype))
            if program.channels_last and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            batch[op.target] = x
    return made


class Loader:
    """Batches as they are: no process, no shuffling, no random numbers drawn."""

    def __init__(self, held: list[Batch]) -> None:
        self.held = held

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def build(program: Program) -> Network:
    """The network of a program, its channels killed.

    Raises:
        Exception: whatever an op raises that does not fit where it stands.
    """
    from fuzz.kills import kill

    net = Network(program)
    net.run_step(batches(program, 1)[0], 0)
    for op in program.ops:
        if op.target == "kill":
            kill(net, op)
    for module in net.modules():  # the pass that made them has left traces in running statistics
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    net.values, net.outputs, net.penalty, net.data_loss = {}, [], None, None
    return net


def kill_op(way: str, layer: str, channels: tuple[int, ...], **options: Any) -> Op:
    """A line that kills channels."""
    return Op("kill", way, (layer,), {"channels": channels, **options})
