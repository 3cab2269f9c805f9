"""More of what moves values about: pools, paddings, picks, repeats, messages."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fuzz.network import Network
from fuzz.ops.registry import ALL, channel_axis, op
from fuzz.programs import Op


class Halved(torch.autograd.Function):
    """An op of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] / 2


@op("shape", ALL, weight=0.2)
def custom_function(net: Network, me: Op, x: Tensor) -> Tensor:
    return Halved.apply(x)  # type: ignore[no-untyped-call, no-any-return]


POOLS = {
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 2),
    "lp": lambda x: F.lp_pool2d(x, 2.0, 2, 1),
    "bilinear": lambda x: F.interpolate(x, size=(5, 3), mode="bilinear"),
    "area": lambda x: F.interpolate(x, size=(2, 2), mode="area"),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 0), mode="reflect"),
    "circular": lambda x: F.pad(x, (1, 0, 1, 0), mode="circular"),
    "replicate": lambda x: F.pad(x, (0, 1, 0, 1), mode="replicate"),
    "ones": lambda x: F.pad(x, (1, 0), value=1.0),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "turned": lambda x: x.transpose(2, 3),
    "rotated": lambda x: x.rot90(1, (2, 3)),
    "strided": lambda x: x[:, :, ::2, ::2],
    "fourier": lambda x: torch.fft.rfft2(x).abs(),
    "patches": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)),
    "im2col": lambda x: F.unfold(x, 2).unflatten(2, (x.shape[2] - 1, -1)),
    "col2im": lambda x: F.fold(F.unfold(x, 2), x.shape[2:], 2),
    "drop_path": lambda x: x * (torch.rand(len(x), 1, 1, 1) < 0.7).to(x.dtype) / 0.7,
    "gather": lambda x: x.gather(2, torch.zeros_like(x[:, :, :2], dtype=torch.long)),
}


@op("shape", "map", draw=lambda r, x: {"way": r.choice(list(POOLS))}, weight=9)
def map_move(net: Network, me: Op, x: Tensor) -> Tensor:
    return POOLS[me.options["way"]](x)


POOLED = {
    "max": lambda x: x.amax((2, 3)),
    "std": lambda x: x.flatten(2).std(2),
    "logsumexp": lambda x: x.flatten(2).logsumexp(2),
    "sum": lambda x: x.sum((2, 3)),
    "norm": lambda x: x.flatten(2).norm(dim=2),
    "one": lambda x: x[:, :, 0, -1],
    "einsum": lambda x: torch.einsum("nchw->nc", x),
    "weighed": lambda x: (x.flatten(2) * x.mean(1, keepdim=True).flatten(2).softmax(2)).sum(2),
    "generalised": lambda x: (x.clamp(min=1e-3) ** 3).mean((2, 3)) ** (1 / 3),
    "max and mean": lambda x: torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1),
    "gram": lambda x: torch.einsum("nchw,ndhw->ncd", x, x).flatten(1),
}


@op("shape", "map", to="flat", draw=lambda r, x: {"way": r.choice(list(POOLED))}, weight=6)
def map_pool(net: Network, me: Op, x: Tensor) -> Tensor:
    return POOLED[me.options["way"]](x)


def _masked_mean(x: Tensor) -> Tensor:
    mask = (torch.arange(x.shape[1], device=x.device)[:, None] < 2).to(x.dtype)
    return (x * mask).sum(1) / mask.sum()


READ_OUT = {
    "masked mean": _masked_mean,
    "max": lambda x: x.max(1).values,
    "last": lambda x: x[:, -1],
    "softmax": lambda x: (x * x.mean(-1, keepdim=True).softmax(1)).sum(1),
    "product": lambda x: x.prod(1),
    "bmm": lambda x: torch.bmm(x.mean(-1, keepdim=True).softmax(1).transpose(1, 2), x).squeeze(1),
    "median": lambda x: x.median(1).values,
    "packed": lambda x: x[torch.arange(len(x)), torch.arange(len(x)) % x.shape[1]],
    "two": lambda x: torch.cat([x.mean(1), x.amax(1)], 1),
    "unbound": lambda x: sum(x.unbind(1)),
}


@op("shape", "rows", to="flat", draw=lambda r, x: {"way": r.choice(list(READ_OUT))}, weight=6)
def read_out(net: Network, me: Op, x: Tensor) -> Tensor:
    return READ_OUT[me.options["way"]](x)


MIXED = {
    "fourier": lambda x: torch.fft.fft(x, dim=1).real,
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1).values,
    "turned": lambda x: x.transpose(0, 1),
    "boolean": lambda x: x[:, torch.arange(x.shape[1]) != 1],
    "repeated": lambda x: x.repeat(1, 2, 1),
    "interleaved": lambda x: x.repeat_interleave(2, 1),
    "padded": lambda x: F.pad(x, (0, 0, 1, 0)),
    "shifted": lambda x: x - F.pad(x, (0, 0, 1, 0))[:, :-1],
    "stacked": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "outer": lambda x: torch.einsum("ntc,nsc->nts", x, x) @ x / x.shape[-1],
    "windows": lambda x: x.unfold(1, 2, 1).mean(-1),
    "masked": lambda x: x.masked_fill((torch.arange(x.shape[1]) == 1)[:, None], 0.0),
    "written": lambda x: x.index_fill(1, torch.tensor([0]), 0.0),
}


