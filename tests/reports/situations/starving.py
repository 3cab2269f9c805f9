"""Layers to which nothing comes back: losses that ask for nothing, flat ends, margins, codes that nothing selects."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from helpers.short_runs import Training, digits, found, last, mlp, sgd, train
from helpers.training import fit, quiet
from lightning_deadkernel import DeadKernelMonitor
from reports import Eye, situation


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.classes = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
        self.value = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))


class Weighted(Training):
    weight = 0.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = self.net.body(batch[0])
        value = self.net.value(hidden)[:, 0]
        return F.cross_entropy(self.net.classes(hidden), batch[1]) + self.weight * F.mse_loss(value, batch[1].float())


@situation(
    "https://github.com/fangwei123456/spikingjelly/issues/637",
    first="no_gradient net.value.2: ignored by the loss",
    besides=("starved_channels net.value.0: no gradient downstream",),
    advice=("loss", "net.value.2"),
    never=("weights that read them are zero", "outgoing zero"),
)
def one_head_of_two_does_not_learn_since_its_loss_has_weight_zero() -> DeadKernelMonitor:
    monitor = train(Weighted(TwoTasks(), sgd(0.05)))
    assert len(last(monitor).problems) == 1
    return monitor


class Faint(Weighted):
    weight = 1e-8


@situation(
    "https://github.com/open-mmlab/mmpretrain/issues/1688",
    first="* net.value.*: ignored by the loss",
    besides=("* net.value.*: no gradient downstream", "* net.value.*: ignored by the loss"),
    advice=("loss", "net.value.2"),
    never=("rectifier", "He initialisation", "off scale"),
)
def one_head_of_two_learns_next_to_nothing_since_its_loss_is_a_hundred_millionth() -> DeadKernelMonitor:
    return train(Faint(TwoTasks(), sgd(0.05)))


class Gan(L.LightningModule):
    """Both players by manual optimization; the critic's tanh layer lies beyond where float32 knows a slope.

    Args:
        toggles: the critic's parameters need no gradient while the generator learns, as Lightning's docs have it.
    """

    def __init__(self, toggles: bool) -> None:
        super().__init__()
        self.automatic_optimization, self.toggles = False, toggles
        self.generator = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 64))
        self.critic = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 1))
        with torch.no_grad():
            self.critic[0].weight *= 50
            self.critic[0].bias[:12], self.critic[0].bias[12:] = 3e3, -3e3

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        of_generator, of_critic = self.optimizers()
        made = self.generator(torch.randn(len(batch[0]), 16))
        real, fake = self.critic(batch[0].flatten(1)), self.critic(made.detach())
        of_critic.zero_grad()
        self.manual_backward(F.softplus(-real).mean() + F.softplus(fake).mean())
        of_critic.step()
        self.critic.requires_grad_(not self.toggles)
        of_generator.zero_grad()
        self.manual_backward(F.softplus(-self.critic(made)).mean())
        of_generator.step()
        self.critic.requires_grad_(True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), 1e-3) for part in (self.generator, self.critic)]


@situation(
    "https://github.com/soumith/ganhacks/issues/36",
    first="saturated_channels critic.0: saturated",
    besides=("starved_channels generator.0: *", "no_gradient generator.2: *"),
    never=("add norms", "He initialisation", "loss: its weight"),
)
def a_critic_on_its_flat_end_leaves_the_generator_without_a_gradient() -> DeadKernelMonitor:
    module = Gan(toggles=False)
    before = module.generator[2].weight.clone()
    monitor = train(module)
    assert torch.equal(module.generator[2].weight, before)
    assert len(last(monitor).problems) == 1
    return monitor


@situation(
    "https://github.com/soumith/ganhacks/issues/38",
    first="saturated_channels critic.0: saturated",
    besides=("starved_channels generator.0: no gradient downstream", "no_gradient generator.2: unknown"),
    never=("add norms", "He initialisation", "loss: its weight"),
)
def a_critic_that_is_toggled_off_is_named_where_its_readers_cannot_be_seen() -> DeadKernelMonitor:
    monitor = train(Gan(toggles=True))
    (finding,) = found(last(monitor), "no_gradient", "generator.2")
    assert "If critic.0 reads this layer, bring it off its flat end first" in finding.advice
    return monitor


class Siamese(Training):
    """Pairs of pictures; a loss that is zero where different pairs are a margin apart."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        first, second = self.net(batch[0]), self.net(batch[0].flip(0))
        distance = (first - second).square().sum(1)
        same = batch[1] == batch[1].flip(0)
        return torch.where(same, 0.0 * distance, (self.margin - distance).clamp(min=0)).mean()


