"""How much of what an optimizer wants is rounded away by the weights' own number format."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from helpers.short_runs import found, last, mlp, train
from lightning_deadkernel.evidence import lost_updates
from lightning_deadkernel.evidence.lost_updates import Asked, LostUpdates


def share_lost(weights: Tensor, gradient: Tensor, rate: float | Tensor = 1.0, valid: Tensor | None = None) -> float:
    """Of one step of plain SGD."""
    parameter = nn.Parameter(weights.clone())
    parameter.grad = gradient.to(parameter.dtype)
    counted = LostUpdates(1, torch.device("cpu"))
    counted.before_step([Asked(0, parameter, slice(None), rate)], valid)
    torch.optim.SGD([parameter], lr=float(rate)).step()
    counted.after_step()
    asked, lost = counted.totals(over_ranks=False)[:, 0].tolist()
    return lost / asked if asked else math.nan


@pytest.mark.parametrize(
    ("step", "lost"),
    [
        (2.0**-9, 1.0),  # half way to the next number below, 1 - 2^-8: rounds to the even one, which is 1
        (2.0**-9 + 2.0**-16, 0.0),
        (-(2.0**-9) - 2.0**-16, 1.0),
        (-(2.0**-8), 1.0),  # half way to the next number above, 1 + 2^-7
        (-(2.0**-8) - 2.0**-15, 0.0),
    ],
)
def test_a_gain_of_one_in_bfloat16_moves_above_2_to_the_minus_9_down_and_2_to_the_minus_8_up(step, lost):
    assert share_lost(torch.ones(8, dtype=torch.bfloat16), torch.full((8,), step)) == lost


@pytest.mark.parametrize(("step", "measured"), [(1e-4, 0.118), (3e-5, 0.696), (1e-5, 0.845)])
def test_the_share_lost_of_gaussian_weights_in_bfloat16_is_that_of_the_closed_form(monkeypatch, step, measured):
    sigma = 0.02
    binade = next(k for k in range(-40, 10) if 2.0 ** (k - 8) > step)  # from 2^k on, half an ulp is 2^(k - 8)
    expected = math.erfc(2.0**binade / sigma / math.sqrt(2))
    assert expected == pytest.approx(measured, abs=1e-3)
    torch.manual_seed(0)
    weights = (torch.randn(400_000) * sigma).bfloat16()
    gradient = torch.randn(400_000).sign()
    assert share_lost(weights, gradient, step) == pytest.approx(expected, abs=0.012)  # 3 sigma of 16,384 entries
    monkeypatch.setattr(lost_updates, "ENTRIES", 400_000)
    assert share_lost(weights, gradient, step) == pytest.approx(expected, abs=3e-3)


def test_what_had_nothing_to_lose_is_not_asked():
    ones = torch.ones(4, dtype=torch.bfloat16)
    tiny = torch.full((4,), 1e-6)
    assert share_lost(ones, tiny) == 1
    assert share_lost(ones, tiny * torch.tensor([0.0, 0, 1, 1])) == 1
    assert math.isnan(share_lost(ones, torch.zeros(4)))
    assert math.isnan(share_lost(ones, tiny, rate=0.0))
    assert math.isnan(share_lost(ones, tiny, rate=torch.tensor(0.0)))
    assert math.isnan(share_lost(torch.zeros(4), torch.zeros(4)))
    assert math.isnan(share_lost(ones, tiny, valid=torch.tensor(False)))
    assert math.isnan(share_lost(ones, torch.full((4,), math.nan)))


def test_each_parameter_is_counted_for_itself_in_any_dtype_and_layout():
    wide, narrow = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2, 3, 3, dtype=torch.bfloat16))
    narrow.data = narrow.data.contiguous(memory_format=torch.channels_last)
    for parameter in (wide, narrow):
        parameter.grad = torch.full_like(parameter, 2.0**-10)
    counted = LostUpdates(4, torch.device("cpu"))
    asked = [Asked(2, narrow, slice(1, 3), 1.0), Asked(0, wide, slice(None), 1.0)]
    for _ in range(2):
        counted.before_step(asked, None)
        torch.optim.SGD([wide, narrow], lr=1.0).step()
    counted.after_step()
    assert counted.totals(over_ranks=False).tolist() == [[6, 0, 72, 0], [0, 0, 72, 0]]


def adam(rate: float):
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate)


def wide() -> nn.Module:
    """A layer of 256 inputs a kernel behind a norm with gains."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 256),
        nn.LayerNorm(256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def test_in_bfloat16_a_wide_layer_whose_updates_are_lost_is_found_though_no_kernel_is_frozen():
    report = last(train(wide(), adam(1e-5), precision="bf16-true", epochs=1))
    layer = report["net.4"]
    assert layer.frozen == []
    assert 0.8 < layer.lost_updates <= 1
    (finding,) = found(report, "lost_updates", "net.4")
    assert finding.severity == "warning"
    assert finding.cause_word == "below resolution"
    assert "bf16-mixed" in finding.advice
    assert "lr=1e-05 of AdamW" in finding.advice
    (gains,) = [finding for finding in found(report, "lost_updates") if finding.layer is None]
    assert "net.2.weight" in gains.cause


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_with_float32_weights_the_same_training_loses_nothing(precision):
    report = last(train(wide(), adam(1e-5), precision=precision, epochs=1))
    assert report["net.4"].lost_updates == pytest.approx(0, abs=0.02)
    assert not found(report, "lost_updates")


@pytest.mark.parametrize(
    ("rate", "schedule"),
    [(0.0, None), (1e-5, lambda step: 0.01 + step / 1000), (1e-2, lambda step: 1.0)],
    ids=["a learning rate of zero", "warm-up", "steps that bfloat16 resolves"],
)
def test_a_layer_that_is_not_meant_to_move_or_moves_loses_no_updates(rate, schedule):
    report = last(train(wide(), adam(rate), precision="bf16-true", epochs=1, schedule=schedule))
    assert not [finding for finding in found(report, "lost_updates") if finding.severity != "info"]


class Clamping(torch.optim.SGD):
    """Keeps weights within bounds after each step, as is done with the critic of a Wasserstein GAN."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.clamp_(-0.01, 0.01)
        return loss


def test_weights_that_a_clamp_holds_are_not_blamed_on_rounding():
    torch.manual_seed(0)
    report = last(train(mlp(64, 32, 10), lambda parameters: Clamping(parameters, lr=5.0), epochs=2))
    (finding,) = found(report, "lost_updates", "net.1")
    assert finding.severity == "info"
    assert finding.cause_word == "unknown"
    assert "a clamp" in finding.advice


def test_a_half_open_window_keeps_its_counts(tmp_path):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    parameter.grad = torch.full_like(parameter, 2.0**-10)
    counted = LostUpdates(1, torch.device("cpu"))
    counted.before_step([Asked(0, parameter, slice(None), 1.0)], None)
    counted.after_step()
    resumed = LostUpdates(1, torch.device("cpu"))
    resumed.load(counted.totals(over_ranks=False))
    assert resumed.totals(over_ranks=False).tolist() == [[8], [8]]