@op("shape", "rows", draw=lambda r, x: {"way": r.choice(list(MIXED))}, weight=6)
def row_move(net: Network, me: Op, x: Tensor) -> Tensor:
    return MIXED[me.options["way"]](x)


def _middle(x: Tensor) -> int:
    return x.shape[channel_axis(x)] // 2


CHANNELS = {
    "every second": lambda x, axis: x.index_select(axis, torch.arange(0, x.shape[axis], 2)),
    "strided": lambda x, axis: x[:, ::2] if axis == 1 else x[..., ::2],
    "reversed halves": lambda x, axis: torch.cat(x.split(max(1, x.shape[axis] // 2), axis)[::-1], axis),
    "padded": lambda x, axis: torch.cat([torch.zeros_like(x), x], axis),
    "twice": lambda x, axis: torch.cat([x, x], axis),
    "mirrored": lambda x, axis: torch.cat([x, -x.flip(axis)], axis),
    "interleaved": lambda x, axis: x.repeat_interleave(2, axis),
    "added halves": lambda x, axis: sum(x.tensor_split(2, axis)) if x.shape[axis] % 2 == 0 else x,
    "unbound": lambda x, axis: torch.stack(x.unbind(axis)[::-1], axis),
    "less its mean": lambda x, axis: x - x.mean(axis, keepdim=True),
    "with its mean": lambda x, axis: torch.cat([x, x.mean(axis, keepdim=True)], axis),
    "with its largest": lambda x, axis: torch.cat([x, x.amax(axis, keepdim=True)], axis),
    "cumulated": lambda x, axis: x.cumsum(axis),
    "sorted": lambda x, axis: x.sort(axis).values,
    "masked": lambda x, axis: x.movedim(axis, -1).mul(torch.arange(x.shape[axis]) % 2).movedim(-1, axis),
    "in groups": lambda x, axis: x.unflatten(axis, (-1, x.shape[axis] // 2 or 1)).flatten(axis, axis + 1),
    "grouped sums": lambda x, axis: x.new_zeros(x.shape).index_add(axis, torch.arange(x.shape[axis]) // 2, x),
}


@op("shape", "flat map", draw=lambda r, x: {"way": r.choice(list(CHANNELS))}, weight=7.5)
def channel_move(net: Network, me: Op, x: Tensor) -> Tensor:
    return CHANNELS[me.options["way"]](x, 1)


def _by(random: Random, x: Tensor) -> dict[str, Any]:
    return {"way": random.choice(list(MESSAGES))}


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    nodes = torch.arange(len(x), device=x.device)
    return torch.cat([nodes, nodes.roll(1)]), torch.cat([nodes.roll(2), nodes])


def _degree(x: Tensor, to: Tensor) -> Tensor:
    return x.new_ones(len(x)).index_add(0, to, x.new_ones(len(to)))[:, None]


MESSAGES = {
    "mean": lambda x, s, to: x.new_zeros(x.shape).index_add(0, to, x[s]) / _degree(x, to),
    "of differences": lambda x, s, to: x.new_zeros(x.shape).index_add(0, to, x[s] - x[to]),
    "largest": lambda x, s, to: x.scatter_reduce(0, to[:, None].expand(-1, x.shape[1]), x[s], "amax"),
    "in place": lambda x, s, to: x.clone().index_add_(0, to, 0.5 * x[s]),
    "weighed": lambda x, s, to: x.new_zeros(x.shape).index_add(0, to, x[s] * (x[s] * x[to]).mean(1, True).sigmoid()),
    "put": lambda x, s, to: x.new_zeros(x.shape).index_put((to,), x[s], accumulate=True),
    "concatenated": lambda x, s, to: torch.cat([x, x.new_zeros(x.shape).index_add(0, to, x[s])], 1),
    "with itself": lambda x, s, to: x + x.new_zeros(x.shape).index_add(0, to, x[s]),
    "turned": lambda x, s, to: x.flip(0) * 0.3 + x * 0.7,
}


@op("messages", "flat", draw=_by, weight=6)
def messages(net: Network, me: Op, x: Tensor) -> Tensor:
    return MESSAGES[me.options["way"]](x, *_edges(x))


DROPS = {
    "alpha": lambda x: F.alpha_dropout(x, 0.2, training=True),
    "channels": lambda x: F.dropout1d(x, 0.3),
    "feature alpha": lambda x: F.feature_alpha_dropout(x, 0.2, training=True),
    "everything": lambda x: F.dropout(x, 1.0),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "noise as a factor": lambda x: x * (1 + 0.1 * torch.randn_like(x)),
    "bfloat16": lambda x: x.bfloat16().to(x.dtype),
}


@op(
    "shape",
    ALL,
    draw=lambda r, x: {"way": r.choices(list(DROPS), (3, 3, 3, 0.3, 3, 3, 3))[0]},
    weight=2.4,
)
def drop(net: Network, me: Op, x: Tensor) -> Tensor:
    return DROPS[me.options["way"]](x)
