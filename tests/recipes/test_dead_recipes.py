"""Networks in which kernels were killed on purpose, trained for real: each must be told for what it is.

Every seed is a test of its own, so a recipe counts as told only with 5 successes out of 5 seeds.
"""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

from helpers.short_runs import (
    SEEDS,
    Training,
    alarms,
    conv_norm_net,
    digits,
    found,
    he_,
    last,
    mlp,
    sgd,
    train,
)
from helpers.training import quiet

KILLED = [3, 7]
pytestmark = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    L.seed_everything(seed, verbose=False)


@torch.no_grad()
def test_a_bias_of_minus_100_is_dead_by_its_shift(seed: int) -> None:
    net = mlp(64, 32, 10)
    net[1].bias[KILLED] = -100.0
    report = last(train(net))
    assert report["net.1"].dead == KILLED
    (finding,) = [f for f in found(report, "dead_channels") if f.severity != "info"]
    assert (finding.layer, finding.channels) == ("net.1", tuple(KILLED))
    assert (finding.severity, finding.cause_word) == ("warning", "shift driven negative")
    assert finding.evidence["shift"] < -99


@torch.no_grad()
def test_a_norm_shift_of_minus_20_is_dead_by_its_shift(seed: int) -> None:
    net = conv_norm_net()
    net[1].bias[KILLED] = -20.0
    report = last(train(net))
    assert report["net.0"].dead == KILLED
    (finding,) = found(report, "dead_channels")
    assert (finding.layer, finding.channels) == ("net.0", tuple(KILLED))
    assert (finding.severity, finding.cause_word) == ("warning", "shift driven negative")
    assert "beta" in finding.cause


@torch.no_grad()
def test_a_norm_of_scale_and_shift_zero_is_dead_and_a_zero_kernel(seed: int) -> None:
    net = conv_norm_net()
    net[1].weight[KILLED], net[1].bias[KILLED] = 0.0, 0.0
    report = last(train(net))
    assert report["net.0"].dead == KILLED
    assert report["net.0"].zero_kernels == KILLED
    for kind in ("dead_channels", "zero_kernels"):
        (finding,) = found(report, kind)
        assert (finding.layer, finding.channels) == ("net.0", tuple(KILLED))
        assert (finding.severity, finding.cause_word) == ("warning", "zero at initialisation")
        assert "gamma" in finding.cause


@torch.no_grad()
def test_a_norm_of_scale_zero_and_positive_shift_is_a_constant_and_not_dead(seed: int) -> None:
    net = conv_norm_net()
    net[1].weight[KILLED], net[1].bias[KILLED] = 0.0, 0.5
    monitor = train(net)
    assert all(report["net.0"].dead == [] for report in monitor.reports)
    assert last(monitor)["net.0"].states == ["active"] * 12  # gamma and beta learn
    assert alarms(monitor) == []


@torch.no_grad()
def test_a_zero_kernel_with_zero_bias_is_dead_zero_and_was_so_at_initialisation(seed: int) -> None:
    net = mlp(64, 32, 10)
    net[1].weight[KILLED], net[1].bias[KILLED] = 0.0, 0.0
    monitor = train(net)
    report = last(monitor)
    assert report["net.1"].dead == KILLED
    assert report["net.1"].zero_kernels == KILLED
    for kind in ("dead_channels", "zero_kernels"):
        (finding,) = [f for f in found(report, kind) if f.severity != "info"]
        assert (finding.channels, finding.cause_word) == (tuple(KILLED), "zero at initialisation")
    (at_first,) = found(monitor.reports[0], "zero_kernels")
    assert (at_first.channels, at_first.severity) == (tuple(KILLED), "info")


