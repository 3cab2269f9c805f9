"""A healthy control: a network that trains well, of which nothing above info may be said, in any window."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from helpers.short_runs import Optimizer, alarms
from helpers.training import fit, quiet

FALLEN = 0.7
"""A run is healthy whose loss ends below this share of its first."""
FEW = 5
"""Steps whose mean is the first, or the last, loss."""

Loss = Callable[[Any, Any], Tensor]
"""(network, batch) -> a loss."""


class Learner(L.LightningModule):
    """A network and what it minimises.

    Args:
        net: with all that is trained.
        loss: of a batch.
        optimizer: of all parameters that want a gradient.
    """

    def __init__(self, net: nn.Module, loss: Loss, optimizer: Optimizer) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer = net, loss, optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


class Losses(L.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"] if outputs else module.last_loss))


@dataclass(frozen=True)
class Control:
    """What is trained, on what, and for how long."""

    module: L.LightningModule
    data: Dataset[Any]
    epochs: int = 4
    batch_size: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    """Of the Trainer."""


def check(control: Control) -> None:
    """Trains it: the loss falls, and no problem is told in any window."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    losses, monitor = Losses(), quiet()
    loader = DataLoader(control.data, control.batch_size, shuffle=True, drop_last=True)
    options = {"max_epochs": control.epochs, "log_every_n_steps": 5, "callbacks": [monitor, losses]}
    fit(control.module, loader, monitor=monitor, **{**options, **control.options})
    first, last = (sum(part) / len(part) for part in (losses.values[:FEW], losses.values[-FEW:]))
    assert last < FALLEN * first, f"the loss does not fall: {first:.3g} to {last:.3g}"
    assert len(monitor.reports) == control.epochs + 1
    said = alarms(monitor)
    assert not said, "\n".join(said)
    assert monitor.report is not None
    assert not monitor.report.problems


def adam(lr: float = 3e-3, **options: Any) -> Optimizer:
    return lambda parameters: torch.optim.Adam(parameters, lr, **options)


def adamw(lr: float = 3e-3, **options: Any) -> Optimizer:
    return lambda parameters: torch.optim.AdamW(parameters, lr, **options)
