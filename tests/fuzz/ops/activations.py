"""Activations as ops, and those that join the halves of their channels."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.forms import MIXED, OTHERS, RECTIFIERS
from fuzz.network import Network
from fuzz.ops.registry import ALL, channel_axis, op
from fuzz.programs import Op


def _named(form: Any, rectifies: bool) -> Callable[..., Tensor]:
    def run(net: Network, me: Op, x: Tensor) -> Tensor:
        return net.activated(form, x, rectifies)

    return run


for name, form in RECTIFIERS.items():
    op("activation", ALL, name=name, weight=2.5 if name in ("relu", "relu_inplace") else 0.6)(_named(form, True))
for name, form in (OTHERS | MIXED).items():
    op("activation", ALL, name=name, weight=0.3)(_named(form, False))


def _opens(random: Random, x: Tensor) -> dict[str, Any]:
    return {"opens": random.random() < 0.5}


@op("activation", ALL, draw=_opens, weight=0.5)
def annealed_clamp(net: Network, me: Op, x: Tensor) -> Tensor:
    """A bound that changes from step to step, as in annealed or warmed-up activations."""
    low = -200.0 * (net.step if me.options["opens"] else 2 - net.step)
    return net.activated(lambda h: h.clamp(min=low), x, low == 0)


@op("activation", ALL, draw=_opens, weight=0.5)
def annealed_slope(net: Network, me: Op, x: Tensor) -> Tensor:
    slope = 0.1 * (net.step if me.options["opens"] else 2 - net.step)
    return net.activated(lambda h: F.leaky_relu(h, slope), x, slope == 0)


@op("activation", ALL, weight=0.5)
def relu_of_a_slice(net: Network, me: Op, x: Tensor) -> Tensor:
    """Some channels written over with their activation."""
    out = x.clone()
    axis = channel_axis(x)
    half = x.shape[axis] // 2
    out.narrow(axis, 0, half).copy_(net.activated(F.relu, x.narrow(axis, 0, half), True))
    return out


@op("activation", ALL, weight=0.5)
def prelu(net: Network, me: Op, x: Tensor) -> Tensor:
    module = net.module(me.target, lambda: nn.PReLU())
    return net.activated(module, x, False)


@op("activation", ALL, weight=0.5)
def crelu(net: Network, me: Op, x: Tensor) -> Tensor:
    axis = 1 if x.ndim > 2 else -1
    return torch.cat([net.activated(F.relu, x, True), net.activated(F.relu, -x, True)], axis)


@op("activation", ALL, weight=0.3)
def concat_elu(net: Network, me: Op, x: Tensor) -> Tensor:
    axis = 1 if x.ndim > 2 else -1
    return net.activated(F.elu, torch.cat([x, -x], axis), False)


def _gated(net: Network, x: Tensor, form: Callable[[Tensor], Tensor], rectifies: bool, way: int) -> Tensor:
    axis = channel_axis(x)
    half = x.shape[axis] // 2
    gate, value = (x.narrow(axis, 0, half), x.narrow(axis, half, half)) if way else x.chunk(2, axis)
    return net.activated(form, gate, rectifies) * value


def _way(random: Random, x: Tensor) -> dict[str, Any]:
    axis = channel_axis(x)
    if x.shape[axis] % 2:
        raise ValueError("an odd number of channels has no halves")
    return {"way": random.randint(0, 1)}


@op("activation", "flat rows map", draw=_way)
def geglu(net: Network, me: Op, x: Tensor) -> Tensor:
    return _gated(net, x, F.gelu, False, me.options["way"])


@op("activation", "flat rows map", draw=_way)
def swiglu(net: Network, me: Op, x: Tensor) -> Tensor:
    return _gated(net, x, F.silu, False, me.options["way"])


@op("activation", "flat rows map", draw=_way)
def reglu(net: Network, me: Op, x: Tensor) -> Tensor:
    return _gated(net, x, F.relu, True, me.options["way"])


@op("activation", "flat rows map", draw=_way)
def glu(net: Network, me: Op, x: Tensor) -> Tensor:
    return net.activated(lambda h: F.glu(h, channel_axis(h)), x, False)


@op("activation", "flat rows map", draw=_way)
def tanh_times_sigmoid(net: Network, me: Op, x: Tensor) -> Tensor:
    a, b = x.chunk(2, channel_axis(x))
    return net.activated(torch.tanh, a, False) * net.activated(torch.sigmoid, b, False)


@op("activation", "flat rows map", draw=_way)
def maxout(net: Network, me: Op, x: Tensor) -> Tensor:
    def form(h: Tensor) -> Tensor:
        axis = channel_axis(h)
        return h.unflatten(axis, (-1, 2)).amax(axis + 1 if axis > 0 else -1)

    return net.activated(form, x, False)
