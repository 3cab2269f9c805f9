"""Which weight decay empties kernels, and which does not: trained for real until it shows.

Every seed is a test of its own, so a recipe counts as told only with 5 successes out of 5 seeds.
"""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from helpers.short_runs import SEEDS, Optimizer, alarms, found, last, sgd, train

pytestmark = pytest.mark.parametrize("seed", SEEDS)

DECAY, RATE, EPOCHS = 0.02, 0.02, 12


def adam(weight_decay: float) -> Optimizer:
    return lambda parameters: torch.optim.Adam(parameters, lr=RATE, weight_decay=weight_decay)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)


def wide_net_with_norm() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))


def test_adam_with_decay_in_the_gradient_empties_kernels_and_it_is_told_as_decay(seed: int) -> None:
    L.seed_everything(seed, verbose=False)
    monitor = train(wide_net_with_norm(), adam(DECAY), epochs=EPOCHS, batch_size=32)
    assert monitor.reports[0]["net.1"].zero_kernels == []
    report = last(monitor)
    emptied = report["net.1"].zero_kernels
    assert len(emptied) >= 8
    decayed = [f for f in found(report, "zero_kernels", "net.1") if f.cause_word == "decayed"]
    assert len(decayed) == 1
    assert set(decayed[0].channels) <= set(emptied)
    assert decayed[0].severity == "warning"
    assert decayed[0].evidence["weight_decay"] == DECAY
    assert "AdamW" in decayed[0].advice
    assert {f.cause_word for f in found(report, "zero_kernels")} == {"decayed"}


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(adamw, id="AdamW"),
        pytest.param(sgd(0.05, weight_decay=1e-3), id="SGD"),
        pytest.param(adam(0.0), id="no decay"),
    ],
)
def test_other_optimizers_and_no_decay_empty_no_kernel(optimizer: Optimizer, seed: int) -> None:
    L.seed_everything(seed, verbose=False)
    monitor = train(wide_net_with_norm(), optimizer, epochs=EPOCHS, batch_size=32)
    assert all(report["net.1"].zero_kernels == [] for report in monitor.reports)
    assert [alarm for alarm in alarms(monitor) if "zero_kernels" in alarm or "dead_channels" in alarm] == []