@situation(
    "https://github.com/xiaolonw/caffe-video_triplet/issues/8",
    first="no_gradient network: flat loss",
    advice=("margin",),
)
def a_margin_that_is_met_from_the_start_sends_nothing_back() -> DeadKernelMonitor:
    net = mlp(64, 32, 16)
    with torch.no_grad():
        net[3].weight *= 100
    module = Siamese(net, sgd(0.01))
    module.margin = 1e-9
    return train(module, data=torch.utils.data.Subset(digits(), range(256)))


class Quantized(nn.Module):
    """A VQ-VAE: the nearest of 64 codes, with a straight-through estimator."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codes, self.decoder = nn.Linear(64, 8), nn.Embedding(64, 8), nn.Linear(8, 64)
        nn.init.normal_(self.codes.weight)
        with torch.no_grad():
            self.codes.weight[8:] += 50.0  # far from all that the encoder makes
        self.used: set[int] = set()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        nearest = torch.cdist(z, self.codes.weight).argmin(1)
        self.used |= set(nearest.tolist())
        chosen = self.codes(nearest)
        commitment = F.mse_loss(chosen, z.detach()) + 0.25 * F.mse_loss(z, chosen.detach())
        return self.decoder(z + (chosen - z).detach()), commitment


class Quantizing(Training):
    def on_train_epoch_start(self) -> None:
        self.net.used.clear()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        out, commitment = self.net(x)
        return F.mse_loss(out, x) + commitment


@situation(
    "https://github.com/bshall/VectorQuantizedVAE/issues/3",
    first="dead_rows net.codes: never selected",
    advice=("encoder outputs of the batch",),
    never=("learning rate",),
)
def most_codes_of_a_codebook_are_never_used() -> DeadKernelMonitor:
    net = Quantized()
    monitor = train(Quantizing(net, lambda parameters: torch.optim.Adam(parameters, lr=1e-3)))
    (finding,) = found(last(monitor), "dead_rows")
    assert finding.channels == tuple(sorted(set(range(64)) - net.used))
    return monitor


class Experts(nn.Module):
    """A mixture whose experts are one batched tensor; each picture goes to the best of those that are let in."""

    def __init__(self, let_in: int) -> None:
        super().__init__()
        self.router = nn.Linear(64, 8)
        self.first = nn.Parameter(0.1 * torch.randn(8, 64, 16))
        self.second = nn.Parameter(0.1 * torch.randn(8, 16, 10))
        self.let_in = let_in

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.flatten(1)
        scores = self.router(x).softmax(1)
        best = scores[:, : self.let_in].argmax(1)
        send = F.one_hot(best, 8).float().t()[:, :, None] * x  # (experts, batch, features)
        out = torch.bmm(torch.bmm(send, self.first).relu(), self.second)
        return (out * scores.t()[:, :, None]).sum(0)


@situation(
    "https://github.com/lucidrains/mixture-of-experts/issues/10",
    first="dead_rows net*: never selected",
    advice=("load-balancing",),
    besides=("dead_rows net*: never selected",),
)
def some_of_the_batched_experts_get_no_token() -> DeadKernelMonitor:
    return train(Experts(let_in=5), sgd(0.1))


@situation(
    "https://github.com/lululxvi/deepxde/issues/645",
    first="saturated_channels net.0: saturated",
    besides=("saturated_channels net.*: saturated", "weak_gradient *: *", "vanishing_gradient *: *"),
    advice=("scale the",),
    never=("dead",),
)
def a_physics_informed_network_does_not_train_on_times_up_to_500() -> DeadKernelMonitor:
    class Oscillator(L.LightningModule):
        """u'' + u = 0 with u(0) = 1, by derivatives through the network."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            t = batch[0].requires_grad_()
            u = self.net(t)
            (velocity,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            (force,) = torch.autograd.grad(velocity.sum(), t, create_graph=True)
            return (force + u).square().mean() + (self.net(torch.zeros(1, 1)) - 1).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-3)

    times = 500 * torch.rand(512, 1)
    module = Oscillator()
    monitor = train(module, data=TensorDataset(times), batch_size=32)
    with torch.no_grad():
        flat = (module.net[0](times).abs() > 5).float().mean(0) > 0.5
    assert last(monitor)["net.0"].saturated == flat.nonzero().flatten().tolist()
    return monitor


