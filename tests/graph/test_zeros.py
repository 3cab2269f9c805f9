"""What is said to go unchanged: a dead or a masked kernel, by what stands between it and the layer that reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from helpers.tiny_nets import Net, rows, watch

SCALE, SHIFT = torch.linspace(0.5, 2.0, 8), torch.linspace(0.1, 0.9, 8)
NORM = (torch.zeros(8), torch.ones(8), SCALE, SHIFT)
NODES = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
SWAPPED = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])

BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda h: h,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "swish by hand": lambda h: h * torch.sigmoid(h),
    "softplus": F.softplus,
    "elu": F.elu,
    "elu above zero": lambda h: F.elu(h) + 1,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "cos": torch.cos,
    "square": torch.square,
    "an inverse": lambda h: 1 / (1 + h.abs()),
    "a number added": lambda h: h + 1,
    "a number less": lambda h: 1 - h,
    "the other way": lambda h: -3 * h,
    "a tenth": lambda h: h / 10,
    "one less a gate": lambda h: 1 - h.tanh(),
    "softmax": lambda h: h.softmax(1),
    "clamp from above zero": lambda h: h.clamp(min=0.1),
    "clamp around zero": lambda h: h.clamp(-1, 1),
    "a number for what is off": lambda h: F.threshold(h, 0.1, 0.7),
    "a number by a condition": lambda h: torch.where(h > 0, h, torch.full_like(h, 0.3)),
    "a number by a mask": lambda h: h.masked_fill(h <= 0, 0.5),
    "a gate of constants": lambda h: h.sigmoid() * SHIFT,
    "batch norm": lambda h: F.batch_norm(h, *NORM, training=True),
    "a dropout": lambda h: F.dropout(h, 0.0),
    "messages": lambda h: NODES @ h,
    "messages and a gate": lambda h: torch.sigmoid(NODES @ h),
    "messages and a number": lambda h: NODES @ h + 1,
    "a sum with itself": lambda h: h + h.tanh(),
    "a sum with a gate of itself": lambda h: h + h.sigmoid(),
    "another order": lambda h: h[:, SWAPPED][:, SWAPPED],
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("why", ["dead", "masked"])
def test_a_kernel_is_said_to_go_only_where_nothing_of_it_is_read(between: str, why: str) -> None:
    f = BETWEEN[between] if why == "masked" else lambda h: BETWEEN[between](F.relu(h))
    torch.manual_seed(0)
    net = Net(lambda net, x: net.head(f(net.fc(x))), fc=nn.Linear(5, 8, bias=why == "dead"), head=nn.Linear(8, 2))
    with torch.no_grad():
        net.fc.weight.abs_()  # on positive inputs all others fire
        if why == "dead":
            net.fc.bias[3] = -50.0
    if why == "masked":
        prune.custom_from_mask(net.fc, "weight", torch.ones(8, 5).index_fill(0, torch.tensor([3]), 0.0))
    savings = watch(net, rows(8, 5)).savings
    assert savings is not None
    with torch.no_grad():
        before = net._forward(net, rows(4, 5))
        net.head.weight[:, 3] = 0.0
        goes = torch.equal(before, net._forward(net, rows(4, 5)))
    assert savings.channels == goes


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda net, h: net.head(h).sum(1), 1),
        (lambda net, h: net.head(h).sum(1) + h.exp().sum(1), 0),
        (lambda net, h: net.head(h).sum(1) + F.leaky_relu(h).exp().sum(1), 0),
        (lambda net, h: net.head(h).sum(1) + h.square().sum(1), 1),  # a penalty on what it makes: none
        (lambda net, h: net.head(h).sum(1) * h.mean(1), 0),
        (lambda net, h: net.head(h - h.mean(1, keepdim=True)).sum(1), 0),
        (lambda net, h: net.head(h.tanh() - h.tanh().mean(1, keepdim=True)).sum(1), 0),
        (lambda net, h: net.head(h - h.mean(0, keepdim=True)).sum(1), 1),
    ],
)
def test_a_masked_kernel_may_not_go_where_others_or_the_loss_are_reckoned_with_it(
    read: Callable[[Net, Tensor], Tensor], count: int
) -> None:
    net = Net(lambda net, x: read(net, net.fc(x)), fc=nn.Linear(5, 8, bias=False), head=nn.Linear(8, 2))
    prune.custom_from_mask(net.fc, "weight", torch.ones(8, 5).index_fill(0, torch.tensor([3]), 0.0))
    savings = watch(net, rows(8, 5)).savings
    assert savings is not None
    assert savings.channels == count


@pytest.mark.parametrize(
    ("joined", "count"),
    [
        (lambda a, b: F.relu(a) + F.relu(b), 1),
        (lambda a, b: F.relu(a + b), 0),  # nothing tells whether what is added is layers alone
        (lambda a, b: F.relu(F.relu(a) + b), 0),  # which would pass without it
        (lambda a, b: torch.cat([F.relu(a + b), F.relu(a)], 1), 0),
        (lambda a, b: F.relu(torch.cat([a, b], 1)), 1),
    ],
)
def test_a_dead_kernel_that_holds_down_what_it_is_added_to_may_not_go(
    joined: Callable[[Tensor, Tensor], Tensor], count: int
) -> None:
    first, second = nn.Linear(5, 8), nn.Linear(5, 8)
    with torch.no_grad():
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.abs_()
        second.bias[3] = -50.0
    net = Net(
        lambda net, x: net.head(joined(net.first(x), net.second(x))),
        first=first,
        second=second,
        head=nn.Linear(joined(*2 * [rows(1, 8)]).shape[1], 2),
    )
    savings = watch(net, rows(8, 5)).savings
    assert savings is not None
    assert savings.channels == count