@pytest.mark.parametrize(("lr", "recovered"), [(1e-4, False), (0.05, True)])
def test_a_zero_kernel_with_a_positive_bias_is_not_dead_and_recovers(seed: int, lr: float, recovered: bool) -> None:
    net = mlp(64, 32, 10)
    with torch.no_grad():
        net[1].weight[KILLED], net[1].bias[KILLED] = 0.0, 0.1
    monitor = train(net, sgd(lr), epochs=1, max_steps=20, monitor=quiet(every_n_train_steps=1))
    (finding,) = found(monitor.reports[1], "zero_kernels") if not recovered else [None]
    if finding is not None:
        assert (finding.channels, finding.severity) == (tuple(KILLED), "info")
        assert finding.evidence["recoverable"] == 2
    assert all(not set(KILLED) & set(report["net.1"].dead) for report in monitor.reports)
    assert (last(monitor)["net.1"].zero_kernels == []) == recovered


def test_a_learning_rate_far_too_high_knocks_channels_out(seed: int) -> None:
    report = last(train(mlp(64, 64, 64, 64, 64, 10), sgd(2.0)))
    knocked = [f for f in found(report, "dead_channels") if f.cause_word == "knocked out"]
    assert sum(len(f.channels) for f in knocked) >= 10
    for finding in knocked:
        assert finding.severity != "info"
        assert finding.evidence["update_ratio_max"] > 0.1
        assert finding.evidence["last_fired_in_window"] == 1
        assert "learning rate" in finding.advice


@torch.no_grad()
def test_a_penalty_inside_the_loss_does_not_revive_the_dead(seed: int) -> None:
    class Penalised(Training):
        def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
            return super().training_step(batch, batch_idx) + 1e-3 * sum(p.square().sum() for p in self.net.parameters())

    net = mlp(64, 32, 10)
    net[1].bias[KILLED] = -100.0
    monitor = train(Penalised(net, sgd(0.05)))
    report = last(monitor)
    assert report["net.1"].dead == KILLED
    assert report["net.1"].values.gradient[KILLED[0]] > 0  # the penalty's own
    (finding,) = [f for f in found(report, "dead_channels") if f.severity != "info"]
    assert (finding.channels, finding.cause_word) == (tuple(KILLED), "shift driven negative")


@torch.no_grad()
def test_a_pruning_mask_is_told_as_pruned_and_is_no_alarm(seed: int) -> None:
    net = mlp(64, 32, 10)
    net[1].bias[KILLED] = -0.01
    mask = torch.ones_like(net[1].weight)
    mask[KILLED] = 0.0
    prune.custom_from_mask(net[1], "weight", mask)
    with torch.enable_grad():
        monitor = train(net)
    report = last(monitor)
    assert report["net.1"].dead == KILLED
    assert report["net.1"].zero_kernels == KILLED
    for kind in ("dead_channels", "zero_kernels"):
        (finding,) = [f for f in found(report, kind) if f.cause_word == "pruned"]
        assert (finding.channels, finding.severity) == (tuple(KILLED), "info")
    assert alarms(monitor) == []


def test_dropped_channels_and_batches_of_one_kill_nothing(seed: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Flatten(),
        nn.Linear(8 * 64, 10),
    )
    data = torch.utils.data.Subset(digits(), range(200))
    monitor = train(net, sgd(0.002), data=data, batch_size=1)
    assert all(layer.dead == [] for layer in last(monitor).layers)
    assert alarms(monitor) == []


@torch.no_grad()
def test_a_channel_that_fires_on_one_batch_in_forty_is_rare_and_not_dead(seed: int) -> None:
    pictures = torch.randn(40 * 32, 1, 8, 8)
    pictures[:, 0, 0, 0] = 0.0
    pictures[20 * 32 + seed, 0, 0, 0] = 1.0  # in the 21st batch alone
    data = TensorDataset(pictures, torch.randint(10, (40 * 32,)))
    net = mlp(64, 32, 10)
    net[1].weight[3], net[1].bias[3] = 0.0, -0.5
    net[1].weight[3, 0] = 2.0
    monitor = train(net, sgd(0.01), epochs=1, data=data, batch_size=32, shuffle=False, log_every_n_steps=1)
    layer = last(monitor)["net.1"]
    assert layer.states[3] == "active"
    assert 3 in layer.rare
    assert layer.values.firing_rate[3] == pytest.approx(1 / (40 * 32))
    assert alarms(monitor) == []


