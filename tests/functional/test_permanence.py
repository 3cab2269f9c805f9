"""What decay makes of a weight without a gradient, against the optimizer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_deadkernel.functional.permanence import FOLLOWED, Decay

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01, momentum=0.9),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01, momentum=0.9, nesterov=True),
    "dampening": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01, momentum=0.9, dampening=0.5),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "Adam, decoupled": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-2),
    "Adam, small decay": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-5),
    "Adam, other betas": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-2, betas=(0.8, 0.95)),
}


def rule(optimizer: torch.optim.Optimizer) -> Decay:
    found = Decay.of(optimizer, optimizer.param_groups[0])
    assert found is not None
    return found


def steps_of(optimizer: Any, weight: nn.Parameter, target: float) -> int:
    """By running it."""
    weight.grad = torch.zeros_like(weight)
    for step in range(1, 30_000):
        optimizer.step()
        if float(weight.detach().norm()) <= target:
            return step
    raise AssertionError("it takes too long")


@pytest.mark.parametrize("size", [0.1, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_date_is_that_at_which_the_optimizer_itself_has_taken_the_weight_there(name: str, size: float) -> None:
    weight = nn.Parameter(torch.tensor([size], dtype=torch.float64))
    try:
        optimizer = OPTIMIZERS[name]([weight])
    except TypeError:
        pytest.skip("this torch has no such optimizer")
    buffer = 0.0
    if name == "dampening":  # the first step is without
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        size, buffer = weight.item(), optimizer.state[weight]["momentum_buffer"].item()
    foretold = rule(optimizer).steps_until(size, size * 1e-3, buffer)
    assert foretold == steps_of(optimizer, weight, size * 1e-3)


def test_through_adams_gradient_the_size_of_the_decay_hardly_matters() -> None:
    crossings = []
    for decay in (1e-2, 1e-5):
        optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], 1e-3, weight_decay=decay)
        crossings.append(rule(optimizer).steps_until(0.1, 1e-9))
    assert crossings[0] == pytest.approx(353, abs=1)
    assert crossings[1] == pytest.approx(372, abs=1)


def test_a_buffer_of_momentum_carries_the_weight_on() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = OPTIMIZERS["momentum"]([weight])
    weight.grad = torch.tensor([0.3, 0.4], dtype=torch.float64)  # along the weight
    for _ in range(5):
        optimizer.step()
    buffer = float(optimizer.state[weight]["momentum_buffer"].norm())
    foretold = rule(optimizer).steps_until(float(weight.detach().norm()), 0.01, buffer)
    assert foretold == steps_of(optimizer, weight, 0.01)


def test_without_decay_or_a_learning_rate_nothing_moves() -> None:
    for optimizer in (
        torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1, momentum=0.9),
        torch.optim.AdamW([nn.Parameter(torch.ones(1))], 0.0, weight_decay=0.1),
    ):
        assert rule(optimizer).kind == "none"
        assert rule(optimizer).steps_until(1.0, 0.1) is None
        assert rule(optimizer).steps_until(0.1, 0.1) == 0


def test_what_takes_longer_than_is_followed_has_no_date() -> None:
    slow = torch.optim.Adam([nn.Parameter(torch.ones(1))], 1e-6, weight_decay=0.1)
    assert rule(slow).steps_until(1.0, 1e-3) is None
    assert 1e-6 * FOLLOWED < 1.0


def test_of_other_optimizers_nothing_is_known() -> None:
    weights = [nn.Parameter(torch.ones(1))]
    for optimizer in (
        torch.optim.RMSprop(weights, weight_decay=0.1),
        torch.optim.Adam(weights, weight_decay=0.1, amsgrad=True),
        torch.optim.SGD(weights, 0.1, weight_decay=0.1, maximize=True),
        type("Own", (torch.optim.SGD,), {})(weights, 0.1, weight_decay=0.1),
    ):
        assert Decay.of(optimizer, optimizer.param_groups[0]) is None


def test_which_of_two_parameters_keeps_more() -> None:
    def decoupled(decay: float) -> Decay:
        return rule(torch.optim.AdamW([nn.Parameter(torch.ones(1))], 0.01, weight_decay=decay))

    assert decoupled(0.0).is_slower(decoupled(0.1)) is True
    assert decoupled(0.1).is_slower(decoupled(0.1)) is False
    assert decoupled(0.1).is_slower(decoupled(0.0)) is False
    assert decoupled(0.1).is_slower(rule(OPTIMIZERS["Adam"]([nn.Parameter(torch.ones(1))]))) is None


OVERSHOOTING: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 1.0, weight_decay=1.5),
    "SGD that diverges": lambda p: torch.optim.SGD(p, 100.0, weight_decay=1.0),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.05, momentum=0.9),
    "dampening": lambda p: torch.optim.SGD(p, 0.5, weight_decay=0.1, momentum=0.9, dampening=0.5),
    "AdamW": lambda p: torch.optim.AdamW(p, 1.0, weight_decay=1.5),
}


@pytest.mark.parametrize("name", OVERSHOOTING)
def test_nothing_is_said_where_decay_takes_a_weight_past_zero(name: str) -> None:
    shift = nn.Parameter(torch.tensor([-5.0]))
    optimizer = OVERSHOOTING[name]([shift])
    shift.grad = torch.zeros_like(shift)
    signs = set()
    for _ in range(100):
        optimizer.step()
        signs.add(float(shift.detach().sign()))
    assert 1.0 in signs  # what was shut is open
    assert Decay.of(optimizer, optimizer.param_groups[0]) is None


def test_gradients_from_before_make_the_first_steps_of_adam_smaller() -> None:
    weight = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], 1e-3, weight_decay=1e-2)
    for step in range(200):
        weight.grad = torch.full_like(weight, 0.1 * (-1) ** step)
        optimizer.step()
    for _ in range(100):
        weight.grad.zero_()
        optimizer.step()
    state, size = optimizer.state[weight], weight.item()
    foretold = rule(optimizer).steps_until(
        size, 5e-4, square=state["exp_avg_sq"].item(), taken=int(state["step"].item())
    )
    assert foretold is not None
    assert foretold > 2 * (rule(optimizer).steps_until(size, 5e-4) or 0)
    assert foretold == pytest.approx(steps_of(optimizer, weight, 5e-4), rel=0.01)


def test_a_rule_is_known_also_where_numpys_eigenvalues_are_always_complex(monkeypatch: pytest.MonkeyPatch) -> None:
    eigvals = np.linalg.eigvals
    monkeypatch.setattr(np.linalg, "eigvals", lambda matrix: eigvals(matrix).astype(complex))
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.01, weight_decay=0.05, momentum=0.9)
    assert Decay.of(optimizer, optimizer.param_groups[0]) is not None
