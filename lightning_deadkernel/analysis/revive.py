"""Dead kernels drawn anew, without a change of what the network computes: a user's own step, which no monitor takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.sharding import is_sharded
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report, a_report
from lightning_deadkernel.report.text import count, ranges

SIZES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg"})
"""Running means of squared gradients, by which steps are divided."""
SUMS = frozenset({"exp_avg", "momentum_buffer", "grad_avg", "exp_inf", "acc_delta", "sum", "prev"})
"""What optimizers of torch keep of past gradients besides, each 0 at first."""

WHY_ENTANGLED = {
    "hidden": "the graph does not show all that reads their channels: those are added to others, or leave the network",
    "statistics": "the values of other channels depend on theirs, through a norm or the like",
    "other inputs": "the weights that read their channels read other things too",
    "elsewhere": "their weights, or those that read them, are used beside their own layer, too",
    "not zero": "what reads their channels gets something else than 0 where their activation is 0",
}


@dataclass(frozen=True)
class Refusal:
    """Kernels that were left as they are."""

    layer: str
    channels: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Revival:
    """What `revive` has done."""

    revived: Mapping[str, tuple[int, ...]]
    """Layer -> the kernels that were drawn anew."""
    refused: tuple[Refusal, ...]

    def __str__(self) -> str:
        lines = [f"{name}: {_kernels(channels)} drawn anew" for name, channels in self.revived.items()]
        lines += [f"{no.layer}: {_kernels(no.channels)} left as before: {no.reason}" for no in self.refused]
        return "\n".join(lines) or "no kernel is dead"


def _kernels(channels: Sequence[int]) -> str:
    return f"{count(len(channels), 'kernel')} ({ranges(channels)})"


@torch.no_grad()
def revive(
    module: nn.Module,
    report: Report,
    optimizer: Optimizer | Sequence[Optimizer],
    method: Literal["redo"] = "redo",
    *,
    dormant: bool = False,
    generator: torch.Generator | None = None,
) -> Revival:
    """Draws dead kernels anew, as ReDo does (Sokar et al. 2023, https://arxiv.org/abs/2302.12902).

    The weights of a dead kernel and its bias are drawn by its module's own `reset_parameters`, the norm behind it
    begins anew for its channel, and the weights that read it become zero. So the network computes what it did before;
    from the first step on the reading weights learn, and through them the kernel does. Where that cannot be known (a
    residual sum, a norm over several channels, tied weights, ...) the kernel is left as it is. What reads a detached
    copy of the channels leaves no trace in a graph, and is not known; nor is what the kernel does in evaluation, where
    a batch norm's running statistics may let it fire.

    What the optimizer remembers of these weights goes: running means of gradients become 0. Those of squared gradients
    take their mean over the parameter's other weights, and not 0: how many steps Adam has taken is one number for a
    whole parameter, and beside a large one a size of 0 would make the first steps up to seven times the learning rate.
    A parameter of which nothing else is left to remember begins at step 0.

    Args:
        module: that was trained, as the report names its layers: the LightningModule.
        report: of this moment: with the weights of now, its dead kernels must be dead. The latest one of a monitor, or
            one that was loaded from the JSON of such.
        optimizer: that steps the module, or all that do.
        method: the only one there is.
        dormant: also kernels that are dormant and not dead. What little they do is lost, so that the network then
            computes something slightly else.
        generator: from which one number is drawn, on all ranks alike; None: from torch's global one. All further draws
            are made from that number, and leave the global one as it is. Where several processes train together, all
            must call this at the same time.

    Raises:
        TypeError: if the report is none.
        ValueError: for another method, if the report is of another module, has no `neighbours` (it is not the latest
            one, or saw no graph), or parameters are sharded (FSDP2); if an optimizer keeps of a parameter what is not
            known. Nothing has been changed then.
    """
    if method != "redo":
        raise ValueError(f'Expected `method` to be "redo", but got {method!r}.')
    given = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    optimizers: list[Optimizer] = [getattr(one, "optimizer", one) for one in given]  # Lightning wraps them
    wanted = {row.name: sorted({*row.dead, *(row.dormant if dormant else ())}) for row in a_report(report).of_kernels}
    work = _Work(module, report)
    revived, refused = dict[str, tuple[int, ...]](), list[Refusal]()
    for name, channels in wanted.items():
        for reason, some in work.reasons(name, channels).items():
            if reason is None:
                revived[name] = some
            else:
                refused.append(Refusal(name, some, reason))
    seed = _seed(generator, module)
    for place, (name, drawn) in enumerate(revived.items()):
        work.draw(name, drawn, seed + place)
    for name, drawn in revived.items():  # last: a reader may have been drawn itself
        work.silence(name, drawn)
    steps = [_forgetting(one, parameter, mask) for one in optimizers for parameter, mask in work.touched(one)]
    work.write()
    for forget in steps:
        forget()
    return Revival(revived, tuple(refused))


class _Work:
    """What is to be written into a module: nothing is, until all of it is known to be possible."""

    def __init__(self, module: nn.Module, report: Report) -> None:
        self.module, self.rows = module, {row.name: row for row in a_report(report).of_kernels}
        self.layers = {layer.name: layer for layer in LayerTable.of(module, None, None).layers}
        for name, row in self.rows.items():
            layer = self.layers.get(name)
            if layer is None or (layer.standard and layer.channels != row.channels):
                has = "none of that name" if layer is None else f"one of {layer.channels}"
                raise ValueError(
                    f"Expected a report of this module, but it has a layer {name!r} of {row.channels} channels, and the"
                    f" module has {has}."
                )
            if is_sharded(layer.main):
                raise ValueError(f"Expected whole parameters, but those of {name!r} are sharded.")
            if row.dead and row.neighbours is None:
                raise ValueError(f"Expected the latest report of a training, but what reads {name!r} is not in it.")
        self.owners = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
        self.norms = Counter(row.neighbours.norm for row in self.rows.values() if row.neighbours is not None)
        self.values: dict[int, Tensor] = {}
        """id of a parameter or buffer -> its new values, of its shape."""
        self.masks: dict[int, tuple[Tensor, Tensor]] = {}
        """id of it -> itself, and a bool tensor of its shape, True where it is written."""

    def reasons(self, name: str, channels: Sequence[int]) -> dict[str | None, tuple[int, ...]]:
        """Why kernels are left as they are -> which; None -> those that are not."""
        if not channels:
            return {}
        row, layer = self.rows[name], self.layers[name]
        reason, mask = self._reason(row, layer), layer.mask()
        if reason is not None or mask is None:
            return {reason: tuple(channels)}
        held = {channel for channel in channels if not bool(layer.rows(mask)[channel].any())}
        found = {None: tuple(c for c in channels if c not in held), "a pruning mask holds them at zero": tuple(held)}
        return {why: those for why, those in found.items() if those}

    def _reason(self, row: LayerReport, layer: Layer) -> str | None:
        beside = row.neighbours
        if beside is None:
            return "what reads their channels is not known"
        if beside.entangled is not None:
            return WHY_ENTANGLED[beside.entangled]
        if not hasattr(layer.module, "reset_parameters"):
            return f"{layer.kind} has no `reset_parameters`, which says how its weights are drawn"
        for one in (layer, *(self.layers[consumer.layer] for consumer in beside.consumers)):
            if not one.standard or one.span.name or (one.reparametrized and one.mask() is None):
                return f"the weight of {one.name} is computed from others, or its axes are not those of a known module"
            if self.owners[id(one.main)] > 1:
                return f"the weight of {one.name} is tied to another one"
        if beside.norm is not None and self.norms[beside.norm] > 1:
            return f"the norm {beside.norm} follows other layers, too"
        return None

    def draw(self, name: str, channels: Sequence[int], seed: int) -> None:
        """New weights, bias and norm."""
        layer, beside = self.layers[name], self.rows[name].neighbours
        weight, bias = _fresh(layer, seed)
        self._set(layer.main, _entries(layer.rows, layer.main, channels), weight)
        if layer.bias is not None and bias is not None:
            self._set(layer.bias, torch.tensor(channels), bias)
        norm = None if beside is None or beside.norm is None else self.module.get_submodule(beside.norm)
        for tensor, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            held = getattr(norm, tensor, None)
            if isinstance(held, Tensor):
                self._set(held, torch.tensor(channels), torch.full_like(held, value))

    def silence(self, name: str, channels: Sequence[int]) -> None:
        """Zeros where others read the kernels."""
        beside = self.rows[name].neighbours
        for consumer in beside.consumers if beside is not None else ():
            reader = self.layers[consumer.layer]
            inputs = [one for channel in channels for one in consumer.inputs(channel)]
            self._set(reader.main, _entries(reader.columns, reader.main, inputs), torch.zeros_like(reader.main))

    def _set(self, held: Tensor, entries: Tensor, values: Tensor) -> None:
        mask = torch.zeros(held.numel(), dtype=torch.bool)
        mask[entries] = True
        mask = mask.view(held.shape).to(held.device)
        values = values.to(held)
        if id(held) in self.masks:
            values, mask = torch.where(mask, values, self.values[id(held)]), mask | self.masks[id(held)][1]
        self.values[id(held)], self.masks[id(held)] = values, (held, mask)

    def touched(self, optimizer: Optimizer) -> Iterable[tuple[nn.Parameter, Tensor]]:
        """The optimizer's parameters that are written, and where."""
        held = [p for group in optimizer.param_groups for p in group["params"]]
        return [(p, self.masks[id(p)][1]) for p in held if id(p) in self.masks]

    def write(self) -> None:
        """Writes all of it; gradients that were meant for what was there go."""
        for key, (held, mask) in self.masks.items():
            held[mask] = self.values[key][mask]
            if held.grad is not None:
                held.grad[mask] = 0.0


def _entries(laid_out: Callable[[Tensor], Tensor], weight: Tensor, rows: Sequence[int]) -> Tensor:
    """(n,) places, in row-major order, of the entries that stand in some rows of a weight that is laid out in rows."""
    return laid_out(torch.arange(weight.numel()).view(weight.shape))[list(rows)].flatten()


def _fresh(layer: Layer, seed: int) -> tuple[Tensor, Tensor | None]:
    """A weight and a bias as the layer's module draws them at first, on the CPU."""
    module = copy(layer.module)
    module.__dict__.pop(layer.tensor, None)  # what a pruning mask makes of it
    weight = nn.Parameter(torch.empty(layer.main.shape, dtype=layer.main.dtype))
    bias = None if layer.bias is None else nn.Parameter(torch.empty(layer.bias.shape, dtype=layer.bias.dtype))
    module._parameters = {layer.tensor: weight, "bias": bias}
    reset: Any = module.reset_parameters
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        with torch.enable_grad():  # as where modules are made
            reset()
    return weight.detach(), None if bias is None else bias.detach()


def _seed(generator: torch.Generator | None, module: nn.Module) -> int:
    """The same on all ranks."""
    device = "cpu" if generator is None else generator.device
    seed = torch.randint(1 << 62, (1,), generator=generator, device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seed = seed.to(next(module.parameters()).device)
        torch.distributed.broadcast(seed, 0)
    return int(seed)


def _forgetting(optimizer: Optimizer, parameter: nn.Parameter, mask: Tensor) -> Callable[[], object]:
    """What makes an optimizer forget some entries of a parameter.

    Raises:
        ValueError: if it keeps something of the parameter's shape, or of all parameters together, that is not known.
    """
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    kept = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.shape == mask.shape}
    unknown = sorted(kept.keys() - SIZES - SUMS) + [name for name, value in state.items() if isinstance(value, list)]
    if unknown and parameter.ndim:
        raise ValueError(
            f"Expected an optimizer whose memory is {', '.join(sorted(SIZES | SUMS))}, but {type(optimizer).__name__}"
            f" also keeps {', '.join(unknown)}."
        )
    sizes = {name: value[~mask & (value > 0)] for name, value in kept.items() if name in SIZES}
    if bool(mask.all()) or any(not size.numel() for size in sizes.values()):
        return lambda: optimizer.state.pop(parameter, None)  # begins anew, at step 0

    def forget() -> None:
        for name, value in kept.items():
            value[mask] = sizes[name].mean() if name in SIZES else torch.zeros_like(value[mask])

    return forget
