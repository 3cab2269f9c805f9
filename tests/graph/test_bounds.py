"""Certificates as a graph gives them, against inputs that are built to break each: ten thousand units of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader

UNITS, WIDTH, TOGETHER = 10_000, 16, 24
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def reader_of(model: nn.Module, *inputs: Tensor) -> GraphReader:
    reader = GraphReader(LayerTable.of(model, None, None))
    output = model(*inputs)
    reader.read(output.float().square().mean().grad_fn)
    return reader


def proven(model: nn.Module, *inputs: Tensor, layer: str) -> set[int]:
    facts = reader_of(model, *inputs).facts[layer]
    return facts.never_open(range(facts.layer.channels))[0]


class Head(nn.Module):
    """What comes before -> a linear layer -> ReLU -> an output."""

    def __init__(self, before: nn.Module, width: int = WIDTH, units: int = UNITS) -> None:
        super().__init__()
        self.before, self.unit, self.out = before, nn.Linear(width, units), nn.Linear(units, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return self.out(F.relu(self.unit(y)))


def in_turn(net: Head, inputs: Tensor) -> Tensor:
    """(units,) of each unit the value before its rectifier at an input of its own, as the net computes it."""
    with torch.no_grad():
        y, weight, bias = net.before(inputs), net.unit.weight, net.unit.bias
        chunks = zip(y.split(50), weight.split(50), bias.split(50), strict=True)
        return torch.cat([F.linear(*chunk).diagonal() for chunk in chunks])


class RMS(nn.Module):
    """As language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() if x.dtype != torch.float64 else x
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


@dataclass(frozen=True)
class Kind:
    """What stands before the units, and of each unit the input that lifts it most."""

    before: Callable[[], nn.Module]
    worst: Callable[[nn.Module, Tensor], Tensor]
    """(module, (units, width) weights) -> (units, width) inputs."""


def against_norm(module: Any, weight: Tensor) -> Tensor:
    v = weight * module.weight
    return 1e3 * (v - v.mean(1, keepdim=True) if isinstance(module, nn.LayerNorm) else v)


def at_ends(far: float) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda module, weight: weight.sign() * far


KINDS = {
    "layer norm": Kind(lambda: nn.LayerNorm(WIDTH), against_norm),
    "rms norm": Kind(lambda: nn.RMSNorm(WIDTH), against_norm),
    "rms norm by hand": Kind(lambda: RMS(WIDTH), against_norm),
    "sigmoid": Kind(nn.Sigmoid, at_ends(1e3)),
    "tanh": Kind(nn.Tanh, at_ends(1e3)),
    "relu6": Kind(nn.ReLU6, at_ends(1e3)),
    "hardtanh": Kind(lambda: nn.Hardtanh(-0.5, 2.0), at_ends(1e3)),
    "hardsigmoid": Kind(nn.Hardsigmoid, at_ends(1e3)),
    "norm and relu": Kind(lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.ReLU()), lambda m, w: against_norm(m[0], w)),
}


