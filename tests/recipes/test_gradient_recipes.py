"""Gradients that fade, updates that do not arrive: trained for real, each must be told for what it is.

Every seed is a test of its own, so a recipe counts as told only with 5 successes out of 5 seeds.
"""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.short_runs import SEEDS, alarms, found, last, mlp, sgd, train

pytestmark = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    L.seed_everything(seed, verbose=False)


def vanishing(report) -> list[str]:  # type: ignore[no-untyped-def]
    return [str(f.layer) for f in found(report, "vanishing_gradient")]


def test_thirteen_sigmoid_layers_let_the_gradient_vanish(seed: int) -> None:
    monitor = train(mlp(64, *[32] * 12, 10, activation=nn.Sigmoid), epochs=1)
    report = last(monitor)
    layers = vanishing(report)
    assert layers[:3] == ["net.1", "net.3", "net.5"]
    assert not {"net.21", "net.23", "net.25"} & set(layers)
    first = found(report, "vanishing_gradient", "net.1")[0]
    assert (first.severity, first.cause_word) == ("error", "depth")
    assert "sigmoid" in first.cause
    assert first.evidence["gradient_ratio"] < 1e-6
    assert all(layer.dead == [] for layer in report.layers)


def test_twenty_relu_layers_of_default_initialisation_let_the_gradient_vanish(seed: int) -> None:
    report = last(train(mlp(64, *[64] * 19, 10), epochs=1))
    layers = vanishing(report)
    assert layers[0] == "net.1"
    first = found(report, "vanishing_gradient", "net.1")[0]
    assert (first.severity, first.cause_word) == ("error", "depth")
    assert "He initialisation" in first.advice


@torch.no_grad()
def test_a_uniform_collapse_is_found_though_no_layer_stands_out(seed: int) -> None:
    net = mlp(64, *[64] * 9, 10)
    for module in net:
        if isinstance(module, nn.Linear):
            module.weight.uniform_(-0.05, 0.05)
            module.bias.zero_()
    report = last(train(net, epochs=1))
    assert {f.layer for f in report.findings if f.kind in ("vanishing_gradient", "weak_gradient")} >= {"net.1", "net.3"}


def test_the_verdict_on_gradients_is_free_of_scale_and_of_accumulation(seed: int) -> None:
    def verdict(scale: float, **trainer: int) -> dict[str, list[str]]:
        L.seed_everything(seed, verbose=False)
        net = mlp(64, *[32] * 12, 10, activation=nn.Sigmoid)
        loss = lambda logits, labels: scale * F.cross_entropy(logits, labels)  # noqa: E731
        report = last(train(net, sgd(0.05 / scale), loss=loss, epochs=1, **trainer))
        kinds = ("vanishing_gradient", "weak_gradient")
        return {kind: [str(f.layer) for f in found(report, kind)] for kind in kinds}

    plain = verdict(1.0)
    assert plain["vanishing_gradient"]
    assert verdict(1e-4) == plain
    assert verdict(1e4) == plain
    assert verdict(1.0, accumulate_grad_batches=4)["vanishing_gradient"] == plain["vanishing_gradient"]


def test_a_parameter_missing_from_the_optimizer_is_frozen(seed: int) -> None:
    net = mlp(64, 32, 32, 10)
    monitor = train(net, optimized=lambda net: [p for name, p in net.named_parameters() if not name.startswith("3.")])
    report = last(monitor)
    assert len(report["net.3"].frozen) >= 30
    (finding,) = found(report, "frozen_weights")
    assert (finding.layer, finding.severity, finding.cause_word) == ("net.3", "warning", "not in the optimizer")


def test_a_learning_rate_of_zero_is_no_finding_while_the_schedule_has_it_so(seed: int) -> None:
    schedule = lambda step: 0.0 if step < 29 else 1.0  # noqa: E731
    monitor = train(mlp(64, 32, 10), schedule=schedule, epochs=3)
    assert monitor.reports[1]["net.1"].frozen == []
    assert alarms(monitor) == []


def test_bfloat16_weights_with_updates_below_their_resolution_are_frozen(seed: int) -> None:
    report = last(train(mlp(64, 32, 10), sgd(1e-6), precision="bf16-true"))
    (finding,) = found(report, "frozen_weights", "net.1")
    assert (finding.severity, finding.cause_word) == ("warning", "below resolution")
    assert len(finding.channels) >= 28
    assert "bf16-mixed" in finding.advice


@torch.no_grad()
def test_constant_initialisation_makes_identical_kernels(seed: int) -> None:
    net = mlp(64, 32, 32, 10, activation=nn.Sigmoid)
    for layer in (net[1], net[3]):
        layer.weight.fill_(0.01)
        layer.bias.zero_()
    nn.init.constant_(net[5].weight, 0.01)
    monitor = train(net)
    (first, *_) = found(monitor.reports[0], "identical_kernels", "net.1")
    assert (first.severity, first.cause_word) == ("warning", "constant initialisation")
    (later,) = found(last(monitor), "identical_kernels", "net.1")
    assert (later.severity, later.cause_word) == ("error", "constant initialisation")


def test_float16_gradients_that_underflow_are_told(seed: int) -> None:
    loss = lambda logits, labels: 1e-6 * F.cross_entropy(logits, labels)  # noqa: E731
    report = last(train(mlp(64, 32, 32, 10), precision="16-true", loss=loss))
    (finding,) = found(report, "starved_channels", "net.1")
    assert (finding.severity, finding.cause_word) == ("error", "underflow")
    assert finding.evidence["underflow_share"] > 0.9
    assert "16-mixed" in finding.advice
    assert "float16 gradient entries were exactly zero" in str(report["net.1"].note)
    assert all(layer.dead == [] for layer in report.layers)
