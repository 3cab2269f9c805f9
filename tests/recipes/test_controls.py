"""Sound networks of seven kinds, trained for real: not one finding above info in any window.

Every seed is a test of its own, so a control counts as quiet only with 5 successes out of 5 seeds.
"""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from helpers.short_runs import SEEDS, Optimizer, alarms, conv_norm_net, found, he_, last, mlp, sgd, train

pytestmark = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    L.seed_everything(seed, verbose=False)


def adam(lr: float) -> Optimizer:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def test_a_convolutional_network_with_batch_norm_is_quiet(seed: int) -> None:
    assert alarms(train(conv_norm_net(), epochs=4)) == []


def test_a_convolutional_network_under_adam_is_quiet(seed: int) -> None:
    assert alarms(train(conv_norm_net(), adam(3e-3), epochs=4)) == []


def test_twenty_he_initialised_layers_of_64_are_quiet(seed: int) -> None:
    assert alarms(train(he_(mlp(64, *[64] * 19, 10)), sgd(0.005), epochs=3)) == []


def test_a_leaky_network_is_quiet(seed: int) -> None:
    assert alarms(train(mlp(64, 64, 64, 64, 10, activation=nn.LeakyReLU), epochs=4)) == []


def test_a_tanh_network_is_quiet(seed: int) -> None:
    assert alarms(train(mlp(64, *[64] * 4, 10, activation=nn.Tanh), epochs=4)) == []


class Transformer(nn.Module):
    """Rows of a picture as tokens, one encoder block with GELU, and a classifier of the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(0.02 * torch.randn(8, 32))
        self.block = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(32, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.block(self.embed(pictures[:, 0]) + self.place).mean(1))


def test_a_transformer_block_with_gelu_is_quiet(seed: int) -> None:
    assert alarms(train(Transformer(), adam(2e-3), epochs=4)) == []


class Residual(nn.Module):
    """Blocks whose second norm has its scale initialised to zero, so that each begins as the identity."""

    def __init__(self, channels: int = 12, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(blocks))
        self.last_norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(blocks))
        self.head = nn.Linear(channels, 10)
        for norm in self.last_norms:
            nn.init.zeros_(norm.weight)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.stem(pictures).relu()
        for first, norm, second, last_norm in zip(self.first, self.norms, self.second, self.last_norms, strict=True):
            x = (x + last_norm(second(norm(first(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def test_residual_scales_that_begin_at_zero_and_learn_are_quiet(seed: int) -> None:
    monitor = train(Residual(), epochs=4)
    assert alarms(monitor) == []


def test_residual_scales_that_stay_at_zero_are_told(seed: int) -> None:
    net = Residual()
    net.last_norms[0].weight.register_hook(torch.zeros_like)
    report = last(train(net, epochs=3))
    (finding,) = found(report, "zero_kernels")
    assert (finding.layer, finding.cause_word) == ("net.second.0", "zero at initialisation")
    assert finding.severity == "error"
    assert "gamma" in finding.cause
    assert report.findings[0] == finding  # the root is told first
    (before,) = found(report, "starved_channels")
    assert (before.layer, before.cause_word) == ("net.first.0", "outgoing zero")
    assert "net.second.0" in before.cause
    assert found(report, "frozen_weights") == []


def test_the_bias_before_a_batch_norm_is_no_evidence(seed: int) -> None:
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )
    monitor = train(net, epochs=4)
    assert alarms(monitor) == []
    assert last(monitor).summary()["min_gradient_ratio"] > 1e-2  # the noise at these biases counts for nothing