@torch.no_grad()
def set_near_the_edge(net: Head, worst: Callable[[nn.Module, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Draws the units, and puts the largest value that they reach a little below zero, or above.

    Returns:
        Of each unit the worst input, and how far below zero it is there, beside the size of its weights.
    """
    torch.manual_seed(0)
    for name, parameter in net.before.named_parameters():
        parameter.copy_(torch.randn(parameter.shape) + (1.0 if "weight" in name else 0.0))
    net.unit.weight.copy_(torch.randn(net.unit.weight.shape) / 4)
    net.unit.bias.zero_()
    inputs = worst(net.before, net.unit.weight)
    reach = in_turn(net, inputs)
    below = 10 ** (1 - 7 * torch.rand(UNITS)) * torch.randn(UNITS).sign()
    net.unit.bias.copy_(-reach - below * reach.abs())
    far = -(reach + net.unit.bias).double()
    return inputs, far / net.unit.weight.double().norm(dim=1) / math.sqrt(WIDTH)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_unit_is_certified_that_the_worst_input_makes_fire(kind: str, dtype: torch.dtype) -> None:
    net = Head(KINDS[kind].before()).to(dtype)
    inputs, below = set_near_the_edge(net, KINDS[kind].worst)
    fires = in_turn(net, inputs) > 0
    certified = torch.zeros(UNITS, dtype=torch.bool)
    certified[sorted(proven(net, inputs[:2].requires_grad_(), layer="unit"))] = True
    assert not (fires & certified).any()
    assert 0.2 < fires.float().mean() < 0.8  # the trial is one
    if kind != "norm and relu":  # whose bound is above what is reached
        sure = below > (1.0 if dtype is torch.bfloat16 else 0.03)
        assert sure.sum() > 200
        assert (certified | ~sure).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_no_channel_is_certified_behind_a_norm_that_one_value_among_many_makes_fire(
    norm: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    own = {
        "batch": nn.BatchNorm1d(UNITS),
        "instance": nn.InstanceNorm1d(UNITS, affine=True),
        "group": nn.GroupNorm(UNITS, UNITS),
    }[norm]
    net = nn.Sequential(nn.Conv1d(1, UNITS, 1, bias=False), own, nn.ReLU(), nn.Conv1d(UNITS, 1, 1))
    values = TOGETHER if norm == "batch" else TOGETHER // 2
    reach = math.sqrt(values - 1)
    below = 10 ** (-6 * torch.rand(UNITS)) * torch.randn(UNITS).sign()
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(UNITS, 1, 1))
        own.weight.copy_(torch.randn(UNITS))
        own.bias.copy_(-own.weight.abs() * reach * (1 + below))
    net.to(dtype)
    one = torch.zeros(2, 1, TOGETHER // 2)
    one[0, 0, 3] = 1e4
    one = one.to(dtype)
    fires = ((net[:2](one) > 0) | (net[:2](-one) > 0)).any(2).any(0)
    certified = torch.zeros(UNITS, dtype=torch.bool)
    certified[sorted(proven(net, one, layer="0"))] = True
    assert not (fires & certified).any()
    assert 0.2 < fires.float().mean() < 0.8
    sure = below > (0.5 if dtype is torch.bfloat16 else 0.02)
    assert sure.sum() > 200
    assert (certified | ~sure).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_unit_of_a_table_is_certified_where_none_of_its_rows_makes_it_fire(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    net = Head(nn.Embedding(50, WIDTH)).to(dtype)
    rows = torch.arange(50)
    with torch.no_grad():
        net.unit.bias.copy_(-4 * torch.rand(UNITS))
        fires = (net.unit(net.before(rows)) > 0).any(0)
    certified = proven(net, rows, layer="unit")
    silent = set((~fires).nonzero().flatten().tolist())
    assert certified <= silent
    assert len(certified) > (0.9 if dtype is not torch.bfloat16 else 0.2) * len(silent) > 1000


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_kernel_is_certified_that_some_patch_makes_fire_padding_and_all(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    units, width = 500, 8

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.LayerNorm(width), nn.Conv2d(width, units, 3, padding=1)
            self.out = nn.Conv2d(units, 1, 1)

        def normed(self, x: Tensor) -> Tensor:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.conv(self.normed(x))))

    net = Net().to(dtype)
    with torch.no_grad():
        net.norm.weight.copy_(torch.randn(width))
        net.norm.bias.copy_(torch.randn(width))
        net.conv.bias.zero_()
        v = net.conv.weight * net.norm.weight[:, None, None]
        patches = 1e3 * (v - v.mean(1, keepdim=True))
        images = torch.cat([patches, patches.roll((1, 1), (2, 3))])  # seen whole, and by a corner

        def reached() -> Tensor:
            value = net.conv(net.normed(images)).view(2, units, units, 9).amax((0, 3))
            return value.diagonal()

        reach = reached()
        below = 10 ** (-5 * torch.rand(units)) * torch.randn(units).sign()
        net.conv.bias.copy_(-reach * (1 + below))
        fires = reached() > 0
    certified = torch.zeros(units, dtype=torch.bool)
    certified[sorted(proven(net, images[:2], layer="conv"))] = True
    assert not (fires & certified).any()
    assert 0.2 < fires.float().mean() < 0.8
    assert certified.sum() > (10 if dtype is not torch.bfloat16 else -1)


# -- where there is no certificate -------------------------------------------------------------------------------------


def shut(unit: nn.Linear, by: float = 100.0) -> nn.Linear:
    with torch.no_grad():
        unit.bias.fill_(-by)
    return unit


class Net(nn.Module):
    """LayerNorm -> a linear layer that is far below zero -> ReLU -> an output; what is done between is given."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.unit, self.out, self.other = (
            nn.LayerNorm(8),
            shut(nn.Linear(8, 8)),
            nn.Linear(8, 1),
            nn.Linear(8, 8),
        )
        self.scale, self.flag = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8, 8))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


