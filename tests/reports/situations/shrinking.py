"""Kernels that are zero or next to it, and why: decay through the gradient, a penalty on scales, a start at zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from helpers.short_runs import Training, found, last, mlp, sgd, train
from lightning_deadkernel import DeadKernelMonitor
from reports import situation


@situation(
    "https://arxiv.org/abs/1811.12495",
    first=("zero_kernels net.1: decayed", "dead_channels net.1: decayed"),
    besides=("dead_channels net.1: *", "zero_kernels net.1: decayed"),
    advice=("AdamW in place of weight_decay=0.02 of Adam",),
    never=("outputs of the network",),
)
def adam_with_weight_decay_empties_half_of_a_wide_layer() -> DeadKernelMonitor:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.02, weight_decay=0.02)  # noqa: E731
    monitor = train(net, adam, epochs=12, batch_size=32)
    norms = net[1].weight.detach().norm(dim=1)
    tiny = (norms < 1e-3 * norms.max()) | (net[2].weight.detach().abs() < 1e-3)
    assert last(monitor)["net.1"].zero_kernels == tiny.nonzero().flatten().tolist()
    assert int(tiny.sum()) >= 8
    return monitor


class Slimming(Training):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 3.0 * self.net[2].weight.abs().sum()


@situation(
    "https://arxiv.org/abs/1708.06519",
    first="* net.1: scale collapsed",
    besides=("dead_channels net.1: scale collapsed", "zero_kernels net.1: scale collapsed"),
    advice=("L1",),
    never=("AdamW", "Set the shift of these channels to 0", "outputs of the network"),
)
def an_l1_term_on_the_scales_of_a_norm_empties_its_channels() -> DeadKernelMonitor:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    fall = lambda step: 1.0 if step < 116 else 0.02  # noqa: E731
    monitor = train(Slimming(net, sgd(4e-3, weight_decay=1e-6), schedule=fall), epochs=8)
    tiny = net[2].weight.detach().abs() < 1e-3
    assert last(monitor)["net.1"].zero_kernels == tiny.nonzero().flatten().tolist()
    assert bool(tiny.any())
    return monitor


@situation(
    "https://github.com/wagonhelm/NaNmnist/issues/2",
    first="* net.1: zero at initialisation",
    besides=(
        "zero_kernels net.*: zero at initialisation",
        "dead_channels net.*: *",
        "starved_channels net.*: *",
        "no_gradient net.*: *",
    ),
    advice=("random values",),
)
def all_weights_were_set_to_zero_to_start_from_a_clean_slate() -> DeadKernelMonitor:
    net = mlp(64, 32, 32, 10)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    monitor = train(net)
    assert not any(bool(layer.weight.any()) for layer in (net[1], net[3]))
    assert len(last(monitor).problems) == 1
    return monitor


@situation(
    "https://cs231n.github.io/neural-networks-2/",
    first="identical_kernels net.1: constant initialisation",
    besides=("identical_kernels net.*: constant initialisation", "weak_gradient net.*: *"),
    advice=("random values",),
)
def a_layer_of_equal_weights_works_as_one_unit() -> DeadKernelMonitor:
    net = mlp(64, 32, 32, 10, activation=nn.Sigmoid)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    monitor = train(net, sgd(0.01))
    assert bool((net[1].weight == net[1].weight[:1]).all())
    return monitor


class Sum(Training):
    """Adds up the loss in place of its mean, so that the rate is too high by the size of a batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return len(batch[0]) * super().training_step(batch, batch_idx)


@situation(
    "https://arxiv.org/abs/1706.02677",
    first=(
        "dead_channels net.*: knocked out",
        "update_too_large net.*: reckless updates",
        "exploding_gradient network: reckless updates",
        "non_finite_gradient *: overflow",
    ),
    besides=("dead_channels net.*: *", "starved_channels net.*: *", "update_too_large *: *"),
    advice=("learning rate",),
    never=("weight decay", "AdamW"),
)
def the_loss_is_a_sum_over_the_batch() -> DeadKernelMonitor:
    monitor = train(Sum(mlp(64, 64, 64, 64, 10), sgd(0.02)), epochs=3)
    assert found(last(monitor), "dead_channels") or last(monitor).findings
    return monitor


class Lasso(Training):
    """With the sum of all magnitudes in the loss."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0.05 * sum(p.abs().sum() for p in self.net.parameters())


@situation(
    "https://arxiv.org/abs/1608.03665",
    first="update_too_large net.*: shrunken weights",
    advice=("penalty",),
    besides=("dead_channels net.*: knocked out",),  # by what is left of the weights, steps are large
)
def an_l1_term_has_shrunk_all_weights_to_next_to_nothing() -> DeadKernelMonitor:
    net = mlp(64, 32, 32, 10)
    before = net[3].weight.norm()
    monitor = train(Lasso(net, lambda parameters: torch.optim.Adam(parameters, 1e-3)), epochs=10)
    assert net[3].weight.norm() < 0.1 * before
    return monitor


@situation(
    "https://discuss.pytorch.org/t/weight-decay-parameter/83224",
    first="weak_gradient net.1: decayed",
    besides=("weak_gradient net.3: decayed", "dead_channels net.*: decayed"),
    advice=("Lower weight_decay=0.5 of SGD",),
    never=("He initialisation", "drift"),
)
def a_decay_of_a_half_wears_all_layers_down_together() -> DeadKernelMonitor:
    net = mlp(64, 64, 64, 10)
    first = [float(net[place].weight.detach().norm(dim=1).mean()) for place in (1, 3, 5)]
    monitor = train(net, sgd(0.1, weight_decay=0.5), epochs=6)
    for place, norm in zip((1, 3, 5), first, strict=True):
        assert float(net[place].weight.detach().norm(dim=1).mean()) < 1e-3 * norm
    return monitor
