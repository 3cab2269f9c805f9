"""Inputs, and layers with one kernel a channel."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fuzz.network import Network
from fuzz.ops.registry import ALL, op, used_before, width
from fuzz.programs import Op


@op("input", "")
def input_(net: Network, me: Op) -> Tensor:
    x = net.values[me.target]
    return x.requires_grad_() if me.options.get("gradient") else x


@op("input", "")
def tokens(net: Network, me: Op) -> Tensor:
    vocabulary, width = me.options["vocabulary"], me.options["width"]
    return net.module(f"{me.target}_embedding", lambda: nn.Embedding(vocabulary, width))(net.values[me.target])


@op("layer", "flat rows", draw=width, weight=5)
def linear(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.layer(me.target, lambda: nn.Linear(x.shape[-1], me.options["width"]), x, -1)


@op("layer", "flat rows", draw=width)
def linear_without_bias(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.layer(me.target, lambda: nn.Linear(x.shape[-1], me.options["width"], bias=False), x, -1)


@op("layer", "flat rows", draw=width, weight=0.5)
def weight_norm_linear(net: Network, me: Op, x: Tensor) -> Tensor:
    def make() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(x.shape[-1], me.options["width"]))

    return net.layer(me.target, make, x, -1)


class Product(nn.Module):
    """``x @ W + b`` with a weight of one's own, (inputs, outputs), or the same by einsum."""

    inputs_first = True

    def __init__(self, inputs: int, outputs: int, by_einsum: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) / 4)
        self.by_einsum = by_einsum

    def forward(self, x: Tensor) -> Tensor:
        product = torch.einsum("...c,cd->...d", x, self.weight) if self.by_einsum else x @ self.weight
        return product + self.bias


