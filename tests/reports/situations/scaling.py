"""Data that nobody has scaled, or scaled twice: the root of dead, saturated and idle kernels."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from helpers.short_runs import last, sgd, train
from lightning_deadkernel import DeadKernelMonitor
from reports import situation


@cache
def pictures(times: float, plus: float = 0.0) -> TensorDataset:
    """1,797 pictures of digits with values from 0 to 1, scaled and shifted."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    return TensorDataset(images * times + plus, torch.tensor(found.target))


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), activation(), nn.Linear(48, 48), activation(), nn.Linear(48, 10)
    )


@situation(
    "https://discuss.pytorch.org/t/model-not-learning-with-totensor-and-division-by-255/92331",
    first="dead_channels net.*: off-scale inputs",
    besides=("dead_channels net.*: off-scale inputs", "weak_gradient net.1: off-scale inputs"),
    advice=("Scale what enters",),
    never=("draw of the initial weights",),
)
def pictures_are_divided_by_255_twice() -> DeadKernelMonitor:
    monitor = train(mlp(), sgd(0.1), data=pictures(1 / 255), epochs=3)
    entering = torch.stack([x for x, _ in pictures(1 / 255)])
    assert float(entering.square().mean().sqrt()) < 0.01
    assert last(monitor)["net.1"].dead
    return monitor


@situation(
    "https://stats.stackexchange.com/questions/7757/data-normalization-and-standardization-in-neural-networks",
    first="dead_channels net.*: off-scale inputs",
    besides=("dead_channels net.*: off-scale inputs", "update_too_large *: *"),
    advice=("Scale what enters",),
    never=("draw of the initial weights",),
)
def features_lie_far_from_zero() -> DeadKernelMonitor:
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3)  # noqa: E731
    return train(mlp(), adam, data=pictures(1.0, 100.0), epochs=3)


@situation(
    "https://stackoverflow.com/questions/38163362/neural-network-not-learning-mnist-data",
    first="saturated_channels net.1: saturated",
    besides=("saturated_channels net.*: *",),
    advice=("Scale what enters",),
)
def pixels_from_0_to_255_saturate_a_tanh() -> DeadKernelMonitor:
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3)  # noqa: E731
    return train(mlp(nn.Tanh), adam, data=pictures(255.0), epochs=3)
