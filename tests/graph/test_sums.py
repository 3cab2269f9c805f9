"""Several layers under one activation: what fires is all of them together, and gradients tell whose it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import Net, kill, rows, watch
from lightning_deadkernel import Report

OFF = (1, 4)
"""Channels in which the second summand has nothing to add wherever the sum is on."""
GRAPH = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
"""From, to: nodes 4 to 7 have no neighbours."""


def no_bias(inputs: int = 5, outputs: int = 6) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def on_without(module: nn.Linear) -> nn.Linear:
    """Fires everywhere by its bias."""
    with torch.no_grad():
        module.bias.fill_(9.0)
    return module


def message_passing(net: Any, x: Tensor) -> Tensor:
    """`h0 + W m`; the sum is on at nodes without neighbours alone, where m = 0."""
    m = torch.zeros_like(x).index_add(0, GRAPH[1], x[GRAPH[0]])
    on = torch.cat([torch.full((4, 1), -99.0), torch.zeros(4, 1)])
    return F.relu(net.one(x) + net.two(m) + on)


def half_on(x: Tensor) -> tuple[Tensor, Tensor]:
    """Zero in the first half and below the line in the second, so that sums are on only where the first is zero."""
    gate = torch.cat([torch.zeros(len(x) // 2, 1), torch.ones(len(x) // 2, 1)])
    return x * gate, -99.0 * gate


def gated(net: Any, x: Tensor) -> Tensor:
    """One gate of a recurrent cell written by hand: new = relu(W x + U (r h))."""
    h, line = half_on(x)
    return F.relu(net.one(x) + net.two(h) + line)


SUMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "h0 + W m of a graph": message_passing,
    "a gate of a recurrence": gated,
    "two towers": lambda net, x: F.relu(net.two(half_on(x)[0]) + net.one(x) + half_on(x)[1]),
    "a difference": lambda net, x: F.relu(net.one(x) - net.two(half_on(x)[0]) + half_on(x)[1]),
    "added in place": lambda net, x: F.relu(net.one(x).add_(net.two(half_on(x)[0])) + half_on(x)[1]),
    "added by the product": lambda net, x: F.relu(
        torch.addmm(net.one(x) + half_on(x)[1], half_on(x)[0], net.two.weight.t())
    ),
    "a zero factor": lambda net, x: F.relu(net.one(x) + 0.0 * net.two(x)),
}


def words(report: Report, name: str) -> list[tuple[str, str, str]]:
    return [(f.cause_word, f.cause, f.advice) for f in report.findings if f.layer == name and f.kind != "zero_kernels"]


@pytest.mark.parametrize("form", SUMS.values(), ids=SUMS)
def test_a_summand_that_has_nothing_to_add_where_the_sum_is_on_is_starved_and_the_words_name_the_sum(form: Any) -> None:
    net = Net(
        lambda net, x: net.head(form(net, x)), one=on_without(nn.Linear(5, 6)), two=no_bias(), head=nn.Linear(6, 2)
    )
    report = watch(net, rows(8, 5), batch_size=8)
    assert report["one"].states == ["active"] * 6
    assert report["two"].states == ["starved"] * 6
    ((word, cause, advice),) = words(report, "two")
    assert word == "another summand"
    assert cause.startswith("another summand: summed with one: ")
    assert "detach" not in cause + advice
    assert report["one"].dead == report["two"].dead == []


def test_a_sum_that_never_fires_is_dead_in_each_of_its_summands() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.one(x) + net.two(x))),
        one=kill(nn.Linear(5, 6), *OFF),
        two=no_bias(),
        head=nn.Linear(6, 2),
    )
    report = watch(net, rows(8, 5))
    assert report["one"].dead == report["two"].dead == list(OFF)


def test_a_summand_of_a_sum_that_nothing_reads_is_not_blamed_on_the_other() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.one(x) + net.two(x))) + net.aside(x),
        one=on_without(nn.Linear(5, 6)),
        two=no_bias(),
        head=no_bias(6, 2),
        aside=nn.Linear(5, 2),
    )
    nn.init.zeros_(net.head.weight)
    net.head.requires_grad_(False)
    report = watch(net, rows(8, 5))
    assert report["two"].states == ["starved"] * 6
    ((word, cause, advice),) = words(report, "two")
    assert word != "another summand"
    assert "detach" not in cause + advice


def test_a_sum_with_what_is_no_layer_says_so() -> None:
    net = Net(
        lambda net, x: F.relu(net.table(torch.arange(8)) + net.two(0.0 * x)) + 0 * x.sum(),
        table=nn.Embedding(8, 6),
        two=no_bias(),
    )
    with torch.no_grad():
        net.table.weight.abs_()
    report = watch(net, rows(8, 5), batch_size=8)
    assert report["two"].states == ["starved"] * 6
    ((_, cause, advice),) = words(report, "two")
    assert "summed with another value" in cause
    assert "detach" not in cause + advice


STACKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "stacked": lambda net, x: torch.stack([net.one(x), net.two(x)], 1),
    "stacked in front": lambda net, x: torch.stack([net.one(x), net.two(x)]),
    "concatenated along the batch": lambda net, x: torch.cat([net.one(x), net.two(x)]),
    "concatenated along positions": lambda net, x: torch.cat([net.one(x)[:, None], net.two(x)[:, None]], 1),
}


@pytest.mark.parametrize("form", STACKS.values(), ids=STACKS)
def test_layers_stacked_along_another_axis_do_not_fire_for_one_another(form: Any) -> None:
    net = Net(
        lambda net, x: net.head(F.relu(form(net, x))),
        one=kill(nn.Linear(5, 6), *OFF),
        two=kill(nn.Linear(5, 6), 2),
        head=nn.Linear(6, 2),
    )
    report = watch(net, rows(10, 5))  # in batches of 4, 4 and 2
    assert report["one"].dead == list(OFF)
    assert report["two"].dead == [2]
    assert report["one"].evidence == "activation"


def test_layers_stacked_and_then_laid_in_one_axis_are_read_together_and_the_words_say_so() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(torch.stack([net.one(x), net.two(x)], 1).flatten(0, 1))),
        one=kill(nn.Linear(5, 6), *OFF),
        two=on_without(nn.Linear(5, 6)),
        head=nn.Linear(6, 2),
    )
    report = watch(net, rows(8, 5))
    assert report["one"].starved == list(OFF)
    ((_, cause, advice),) = words(report, "one")
    assert cause.startswith("another summand: stacked with two: ")
    assert "detach" not in cause + advice


def test_what_is_stacked_and_then_added_up_is_a_sum() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(torch.stack([net.one(x), net.two(x), net.three(x)]).sum(0))),
        one=kill(nn.Linear(5, 6), *OFF),
        two=no_bias(),
        three=no_bias(),
        head=nn.Linear(6, 2),
    )
    report = watch(net, rows(8, 5))
    for name in ("one", "two", "three"):
        assert report[name].dead == list(OFF)


@pytest.mark.parametrize("form", STACKS.values(), ids=STACKS)
def test_samples_of_stacked_layers_are_those_of_each(form: Any) -> None:
    net = Net(
        lambda net, x: net.head(F.relu(form(net, x))),
        one=kill(nn.Linear(5, 6), *OFF),
        two=kill(nn.Linear(5, 6), 2),
        head=nn.Linear(6, 2),
    )
    findings = [finding for finding in watch(net, rows(10, 5)).findings if finding.kind == "dead_channels"]
    assert [finding.samples for finding in findings] == [10, 10]


CHOICES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "maximum": lambda net, x: torch.maximum(net.one(x), net.two(x)),
    "where": lambda net, x: (lambda a, b: torch.where(a > b, a, b))(net.one(x), net.two(x)),
    "largest of a stack": lambda net, x: torch.stack([net.one(x), net.two(x)]).amax(0),
}


@pytest.mark.parametrize("form", CHOICES)
def test_a_kernel_that_another_always_exceeds_is_not_called_alive_for_what_fires_in_its_place(form: str) -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.head(F.relu(CHOICES[form](net, x))),
        one=on_without(nn.Linear(5, 6)),
        two=kill(nn.Linear(5, 6), *OFF),
        head=nn.Linear(6, 2),
    )
    with torch.no_grad():
        net.two.bias[[0, 2, 3, 5]] = 30.0
    report = watch(net, rows(8, 5))
    assert (report["one"].zero_gradient, report["one"].starved) == ([0, 2, 3, 5], [])
    assert (report["two"].zero_gradient, report["two"].starved) == (list(OFF), [])
    ((word, cause, _),) = words(report, "two")
    assert word == "another summand"
    assert cause.startswith("another summand: compared with one: one of them is taken, and one gets a gradient there")
