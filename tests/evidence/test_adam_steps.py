"""What a report says of Adam's steps, against the same worked out by hand on every step of the same training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adam, Adamax, AdamW, NAdam

from helpers.training import fit, quiet
from lightning_deadkernel.evidence import summarize
from lightning_deadkernel.evidence.step_statistics import _is_decay_apart
from lightning_deadkernel.observation import AdamState, Window

LAYERS = ("net.0", "net.2")
Make = Callable[[nn.Sequential], torch.optim.Optimizer]


class Net(L.LightningModule):
    def __init__(self, *make: Make) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        self.make = make
        self.automatic_optimization = len(make) == 1

    def training_step(self, batch: Any) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        optimizers = [make(self.net) for make in self.make]
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in optimizers]
        return optimizers, [{"scheduler": scheduler, "interval": "step"} for scheduler in schedulers]


class ByHand(L.Callback):
    """rms(dW) / lr of every step and layer."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {name: [] for name in LAYERS}

    def on_train_batch_start(self, trainer: Any, module: Net, *_: Any) -> None:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        self.before = [module.net[at].weight.detach().clone() for at in (0, 2)]

    def on_train_batch_end(self, trainer: Any, module: Net, *_: Any) -> None:
        for name, at, before in zip(LAYERS, (0, 2), self.before, strict=True):
            weight = module.net[at].weight
            step = (weight.detach() - before).double().square().mean().sqrt()
            self.steps[name].append(float(step) / (self.rates[id(weight)] or 1.0))


def trained(*make: Make, monkeypatch: pytest.MonkeyPatch, **trainer: Any) -> tuple[Window, ByHand]:
    torch.manual_seed(0)
    windows: list[Window] = []
    summed_up = summarize.StepValues.fill_window

    def kept(self: Any, window: Window, coarse: Any) -> None:
        windows.append(window)
        summed_up(self, window, coarse)

    monkeypatch.setattr(summarize.StepValues, "fill_window", kept)
    by_hand = ByHand()
    monitor = quiet()
    fit(Net(*make), torch.randn(60, 6), monitor=monitor, log_every_n_steps=1, callbacks=[monitor, by_hand], **trainer)
    return windows[-1], by_hand


def groups(net: nn.Sequential) -> list[dict[str, Any]]:
    return [
        {"params": net[0].parameters(), "lr": 1e-3},
        {"params": net[2].parameters(), "lr": 1e-2, "betas": (0.5, 0.9)},
    ]


ADAMS: dict[str, tuple[Make, ...]] = {
    "Adam": (lambda net: Adam(net.parameters()),),
    "foreach": (lambda net: AdamW(net.parameters(), foreach=True, weight_decay=0.0),),
    "fused": (lambda net: Adam(net.parameters(), fused=True),),
    "a rate that is a tensor": (lambda net: Adam(net.parameters(), lr=torch.tensor(1e-3)),),
    "amsgrad": (lambda net: Adam(net.parameters(), amsgrad=True),),
    "NAdam": (lambda net: NAdam(net.parameters()),),
    "two groups": (lambda net: Adam(groups(net)),),
    "two optimizers": (
        lambda net: Adam(net[0].parameters()),
        lambda net: AdamW(net[2].parameters(), 0.1, weight_decay=0),
    ),
}


@pytest.mark.parametrize("make", ADAMS.values(), ids=ADAMS)
def test_steps_are_what_the_weights_show(make: tuple[Make, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    window, by_hand = trained(*make, monkeypatch=monkeypatch)
    for layer in window.layers:
        steps = sorted(by_hand.steps[layer.name])
        assert layer.step_over_rate == pytest.approx(steps[(len(steps) - 1) // 2], rel=1e-3)
        assert layer.step_over_rate_max == pytest.approx(steps[-1], rel=1e-3)
        assert layer.step_over_rate_max == pytest.approx(1.0, rel=0.1)  # the first, whatever the gradients
        assert layer.adam is not None


def test_each_group_has_its_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    window, _ = trained(*ADAMS["two groups"], monkeypatch=monkeypatch)
    of = {layer.name: layer.adam for layer in window.layers}
    assert of["net.0"] == AdamState(pytest.approx(math.sqrt(0.1 / 1.9)), 0.9, 0.999, 1e-8, 0.0)
    assert of["net.2"] == AdamState(pytest.approx(math.sqrt(0.5 / 1.5)), 0.5, 0.9, 1e-8, 0.0)


def test_decoupled_decay_is_not_taken_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    held, by_hand = trained(lambda net: AdamW(net.parameters(), 1e-3, weight_decay=50.0), monkeypatch=monkeypatch)
    for layer in held.layers:
        assert by_hand.steps[layer.name][0] > 5
        assert layer.step_over_rate_max is not None
        assert layer.step_over_rate_max <= 1 + 1e-3


DECAYING = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and "weight_decay" in inspect.signature(kind).parameters
]


class Lion(torch.optim.Optimizer):
    """One of the many that are copied into a project, with their decay apart from the gradient or through it."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})


@pytest.mark.parametrize("kind", DECAYING, ids=[kind.__name__ for kind in DECAYING])
def test_what_is_known_of_the_way_of_decay_is_what_a_step_without_a_gradient_does(kind: Any) -> None:
    weight = nn.Parameter(torch.full((2, 2), 4.0))
    weight.grad = torch.zeros(2, 2)
    optimizer = kind([weight], lr=0.25, weight_decay=0.5)
    group = optimizer.param_groups[0]
    optimizer.step()
    optimizer.zero_grad()  # a second step with half of the decay: through the gradient, others normalise it away
    weight.grad, first = torch.zeros(2, 2), float(weight[0, 0])
    optimizer.step()
    apart = [first, float(weight[0, 0])] == [3.5, 3.0625]
    assert _is_decay_apart(optimizer, group) is (apart and kind not in (SGD, ASGD))


def test_of_an_optimizer_of_your_own_the_way_of_its_decay_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = Lion([nn.Parameter(torch.ones(2))], 1e-3, 0.1)
    assert _is_decay_apart(optimizer, optimizer.param_groups[0]) is None


def test_the_share_below_epsilon_is_that_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    window, _ = trained(lambda net: Adam(net.parameters(), eps=1e3), monkeypatch=monkeypatch)
    assert [layer.adam.below_epsilon for layer in window.layers if layer.adam] == [1.0, 1.0]
    assert all((layer.step_over_rate or 1) < 1e-3 for layer in window.layers)


@pytest.mark.parametrize("optimizer", [SGD, Adamax])
def test_nothing_is_said_of_other_optimizers(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    window, _ = trained(lambda net: optimizer(net.parameters(), lr=1e-3), monkeypatch=monkeypatch)
    assert [layer.adam for layer in window.layers] == [None, None]


def test_a_frozen_rate_has_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    window, _ = trained(lambda net: Adam(net.parameters(), lr=0.0), monkeypatch=monkeypatch)
    assert [layer.step_over_rate for layer in window.layers] == [None, None]