@situation(
    "https://github.com/pytorch/pytorch/issues/7714",
    first="dead_channels net.0: shift driven negative",
    advice=("Set the shift",),
)
def dead_units_of_a_critic_with_a_gradient_penalty() -> DeadKernelMonitor:
    class Critic(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
            with torch.no_grad():
                self.net[0].bias[:10] = -50.0

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x = batch[0].requires_grad_()
            out = self.net(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            return out.mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-4)

    eye = Eye("net.1")
    monitor = train(Critic(), data=TensorDataset(torch.rand(512, 8)), batch_size=32, beside=[eye])
    assert last(monitor)["net.0"].dead == eye.never("net.1")
    assert set(eye.never("net.1")) >= set(range(10))
    return monitor


@situation(
    "https://discuss.pytorch.org/t/training-with-half-precision/11815",
    first="starved_channels net.1: underflow",
    advice=("16-mixed",),
    besides=("starved_channels net.*: underflow", "no_gradient *: underflow", "frozen_weights *: *"),
    never=("dead",),
)
def pure_half_precision_loses_all_small_gradients() -> DeadKernelMonitor:
    loss = lambda logits, labels: 1e-6 * F.cross_entropy(logits, labels)  # noqa: E731
    return train(mlp(64, 32, 32, 10), precision="16-true", loss=loss)


@situation(
    "https://github.com/huangwb/AS-GCN/issues/9",
    first="dead_channels net.first: shift driven negative",
    advice=("Set the shift",),
)
def a_graph_network_with_one_step_an_epoch() -> DeadKernelMonitor:
    """One graph of 200 nodes is the whole data: a window is one step."""

    class Graph(nn.Module):
        def __init__(self, links: Tensor) -> None:
            super().__init__()
            self.first, self.second, self.links = nn.Linear(16, 32), nn.Linear(32, 4), links

        def forward(self, nodes: Tensor) -> Tensor:
            hidden = (self.links @ self.first(nodes[0])).relu()
            return self.links @ self.second(hidden)

    nodes = torch.randn(200, 16)
    links = ((torch.rand(200, 200) < 0.03) | torch.eye(200, dtype=torch.bool)).float()
    net = Graph(links / links.sum(1, keepdim=True))
    with torch.no_grad():
        net.first.bias[[1, 4]] = -30.0

    class OfNodes(Training):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1][0])

    loader = DataLoader(TensorDataset(nodes[None], torch.randint(4, (1, 200))), 1)
    monitor = fit(OfNodes(net, sgd(0.05)), loader, monitor=quiet(), max_epochs=12)
    with torch.no_grad():
        never = (~((net.links @ net.first(nodes)) > 0).any(0)).nonzero().flatten().tolist()
    assert last(monitor)["net.first"].dead == never == [1, 4]
    return monitor


@situation(
    "https://arxiv.org/abs/2010.06192",
    first="* net.1: below resolution",
    besides=("lost_updates net.*: below resolution", "frozen_weights net.*: below resolution"),
    advice=("bf16-mixed",),
    never=("weight decay",),
)
def pure_bfloat16_at_a_small_rate_rounds_most_updates_away() -> DeadKernelMonitor:
    adam = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)  # noqa: E731
    return train(mlp(64, 48, 48, 10), adam, precision="bf16-true")


class BecomesNan(Training):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.trainer.global_step == 40 else loss


@situation(
    "https://github.com/weiaicunzai/pytorch-cifar100/issues/51",
    first="non_finite_gradient network: overflow",
    advice=("last checkpoint with finite weights",),
    never=("dead", "flat loss"),
)
def the_loss_becomes_nan_in_the_second_epoch() -> DeadKernelMonitor:
    monitor = train(BecomesNan(mlp(64, 32, 32, 10), sgd(0.05)), epochs=3)
    assert "came at step 41: the loss was" in last(monitor).problems[0].cause
    assert len(last(monitor).problems) == 1
    return monitor