PATHS: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool]] = {
    "plain": (lambda m, x: F.relu(m.unit(m.norm(x))), True),
    "pooled and reshaped": (lambda m, x: F.relu(m.unit(m.norm(x).view(2, 3, 8)[:, 0])).amax(0), True),
    "clamped": (lambda m, x: m.unit(m.norm(x)).clamp(0, 4), True),
    "two rectifiers": (lambda m, x: F.relu(m.unit(m.norm(x))) + F.relu6(m.unit(m.norm(x))), True),
    "two inputs": (lambda m, x: F.relu(m.unit(m.norm(x))) + F.relu(m.unit(m.other(x))), False),
    "a sum": (lambda m, x: F.relu(m.unit(m.norm(x)) + m.other(x)), False),
    "a sum with data": (lambda m, x: F.relu(m.unit(m.norm(x)) + x.detach()), False),
    "a sum before": (lambda m, x: F.relu(m.unit(m.norm(x) + m.other(x))), False),
    "leaky": (lambda m, x: F.leaky_relu(m.unit(m.norm(x))), False),
    "elu": (lambda m, x: F.elu(m.unit(m.norm(x))), False),
    "gelu": (lambda m, x: F.gelu(m.unit(m.norm(x))), False),
    "softplus": (lambda m, x: F.softplus(m.unit(m.norm(x))), False),
    "another path": (lambda m, x: F.relu(m.unit(m.norm(x))) + m.unit(m.norm(x)), False),
    "shrunk": (lambda m, x: F.hardshrink(m.unit(m.norm(x))), False),
    "negated": (lambda m, x: F.relu(-m.unit(m.norm(x))), False),
    "scaled by a parameter": (lambda m, x: F.relu(m.unit(m.norm(x)) * m.scale), False),
    "scaled by data": (lambda m, x: F.relu(m.unit(m.norm(x)) * x.detach()), False),
    "halved": (lambda m, x: F.relu(m.unit(m.norm(x)) * 0.5), True),
    "turned over": (lambda m, x: F.relu(m.unit(m.norm(x)) * -0.5), False),
    "a weight of twice the size": (lambda m, x: F.relu(F.linear(m.norm(x), m.unit.weight * 2, m.unit.bias)), False),
    "a bias of the other sign": (lambda m, x: F.relu(F.linear(m.norm(x), m.unit.weight, -m.unit.bias)), False),
    "a bias that is added twice": (
        lambda m, x: F.relu(F.linear(m.norm(x), m.unit.weight, m.unit.bias) + m.unit.bias),
        True,
    ),
    "a bias that is taken away": (lambda m, x: F.relu(F.linear(m.norm(x), m.unit.weight) - m.unit.bias), False),
    "a multiple of the bias": (
        lambda m, x: F.relu(torch.add(F.linear(m.norm(x), m.unit.weight), m.unit.bias, alpha=-1)),
        False,
    ),
    "addmm with a factor": (lambda m, x: F.relu(torch.addmm(m.unit.bias, m.norm(x), m.unit.weight.T, beta=-1)), False),
    "a gain of another kind": (lambda m, x: F.relu(m.unit(F.layer_norm(x, (8,), m.scale * 100, m.norm.bias))), False),
    "no norm": (lambda m, x: F.relu(m.unit(x)), False),
    "a norm without a gradient": (lambda m, x: F.relu(m.unit(m.norm(x).detach())), False),
    "a norm over rows": (lambda m, x: F.relu(m.unit(F.layer_norm(x.view(2, 3, 8), (3, 8)))), False),
    "an exponential": (lambda m, x: F.relu(m.unit(m.norm(x).exp())), False),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_certificate_needs_all_of_the_chain_to_be_known_on_every_path(path: str) -> None:
    torch.manual_seed(0)
    forward, certain = PATHS[path]
    net = Net(forward)
    x = torch.randn(6, 8, requires_grad=True)
    facts = reader_of(net, x).facts["unit"]
    assert bool(facts.never_open(range(8))[0]) is certain


def test_what_is_certified_follows_the_weights_of_now() -> None:
    net = Net(PATHS["plain"][0])
    facts = reader_of(net, torch.randn(6, 8)).facts["unit"]
    assert len(facts.never_open(range(8))[0]) == 8
    with torch.no_grad():
        net.unit.bias[:2] = 0.0
        net.norm.bias[:] = 0.0
        net.norm.weight[:] = 1e6
    assert facts.never_open(range(8))[0] == set()
    with torch.no_grad():
        net.norm.weight[:] = 1.0
    assert facts.never_open(range(8))[0] == set(range(2, 8))


def test_a_zero_kernel_is_certified_whatever_its_input_and_a_positive_bias_is_not() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        net[0].weight[:3] = 0.0
        net[0].bias.copy_(torch.tensor([-1.0, 0.0, 1.0, -1.0]))
    assert proven(net, torch.randn(2, 1, 6, 6), layer="0") == {0, 1}


def test_a_batch_norm_says_for_batches_of_which_size_it_holds_and_a_gain_of_zero_holds_for_any() -> None:
    def found(gain: float) -> tuple[set[int], int | None]:
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))
        with torch.no_grad():
            net[1].weight.fill_(gain)
            net[1].bias.copy_(torch.tensor([-10.0, -0.1, 0.0, 0.1]))
        return reader_of(net, torch.randn(2, 1, 6, 6)).facts["0"].never_open(range(4))

    assert found(1.0) == ({0}, 32)  # sqrt(31) = 5.6
    assert found(0.0) == ({0, 1, 2}, None)


