"""Gradients that fade, updates that do not arrive: trained for real, each must be told for what it is.

Every seed is a test of its own, so a recipe counts as told only with 5 successes out of 5 seeds.
"""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from helpers.short_runs import SEEDS, alarms, digits, found, last, mlp, sgd, train

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


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_uniform_collapse_is_one_problem_within_eight_steps_at_any_loss_scale(seed: int, scale: float) -> None:
    net = mlp(64, *[64] * 9, 10)
    for module in net:
        if isinstance(module, nn.Linear):
            module.weight.uniform_(-0.05, 0.05)
            module.bias.zero_()
    loss = lambda logits, labels: scale * F.cross_entropy(logits, labels)  # noqa: E731
    few = {"limit_train_batches": 8, "log_every_n_steps": 1}
    with torch.enable_grad():
        report = last(train(net, sgd(0.05 / scale), loss=loss, epochs=1, **few))
    (problem,) = report.problems
    assert problem.findings[0].kind in ("weak_gradient", "vanishing_gradient")
    assert {f.layer for f in problem.findings} >= {f"net.{k}" for k in range(1, 15, 2)}
    assert "9 layers that no norm follows" in problem.cause
    kernel = (64 * 0.05**2 / 3) ** 0.5  # of a uniform distribution
    assert f"a norm of {kernel:.2g}, where 1.4 keeps the size" in problem.cause


class Recurrent(nn.Module):
    """Rows of a picture through many layers of LSTM."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.rows, self.head = nn.LSTM(8, 16, num_layers=layers, batch_first=True), nn.Linear(16, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(pictures[:, 0])[0][:, -1])


@pytest.mark.parametrize("optimizer", [sgd(0.05), lambda parameters: torch.optim.Adam(parameters, 1e-3)])
def test_twelve_layers_of_lstm_let_the_gradient_vanish_in_recurrent_weights_too(seed: int, optimizer) -> None:  # type: ignore[no-untyped-def]
    report = last(train(Recurrent(12), optimizer, epochs=1))
    problem = report.problems[0]
    assert (problem.severity, problem.findings[0].cause_word) == ("error", "depth")
    assert "12 sigmoid or tanh activations" in problem.cause
    assert "recurrent layers" in problem.advice
    layers = {str(f.layer) for f in problem.findings}
    assert {name.split(".")[2] for name in layers} >= {"weight_hh_l0", "weight_hh_l1"}
    assert not any(name.split(".")[2].endswith(("l10", "l11")) for name in layers)
    depth = {name: report[f"net.rows.weight_ih_l{name}.cell"].depth for name in range(12)}
    assert depth == {layer: 12 - layer for layer in range(12)}


def test_the_gradient_of_a_sigmoid_chain_is_within_its_closed_bound(seed: int) -> None:
    """On one sample ||dW|| = ||delta|| ||x||, and a layer passes on at most ||W||_2 / 4 of the delta it is given."""
    net = mlp(64, *[32] * 12, 10, activation=nn.Sigmoid)
    picture, label = digits()[seed]
    one = TensorDataset(picture.repeat(8, 1, 1, 1), label.repeat(8))
    inputs, x = {}, picture[None]
    for place, module in enumerate(net):
        inputs[place], x = float(x.norm()), module(x).detach()
    report = last(train(net, sgd(1e-9), data=one, batch_size=1, epochs=1))  # the weights stay as they are
    size = {
        place: report[f"net.{place}"].gradient_ratio * module.weight.numel() ** 0.5  # type: ignore[operator]
        for place, module in enumerate(net)
        if isinstance(module, nn.Linear)
    }
    for place in range(3, 27, 2):
        passed = float(torch.linalg.matrix_norm(net[place].weight.detach(), 2)) / 4
        assert 0 < size[place - 2] <= 1.001 * passed * size[place] * inputs[place - 2] / inputs[place], place


class Critic(L.LightningModule):
    """A generator judged by a critic whose sigmoids lie on their flat ends: the generator gets nothing back."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(64, 32, 16), nn.Sequential(nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 1))
        with torch.no_grad():
            self.critic[0].bias.copy_(torch.tensor([30.0, -30.0]).repeat(4))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return (self.critic(self.generator(batch[0])) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_critic_on_its_flat_ends_is_the_root_of_what_the_generator_lacks(seed: int) -> None:
    report = last(train(Critic(), epochs=1))
    (problem, *others) = report.problems
    assert (problem.findings[0].layer, problem.findings[0].cause_word) == ("critic.0", "saturated")
    assert {f.layer for f in problem.findings} >= {"critic.0", "generator.1", "generator.3"}
    assert {f.cause_word for f in problem.findings if str(f.layer).startswith("generator")} == {"saturated downstream"}
    assert others == []


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
