"""What is said of Adam's steps is what the optimizers of torch do: each value against a run of them on many scalars."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from lightning_deadkernel.functional.adam import (
    PLAIN_STEPS,
    share_below_epsilon,
    steady_step,
    steady_step_of,
    step_after_quiet,
)

LR = 1e-3
SCALARS = 4_000
BETAS = [(0.9, 0.999), (0.9, 0.95), (0.95, 0.999), (0.5, 0.999), (0.0, 0.99)]


def run(optimizer: Any, gradients: Tensor, **options: Any) -> tuple[Tensor, torch.optim.Optimizer]:
    """(steps,) rms of u over as many scalars, from gradients (steps, scalars)."""
    weights = nn.Parameter(torch.zeros(gradients.shape[1], dtype=torch.float64))
    stepped = optimizer([weights], lr=LR, **options)
    sizes = []
    for gradient in gradients.double():
        before, weights.grad = weights.detach().clone(), gradient
        stepped.step()
        sizes.append((weights.detach() - before).square().mean().sqrt() / LR)
    return torch.stack(sizes), stepped


def noise(steps: int) -> Tensor:
    return torch.randn(steps, SCALARS, generator=torch.Generator().manual_seed(0))


def test_the_steady_step_has_the_values_of_the_closed_form() -> None:
    assert steady_step(0.9) == pytest.approx(0.2294, abs=5e-5)
    assert steady_step(0.95) == pytest.approx(0.1601, abs=5e-5)
    assert steady_step(0.0) == 1.0


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("optimizer", [Adam, AdamW, NAdam, RAdam])
def test_steps_on_gradients_of_steady_size_have_the_steady_rms(optimizer: Any, betas: tuple[float, float]) -> None:
    steps = 600
    sizes, stepped = run(optimizer, noise(steps), betas=betas)
    steady = steady_step_of(stepped, stepped.param_groups[0], steps, 100)
    assert steady is not None
    # of the last step: NAdam's and RAdam's rules change as they go on
    spread = 0.03 if betas[1] > 0.98 else 0.1  # a short memory measures the size less well
    assert float(sizes[-20:].mean()) == pytest.approx(steady, rel=spread)


@pytest.mark.parametrize("optimizer", [SGD, RMSprop, Adamax, Adafactor])
def test_other_optimizers_have_no_steady_step(optimizer: Any) -> None:
    _, stepped = run(optimizer, noise(2))
    assert steady_step_of(stepped, stepped.param_groups[0], 1_000, 10) is None


def test_radam_has_none_while_it_does_not_divide() -> None:
    sizes, stepped = run(RAdam, 1e3 * noise(8), betas=(0.9, 0.999))
    assert float(sizes[:PLAIN_STEPS].max()) > 10  # as large as the gradients
    assert float(sizes[PLAIN_STEPS:].max()) < 1
    group = stepped.param_groups[0]
    assert steady_step_of(stepped, group, PLAIN_STEPS + 9, 10) is None
    assert steady_step_of(stepped, group, PLAIN_STEPS + 10, 10) is not None


@pytest.mark.parametrize(("betas", "largest"), [((0.9, 0.999), 6.1), ((0.9, 0.95), 1.1)])
def test_a_step_after_a_quiet_spell_is_as_large_as_it_is_said_to_be(betas: tuple[float, float], largest: float) -> None:
    quiet = 1e-3
    gradients = torch.cat([quiet * noise(2_000), torch.ones(60, SCALARS)])
    sizes, _ = run(Adam, gradients, betas=betas)
    assert float(sizes[-60:].max()) == pytest.approx(largest, abs=0.05)
    # in the run 2,000 steps have filled no more than 1 - beta2^2000 of the memory, which bias correction makes up for
    filled = math.sqrt(1 - betas[1] ** 2_000)
    assert float(sizes[-60:].max()) == pytest.approx(filled * step_after_quiet(*betas, quiet), rel=0.01)
    assert float(sizes[1_900:2_000].mean()) == pytest.approx(steady_step(betas[0]), rel=0.03)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95)])
def test_no_step_is_above_the_rate_while_gradients_keep_their_size(betas: tuple[float, float]) -> None:
    signs = torch.where(torch.rand(300, SCALARS, generator=torch.Generator().manual_seed(1)) < 0.9, 1.0, -1.0)
    for gradients in (torch.ones(300, 1), signs, -torch.ones(300, 1)):
        sizes, _ = run(Adam, gradients, betas=betas)
        assert float(sizes.max()) <= 1 + 1e-6


@pytest.mark.parametrize("steps", [1, 3, 500])
def test_epsilon_halves_the_step_where_it_is_as_large_as_the_gradient(steps: int) -> None:
    sizes, stepped = run(Adam, torch.full((steps, 1), 1e-8), eps=1e-8)
    assert float(sizes[-1]) == pytest.approx(0.5, rel=1e-6)
    state = next(iter(stepped.state.values()))
    for epsilon, share in ((1.01e-8, 1.0), (0.99e-8, 0.0)):
        assert share_below_epsilon(state["exp_avg_sq"], 0.999, int(state["step"]), epsilon) == share


def test_the_share_below_epsilon_is_of_the_entries_that_have_had_a_gradient() -> None:
    gradients = torch.tensor([0.0, 0.0, 1e-10, 1e-10, 1e-10, 1.0]).repeat(50, 1)
    _, stepped = run(Adam, gradients)
    second = next(iter(stepped.state.values()))["exp_avg_sq"]
    assert share_below_epsilon(second, 0.999, 50, 1e-8) == 3 / 4
    assert share_below_epsilon(torch.zeros(3), 0.999, 50, 1e-8) is None