@situation(
    "https://github.com/philipxjm/Deep-Convolution-Stock-Technical-Analysis/issues/8",
    first="starved_channels net.1: zeroed in between",
    advice=("dropout with p=1",),
)
def a_dropout_of_everything_stands_before_the_head() -> DeadKernelMonitor:
    net = mlp(64, 32, 10)
    net.insert(3, nn.Dropout(1.0))
    before = net[1].weight.clone()
    monitor = train(net)
    assert torch.equal(net[1].weight, before)
    return monitor


@situation(
    "https://community.deeplearning.ai/t/can-relu-activation-be-used-in-the-last-layer-of-a-neural-network/549422",
    first="dead_channels net.3: *",
    advice=("outputs of the network", "take away the rectifier"),
    besides=("starved_channels net.1: dead downstream",),
)
def all_targets_are_negative_and_the_only_output_is_behind_a_relu() -> DeadKernelMonitor:
    """Nothing has a gradient any more, and that is since the output is dead, not since the loss is flat."""
    pictures = digits().tensors[0]
    net = nn.Sequential(*mlp(64, 32, 1), nn.ReLU())
    monitor = train(net, epochs=6, data=TensorDataset(pictures, torch.full((len(pictures), 1), -3.0)), loss=F.mse_loss)
    assert bool((net(pictures) == 0).all())
    return monitor


class Critic(Training):
    """Tells what lies above from what lies below by hinges, which can be met on all of it."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.relu(1 - self.net(batch[0] + 3)).mean() + F.relu(1 + self.net(batch[0] - 3)).mean()


@situation(
    "https://github.com/ajbrock/BigGAN-PyTorch/issues/17",
    first="no_gradient network: flat loss",
    advice=("a margin or a mask that leaves nothing of the loss",),
    never=("dead", "rectifier", "knocked out"),
)
def a_critic_that_meets_all_margins_of_its_hinge_loss_has_nothing_left_to_learn() -> DeadKernelMonitor:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    critic = Critic(net, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    eye = Eye()
    monitor = train(critic, epochs=8, beside=[eye])
    assert eye.without_gradient("net.3.weight") == [0]
    assert last(monitor)["net.3"].dead == []
    return monitor


class Segmenter(nn.Module):
    """A U-Net of two steps down and two up, whose output layer begins with a bias."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up2, self.join2 = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.up1, self.join1 = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 1, 1)
        nn.init.constant_(self.out.bias, bias)

    def forward(self, pictures: Tensor) -> Tensor:
        first = self.down1(pictures).relu()
        second = self.down2(F.max_pool2d(first, 2)).relu()
        inner = self.middle(F.max_pool2d(second, 2)).relu()
        second = self.join2(torch.cat([self.up2(inner), second], 1)).relu()
        return self.out(self.join1(torch.cat([self.up1(second), first], 1)).relu()).sigmoid()


@situation(
    "https://arxiv.org/abs/1505.04597",
    first="saturated_channels net.out: saturated",
    besides=(
        "starved_channels net.*: *",
        "no_gradient net.*: no gradient downstream",
        "dead_channels net.*: born dead",
    ),
    advice=("Look at its bias of -120",),
    never=("the graph does not show",),
)
def a_unet_whose_output_is_shut_by_its_bias_learns_nothing_anywhere() -> DeadKernelMonitor:
    """What is brought up and what is passed on stand side by side before a convolution, and both are held up."""
    pictures = digits().tensors[0]
    net = Segmenter(-120.0)
    before = [parameter.clone() for parameter in net.parameters()]
    monitor = train(net, data=TensorDataset(pictures, (pictures > 0.5).float()), loss=F.mse_loss)
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), before, strict=True))
    (problem, *others) = last(monitor).problems
    assert {finding.layer for finding in problem.findings} == {layer.name for layer in last(monitor).watched}
    assert all(finding.kind == "dead_channels" for other in others for finding in other.findings)
    return monitor