def test_a_batch_norm_that_is_evaluated_passes_on_what_its_input_allows() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.Sigmoid(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)
    )
    with torch.no_grad():
        net[2].weight.fill_(1.0)
        net[2].bias.zero_()
        net[3].running_mean.copy_(torch.tensor([3.1, 2.9, -0.1, 0.1]))
        net[3].weight.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    net[3].eval()  # sums of three sigmoids lie between 0 and 3
    assert proven(net, torch.randn(2, 1, 6, 6), layer="2") == {0, 2}
    with torch.no_grad():
        net[3].bias.fill_(-5.0)
    assert proven(net, torch.randn(2, 1, 6, 6), layer="2") == {0, 1, 2, 3}


def test_after_a_rectifier_weights_and_bias_below_zero_are_enough() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 1)
    )
    with torch.no_grad():
        net[4].weight[:2] = -net[4].weight[:2].abs()
        net[4].bias.copy_(torch.tensor([0.0, 1e-6, -1.0]))
    assert proven(net, torch.randn(2, 1, 6, 6), layer="4") == {0}


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Softplus()]
)
def test_smooth_activations_have_a_least_value(activation: nn.Module) -> None:
    least = float(activation(torch.linspace(-10, 10, 100_001)).min())
    net = nn.Sequential(activation, nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[1].weight.fill_(-1.0)
        net[1].bias.copy_(
            torch.tensor([4 * least * 1.01 - 1e-3, 4 * least * 0.99 + 1e-3])
        )  # four of them at their least
    assert proven(net, torch.randn(2, 4, requires_grad=True), layer="1") == {0}


def test_channels_side_by_side_are_bounded_each_by_its_own() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
            self.unit, self.out = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([self.a(x).sigmoid(), self.b(x).clamp(0, 10)], 1)
            return self.out(F.relu(self.unit(y)))

    net = Beside()
    with torch.no_grad():
        net.unit.weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).view(3, 4, 1, 1))
        net.unit.bias.copy_(torch.tensor([-2.1, -2.1, -22.1]))
    assert proven(net, torch.randn(2, 1, 3, 3), layer="unit") == {0, 2}


