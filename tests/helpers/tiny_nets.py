"""Networks small enough to be judged by hand, and channels killed on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.training import fit, made_on
from lightning_deadkernel import Report
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader

DEAD = (1, 4)


class Net(lightning.LightningModule):
    """Named modules, a forward pass written as a function of them, and the mean square of its output as the loss."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        with made_on(self.device):
            output = self._forward(self, batch[0])
        return output.float().square().mean() if output is not None else None

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(parameters, 1e-3) if parameters else None


def images(count: int = 8, channels: int = 3, size: int = 8) -> Tensor:
    """(count, channels, size, size), all entries positive."""
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) + 0.01


def rows(*shape: int) -> Tensor:
    """Positive entries."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) + 0.01


@torch.no_grad()
def kill(module: nn.Module, *channels: int, level: float = -100.0) -> Any:
    """Puts the bias (or a norm's shift) of these channels far below anything that the weights can lift.

    The other kernels of a layer get a bias that lets them fire, so that none is dead by an unlucky draw.
    """
    bias = module.bias
    assert isinstance(bias, Tensor)
    if not isinstance(getattr(module, "eps", None), float):
        bias.fill_(1.0)
    bias[list(channels)] = level
    return module


def conv(inputs: int = 3, outputs: int = 8, dead: Sequence[int] = (), **options: Any) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    module = nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})
    return module if module.bias is None else kill(module, *dead)  # type: ignore[no-any-return]


def watch(net: lightning.LightningModule, inputs: Tensor | Sequence[Tensor], **options: Any) -> Report:
    """The report of one short training."""
    report = fit(net, inputs, **options).report
    assert report is not None
    return report


def between(f: Callable[..., Tensor], **modules: nn.Module) -> Net:
    """conv (with channels 1 and 4 far below zero) -> f -> head."""
    return Net(lambda net, x: net.head(f(net, net.conv(x))), conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1), **modules)


def chain(first: nn.Module, x: Tensor, head: nn.Module) -> tuple[Net, Tensor]:
    return Net(lambda net, x: net.head(F.relu(net.first(x))), first=first, head=head), x


@torch.no_grad()
def negative(module: nn.Module, *channels: int, dim: int = 0) -> nn.Module:
    """Without a bias, on positive inputs: kernels of negative weights never fire."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.abs_()
    weight.select(dim, channels[0]).neg_()
    for channel in channels[1:]:
        weight.select(dim, channel).neg_()
    return module


def reader_of(net: Net, x: Tensor) -> GraphReader:
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net.train().training_step([x], 0).grad_fn)
    return reader
