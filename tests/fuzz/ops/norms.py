"""Norms, from torch and written out."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.network import Network
from fuzz.ops.registry import ALL, op
from fuzz.programs import Op


@op("norm", "flat line map", weight=6)
def batch_norm(net: Network, me: Op, x: Tensor) -> Tensor:
    kind = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    return net.module(me.target, lambda: kind(x.shape[1]))(x)


@op("norm", "flat rows", weight=3)
def layer_norm(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.module(me.target, lambda: nn.LayerNorm(x.shape[-1]))(x)


@op("norm", "flat rows", weight=1)
def rms_norm(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.module(me.target, lambda: nn.RMSNorm(x.shape[-1]))(x)


def _groups(random: Random, x: Tensor) -> dict[str, Any]:
    return {"groups": random.choice([g for g in (1, 2, 3, x.shape[1]) if x.shape[1] % g == 0])}


@op("norm", "flat line map", draw=_groups, weight=2)
def group_norm(net: Network, me: Op, x: Tensor) -> Tensor:
    if net.program.channels_last and not x.requires_grad:  # the backward pass of torch 2.13 crashes there
        if net.watcher is None:
            raise ValueError("its input has no gradient")
        x = x.contiguous()
    return net.module(me.target, lambda: nn.GroupNorm(me.options["groups"], x.shape[1]))(x)


@op("norm", "line map", weight=1.5)
def instance_norm(net: Network, me: Op, x: Tensor) -> Tensor:
    kind = nn.InstanceNorm2d if x.ndim == 4 else nn.InstanceNorm1d
    return net.module(me.target, lambda: kind(x.shape[1], affine=True))(x)


@op("norm", ALL, weight=0.7)
def minus_channel_mean(net: Network, me: Op, x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


@op("norm", "flat rows", weight=0.7)
def standardised(net: Network, me: Op, x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


@op("norm", "flat line map", weight=0.7)
def minus_batch_mean(net: Network, me: Op, x: Tensor) -> Tensor:
    return x - x.mean(0, keepdim=True)


@op("norm", ALL, weight=0.5)
def cosine(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


@op("norm", ALL, weight=0.5)
def learned_scale(net: Network, me: Op, x: Tensor) -> Tensor:
    return x * net.module(me.target, lambda: Vector(x.shape[-1])).weight


@op("norm", ALL, weight=0.5)
def learned_shift(net: Network, me: Op, x: Tensor) -> Tensor:
    return x - net.module(me.target, lambda: Vector(x.shape[-1])).weight


class Vector(nn.Module):
    """A parameter of one's own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + torch.randn(size) / 4)


@op("norm", "flat line map", weight=0.6)
def batch_norm_bare(net: Network, me: Op, x: Tensor) -> Tensor:
    kind = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    return net.module(me.target, lambda: kind(x.shape[1], affine=False))(x)


@op("norm", "flat line map", weight=0.6)
def frozen_norm(net: Network, me: Op, x: Tensor) -> Tensor:
    """A batch norm by its running statistics, which stay as they are."""
    kind = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    module = net.module(me.target, lambda: kind(x.shape[1]))
    mean, var = net.constant(f"{me.target}_mean", x.shape[1]), net.constant(f"{me.target}_var", x.shape[1]).exp()
    return F.batch_norm(x, mean, var, module.weight, module.bias, False)


@op("norm", "line map", weight=0.6)
def instance_norm_bare(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.instance_norm(x)


@op("norm", "map", weight=0.6)
def layer_norm_of_maps(net: Network, me: Op, x: Tensor) -> Tensor:
    """Over the channels at each position, as ConvNeXt has it."""
    module = net.module(me.target, lambda: nn.LayerNorm(x.shape[1]))
    return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@op("norm", "map line", weight=0.4)
def layer_norm_of_all(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


@op("norm", "map line flat", weight=0.4)
def local_response(net: Network, me: Op, x: Tensor) -> Tensor:
    return F.local_response_norm(x.unsqueeze(-1), 3).squeeze(-1)


@op("norm", "rows", weight=0.5)
def batch_norm_of_rows(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.module(me.target, lambda: nn.BatchNorm1d(x.shape[-1]))(x.transpose(1, 2)).transpose(1, 2)


@op("norm", "flat rows", weight=0.4)
def rms_by_hand(net: Network, me: Op, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


@op("norm", "map", weight=0.4)
def response_norm(net: Network, me: Op, x: Tensor) -> Tensor:
    """ConvNeXt V2: by how large a channel is beside the others."""
    size = x.norm(dim=(2, 3), keepdim=True)
    return x + x * (size / (size.mean(1, keepdim=True) + 1e-5))


@op("norm", "line map", weight=0.4)
def layer_scale(net: Network, me: Op, x: Tensor) -> Tensor:
    weight = net.module(me.target, lambda: Vector(x.shape[1])).weight
    return x * weight.view(-1, *(1 for _ in x.shape[2:]))