def changing(steps: list[Callable[[Any, Tensor], Tensor]]) -> Iterator[tuple[GraphReader, bool]]:
    net = Net(steps[0])
    reader = GraphReader(LayerTable.of(net, None, None))
    for forward in steps:
        net._forward = forward
        nodes, found, new = reader.read(net(torch.randn(6, 8)).square().mean().grad_fn)
        yield reader, not new and found.says_otherwise(nodes)


def test_limits_and_dropouts_that_change_while_the_graph_does_not_are_noticed() -> None:
    def clamped(high: float) -> Callable[[Any, Tensor], Tensor]:
        return lambda m, x: F.relu(m.unit(m.other(x).clamp(-1, high)))

    assert [changed for _, changed in changing([clamped(2), clamped(1), clamped(2.5)])] == [False, False, True]

    def dropped(p: float) -> Callable[[Any, Tensor], Tensor]:
        return lambda m, x: F.relu(m.unit(F.dropout(m.norm(x), p)))

    assert [changed for _, changed in changing([dropped(0.5), dropped(0.2), dropped(0.8)])] == [False, False, True]


def test_a_layer_that_is_used_in_another_way_later_on_loses_its_certificate() -> None:
    first, second = (PATHS[name][0] for name in ("plain", "no norm"))
    counts = [len(reader.facts["unit"].never_open(range(8))[0]) for reader, _ in changing([first, second])]
    assert counts == [8, 0]


def test_padding_is_an_input_of_zero_where_the_limits_have_none() -> None:
    net = nn.Sequential(nn.Hardtanh(0.5, 1.0), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[1].weight.fill_(-1.0)
        net[1].bias.copy_(torch.tensor([3.0, -1e-3]))  # nine times -0.5 within, and four times in a corner
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    assert bool((net[:2](x)[0, 0] > 0).any())
    assert proven(net, x, layer="1") == {1}


def test_padding_is_an_input_of_zero_where_a_norm_has_none() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.out = nn.LayerNorm(4), nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(2, 1, 1)

        def ungated(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.ungated(x)))

    net = Shifted()
    with torch.no_grad():
        net.norm.weight.fill_(0.1)
        net.norm.bias.fill_(1.0)  # each of four features is about 1
        net.conv.weight.fill_(-1.0)
        net.conv.bias.copy_(torch.tensor([20.0, -0.1]))  # nine times -4 within, and four times in a corner
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    assert bool((net.ungated(x)[0, 0] > 0).any())
    assert not bool((net.ungated(x)[0, 0, 1:3, 1:3] > 0).any())
    assert proven(net, x, layer="conv") == {1}


def test_layers_that_change_take_certificates_until_a_graph_is_read_again() -> None:
    net = Net(PATHS["plain"][0])
    reader = reader_of(net, torch.randn(6, 8))
    net.norm = nn.LayerNorm(8)
    table = reader.table.now()
    assert table is not None
    reader.renew(table)
    assert reader.facts["unit"].never_open(range(8))[0] == set()
    reader.forget()
    reader.read(net(torch.randn(6, 8)).square().mean().grad_fn)
    assert len(reader.facts["unit"].never_open(range(8))[0]) == 8
