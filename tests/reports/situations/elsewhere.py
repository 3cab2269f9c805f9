"""The root lies where it does not show: in what selects the inputs, in an optimizer, in the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from helpers.short_runs import Training, digits, found, last, mlp, sgd, train
from lightning_deadkernel import DeadKernelMonitor
from reports import situation


class Experts(nn.Module):
    """Three experts, each of which is called on the samples that a router sends it, even if these are none."""

    def __init__(self, favour: float) -> None:
        super().__init__()
        self.first, self.router, self.last = nn.Linear(64, 32), nn.Linear(32, 3), nn.Linear(32, 10)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(3))
        self.favour = torch.tensor([favour, 0.0, 0.0])
        self.given = [0, 0, 0]

    def forward(self, pictures: Tensor) -> Tensor:
        hidden = self.first(pictures.flatten(1)).relu()
        weights = (self.router(hidden) + self.favour).softmax(1)
        chosen, out = weights.argmax(1), hidden
        for place, expert in enumerate(self.experts):
            rows = (chosen == place).nonzero().flatten()
            self.given[place] += len(rows)
            out = out.index_add(0, rows, weights[rows, place, None] * expert(hidden[rows]))
        return self.last(out)


@situation(
    "https://github.com/pytorch/torchtitan/issues/1246",
    first="unwatched_layers network: no input",
    advice=("router",),
    besides=("vanishing_gradient net.router: *",),  # its softmax is next to one-hot
    never=("dead", "detach"),
)
def experts_that_are_given_no_sample_have_not_been_seen_to_be_dead() -> DeadKernelMonitor:
    monitor = train(net := Experts(favour=30.0), epochs=3)
    assert net.given == [3 * len(digits()), 0, 0]
    (finding,) = found(last(monitor), "unwatched_layers")
    assert finding.evidence["layers"] == 4
    assert not any(report.dead_channels.keys() & {"net.experts.1.0", "net.experts.2.0"} for report in monitor.reports)
    return monitor


@situation(
    "https://github.com/huggingface/peft/issues/2212",
    first="zero_kernels net.*: zero at initialisation",
    advice=("random values",),
    never=("flat loss", "detach", "margin"),
)
def both_factors_of_an_adapter_start_at_zero() -> DeadKernelMonitor:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.head = nn.Linear(64, 32).requires_grad_(False), nn.Linear(32, 10).requires_grad_(False)
            self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 32, bias=False)
            for factor in (self.down, self.up):
                nn.init.zeros_(factor.weight)

        def forward(self, pictures: Tensor) -> Tensor:
            x = pictures.flatten(1)
            return self.head((self.base(x) + self.up(self.down(x))).relu())

    monitor = train(net := Adapted())
    assert not any(bool(factor.weight.any()) for factor in (net.down, net.up))
    assert {finding.kind for finding in last(monitor).findings} == {"zero_kernels"}
    return monitor


@situation(
    "https://stackoverflow.com/questions/33962226/common-causes-of-nans-during-training-of-neural-networks",
    first=("no_gradient network: flat loss", "dead_channels *: knocked out", "update_too_large *"),
    advice=("ower the learning rate (lr=1 of RMSprop)",),
    besides=("*: knocked out", "update_too_large *", "exploding_gradient *", "starved_channels *"),
    never=("detach", "round, sign"),
)
def a_reckless_step_throws_the_outputs_so_far_out_that_their_softmax_is_flat() -> DeadKernelMonitor:
    centres = torch.randn(4, 20)
    labels = torch.arange(256) % 4
    data = TensorDataset(1.5 * centres[labels] + torch.randn(256, 20), labels)
    return train(mlp(20, 64, 64, 4), lambda p: torch.optim.RMSprop(p, 1.0), epochs=6, data=data)


@situation(
    "https://github.com/Lightning-AI/pytorch-lightning/issues/2045",
    first="update_too_small network: no step",
    advice=("with each optimizer",),
    never=("detach", "Raise the learning rate", "frozen"),
)
def the_second_of_two_optimizers_is_never_stepped() -> DeadKernelMonitor:
    class Halves(Training):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            first, second = self.optimizers()
            first.zero_grad()
            second.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            first.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(self.net[at].parameters(), lr=0.05) for at in (1, 3)]

    net = mlp(64, 32, 10)
    before = net[1].weight.clone(), net[3].weight.clone()
    monitor = train(Halves(net, sgd(0.05)), epochs=3)
    assert [torch.equal(net[at].weight, first) for at, first in zip((1, 3), before, strict=True)] == [False, True]
    (finding,) = found(last(monitor), "update_too_small")
    assert "holds net.3 took no step" in finding.cause
    return monitor


@situation(
    "https://arxiv.org/abs/1707.06347",
    first="no_gradient net.policy.3: ignored by the loss",
    advice=("Check the term of the loss that net.policy.3 enters",),
    besides=("starved_channels net.policy.1: no gradient downstream",),
    never=("summed",),
)
def the_ratio_of_a_policy_is_clipped_on_every_sample() -> DeadKernelMonitor:
    """The logarithms of the old probabilities are those of other actions: too small, by more than is clipped."""

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.value = mlp(64, 32, 10), mlp(64, 32, 1)

    class Clipped(Training):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            policy = torch.distributions.Categorical(logits=self.net.policy(batch[0]))
            actions, value = policy.sample(), self.net.value(batch[0])[:, 0]
            ratio = (policy.log_prob(actions) - policy.log_prob(actions).detach() + 5).exp()
            clipped = torch.minimum(ratio, ratio.clamp(0.8, 1.2)).mean()
            return F.mse_loss(value, (actions == batch[1]).float()) - clipped

    return train(Clipped(Agent(), sgd(0.05)), epochs=2)


@situation(
    "https://www.comp.hkbu.edu.hk/~markus/teaching/comp7650/tnn-94-gradient.pdf",
    first="vanishing_gradient net.memory.weight_ih_l0: unknown",
    advice=("sequences end in steps without content",),
    never=("ruled out: a chain", "off scale"),
)
def a_recurrent_network_is_read_after_a_hundred_steps_of_padding() -> DeadKernelMonitor:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.head = nn.RNN(64, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, pictures: Tensor) -> Tensor:
            padding = torch.zeros(len(pictures), 100, 64)
            return self.head(self.memory(torch.cat([pictures.flatten(1)[:, None], padding], 1))[0][:, -1])

    return train(Last(), sgd(0.05))
