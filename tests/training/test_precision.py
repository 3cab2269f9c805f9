"""Every precision of a Lightning Trainer."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from helpers.models import DEAD, Tiny, dead, loader
from helpers.training import ACCELERATOR, quiet
from helpers.twins import train_twice


def half(scale: float = 2.0**12) -> list[MixedPrecision]:
    """float16 with a scaler that scales for real, on the CPU too."""
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=scale, growth_interval=1000)
    return [MixedPrecision("16-mixed", ACCELERATOR, scaler)]


def batch_of_all():
    return loader(batch_size=48)


def kinds(run) -> set[str]:
    return {finding.kind for report in run.monitor.reports for finding in report.findings}


@pytest.mark.setting("precision 32, 64-true, bf16-mixed, bf16-true", evidence="activation")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_dead_channels_are_exact_and_training_is_untouched_in_every_precision(precision):
    run = train_twice(Tiny, precision=precision)
    assert dead(run.report) == DEAD
    assert run.report.samples == 48
    assert run.report["net.conv1"].states == ["active", "active", "dead", "dead"]
    assert run.report["net.head"].states == ["active"] * 3
    assert run.report["net.conv1"].evidence == "activation"


@pytest.mark.setting("16-true", evidence="activation")
def test_16_true_without_a_scaler_finds_the_same_dead_channels():
    run = train_twice(Tiny, precision="16-true")
    assert dead(run.report) == DEAD


@pytest.mark.setting("16-mixed with a gradient scaler (CPU), fused optimizers too", evidence="activation")
def test_fp16_with_a_scaler_finds_the_same_dead_channels_and_skips_no_step():
    run = train_twice(Tiny, plugins=half)
    assert dead(run.report) == DEAD
    assert run.report.skipped_steps == 0
    assert not any("underflowed" in (layer.note or "") for layer in run.report.layers)


class Fused(Tiny):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, fused=True)


@pytest.mark.setting("16-mixed with a gradient scaler (CPU), fused optimizers too", evidence="activation")
@pytest.mark.parametrize("make", [Tiny, Fused])
def test_sizes_of_gradients_are_reported_unscaled(make):
    plain = train_twice(Tiny, data=batch_of_all, max_epochs=1)
    scaled = train_twice(make, data=batch_of_all, max_epochs=1, plugins=half)
    assert scaled.report.gradient_norm == pytest.approx(plain.report.gradient_norm, rel=0.02)
    for layer in ("net.conv1", "net.conv2", "net.head"):
        assert scaled.report[layer].gradient_ratio == pytest.approx(plain.report[layer].gradient_ratio, rel=0.05)
        assert scaled.report[layer].update_ratio == pytest.approx(plain.report[layer].update_ratio, rel=0.05)


@pytest.mark.setting("16-mixed with a gradient scaler (CPU), fused optimizers too", evidence="activation")
def test_steps_skipped_for_overflow_are_counted_but_are_no_finding():
    run = train_twice(Tiny, plugins=lambda: half(2.0**30), max_epochs=1, monitor=quiet(), log_every_n_steps=1)
    assert run.report.skipped_steps == 6
    assert run.report.sampled_steps == 6
    assert not kinds(run) & {"non_finite_gradient", "frozen_weights", "exploding_gradient", "update_too_small"}
    assert not any(layer.frozen for layer in run.report.layers)
    assert any("skipped 6 of 6 sampled steps" in note for note in run.report.notes)


class Faint(Tiny):
    """Its loss is so small that float16 cannot hold its gradients without a scale."""

    smallness = 2.0**-11

    def training_step(self, batch, batch_idx):
        return self.loss(batch) * self.smallness


class Fainter(Faint):
    smallness = 2.0**-24


@pytest.mark.setting("16-mixed with a gradient scaler (CPU), fused optimizers too", evidence="activation")
def test_underflow_in_fp16_is_told_per_layer_and_gone_with_a_larger_scale():
    run = train_twice(Faint, plugins=lambda: half(1.0), max_epochs=1)
    assert "% of its gradient entries underflowed to zero in float16" in run.report["net.conv2"].note
    enough = train_twice(Faint, plugins=lambda: half(2.0**20), max_epochs=1)
    assert enough.report["net.conv2"].note is None


def test_gradients_that_underflow_altogether_are_told_too():
    run = train_twice(Fainter, plugins=lambda: half(1.0), max_epochs=1)
    assert run.report["net.conv2"].note.startswith("all of its gradient entries are zero in float16")
