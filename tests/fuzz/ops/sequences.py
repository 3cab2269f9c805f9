"""Attention and recurrence."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.network import Network
from fuzz.ops.registry import op, width
from fuzz.programs import Op


def _heads(random: Random, x: Tensor) -> dict[str, Any]:
    return {"heads": random.choice([h for h in (1, 2) if x.shape[-1] % h == 0])}


@op("sequence", "rows", draw=_heads, weight=1)
def multihead_attention(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    module = net.module(me.target, lambda: nn.MultiheadAttention(x.shape[-1], me.options["heads"], batch_first=True))
    return module(x, x, x, need_weights=False)[0]


def _attention(net: Network, me: Op, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    width, heads = x.shape[-1], me.options["heads"]
    parts = [net.layer(f"{me.target}_{part}", lambda: nn.Linear(width, width), x, -1) for part in ("q", "k", "v")]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    mixed = attend(q, k, v).transpose(1, 2).flatten(2)
    return net.layer(f"{me.target}_out", lambda: nn.Linear(width, width), mixed, -1)


@op("sequence", "rows", draw=_heads, weight=1)
def attention_fused(net: Network, me: Op, x: Tensor) -> Tensor:
    return _attention(net, me, x, F.scaled_dot_product_attention)


@op("sequence", "rows", draw=_heads, weight=1)
def attention_written_out(net: Network, me: Op, x: Tensor) -> Tensor:
    return _attention(net, me, x, lambda q, k, v: torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1) @ v)


@op("sequence", "rows", draw=width, weight=0.7)
def gru(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    return net.module(me.target, lambda: nn.GRU(x.shape[-1], me.options["width"], batch_first=True))(x)[0]


@op("sequence", "rows", draw=width, weight=0.7)
def lstm(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    return net.module(me.target, lambda: nn.LSTM(x.shape[-1], me.options["width"], batch_first=True))(x)[0]


@op("sequence", "rows", draw=width, weight=0.5)
def rnn_relu(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    options = {"nonlinearity": "relu", "batch_first": True}
    return net.module(me.target, lambda: nn.RNN(x.shape[-1], me.options["width"], **options))(x)[0]


@op("sequence", "rows", to="flat", draw=width, weight=0.5)
def gru_cell(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    cell = net.module(me.target, lambda: nn.GRUCell(x.shape[-1], me.options["width"]))
    state = x.new_zeros(len(x), me.options["width"])
    for step in x.unbind(1):
        state = cell(step, state)
    return state


@op("sequence", "rows", draw=_heads, weight=0.7)
def attention_packed(net: Network, me: Op, x: Tensor) -> Tensor:
    """One layer for queries, keys and values, causal."""
    width, heads = x.shape[-1], me.options["heads"]
    packed = net.layer(f"{me.target}_qkv", lambda: nn.Linear(width, 3 * width), x, -1)
    q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
    return (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)


@op("sequence", "rows", draw=_heads, weight=0.5)
def attention_linear(net: Network, me: Op, x: Tensor) -> Tensor:
    """Of features that a rectifier makes, without a softmax."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = net.activated(F.relu, q, True), net.activated(F.relu, k, True)
        return q @ (k.transpose(-2, -1) @ v) / (1 + (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True))

    return _attention(net, me, x, attend)


@op("sequence", "rows", draw=lambda r, x: {"first": r.random() < 0.5, "heads": 1}, weight=0.5)
def encoder_layer(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    options = {"dim_feedforward": 5, "dropout": 0.0, "norm_first": me.options["first"], "batch_first": True}
    return net.module(me.target, lambda: nn.TransformerEncoderLayer(x.shape[-1], 1, **options))(x)


@op("sequence", "rows", to="flat", draw=width, weight=0.5)
def lstm_cell(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    cell = net.module(me.target, lambda: nn.LSTMCell(x.shape[-1], me.options["width"]))
    state = (x.new_zeros(len(x), me.options["width"]),) * 2
    for step in x.unbind(1):
        state = cell(step, state)
    return state[0]


@op("sequence", "rows", to="flat", draw=lambda r, x: {"width": r.randint(3, 5), "relu": r.random() < 0.6}, weight=0.7)
def rnn_by_hand(net: Network, me: Op, x: Tensor) -> Tensor:
    inputs, width = x.shape[-1], me.options["width"]
    state = x.new_zeros(len(x), width)
    for step in x.unbind(1):
        entered = net.layer(f"{me.target}_in", lambda: nn.Linear(inputs, width), step, -1)
        kept = net.layer(f"{me.target}_on", lambda: nn.Linear(width, width), state, -1)
        state = net.activated(F.relu if me.options["relu"] else torch.tanh, entered + kept, me.options["relu"])
    return state


@op("sequence", "rows", draw=width, weight=0.5)
def gated_scan(net: Network, me: Op, x: Tensor) -> Tensor:
    """A linear recurrence whose gates the inputs make, as state space models have it."""
    gates = net.layer(f"{me.target}_gate", lambda: nn.Linear(x.shape[-1], x.shape[-1]), x, -1)
    keeps, state, out = net.activated(torch.sigmoid, gates, False), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = keeps[:, t] * state + (1 - keeps[:, t]) * x[:, t]
        out.append(state)
    return torch.stack(out, 1)
