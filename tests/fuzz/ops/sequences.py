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
