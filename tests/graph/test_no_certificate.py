"""Networks that look as if a rectifier could be certified, each beside an input that opens it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader


class Tanh(torch.autograd.Function):
    """A function that has the name of another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Net(nn.Module):
    """Something -> 4 units -> ReLU -> an output."""

    def __init__(self, before: Callable[[Any, Tensor], Tensor], weight: float, bias: float | None, **own: Any) -> None:
        super().__init__()
        self.unit, self.out, self.before = nn.Linear(8, 4, bias=bias is not None), nn.Linear(4, 1), before
        for name, value in own.items():
            setattr(self, name, value)
        with torch.no_grad():
            self.unit.weight.fill_(weight)
            if bias is not None:
                self.unit.bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(self, x)
        return self.out(F.relu(y if y.shape[-1] == 4 else self.unit(y)))

    def highest(self, x: Tensor) -> float:
        y = self.before(self, x)
        return float((y if y.shape[-1] == 4 else self.unit(y)).nan_to_num().max())


def root_mean_square(x: Tensor, eps: Any = 1e-6) -> Tensor:
    return (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def table(rows: Tensor, **options: Any) -> nn.Embedding:
    return nn.Embedding.from_pretrained(rows.clone(), freeze=False, **options)


def turned(m: Any, x: Tensor) -> Tensor:
    return F.linear(x.tanh(), m.unit.weight) + m.own.t().reshape(-1)


def rounded(m: Any, x: Tensor) -> Tensor:
    return (x / root_mean_square(x) * m.own).bfloat16().float()


ONES, FAR = torch.ones(2, 8), torch.full((2, 8), 9.0)
EDGE = 0.3003
"""Above the number of bfloat16 below it by more than float32 rounds."""
LONG = torch.tensor([[20.0, -20.0] * 4]) - 10 / 8
"""Its sum is -10, and of a norm of 1 it would be a small part of that."""
COLUMN = torch.tensor([[0.9] + [-0.2] * 7])
OWN = nn.Parameter

TRAPS: dict[str, tuple[Callable[[], Net], Tensor, Tensor]] = {
    "a softplus of a negative beta": (lambda: Net(lambda m, x: F.softplus(x, -1.0), -1.0, -1.0), ONES, -FAR),
    "a norm of single values, which large ones leave a rounding of": (
        lambda: Net(lambda m, x: m.own(x), -1.0, -0.5, own=nn.GroupNorm(8, 8)),
        ONES,
        torch.linspace(1e6, 3e6, 16).view(2, 8),
    ),
    "a bias without a gradient": (
        lambda: Net(lambda m, x: F.linear(x.tanh(), m.unit.weight, torch.full((4,), 50.0)), 0.0, None),
        ONES,
        ONES,
    ),
    "the inverse of an RMSNorm": (
        lambda: Net(lambda m, x: root_mean_square(x) / x, 1.0, -40.0),
        ONES,
        torch.tensor([[1e-3] + [1.0] * 7]),
    ),
    "a parameter that is turned and reshaped": (
        lambda: Net(turned, 0.0, None, own=OWN(torch.tensor([[-50.0, -50.0], [50.0, 50.0]]))),
        ONES,
        ONES,
    ),
    "data that were ones": (lambda: Net(lambda m, x: x.sigmoid() * x.detach(), 1.0, -9.0), ONES, FAR),
    "data that were zeros": (lambda: Net(lambda m, x: x.cos().exp() * x.detach(), -1.0, -9.0), 0 * ONES, -FAR),
    "a mean of data": (lambda: Net(lambda m, x: x.sigmoid() * x.detach().mean(), 1.0, -9.0), ONES, FAR),
    "limits that bfloat16 rounds": (
        lambda: Net(lambda m, x: x.bfloat16().clamp(-EDGE, EDGE).float(), 1.0, -8 * EDGE - 1e-4),
        ONES,
        FAR,
    ),
    "a norm that bfloat16 rounds": (
        lambda: Net(rounded, 1.0, -8 * EDGE - 1e-4, own=OWN(EDGE * ONES[0])),
        ONES,
        FAR,
    ),
    "a kernel that bfloat16 rounds": (
        lambda: Net(
            lambda m, x: F.linear(x.sigmoid(), m.unit.weight.bfloat16().float(), m.unit.bias), EDGE, -8 * EDGE - 1e-4
        ),
        ONES,
        100 * ONES,
    ),
    "a norm without epsilon": (
        lambda: Net(lambda m, x: m.own(x), 1.0, -30.0, own=nn.RMSNorm(8, eps=0.0)),
        ONES,
        1e-23 * ONES,
    ),
    "a root mean square without epsilon": (
        lambda: Net(lambda m, x: x * x.pow(2).mean(-1, keepdim=True).rsqrt(), 1.0, -30.0),
        ONES,
        1e-23 * ONES,
    ),
    "a function of the same name": (lambda: Net(lambda m, x: Tanh.apply(x), 1.0, -9.0), ONES, FAR),
    "columns of a table": (
        lambda: Net(lambda m, x: F.embedding(x, m.own.weight.t()), 1.0, 0.0, own=table(COLUMN.expand(8, 8))),
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
    ),
    "rows that a function makes smaller": (
        lambda: Net(
            lambda m, x: F.embedding(x, m.own.weight, max_norm=1.0),
            1.0,
            2.5,
            own=table(torch.cat([-(8**-0.5) * ONES, LONG])),
        ),
        torch.tensor([0, 1]),
        torch.tensor([2]),
    ),
    "a function of a norm without epsilon": (
        lambda: Net(lambda m, x: F.layer_norm(x, (8,), m.own, eps=0.0), 1.0, -3.2, own=OWN(COLUMN[0].clone())),
        COLUMN.clone(),
        10**-21.841920852661133 * COLUMN,  # whose variance has one digit left
    ),
    "rows that a lookup makes smaller": (
        lambda: Net(lambda m, x: m.own(x), 1.0, 2.5, own=table(torch.cat([-(8**-0.5) * ONES, LONG]), max_norm=1.0)),
        torch.tensor([0, 1]),
        torch.tensor([2]),
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_some_input_opens_is_not_certified(trap: str) -> None:
    make, seen, opening = TRAPS[trap]
    net = make()
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(seen.requires_grad_() if seen.is_floating_point() else seen).sum().grad_fn)
    assert reader.facts["unit"].never_open(range(4))[0] == set()
    assert net.highest(opening) > 0


def test_a_parameter_under_the_root_of_an_rms_norm_may_come_to_be_below_zero() -> None:
    net = Net(lambda m, x: x / root_mean_square(x, m.own), 1.0, -30.0, own=OWN(torch.tensor(1e-3)))
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(ONES.clone().requires_grad_()).sum().grad_fn)
    with torch.no_grad():
        net.own.fill_(-0.99)
    assert net.highest(ONES) > 0
    assert reader.facts["unit"].never_open(range(4))[0] == set()


def test_a_batch_norm_that_is_frozen_while_the_graph_stays_is_noticed() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    reader = GraphReader(LayerTable.of(net, None, None))
    told = []
    for training in (True, False):
        net[1].train(training)
        nodes, found, _ = reader.read(net(torch.randn(6, 8)).sum().grad_fn)
        told.append(found.says_otherwise(nodes))
    assert told == [False, True]