@op("layer", "flat rows", draw=width)
def matmul(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.layer(me.target, lambda: Product(x.shape[-1], me.options["width"], False), x, -1)


@op("layer", "flat rows", draw=width)
def einsum(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.layer(me.target, lambda: Product(x.shape[-1], me.options["width"], True), x, -1)


def _convolution(random: Random, x: Tensor) -> dict[str, Any]:
    groups = random.choice([g for g in (1, 1, 1, 2, 3) if x.shape[1] % g == 0])
    size = random.choice((1, 3))
    return {"width": groups * random.randint(2, 3), "size": size, "groups": groups}


@op("layer", "line map", draw=_convolution, weight=5)
def conv(net: Network, me: Op, x: Tensor) -> Tensor:
    width, size, groups = me.options["width"], me.options["size"], me.options["groups"]
    kind = nn.Conv2d if x.ndim == 4 else nn.Conv1d
    return net.layer(me.target, lambda: kind(x.shape[1], width, size, padding=size // 2, groups=groups), x, 1)


@op("layer", "line map")
def depthwise(net: Network, me: Op, x: Tensor) -> Tensor:
    kind, width = nn.Conv2d if x.ndim == 4 else nn.Conv1d, x.shape[1]
    return net.layer(me.target, lambda: kind(width, width, 3, padding=1, groups=width), x, 1)


@op("layer", "line map", draw=_convolution)
def conv_transposed(net: Network, me: Op, x: Tensor) -> Tensor:
    width, size, groups = me.options["width"], me.options["size"], me.options["groups"]
    kind = nn.ConvTranspose2d if x.ndim == 4 else nn.ConvTranspose1d
    return net.layer(me.target, lambda: kind(x.shape[1], width, size, padding=size // 2, groups=groups), x, 1)


@op("again", ALL, draw=used_before, weight=0.7)
def again(net: Network, me: Op, x: Tensor) -> Tensor:
    """The same module a second time."""
    name = me.options["layer"]
    if net.kernels[name].leaves()[0].ndim not in (2, x.ndim):
        raise ValueError("it would take a batch for one sample")
    net.read(x)
    return net.seen(name, net.get_submodule(name)(x), -1 if net.kernels[name].leaves()[0].ndim == 2 else 1)


@op("again", "flat rows", draw=used_before, weight=0.7)
def tied(net: Network, me: Op, x: Tensor) -> Tensor:
    """The decoder of a tied autoencoder: another layer's weight the other way round."""
    owner = net.get_submodule(me.options["layer"])
    net.read(x)
    return x @ owner.weight.t() if getattr(owner, "inputs_first", False) else F.linear(x, owner.weight.t())


@op("again", "line map", draw=used_before, weight=0.7)
def conv_tied(net: Network, me: Op, x: Tensor) -> Tensor:
    owner = net.get_submodule(me.options["layer"])
    turned = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose1d
    net.read(x)
    return turned(x, owner.weight, padding=owner.padding, groups=owner.groups)


@op("again", "flat rows", draw=used_before, weight=0.4)
def adapted(net: Network, me: Op, x: Tensor) -> Tensor:
    """The inner step of MAML: a layer's weight after a step of its own, differentiated through."""
    layer = net.get_submodule(me.options["layer"])
    net.read(x)
    (slope,) = torch.autograd.grad(layer(x).square().mean(), layer.weight, create_graph=True)
    return F.linear(x, layer.weight - 0.1 * slope)


class LowRank(nn.Module):
    """LoRA: the second factor starts at zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base, self.a, self.b = (
            nn.Linear(inputs, outputs),
            nn.Linear(inputs, 2, False),
            nn.Linear(2, outputs, False),
        )
        nn.init.zeros_(self.b.weight)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


@op("layer", "flat rows", draw=width, weight=0.3)
def low_rank(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    return net.module(me.target, lambda: LowRank(x.shape[-1], me.options["width"]))(x)


@op("layer", "flat rows", values=2, draw=width, weight=0.3)
def bilinear(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    net.read(x)
    net.read(y)
    return net.module(me.target, lambda: nn.Bilinear(x.shape[-1], y.shape[-1], me.options["width"]))(x, y)


class Experts(nn.Module):
    """Batched weights of several experts, averaged."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, inputs, outputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.expand(len(self.weight), *x.shape), self.weight).relu().mean(0)


@op("layer", "flat", draw=width, weight=0.3)
def experts(net: Network, me: Op, x: Tensor) -> Tensor:
    net.read(x)
    return net.module(me.target, lambda: Experts(2, x.shape[-1], me.options["width"]))(x)


class Standardised(nn.Conv2d):
    """Its kernels less their mean, by their spread (weight standardisation)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.flatten(1).std(1)[:, None, None, None] + 0.1)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


MODES = ("zeros", "reflect", "replicate", "circular")


def _odd(random: Random, x: Tensor) -> dict[str, Any]:
    return {"width": random.randint(2, 4), "mode": random.choice(MODES), "dilation": random.randint(1, 2)}


@op("layer", "map", draw=_odd, weight=0.7)
def conv_padded(net: Network, me: Op, x: Tensor) -> Tensor:
    width, mode, dilation = me.options["width"], me.options["mode"], me.options["dilation"]
    options = {"padding": dilation, "dilation": dilation, "padding_mode": mode}
    return net.layer(me.target, lambda: nn.Conv2d(x.shape[1], width, 3, **options), x, 1)


@op("layer", "map", draw=_odd, weight=0.7)
def conv_strided(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.layer(me.target, lambda: nn.Conv2d(x.shape[1], me.options["width"], 2, stride=2, bias=False), x, 1)


@op("layer", "map", draw=_odd, weight=0.4)
def conv_standardised(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.layer(me.target, lambda: Standardised(x.shape[1], me.options["width"], 3, padding=1), x, 1)


@op("layer", "map", draw=_odd, weight=0.4)
def conv3d(net: Network, me: Op, x: Tensor) -> Tensor:
    frames = torch.stack([x, -x], 2)
    out = net.layer(
        me.target, lambda: nn.Conv3d(x.shape[1], me.options["width"], (2, 3, 3), padding=(0, 1, 1)), frames, 1
    )
    return out.squeeze(2)


@op("layer", "map", draw=_odd, weight=0.4)
def depthwise_doubled(net: Network, me: Op, x: Tensor) -> Tensor:
    count = x.shape[1]
    return net.layer(me.target, lambda: nn.Conv2d(count, 2 * count, 3, padding=1, groups=count), x, 1)


def _normed(random: Random, x: Tensor) -> dict[str, Any]:
    return {"width": random.randint(3, 6), "way": random.choice(("spectral_norm", "orthogonal", "weight_norm"))}


@op("layer", "flat rows", draw=_normed, weight=0.6)
def parametrized_linear(net: Network, me: Op, x: Tensor) -> Tensor:
    """In whose parameters no kernel is apart: no kill reaches it, and what it puts out is watched alone."""
    net.read(x)
    way = getattr(nn.utils.parametrizations, me.options["way"])
    return net.module(me.target, lambda: way(nn.Linear(x.shape[-1], me.options["width"])))(x)


@op("layer", "line map", draw=_odd, weight=0.4)
def weight_norm_conv(net: Network, me: Op, x: Tensor) -> Tensor:
    kind, way = (nn.Conv2d if x.ndim == 4 else nn.Conv1d), nn.utils.parametrizations.weight_norm
    return net.layer(me.target, lambda: way(kind(x.shape[1], me.options["width"], 3, padding=1)), x, 1)


class Turned(nn.Module):
    """A weight of (outputs, inputs), by einsum or on the left of a product."""

    def __init__(self, inputs: int, outputs: int, way: int) -> None:
        super().__init__()
        self.weight, self.way = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 0:
            return torch.einsum("dc,...c->...d", self.weight, x)
        if self.way == 1:
            return (self.weight @ x.transpose(-2, -1)).transpose(-2, -1)
        return torch.tensordot(x, self.weight, dims=([-1], [1]))


@op("layer", "flat rows", draw=lambda r, x: {"width": r.randint(3, 6), "way": r.randint(0, 2)}, weight=0.7)
def turned(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.layer(me.target, lambda: Turned(x.shape[-1], me.options["width"], me.options["way"]), x, -1)


@op("layer", "flat rows", draw=width, weight=0.5)
def autocast(net: Network, me: Op, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype is torch.float32):
        out = net.layer(me.target, lambda: nn.Linear(x.shape[-1], me.options["width"]), x, -1)
        return net.activated(F.relu, out, True).to(x.dtype)


@op("layer", "flat rows", draw=lambda r, x: {"width": r.randint(3, 6), "reentrant": r.random() < 0.3}, weight=0.6)
def checkpointed(net: Network, me: Op, x: Tensor) -> Tensor:
    """What is recomputed: only where nobody watches, who would see it twice."""

    def block(h: Tensor) -> Tensor:
        h = net.layer(f"{me.target}_a", lambda: nn.Linear(h.shape[-1], me.options["width"]), h, -1)
        h = net.activated(F.relu, h, True)
        return net.layer(f"{me.target}_b", lambda: nn.Linear(h.shape[-1], me.options["width"]), h, -1)

    if net.watcher is not None or f"{me.target}_a" not in net._modules:
        return block(x)
    return checkpoint(block, x, use_reentrant=me.options["reentrant"] and x.requires_grad)  # type: ignore[no-any-return]


@op("again", "flat rows", draw=used_before, weight=0.4)
def shared_weight(net: Network, me: Op, x: Tensor) -> Tensor:
    """Another layer's weight the same way round, without its module."""
    name = me.options["layer"]
    owner = net.get_submodule(name)
    if type(owner) is not nn.Linear:
        raise ValueError("its weight is turned")
    net.read(x)
    return net.seen(name, F.linear(x, owner.weight), -1)
