"""Tiny networks in which known kernels were killed by hand, and data that makes all others fire."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

DEAD = {"conv1": [2, 3], "conv2": [5]}
"""The dead channels of `Tiny`, by layer: shifted below zero, a zero kernel, and shifted behind a batch norm."""
SAMPLES = 48
BATCH = 8


class Layers(nn.Module):
    """conv, ReLU, conv, batch norm, ReLU, mean, linear: 4 and 8 channels, of which `DEAD` never fire."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 8, 3)
        self.norm = norm(8)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.conv1.bias[2] = -100.0
            self.conv1.weight[3] = 0.0
            self.conv1.bias[3] = 0.0
            self.norm.bias[5] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.norm(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class Tiny(L.LightningModule):
    """`Layers` with a cross entropy and SGD with momentum: a convolution, a norm, gates, dead kernels."""

    lr = 0.01

    def __init__(self) -> None:
        super().__init__()
        self.net = self.make_net()

    def make_net(self) -> nn.Module:
        return Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x).float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Guarded(Tiny):
    """Takes no step on gradients that are not finite, as careful people do."""

    def on_before_optimizer_step(self, optimizer):
        if any(p.grad is not None and not p.grad.isfinite().all() for p in self.parameters()):
            optimizer.zero_grad()


class Manual(Tiny):
    """Accumulates two batches by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch) / 2)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


def images(samples: int = SAMPLES, dtype: torch.dtype = torch.float32) -> TensorDataset:
    """(samples, 1, 8, 8) noise and labels of 3 classes."""
    made = torch.Generator().manual_seed(7)
    return TensorDataset(
        torch.randn(samples, 1, 8, 8, generator=made).to(dtype), torch.randint(3, (samples,), generator=made)
    )


def loader(samples: int = SAMPLES, batch_size: int = BATCH, data: Dataset[Any] | None = None) -> DataLoader[Any]:
    """Shuffled, so that the order of batches depends on the global random state."""
    return DataLoader(images(samples) if data is None else data, batch_size, shuffle=True)


class Resumable(DataLoader):
    """Goes on where it was stopped, as Lightning asks of a loader that is resumed within an epoch."""

    def __init__(self) -> None:
        super().__init__(images(), 8)
        self.begin = self.given = 0

    def __iter__(self):
        begin, self.begin = self.begin, 0
        self.given = begin
        for index, batch in enumerate(super().__iter__()):
            if index >= begin:
                self.given = index + 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin = state["given"]


class Save(ModelCheckpoint):
    """Saves at one step."""

    def __init__(self, path, step: int) -> None:
        super().__init__(save_top_k=0)
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def dead(report: Any, prefix: str = "net.") -> dict[str, list[int]]:
    """The report's dead channels, named as in `DEAD`."""
    return {name.removeprefix(prefix): channels for name, channels in report.dead_channels.items()}
