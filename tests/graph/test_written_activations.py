"""Activations written out in arithmetic, gated linear units, concatenations and gathers; channels killed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import DEAD, Net, between, conv, images, kill, rows, watch


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def largest(x: Tensor, k: int) -> Tensor:
    """All but the k largest channels set to zero."""
    values, places = x.topk(k, 1)
    return torch.zeros_like(x).scatter(1, places, values)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "x * (x > 0)": (lambda x: x * (x > 0), "mask", "dead"),
    "x * (x > 0).float()": (lambda x: x * (x > 0).float(), "mask", "dead"),
    "JumpReLU": (lambda x: x * (x > 0.1).to(x.dtype), "mask", "dead"),
    "where(x > 0, x, 0)": (lambda x: torch.where(x > 0, x, 0.0), "where", "dead"),
    "where(x <= 0, 0, x)": (lambda x: torch.where(x <= 0, 0.0, x), "where", "dead"),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), "masked_fill", "dead"),
    "relu squared": (lambda x: F.relu(x) ** 2, "relu", "dead"),
    "x * relu(x)": (lambda x: x * F.relu(x), "x * relu", "dead"),
    "top-k of relu": (lambda x: largest(F.relu(x), 6), "relu", "dead"),
    "relu in place behind a view": (lambda x: F.relu_(x.view(4, 8, 64)).view(4, 8, 8, 8), "relu", "dead"),
    "x * relu6(x + 3) / 6": (lambda x: x * F.relu6(x + 3) / 6, "hardswish", "dead"),
    "x * hardsigmoid(x)": (lambda x: x * F.hardsigmoid(x), "hardswish", "saturated"),
    "swish": (lambda x: x * torch.sigmoid(x), "silu", "saturated"),
    "quick GELU": (lambda x: x * torch.sigmoid(1.702 * x), "silu", "saturated"),
    "GELU by tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * torch.pow(x, 3)))),
        "gelu",
        "saturated",
    ),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), "mish", "silent"),
    "shifted softplus": (lambda x: F.softplus(x) - 0.693, "softplus", "saturated"),
    "logsigmoid": (lambda x: F.logsigmoid(-x), "logsigmoid", "saturated"),
    "relu6 over 6 as a gate of itself": (lambda x: F.relu6(x) / 6 * x, "hardswish", "dead"),
}


def test_what_is_multiplied_by_nothing_but_zeros_is_not_dead_for_that() -> None:
    layer = watch(between(lambda net, x: torch.sigmoid(x * torch.zeros_like(x))), images())["conv"]
    assert not layer.dead


@pytest.mark.parametrize("form", FORMS)
def test_a_written_out_activation_is_read_and_names_its_off_channels(form: str) -> None:
    f, label, state = FORMS[form]
    layer = watch(between(lambda net, x: f(x)), images())["conv"]
    assert (layer.activation, layer.note) == (label, None)
    assert getattr(layer, state) == list(DEAD)
    assert state == "dead" or layer.dead == []


MAXOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "pairs by amax": lambda x: x.view(4, 4, 2, 8, 8).amax(2),
    "pairs by max": lambda x: x.view(4, 4, 2, 8, 8).max(2).values,
    "pairs by max, kept": lambda x: x.view(4, 4, 2, 8, 8).max(2, keepdim=True).values.flatten(1, 2),
    "four apart": lambda x: x.view(4, 2, 4, 8, 8).amax(1),
    "smallest of the negatives": lambda x: -(-x).view(4, 4, 2, 8, 8).amin(2),
    "of all channels": lambda x: x.amax(1, keepdim=True),
}


@pytest.mark.parametrize("form", MAXOUTS)
def test_a_kernel_that_is_never_the_largest_of_its_group_is_dead(form: str) -> None:
    net = Net(
        lambda net, x: net.head(MAXOUTS[form](net.conv(x)).repeat(1, 8, 1, 1)[:, :8]),
        conv=conv(dead=DEAD),
        head=nn.Conv2d(8, 2, 1),
    )
    layer = watch(net, images(8))["conv"]
    assert (layer.activation, layer.note, layer.evidence) == ("maxout", None, "activation")
    assert set(DEAD) <= set(layer.dead) == never_largest(form, net)


@torch.no_grad()
def never_largest(form: str, net: Net) -> set[int]:
    """The channels that may be a little larger without a change of what comes out, on every batch."""
    quiet = set(range(8))
    for batch in images(8).split(4):
        x = net.conv(batch)
        for channel in list(quiet):
            more = x.clone()
            more[:, channel] += 1e-4
            if not torch.equal(MAXOUTS[form](x), MAXOUTS[form](more)):
                quiet.discard(channel)
    return quiet


SHRINKS = {"hardshrink": F.hardshrink, "softshrink": F.softshrink}


@pytest.mark.parametrize("form", SHRINKS)
def test_a_shrinking_activation_is_off_within_its_width_and_on_at_both_sides(form: str) -> None:
    net = between(lambda net, x: SHRINKS[form](x))
    with torch.no_grad():
        net.conv.weight[[2, 5]], net.conv.bias[[2, 5]] = 0.001, 0.1  # within the width of .5
    layer = watch(net, images())["conv"]
    assert (layer.activation, layer.dead) == (form, [2, 5])  # channels 1 and 4, far below it, are on


WITHOUT_OFF_SIDE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "abs": (torch.abs, "abs"),
    "square": (lambda x: x**2, "square"),
    "x * x": (lambda x: x * x, "square"),
    "sin": (lambda x: torch.sin(30 * x), "sin"),
    "snake": (lambda x: x + torch.sin(x).pow(2), "sin"),
    "softsign": (F.softsign, "softsign"),
    "exp": (lambda x: torch.exp(x / 100), "exp"),
}


@pytest.mark.parametrize("form", WITHOUT_OFF_SIDE)
def test_a_function_without_an_off_side_is_named_and_kills_no_channel(form: str) -> None:
    f, label = WITHOUT_OFF_SIDE[form]
    layer = watch(between(lambda net, x: f(x)), images())["conv"]
    assert layer.dead == []
    assert (layer.activation, layer.note, layer.evidence) == (label, None, "activation")


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-5),
        lambda x: x / (1e-5 + x.abs().amax((2, 3), keepdim=True)),
        lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt(),
    ],
)
def test_a_function_inside_a_norm_of_each_channel_is_no_activation(f: Callable[[Tensor], Tensor]) -> None:
    net = between(lambda net, x: F.relu(f(x) + net.shift), shift=nn.Identity())
    net.shift = nn.Parameter(torch.zeros(8, 1, 1).index_fill(0, torch.tensor([2, 7]), -100.0))
    layer = watch(net, images())["conv"]
    assert (layer.activation, layer.note) == ("relu", None)
    assert [c for c in layer.dead if c not in DEAD] == [2, 7]


def gated(f: Callable[[Tensor], Tensor], *dead: int, width: int = 16) -> Net:
    return Net(lambda net, x: net.head(f(net.body(x))), body=kill(nn.Linear(5, width), *dead), head=nn.Linear(8, 2))


def halves(h: Tensor) -> tuple[Tensor, ...]:
    return h.chunk(2, -1)


GATED: dict[str, tuple[Callable[[Tensor], Tensor], str, str, list[int]]] = {
    "GEGLU": (lambda h: halves(h)[0] * F.gelu(halves(h)[1]), "gelu", "saturated", [9]),
    "SwiGLU": (lambda h: F.silu(halves(h)[0]) * halves(h)[1], "silu", "saturated", [1]),
    "ReGLU": (lambda h: halves(h)[0] * F.relu(halves(h)[1]), "relu", "dead", [9]),
    "ReGLU by slices": (lambda h: h[..., :8] * F.relu(h[..., 8:]), "relu", "dead", [9]),
    "ReGLU by split": (lambda h: (s := h.split([8, 8], -1))[1] * F.relu(s[0]), "relu", "dead", [1]),
    "F.glu": (lambda h: F.glu(h, -1), "glu", "saturated", [9]),
    "tanh * sigmoid": (
        lambda h: torch.tanh(halves(h)[0]) * torch.sigmoid(halves(h)[1]),
        "sigmoid+tanh",
        "saturated",
        [1, 9],
    ),
}


PAIRED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str, str]] = {
    "GEGLU of two layers": (lambda a, b: F.gelu(a) * b, "gelu", "saturated"),
    "SwiGLU of two layers": (lambda a, b: F.silu(a) * b, "silu", "saturated"),
    "ReGLU of two layers": (lambda a, b: F.relu(a) * b, "relu", "dead"),
    "tanh * sigmoid of two layers": (lambda a, b: torch.sigmoid(a) * torch.tanh(b), "sigmoid", "saturated"),
}


@pytest.mark.parametrize("unit", PAIRED)
def test_a_gate_that_is_a_layer_of_its_own_is_read(unit: str) -> None:
    f, label, state = PAIRED[unit]
    net = Net(
        lambda net, x: net.head(f(net.gate(x), net.value(x))),
        gate=kill(nn.Linear(5, 8), *DEAD),
        value=nn.Linear(5, 8),
        head=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 3, 5))
    assert (report["gate"].activation, getattr(report["gate"], state)) == (label, list(DEAD))
    if state == "dead":  # nothing passes a gate that is off, so that its value has no gradient
        assert report["value"].zero_gradient == list(DEAD)


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_ of a linear layer's (N, T, C)": torch.relu_,
    "clamp_ of a linear layer's (N, T, C)": lambda h: h.clamp_(min=0),
}


@pytest.mark.parametrize("form", IN_PLACE)
def test_what_is_done_in_place_to_tokens_is_read_where_it_is_consumed(form: str) -> None:
    net = Net(
        lambda net, x: net.head(IN_PLACE[form](net.body(x))), body=kill(nn.Linear(5, 8), *DEAD), head=nn.Linear(8, 2)
    )
    layer = watch(net, rows(8, 3, 5))["body"]
    assert (layer.activation, layer.dead, layer.note) == ("relu", list(DEAD), None)


@pytest.mark.parametrize("unit", GATED)
@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 5)])
def test_the_gate_of_a_gated_linear_unit_is_read_and_its_value_judged_by_its_gradient(
    unit: str, shape: tuple[int, ...]
) -> None:
    f, label, state, off = GATED[unit]
    layer = watch(gated(f, 1, 9), rows(*shape))["body"]
    assert layer.activation == label
    assert getattr(layer, state) == off
    assert state == "dead" or layer.dead == []
    if len(off) == 1:  # nothing passes a gate that is off, so that its value has no gradient
        assert layer.zero_gradient == [(off[0] + 8) % 16]


def test_chunks_with_an_activation_each_are_read_apart() -> None:
    net = gated(lambda h: F.relu(halves(h)[0]) - F.relu(halves(h)[1]), 1, 9)
    layer = watch(net, rows(8, 5))["body"]
    assert (layer.dead, layer.activation) == ([1, 9], "relu")
    assert layer.firing_rate == pytest.approx(14 / 16, abs=0.05)


HALVES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "relu and leaky relu": (F.leaky_relu, "silent"),
    "relu and tanh": (torch.tanh, "saturated"),
    "relu and gelu": (F.gelu, "saturated"),
    "relu and nothing": (lambda x: x, "active"),
}


@pytest.mark.parametrize("form", HALVES)
def test_each_channel_is_judged_by_the_kind_of_its_own_activations(form: str) -> None:
    f, state = HALVES[form]
    net = gated(lambda h: F.relu(halves(h)[0]) + f(halves(h)[1]), 1, 9)
    states = watch(net, rows(8, 5))["body"].states
    assert (states[1], states[9]) == ("dead", state)


def test_a_channel_that_meets_activations_of_two_kinds_is_judged_by_the_weaker() -> None:
    net = gated(lambda h: F.relu(h[..., :8]) + F.relu(h[..., 8:]) + F.leaky_relu(h[..., 4:12]), 1, 5, 9, 13)
    layer = watch(net, rows(8, 5))["body"]
    assert (layer.dead, layer.silent) == ([1, 13], [5, 9])


def test_the_channels_that_a_slice_leaves_out_are_not_called_dead() -> None:
    layer = watch(gated(lambda h: F.relu(h[..., 2:10]), 1, 4, 12), rows(8, 5))["body"]
    assert layer.dead == [4]
    assert layer.zero_gradient == [0, 1, 10, 11, 12, 13, 14, 15]


def two(f: Callable[[Any, Tensor], Tensor], width: int = 8, **modules: nn.Module) -> Net:
    return Net(
        lambda net, x: net.head(f(net, x)),
        a=kill(nn.Linear(5, 4), 1),
        b=kill(nn.Linear(5, 4), 2),
        head=nn.Linear(width, 2),
        **modules,
    )


JOINED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "two layers": lambda net, x: F.relu(torch.cat([net.a(x), net.b(x)], -1)),
    "twice over": lambda net, x: F.relu(torch.cat([torch.cat([net.a(x), net.b(x)], -1), net.a(x)], -1))[..., :8],
    "data before": lambda net, x: F.relu(torch.cat([x[..., :2], net.a(x), net.b(x)], -1))[..., 2:],
    "padded": lambda net, x: F.relu(F.pad(net.a(x), (1, 3)) + F.pad(net.b(x), (4, 0))),
}


@pytest.mark.parametrize("join", JOINED)
def test_layers_that_are_joined_before_an_activation_have_their_own_part_of_it(join: str) -> None:
    report = watch(two(JOINED[join]), rows(8, 5))
    assert (report["a"].dead, report["b"].dead) == ([1], [2])
    assert (report["a"].activation, report["a"].note) == ("relu", None)


def test_data_on_both_sides_of_a_concatenation_leave_no_place_to_be_known() -> None:
    net = two(lambda net, x: F.relu(torch.cat([x[..., :2], net.a(x), x[..., :2]], -1)) + net.b(x).sum())
    layer = watch(net, rows(8, 5))["a"]
    assert (layer.dead, layer.activation) == ([], "unknown")


def test_an_activation_of_the_channels_beside_their_negatives_is_off_where_both_are() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(torch.cat([h := net.body(x), -h], -1))),
        body=kill(nn.Linear(5, 8), *DEAD),
        head=nn.Linear(16, 2),
    )
    with torch.no_grad():
        net.body.weight[6], net.body.bias[6] = 0.0, 0.0
    assert watch(net, rows(8, 5))["body"].dead == [6]


EDGES = (torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 3, 4, 0, 2]))
MESSAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "index_select and index_add": lambda h: torch.zeros_like(h).index_add(1, EDGES[1], h.index_select(1, EDGES[0])),
    "indexing and index_add": lambda h: torch.zeros_like(h).index_add(1, EDGES[1], h[:, EDGES[0]]),
    "indexing by a table": lambda h: h[:, EDGES[0].view(2, 3)].sum(2),
    "scatter_add": lambda h: torch.zeros_like(h).scatter_add(
        1, EDGES[1].view(1, 6, 1).expand(len(h), 6, 8), h[:, EDGES[0]]
    ),
    "scatter_reduce": lambda h: torch.zeros_like(h).scatter_reduce(
        1, EDGES[1].view(1, 6, 1).expand(len(h), 6, 8), h[:, EDGES[0]], "mean"
    ),
    "a dense adjacency": lambda h: torch.eye(5).roll(1, 0) @ h,
    "torch.sparse.mm": lambda h: torch.sparse.mm(torch.eye(5 * len(h)).roll(1, 0).to_sparse(), h.flatten(0, 1)).view_as(
        h
    ),
    "a sparse adjacency": lambda h: (torch.eye(5 * len(h)).to_sparse() @ h.flatten(0, 1)).view_as(h),
    "a batched adjacency": lambda h: torch.eye(5).roll(1, 0).expand(len(h), 5, 5) @ h,
    "einsum over nodes": lambda h: torch.einsum("vw,bwf->bvf", torch.eye(5), h),
    "attention of the data": lambda h: torch.softmax(h.detach() @ h.detach().transpose(1, 2), -1) @ h,
}


@pytest.mark.parametrize("form", MESSAGES)
def test_messages_between_nodes_keep_the_channels(form: str) -> None:
    net = Net(
        lambda net, x: net.head(F.relu(MESSAGES[form](net.body(x)))),
        body=kill(nn.Linear(5, 8), *DEAD),
        head=nn.Linear(8, 2),
    )
    layer = watch(net, rows(8, 5, 5))["body"]
    assert (layer.dead, layer.activation, layer.note) == (list(DEAD), "relu", None)


def test_a_product_with_a_constant_over_the_channels_mixes_them() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.body(x) @ torch.rand(8, 8))),
        body=kill(nn.Linear(5, 8), 1),
        head=nn.Linear(8, 2),
    )
    layer = watch(net, rows(8, 5))["body"]
    assert (layer.dead, layer.activation) == ([], None)
