"""Where two values meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.network import Network
from fuzz.ops.registry import ALL, op
from fuzz.programs import Op


@op("join", ALL, values=2, weight=6)
def add(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return x + y


@op("join", ALL, values=2, weight=1)
def add_inplace(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y)


@op("join", ALL, values=2, weight=0.7)
def sub(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return x - y


@op("join", ALL, values=2, weight=1)
def mul(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return x * y


@op("join", ALL, values=2, weight=1)
def gate(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return x * net.activated(torch.sigmoid, y, False)


@op("join", "flat", values=2, weight=4)
def cat(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


@op("join", "line map", values=2, weight=4)
def cat_maps(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


@op("join", "rows", values=2, weight=2)
def cat_rows(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], -1)


@op("join", "rows", values=2, weight=1)
def cat_positions(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


@op("join", ALL, values=2, weight=0.5)
def stack_sum(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y]).sum(0)


@op("join", ALL, values=2, weight=0.5)
def maximum_of_two(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


@op("join", ALL, values=2, weight=0.7)
def stochastic_depth(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    """A branch that is there on some steps only: the graph has another shape each time."""
    return x + y if float(torch.rand(())) < 0.5 else x


@op("norm", "map", weight=0.7)
def squeeze_excite(net: Network, me: Op, x: Tensor) -> Tensor:
    channels, pooled = x.shape[1], x.mean((2, 3))
    squeezed = net.layer(f"{me.target}_squeeze", lambda: nn.Linear(channels, 4), pooled, -1)
    hidden = net.activated(F.relu, squeezed, True)
    excited = net.layer(f"{me.target}_excite", lambda: nn.Linear(4, channels), hidden, -1)
    return x * net.activated(torch.sigmoid, excited, False)[:, :, None, None]


@op("join", ALL, values=2, weight=0.5)
def minimum_of_two(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


@op("join", ALL, values=2, weight=0.6)
def relu_gate(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return x * net.activated(F.relu, y, True)


@op("join", ALL, values=2, weight=0.4)
def gelu_gate(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return net.activated(F.gelu, x, False) * y


@op("join", ALL, values=2, weight=0.4)
def lerp(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.lerp(x, y, 0.3)


@op("join", ALL, values=2, weight=0.4)
def addcmul(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return torch.addcmul(x, x, y, value=0.5)


@op("join", ALL, values=2, weight=0.4)
def highway(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    open_ = net.activated(torch.sigmoid, x + y, False)
    return open_ * x + (1 - open_) * y


@op("join", ALL, values=2, weight=0.5)
def by_samples(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    """Of some samples the one, of the others the other."""
    first = torch.arange(len(x), device=x.device) % 2 == net.step % 2
    return torch.where(first.view(-1, *(1 for _ in x.shape[1:])), x, y)


@op("join", ALL, values=2, weight=0.4)
def over_its_size(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    return x / (1 + y.abs())


@op("join", ALL, values=2, weight=0.4)
def written_over_half(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    """The first channels of one, with those of another written over them."""
    out, half = x.clone(), x.shape[1] // 2
    out[:, :half] = y[:, :half]
    return out


@op("join", "map", values=2, weight=0.4)
def attention_of_positions(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    """A map of one channel that weighs all of another (spatial attention)."""
    return x * net.activated(torch.sigmoid, y.mean(1, keepdim=True), False)


@op("join", "flat", values=2, weight=0.4)
def film(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    both = net.layer(f"{me.target}_film", lambda: nn.Linear(y.shape[1], 2 * x.shape[1]), y, -1)
    scale, shift = both.chunk(2, 1)
    return x * (1 + scale) + shift
