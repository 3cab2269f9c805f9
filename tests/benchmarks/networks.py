"""The networks that the benchmark trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """He et al. 2016's basic (two 3x3) or bottleneck (1x1, 3x3, 1x1) block."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        kernels = (
            [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)] if bottleneck else [(width, 3, stride), (width, 3, 1)]
        )
        parts: list[nn.Module] = []
        before = inputs
        for channels, size, step in kernels:
            parts += [
                nn.Conv2d(before, channels, size, step, size // 2, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
        self.relu = parts.pop()
        self.branch = nn.Sequential(*parts)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def resnet(depths: tuple[int, ...], bottleneck: bool) -> nn.Module:
    """ResNet-18 is (2, 2, 2, 2) of basic blocks, ResNet-50 (3, 4, 6, 3) of bottlenecks."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for stage, depth in enumerate(depths):
        for number in range(depth):
            blocks.append(Residual(inputs, 64 << stage, 2 if stage and not number else 1, bottleneck))
            inputs = (64 << stage) * (4 if bottleneck else 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def cnn(*widths: int) -> nn.Module:
    """Conv, batch norm, ReLU and pooling for each width."""
    layers: list[nn.Module] = []
    for before, width in zip((1, *widths), widths):  # noqa: B905 - pairs
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def deep(layers: int, width: int) -> nn.Module:
    """Linear, batch norm and ReLU, so that units fire at any depth."""
    parts = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(width, 10))


class Transformer(nn.Module):
    """An encoder of GPT-2's smallest width and depth with ReLUs, 100 million parameters, and a class for the text."""

    VOCABULARY = 20_000

    def __init__(self, depth: int = 12, width: int = 768):
        super().__init__()
        self.embedding = nn.Embedding(self.VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


@torch.no_grad()
def kill_first_channels(network: nn.Module) -> None:
    """Shifts the first channel before every activation so far down that it never fires."""
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.linear1.bias[0] = -1e4
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.bias[0] = -1e4


@dataclass(frozen=True)
class Workload:
    """A network, the batches it is fed, and how long a run is."""

    name: str
    network: Callable[[], nn.Module]
    input: tuple[int, ...]
    batch: int
    steps: int
    devices: tuple[str, ...] = ("cpu", "cuda")
    tokens: int | None = None
    """The input is numbers below this one."""

    def with_batch(self, batch: int) -> Workload:
        return replace(self, batch=batch)


def mlp(layers: int, width: int) -> Workload:
    return Workload(f"mlp {layers} x {width}", lambda: deep(layers, width), (width,), 32, 40)


def resnet18() -> nn.Module:
    return resnet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> nn.Module:
    return resnet((3, 4, 6, 3), bottleneck=True)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("cnn-tiny", lambda: cnn(4, 8), (1, 14, 14), 64, 60),
        Workload("cnn-small", lambda: cnn(8, 16), (1, 28, 28), 64, 60),
        Workload("cnn", lambda: cnn(32, 64, 128), (1, 28, 28), 64, 40),
        Workload("resnet18-32", resnet18, (3, 32, 32), 64, 20),
        Workload("resnet18-112", resnet18, (3, 112, 112), 16, 15),
        Workload("resnet50-112", resnet50, (3, 112, 112), 16, 12),
        Workload("resnet50-224", resnet50, (3, 224, 224), 256, 30, devices=("cuda",)),
        Workload("transformer-100m", Transformer, (512,), 32, 30, ("cuda",), Transformer.VOCABULARY),
    )
}
