"""Real training runs of a second or less, watched by the monitor as a user would have it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import lightning as L
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers.training import fit, quiet
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.report.records import Finding

SEEDS = (0, *(pytest.param(seed, marks=(pytest.mark.slow, pytest.mark.seeds)) for seed in range(1, 5)))
"""The first alone unless all are asked for, by `--all-seeds`."""
Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def sgd(lr: float, **options: Any) -> Optimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


@cache
def digits() -> TensorDataset:
    """1,797 pictures of handwritten digits, (1, 8, 8), each pixel of zero mean, with their labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None]
    return TensorDataset((images - images.mean(0)) / images.std(), torch.tensor(found.target))


class Training(L.LightningModule):
    """A network that learns to tell classes, with the optimizer and, on wish, the loss and the schedule given."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        schedule: Callable[[int], float] | None = None,
        optimized: Callable[[nn.Module], list[nn.Parameter]] = lambda net: list(net.parameters()),
    ) -> None:
        super().__init__()
        self.net, self.optimizer, self.loss, self.schedule, self.optimized = net, optimizer, loss, schedule, optimized

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0].to(next(self.net.parameters()).dtype)).float(), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.optimized(self.net))
        if self.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(
    net: nn.Module | L.LightningModule,
    optimizer: Optimizer | None = None,
    *,
    epochs: int = 2,
    data: Dataset[Any] | None = None,
    batch_size: int = 64,
    shuffle: bool = True,
    monitor: DeadKernelMonitor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    schedule: Callable[[int], float] | None = None,
    optimized: Callable[[nn.Module], list[nn.Parameter]] = lambda net: list(net.parameters()),
    beside: Sequence[L.Callback] = (),
    **trainer: Any,
) -> DeadKernelMonitor:
    """Fits the network through Lightning and returns the monitor that watched it, with the callbacks `beside` it."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not isinstance(net, L.LightningModule):
        net = Training(net, optimizer or sgd(0.05), loss, schedule, optimized)
    loader = DataLoader(data or digits(), batch_size, shuffle=shuffle)
    monitor = monitor or quiet()
    options = {"max_epochs": epochs, "log_every_n_steps": 5, "callbacks": [monitor, *beside]} | trainer
    return fit(net, loader, monitor=monitor, **options)


def last(monitor: DeadKernelMonitor) -> Report:
    """The report of the last window."""
    assert monitor.report is not None
    return monitor.report


def found(report: Report, kind: str, layer: str | None = None) -> list[Finding]:
    """The findings of a kind, of one layer or of all."""
    return [f for f in report.findings if f.kind == kind and (layer is None or f.layer == layer)]


def alarms(monitor: DeadKernelMonitor) -> list[str]:
    """Every finding above info of any window, and every kernel of unknown state, in a line; a healthy run has none."""
    unknown = [
        f"window {report.window}: {layer.name}: unknown {layer.unknown} ({layer.note})"
        for report in monitor.reports
        for layer in report.watched
        if layer.unknown
    ]
    return unknown + [
        f"window {report.window}: {f.severity}: {f.layer}: {f.kind} ({f.cause}) {f.evidence}"
        for report in monitor.reports
        for f in report.findings
        if f.severity != "info"
    ]


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given widths over flattened pictures; layer k is named ``net.<2k+1>``."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def conv_norm_net(channels: int = 12) -> nn.Sequential:
    """A small convolutional network with batch norm; its first norm is ``[1]``."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 10),
    )


def he_(net: nn.Module) -> nn.Module:
    """He initialisation with zero biases, in place."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return net
