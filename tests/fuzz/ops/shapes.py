"""What moves values about, and messages between samples or positions."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fuzz.network import Network
from fuzz.ops.registry import ALL, channel_axis, op
from fuzz.programs import Op


def _half(random: Random, x: Tensor) -> dict[str, Any]:
    return {"half": random.randint(0, 1)}


@op("shape", ALL, draw=_half, weight=1)
def chunk(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.chunk(2, channel_axis(x))[me.options["half"]]


@op("shape", ALL, draw=_half, weight=1)
def split(net: Network, me: Op, x: Tensor) -> Tensor:
    axis = channel_axis(x)
    return x.split([1, x.shape[axis] - 1], axis)[me.options["half"]]


@op("shape", "rows", draw=lambda r, x: {"at": r.randint(0, 1)}, weight=0.5)
def pick_position(net: Network, me: Op, x: Tensor) -> Tensor:
    return x[:, me.options["at"] :]


@op("shape", "rows", to="line", weight=1)
def rows_to_line(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.transpose(1, 2)


@op("shape", "line", to="rows", weight=1)
def line_to_rows(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.permute(0, 2, 1).contiguous()


@op("shape", "map", to="rows", weight=1)
def map_to_rows(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@op("shape", "map", to="rows", weight=0.5)
def map_lines(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


@op("shape", "rows line map", to="flat", weight=1)
def flatten(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.flatten(1)


@op("shape", "rows line", to="flat", weight=0.5)
def two_flattens(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.flatten(1) + x.transpose(1, 2).flatten(1)


@op("shape", "line map", to="flat", weight=2)
def mean_pool(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


@op("shape", "map", to="flat", weight=1)
def adaptive_pool(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@op("shape", "rows", to="flat", weight=1)
def mean_rows(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.mean(1)


@op("shape", "map", weight=1.5)
def max_pool(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 1)


@op("shape", "map", weight=0.7)
def avg_pool(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, 1)


@op("shape", "map", weight=0.5)
def upsample(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)[..., :5, :5]


@op("shape", "map", weight=0.5)
def pad(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.pad(x, (1, 0, 0, 1))


@op("shape", "map", weight=0.5)
def channel_shuffle(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


@op("shape", "map", weight=0.4)
def pixel_shuffle(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.pixel_shuffle(x, 2)


@op("shape", ALL, weight=0.5)
def roll(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.roll(1, 1)


@op("shape", ALL, weight=0.5)
def flip(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.flip(1)


@op("shape", ALL, weight=0.5)
def clone(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.clone()


@op("shape", ALL, weight=0.5)
def scaled(net: Network, me: Op, x: Tensor) -> Tensor:
    return x * 0.5 + 0.01


@op("shape", ALL, weight=0.5)
def negated(net: Network, me: Op, x: Tensor) -> Tensor:
    return -x


@op("shape", ALL, weight=1)
def dropout(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.dropout(x, 0.2)


@op("shape", "map", weight=0.5)
def dropout2d(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.dropout2d(x, 0.2)


@op("shape", ALL, weight=0.5)
def through_float64(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.double().mul(2).to(x.dtype)


@op("shape", ALL, weight=0.4)
def halt(net: Network, me: Op, x: Tensor) -> Tensor:
    """A branch that no gradient comes back through."""
    return net.halted(me.target, x.detach())


@op("messages", "flat rows", weight=0.5)
def index_select(net: Network, me: Op, x: Tensor) -> Tensor:
    return x.index_select(0, torch.arange(len(x), device=x.device).flip(0))


@op("messages", "flat rows", weight=0.5)
def indexing(net: Network, me: Op, x: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device).roll(1)]


@op("messages", "flat rows", weight=0.5)
def index_add(net: Network, me: Op, x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, torch.arange(len(x), device=x.device) // 2, x)


@op("messages", "flat", weight=0.5)
def scatter_add(net: Network, me: Op, x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter_add(0, (torch.arange(len(x), device=x.device) // 2)[:, None].expand_as(x), x)


@op("messages", "flat", draw=lambda r, x: {"reduce": r.choice(("amax", "mean", "sum"))}, weight=0.5)
def scatter_reduce(net: Network, me: Op, x: Tensor) -> Tensor:
    to = (torch.arange(len(x), device=x.device) // 2)[:, None].expand_as(x)
    return torch.zeros_like(x).scatter_reduce(0, to, x, me.options["reduce"], include_self=False)


@op("messages", "flat", weight=0.7)
def adjacency(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.constant(me.target, len(x), len(x)).abs() @ x


@op("messages", "rows", weight=0.5)
def adjacency_einsum(net: Network, me: Op, x: Tensor) -> Tensor:
    return torch.einsum("st,ntc->nsc", net.constant(me.target, x.shape[1], x.shape[1]), x)


@op("messages", "flat", weight=0.5)
def adjacency_sparse(net: Network, me: Op, x: Tensor) -> Tensor:
    return torch.sparse.mm(net.constant(me.target, len(x), len(x)).abs().to_sparse(), x)
