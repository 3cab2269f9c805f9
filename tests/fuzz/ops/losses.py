"""Terms of the loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fuzz.network import Network
from fuzz.ops.registry import ALL, op, used_before
from fuzz.programs import Op


def _given(net: Network, *values: Tensor) -> list[Tensor]:
    for x in values:
        net.read(x)
        net.outputs.append(x)
    return [x.double() if x.dtype == torch.float64 else x.float() for x in values]


@op("loss", ALL, weight=4)
def mse(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.mse_loss(x, torch.full_like(x, 0.3))


@op("loss", "flat", weight=4)
def cross_entropy(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.cross_entropy(x, torch.arange(len(x), device=x.device) % x.shape[1])


@op("loss", ALL, weight=1)
def bce(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.9))


@op("loss", ALL, weight=1)
def smooth_l1(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.smooth_l1_loss(x, torch.full_like(x, 0.3))


@op("loss", ALL, weight=1)
def mean_square(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return (x * x).mean() + x.sum() / x.numel()


@op("loss", ALL, weight=1)
def hinge(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.relu(1 - x).mean()


@op("loss", ALL, weight=0.5)
def squared_hinge(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return (1 + x).clamp(min=0).square().mean()


@op("loss", ALL, values=2, weight=1.5)
def mse_between(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    if x.shape != y.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)} differ")
    x, y = _given(net, x, y)
    return F.mse_loss(x, y)


@op("loss", "flat", values=2, weight=1)
def distillation(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    x, y = _given(net, x, y)
    return F.kl_div(x.log_softmax(1), y.log_softmax(1), log_target=True, reduction="batchmean")


@op("loss", "flat", values=2, weight=0.7)
def cosine_between(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    x, y = _given(net, x, y)
    return 1 - F.cosine_similarity(x, y).mean()


@op("loss", "flat", values=2, weight=0.7)
def contrastive(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    x, y = _given(net, x, y)
    return F.cross_entropy(x @ y.t(), torch.arange(len(x), device=x.device))


@op("penalty", "", draw=used_before)
def penalty(net: Network, me: Op) -> Tensor:
    """An L2 term: a gradient at the kernel that says nothing of what listens to it."""
    return 1e-3 * sum((leaf.float() ** 2).sum() for leaf in net.kernels[me.options["layer"]].leaves())


@op("double", ALL, draw=lambda r, x: {"input": None})
def gradient_penalty(net: Network, me: Op, x: Tensor) -> Tensor:
    """Double backward, as in WGAN-GP and physics-informed losses."""
    net.read(x)
    given = net.values[me.options["input"]]
    if getattr(net.watcher, "cuts", False):  # the path to the input ends at the first activation
        net.watcher.end(x)
        return x.sum() * 0
    (slope,) = torch.autograd.grad(x.square().sum(), given, create_graph=True)
    return (slope.float().flatten(1).square().sum(1) + 1e-6).sqrt().sub(1).square().mean()


@op("loss", "flat", weight=0.7)
def smoothed_cross_entropy(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    target = torch.arange(len(x), device=x.device) % x.shape[1]
    return F.cross_entropy(x, target, torch.arange(1.0, x.shape[1] + 1).to(x), label_smoothing=0.1)


@op("loss", "rows", weight=1)
def token_cross_entropy(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    target = (torch.arange(x.shape[0] * x.shape[1], device=x.device) % x.shape[-1]).index_fill(
        0, torch.tensor([0]), -100
    )
    return F.cross_entropy(x.flatten(0, 1), target)


@op("loss", "flat", weight=0.7)
def nll(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.nll_loss(x.log_softmax(1), torch.arange(len(x), device=x.device) % x.shape[1])


@op("loss", "flat", weight=0.5)
def multi_margin(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.multi_margin_loss(x, torch.arange(len(x), device=x.device) % x.shape[1])


@op("loss", ALL, weight=0.5)
def focal(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return ((1 - x.sigmoid()) ** 2 * F.softplus(-x)).mean()


@op("loss", ALL, weight=0.5)
def bce_of_probabilities(net: Network, me: Op, x: Tensor) -> Tensor:
    (x,) = _given(net, x)
    return F.binary_cross_entropy(x.sigmoid().clamp(1e-3, 1 - 1e-3), torch.full_like(x, 0.2))


@op("loss", ALL, weight=0.7)
def masked_mse(net: Network, me: Op, x: Tensor) -> Tensor:
    """Of some samples alone."""
    (x,) = _given(net, x)
    mask = (torch.arange(len(x), device=x.device) % 2 == 0).view(-1, *(1 for _ in x.shape[1:])).to(x)
    return ((x - 0.3).square() * mask).sum() / (mask.sum() * x[0].numel())


@op("loss", ALL, weight=0.5)
def sparsity(net: Network, me: Op, x: Tensor) -> Tensor:
    """A small price on what is not zero."""
    (x,) = _given(net, x)
    return 1e-2 * x.abs().mean()


@op("loss", "flat", weight=0.5)
def variance(net: Network, me: Op, x: Tensor) -> Tensor:
    """That each channel should vary (VICReg)."""
    (x,) = _given(net, x)
    return F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()


@op("loss", "flat", values=2, weight=0.5)
def triplet(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    x, y = _given(net, x, y)
    return F.triplet_margin_loss(x, y, y.roll(1, 0))


@op("loss", ALL, values=2, weight=0.5)
def gaussian_nll(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    if x.shape != y.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)} differ")
    x, y = _given(net, x, y)
    return F.gaussian_nll_loss(x, torch.full_like(x, 0.3), y.clamp(-5, 5).exp())


@op("loss", ALL, values=2, weight=0.5)
def reparametrised(net: Network, me: Op, x: Tensor, y: Tensor) -> Tensor:
    """A draw from a Gaussian, and how far that is from the standard one."""
    if x.shape != y.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)} differ")
    x, y = _given(net, x, y)
    drawn = x + (0.5 * y.clamp(-5, 5)).exp() * torch.randn_like(x)
    return drawn.square().mean() - 0.5 * (1 + y - x.square() - y.clamp(-5, 5).exp()).mean()
