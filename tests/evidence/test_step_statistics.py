"""Which steps and layers the steps measures, where it may not measure all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_deadkernel.evidence import step_statistics
from lightning_deadkernel.evidence.step_statistics import Series, StepStatistics
from lightning_deadkernel.graph.layers import LayerTable

WIDTH = 4


@pytest.fixture
def two_layers_a_turn(monkeypatch):
    monkeypatch.setattr(step_statistics, "TURN", 2 * WIDTH**2)


def network(depth: int) -> tuple[nn.Sequential, StepStatistics]:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(depth)))
    layers = LayerTable.of(net, None, None).watched
    return net, StepStatistics(net, layers, torch.device("cpu"))


def backward(net: nn.Module) -> Tensor:
    loss = net(torch.ones(3, WIDTH)).square().mean()
    net.zero_grad()
    loss.backward()
    return loss


def measured(steps: StepStatistics) -> list[int]:
    """How many update ratios there are of each layer."""
    return (~steps.tables().updates.isnan()).sum(0).tolist()


@given(st.integers(1, 3000), st.integers(1, 5), st.sampled_from([2, 8, 64]))
def test_a_long_series_is_thinned_evenly_whatever_comes_up_periodically(offered, period, limit):
    sampling_limit, step_statistics.LIMIT = step_statistics.LIMIT, limit
    try:
        series = Series(1)
        for place in range(offered):
            series.append([0], torch.tensor([float(place)]))
    finally:
        step_statistics.LIMIT = sampling_limit
    kept = [int(row) for row in series.table()]
    assert kept == sorted(kept)
    assert min(offered, limit // 2 - 1) <= len(kept) <= limit
    if limit == 64 and offered > limit:
        shares = [sum(place % period == phase for place in kept) / len(kept) for phase in range(period)]
        assert min(shares) > 0.5 / period


def test_optimizers_that_take_turns_have_all_of_their_layers_measured(two_layers_a_turn):
    net, steps = network(8)
    halves = [torch.optim.SGD(net[:4].parameters(), 0.1), torch.optim.SGD(net[4:].parameters(), 0.1)]
    for _ in range(11):
        for optimizer in halves:
            backward(net)
            steps.before_step(optimizer, None, None, False)
            optimizer.step()
        steps.after_step()
    assert measured(steps) == [1 + 5] * 8  # all in the first step, then half of them in each


def test_layers_in_turn_survive_the_thinning_of_a_long_window(two_layers_a_turn, monkeypatch):
    monkeypatch.setattr(step_statistics, "LIMIT", 16)
    net, steps = network(4)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(200):
        backward(net)
        steps.before_step(optimizer, None, None, False)
        optimizer.step()
        steps.after_step()
    assert len(steps.updates.rows) <= 16
    assert min(measured(steps)) >= 2


def test_a_line_search_is_measured_from_its_first_step_on(two_layers_a_turn):
    net, steps = network(6)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=5)
    kernels = [layer.weight for layer in net]
    backward(net)
    steps.updates.append([], torch.empty(0))  # not the window's first sample, which copies all
    old = [kernel.detach().clone() for kernel in kernels]

    def closure() -> Tensor:
        loss = backward(net)
        steps.before_step(optimizer, None, None, False)
        return loss

    optimizer.step(closure)
    steps.after_step()
    ratios = steps.tables().updates[-1]
    assert measured(steps) == [1, 1, 0, 0, 0, 0]
    for index in (0, 1):
        true = (kernels[index].detach() - old[index]).norm() / old[index].norm()
        assert float(ratios[index]) == pytest.approx(float(true), rel=1e-5)


def test_what_was_measured_follows_layers_to_other_names_and_places() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    table = LayerTable.of(net, None, None)
    steps = StepStatistics(net, table.watched, torch.device("cpu"))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 3)).square().mean().backward()
        steps.before_step(optimizer)
        optimizer.step()
        steps.after_step()
    longer = nn.Sequential(nn.Linear(3, 3), net)
    later = LayerTable.of(longer, None, None)
    names = {was: name for name, was in later.names_in(table).items()}
    assert names == {"0": "1.0", "2": "1.2"}
    before, after = steps.tables(), steps.renewed(longer, later.watched, names).tables()
    for mine, other in ((after.ratios, before.ratios), (after.rms, before.rms), (after.updates, before.updates)):
        assert mine[:, 0].isnan().all()
        assert mine[:, 1:].equal(other)
        assert len(other) == 3
    assert after.lost[0].isnan()
    assert after.lost[1:].equal(before.lost)


@given(
    st.lists(st.floats(-4, 4).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=1, max_size=5),
    st.sampled_from([(torch.float32, e) for e in (-36, -30, 0, 37)] + [(torch.float64, e) for e in (-300, 0, 307)]),
)
def test_norms_of_numbers_whose_squares_cannot_be_held_are_exact_without_a_look(
    values: list[float], kind: tuple[torch.dtype, int]
) -> None:
    dtype, exponent = kind
    tensor = (torch.tensor(values, dtype=torch.float64) * 10.0**exponent).to(dtype)
    (norm,) = step_statistics._exact_norms([tensor])
    true = math.hypot(*tensor.double().tolist())
    assert float(norm) == pytest.approx(true, rel=1e-6, abs=0)
    looked = step_statistics._norms([tensor], torch.device("cpu"))
    assert float(looked) == pytest.approx(min(true, torch.finfo(dtype).max), rel=1e-6, abs=0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_norm_of_what_is_not_finite_is_not(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        (norm,) = step_statistics._exact_norms([torch.tensor([1.0, value], dtype=dtype)])
        assert not norm.isfinite()