@torch.no_grad()
def test_a_leaky_channel_that_never_fires_is_silent_and_not_dead(seed: int) -> None:
    net = mlp(64, 32, 10, activation=nn.LeakyReLU)
    net[1].bias[KILLED] = -100.0
    with torch.enable_grad():
        monitor = train(net)
    layer = last(monitor)["net.1"]
    assert (layer.silent, layer.dead) == (KILLED, [])
    assert "2 kernels silent" in last(monitor).to_markdown()


def test_an_input_that_is_always_zero_is_no_dead_channel(seed: int) -> None:
    found_digits = digits()
    pictures, labels = found_digits.tensors
    data = TensorDataset(torch.cat([pictures, torch.zeros_like(pictures)], 1), labels)
    net = conv_norm_net()
    net[0] = nn.Conv2d(2, 12, 3, padding=1)
    monitor = train(net, data=data)
    assert last(monitor)["net.0"].dead == []
    assert alarms(monitor) == []


def test_a_layer_behind_a_dead_layer_is_dead_by_what_feeds_it(seed: int) -> None:
    net = he_(mlp(64, 32, 32, 32, 10))
    with torch.no_grad():
        net[3].bias.fill_(-100.0)
        net[5].bias.fill_(-0.01)
    report = last(train(net))
    assert len(report["net.3"].dead) == len(report["net.5"].dead) == 32
    (behind,) = found(report, "dead_channels", "net.5")
    assert (behind.cause_word, behind.severity) == ("upstream dead", "error")
    assert "net.3" in behind.cause
    before = found(report, "starved_channels", "net.1")
    assert [f.cause_word for f in before] == ["dead downstream"]
    assert report.findings[0].layer == "net.3"  # the root of both is told first


def test_channels_that_nothing_downstream_listens_to_are_starved_and_not_dead(seed: int) -> None:
    net = mlp(64, 32, 10)
    weight = net[3].weight
    with torch.no_grad():
        weight[:, KILLED] = 0.0
    held = torch.ones_like(weight)
    held[:, KILLED] = 0.0
    weight.register_hook(lambda gradient: gradient * held)
    report = last(train(net))
    layer = report["net.1"]
    assert (layer.starved, layer.dead) == (KILLED, [])
    (finding,) = found(report, "starved_channels")
    assert (finding.channels, finding.severity) == (tuple(KILLED), "warning")
    assert finding.cause_word == "outgoing zero"
    assert "net.3" in finding.cause


@torch.no_grad()
def test_tanh_driven_to_its_ends_is_saturated(seed: int) -> None:
    net = mlp(64, 32, 10, activation=nn.Tanh)
    net[1].weight[KILLED] *= 0.05
    net[1].bias[KILLED] = torch.tensor([10.0, -10.0])
    report = last(train(net))
    layer = report["net.1"]
    assert (layer.saturated, layer.dead) == (KILLED, [])
    (finding,) = found(report, "saturated_channels")
    assert (finding.channels, finding.severity) == (tuple(KILLED), "warning")
    assert finding.evidence["saturated_share"] > 0.99


def test_a_masked_kernel_that_hands_on_its_bias_is_not_removable() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.RMSNorm(6), nn.Linear(6, 10))
    mask = torch.ones(6, 64)
    mask[2] = 0.0
    prune.custom_from_mask(net[1], "weight", mask)
    report = last(train(net, sgd(0.01), epochs=1))
    assert report["net.1"].zero_kernels == [2]
    assert report.savings is not None
    assert report.savings.channels == 0


def test_a_channel_in_the_statistics_of_others_is_not_removable_though_its_scale_is_zero() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 10))
    with torch.no_grad():
        net[2].weight[2] = 0.0
        net[4].weight.zero_()  # no gradient comes back from here, so that nothing wakes it
    net[4].requires_grad_(False)
    report = last(train(net, sgd(0.01), epochs=1))
    assert report.savings is not None
    assert report.savings.channels == 0
