"""Channels that are taken at other places in each step, while the graph looks the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import Net, conv, images, watch
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader

DEAD = (1, 4)


def taken(starts: Iterator[int]) -> dict[str, Callable[[Tensor], Tensor]]:
    def shuffled(x: Tensor) -> Tensor:
        return x[:, (torch.arange(4) + next(starts)).tolist()]

    return {
        "slice": lambda x: x[:, (start := next(starts)) : start + 4],
        "narrow": lambda x: x.narrow(1, next(starts), 4),
        "select": lambda x: torch.stack([x.select(1, next(starts))] * 4, 1),
        "index": shuffled,
        "index_select": lambda x: x.index_select(1, torch.arange(4) + next(starts)),
    }


@pytest.mark.parametrize("form", taken(cycle([0])))
def test_kernels_of_which_others_are_taken_in_each_step_are_not_judged_by_their_places(form: str) -> None:
    torch.manual_seed(0)
    take = taken(cycle([0, 3]))[form]
    net = Net(lambda net, x: net.head(F.relu(take(net.conv(x)))), conv=conv(dead=DEAD), head=nn.Conv2d(4, 2, 1))
    report = watch(net, images(), batch_size=2)["conv"]
    assert report.activation == "unknown"
    assert [report.states[channel] for channel in DEAD] == ["zero-gradient"] * 2
    assert report.starved == report.dead == []


@pytest.mark.parametrize("form", taken(cycle([0])))
def test_places_that_stay_are_followed(form: str) -> None:
    torch.manual_seed(0)
    take = taken(cycle([1]))[form]
    net = Net(lambda net, x: net.head(F.relu(take(net.conv(x)))), conv=conv(dead=DEAD), head=nn.Conv2d(4, 2, 1))
    report = watch(net, images(), batch_size=2)["conv"]
    assert report.dead == ([1] if form == "select" else [1, 4])


@pytest.mark.parametrize("form", ["slice", "narrow", "index_select"])
def test_no_unit_stays_certified_whose_inputs_are_taken_elsewhere_at_the_next_step(form: str) -> None:
    take = taken(iter([0, 4]))[form]
    net: Any = Net(
        lambda net, x: net.head(F.relu(net.unit(take(net.norm(x))))),
        norm=nn.BatchNorm1d(8),
        unit=nn.Linear(4, 2),
        head=nn.Linear(2, 1),
    )
    with torch.no_grad():
        net.norm.weight[:4] = net.norm.bias[:4] = 0.0
        net.norm.bias[4:] = 9.0
        net.unit.weight.fill_(1.0)
        net.unit.bias.fill_(-1.0)
    reader = GraphReader(LayerTable.of(net, None, None))
    certified = []
    for _ in range(2):
        reader.read(net.training_step([torch.randn(6, 8)], 0).grad_fn)
        certified.append(reader.facts["unit"].never_open(range(2))[0])
    assert certified == [{0, 1}, set()]


def test_a_weight_of_which_other_rows_are_used_in_each_step_is_not_read_by_their_places() -> None:
    starts = cycle([0, 4])

    def some(net: Any, x: Tensor) -> Tensor:
        start = next(starts)
        return net.head(F.relu(F.linear(x, net.unit.weight[start : start + 4], net.unit.bias[start : start + 4])))

    torch.manual_seed(0)
    net: Any = Net(some, unit=nn.Linear(5, 8), head=nn.Linear(4, 2))
    nn.init.constant_(net.unit.bias, 1.0)
    with torch.no_grad():
        net.unit.bias[0] = -100.0
    report = watch(net, torch.rand(8, 5), batch_size=2)["unit"]
    assert report.states[0] in ("zero-gradient", "unknown")
    assert all(report.states[channel] == "active" for channel in range(1, 8))
