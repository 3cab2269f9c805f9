"""A second opinion on every kernel that knows nothing of autograd graphs: gradients and removal, on every batch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from zoo.architectures import tensors


def kernels_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs have one channel per kernel: linear layers and convolutions, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) or type(module).__name__ == "Conv1D"
    }


def channel_axis(module: nn.Module) -> int:
    """Where a layer's channels are in its output, counted from the right."""
    return -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1


def per_channel(gradient: Tensor, axis: int) -> Tensor:
    """(C,) the largest |entry| of each channel; a NaN counts as a gradient."""
    rows = gradient.detach().movedim(axis, 0).flatten(1)
    return rows.abs().nan_to_num(nan=float("inf")).amax(1) if rows.numel() else rows.new_zeros(len(rows))


def at_kernels(module: nn.Module) -> Tensor | None:
    """(C,) the largest |gradient| in each kernel; None without a gradient or where the weight is made of others."""
    weight = module._parameters.get("weight")
    if weight is None or weight.grad is None:
        return None
    gradient = weight.grad
    if isinstance(module, _ConvTransposeNd):  # (in, out / groups, ...): the groups follow one another
        gradient = torch.cat([part.transpose(0, 1) for part in gradient.chunk(module.groups)])
    elif type(module).__name__ == "Conv1D":  # GPT-2's: (in, out)
        gradient = gradient.t()
    return per_channel(gradient, 0)


@torch.no_grad()
def shut(model: nn.Module, channels: tuple[int, ...] = (1, 4), level: float = -50.0) -> dict[str, tuple[int, ...]]:
    """Shuts channels of every second batch norm and of every layer with a bias that widens; zero kernels without one.

    Returns:
        Name of the module -> the channels, for the layers and norms that were changed.
    """
    done = {}
    norms = 0
    for name, module in model.named_modules():
        bias, weight = module._parameters.get("bias"), module._parameters.get("weight")
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and bias is not None and len(bias) >= 8:
            norms += 1
            if norms % 2:
                bias[list(channels)] = level
                done[name] = channels
        elif (
            isinstance(module, (nn.Linear, _ConvNd)) and weight is not None and not isinstance(module, _ConvTransposeNd)
        ):
            wide = weight.shape[0] >= max(8, weight.shape[1] + 1)
            if wide and bias is not None:
                bias[list(channels)] = level
                done[name] = channels
            elif wide and isinstance(module, nn.Linear):
                weight[list(channels)] = 0.0
                done[name] = channels
    return done


class Removal:
    """While open, puts 0 in place of some channels of the outputs of some modules."""

    def __init__(self, model: nn.Module, channels: Mapping[str, Iterable[int]]) -> None:
        self.handles = [
            model.get_submodule(name).register_forward_hook(self._hook(list(dead))) for name, dead in channels.items()
        ]

    def _hook(self, dead: list[int]) -> Any:
        def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return output.index_fill(channel_axis(module), torch.tensor(dead, device=output.device), 0.0)
            parts, first = [], 0  # the kernels of an octave convolution, in two outputs
            for part in output:
                last = first if part is None else first + part.shape[channel_axis(module)]
                mine = [channel - first for channel in dead if first <= channel < last]
                at = torch.tensor(mine, dtype=torch.long, device=None if part is None else part.device)
                parts.append(None if part is None else part.index_fill(channel_axis(module), at, 0.0))
                first = last
            return tuple(parts)

        return replace

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def outputs(model: lightning.LightningModule, batch: Any, channels: Mapping[str, Iterable[int]]) -> list[Tensor]:
    """What a copy of the model puts out for a batch without these channels, with the random numbers of this step."""
    twin = copy.deepcopy(model)
    with isolate_rng(), Removal(twin, channels):
        return list(tensors(twin(batch)))


class BruteForce(lightning.Callback):
    """Watches a training by hooks on the outputs of its layers.

    Args:
        removable: layer -> channels of which it is said that they may go: this is tried on every batch.
    """

    def __init__(self, removable: Mapping[str, list[int]]) -> None:
        self.removable = dict(removable)
        self.at_output: dict[str, Tensor] = {}
        """(C,) largest |gradient| at each channel of the output."""
        self.at_kernel: dict[str, Tensor] = {}
        """(C,) largest |gradient| in each kernel."""
        self.missed: set[tuple[str, int]] = set()
        """Removable channels without which the outputs were others."""
        self.used: set[str] = set()
        self.handles: list[Any] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        for name, layer in kernels_of(module).items():
            handle = layer.register_forward_hook(lambda la, i, out, name=name: self._forward(name, la, out))
            self.handles.append(handle)

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _forward(self, name: str, layer: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:  # an octave convolution puts out two
            self.used.add(name)
            output.register_hook(lambda g: self._keep(self.at_output, name, per_channel(g, channel_axis(layer))))

    def _keep(self, seen: dict[str, Tensor], name: str, values: Tensor | None) -> None:
        if values is not None:
            seen[name] = torch.maximum(seen[name], values) if name in seen else values

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if not self.removable:
            return
        whole = outputs(module, batch[0], {})
        if _same(whole, outputs(module, batch[0], self.removable)):
            return
        for name, channels in self.removable.items():
            if not _same(whole, outputs(module, batch[0], {name: channels})):
                self.missed |= {(name, c) for c in channels if not _same(whole, outputs(module, batch[0], {name: [c]}))}

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        for name, layer in kernels_of(module).items():
            self._keep(self.at_kernel, name, at_kernels(layer))

    def without_gradient(self) -> Iterator[tuple[str, set[int]]]:
        """Each layer that was seen, with the channels that had no gradient at their output on any batch."""
        for name in self.used & self.at_output.keys():
            yield name, set((self.at_output[name] == 0).nonzero().flatten().tolist())


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(one, other, strict=True))
