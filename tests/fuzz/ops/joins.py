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
