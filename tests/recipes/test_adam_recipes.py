"""Kernels knocked out by Adam after a quiet spell: told for what it is, and helped by what the report says to do."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.short_runs import SEEDS, found, last
from helpers.training import fit, quiet
from lightning_deadkernel import DeadKernelMonitor, Report

QUIET, LOUD, BATCHES = 20, 4, 64
"""Epochs on a task that is learned, and then on one whose targets are ten times as large; batches in each."""


class Turn(L.LightningModule):
    def __init__(self, beta2: float, lr: float, warm_up: int, scale: float, eps: float = 1e-8) -> None:
        super().__init__()
        self.beta2, self.lr, self.warm_up, self.scale, self.eps = beta2, lr, warm_up, scale, eps
        self.net = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
        self.tasks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)).requires_grad_(False) for _ in range(2)
        )

    def training_step(self, batch: Any) -> Tensor:
        turned = self.current_epoch >= QUIET
        target = 10 * (1 + self.tasks[1](batch[0])) if turned else self.tasks[0](batch[0])
        return self.scale * F.mse_loss(self.net(batch[0]), target)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.net.parameters(), self.lr, (0.9, self.beta2), self.eps)

        def rate(step: int) -> float:
            since = step - QUIET * BATCHES
            return min(1.0, (since + 1) / self.warm_up) if self.warm_up and since >= 0 else 1.0

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def turned(
    seed: int,
    *,
    beta2: float = 0.999,
    lr: float = 1e-3,
    clip: float | None = None,
    warm_up: int = 0,
    scale: float = 1.0,
    eps: float = 1e-8,
    epochs: int = QUIET + LOUD,
) -> DeadKernelMonitor:
    L.seed_everything(seed, verbose=False)
    monitor = quiet(log_histograms=False)
    net = Turn(beta2, lr, warm_up, scale, eps)
    return fit(net, torch.randn(64 * BATCHES, 32), 64, monitor, max_epochs=epochs, gradient_clip_val=clip)


def newly_dead(monitor: DeadKernelMonitor) -> int:
    before, after = (set(monitor.reports[at]["net.2"].dead) for at in (QUIET, -1))
    return len(after - before)


def slung(report: Report) -> list[int]:
    return [c for f in found(report, "dead_channels") if f.cause_word == "slingshot" for c in f.channels]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_slingshot_is_told_and_each_advice_against_it_helps(seed: int) -> None:
    monitor = turned(seed)
    knocked_out = newly_dead(monitor)
    report = last(monitor)
    assert knocked_out >= 32  # a quarter of the layer
    assert len(slung(report)) >= 0.8 * knocked_out
    assert report.problems[0].cause.startswith("slingshot")
    (finding,) = [f for f in found(report, "dead_channels") if f.cause_word == "slingshot"]
    assert finding.severity == "warning"
    assert finding.evidence["last_fired_in_window"] == QUIET + 1
    assert 5 < finding.evidence["times_steady_step"] < 6.6 / 0.2294  # the most that betas=(0.9, 0.999) allow
    for text in ("betas=(0.9, 0.95)", "clip", "warm"):
        assert text in finding.advice
    shorter_memory, clipped, warmed_up = (
        turned(seed, beta2=0.95),
        turned(seed, clip=0.01),
        turned(seed, warm_up=300),
    )
    assert slung(last(shorter_memory)) == []
    assert newly_dead(shorter_memory) < 0.8 * knocked_out
    assert newly_dead(clipped) < 0.3 * knocked_out
    assert newly_dead(warmed_up) < 0.3 * knocked_out


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rate_that_is_too_high_is_no_slingshot(seed: int) -> None:
    report = last(turned(seed, lr=3e-2))
    assert slung(report) == []
    (finding,) = [f for f in found(report, "dead_channels") if f.cause_word == "knocked out"]
    assert len(finding.channels) > 64


@pytest.mark.parametrize("seed", SEEDS)
def test_epsilon_is_told_where_the_loss_is_too_small_for_it(seed: int) -> None:
    report = last(turned(seed, scale=1e-12, epochs=3))
    assert report.problems[0].cause.startswith("epsilon dominates")
    assert {f.cause_word for f in report.findings if f.severity != "info"} == {"epsilon dominates"}
    cured = last(turned(seed, scale=1e-12, eps=1e-24, epochs=3))
    assert [f for f in cured.findings if f.severity != "info"] == []
    ratios = [layer.update_ratio for layer in cured.layers if layer.update_ratio]
    assert min(ratios) > 1e-4
