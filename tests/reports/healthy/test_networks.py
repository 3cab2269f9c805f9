"""Healthy networks of many kinds, each as its users train it: the loss falls, and nothing above info is told."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from helpers.short_runs import SEEDS, conv_norm_net, digits, he_, mlp, sgd
from reports.healthy._controls import Control, Learner, Optimizer, adam, adamw, check

CONTROLS: dict[str, Callable[[], Control]] = {}


def control(make: Callable[[], Control]) -> Callable[[], Control]:
    """Enters a control by the name of the function that makes it."""
    CONTROLS[make.__name__] = make
    return make


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONTROLS)
def test_a_healthy_network_is_quiet(name: str, seed: int) -> None:
    L.seed_everything(seed, verbose=False)
    check(CONTROLS[name]())


def wrong_class(net: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def not_the_same(net: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.mse_loss(net(batch[0]), batch[0].flatten(1))


def classify(net: nn.Module, optimizer: Optimizer, epochs: int = 4) -> Control:
    """Tells digits apart."""
    return Control(
        Learner(net, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), optimizer), digits(), epochs
    )


def rebuild(net: nn.Module, optimizer: Optimizer, loss: Callable[..., Tensor] = not_the_same) -> Control:
    """Gives digits back."""
    return Control(Learner(net, loss, optimizer), digits())


# -- classifiers ------------------------------------------------------------------------------------------------------


@control
def multilayer_perceptron() -> Control:
    return classify(mlp(64, 64, 64, 10), sgd(0.05, momentum=0.9))


@control
def convolutions_with_batch_norm() -> Control:
    return classify(conv_norm_net(), adamw())


@control
def gelu() -> Control:
    return classify(mlp(64, 64, 64, 64, 10, activation=nn.GELU), adamw())


@control
def silu() -> Control:
    return classify(mlp(64, 64, 64, 64, 10, activation=nn.SiLU), sgd(0.1, momentum=0.9))


@control
def dropout() -> Control:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 96), nn.ReLU())
    return classify(net.extend([nn.Dropout(0.5), nn.Linear(96, 10)]), adam())


@control
def a_norm_of_the_input() -> Control:
    """Tabular data as it comes: columns of any scale, a batch norm first."""
    columns = 10.0 ** torch.linspace(-3, 3, 64)
    raw = TensorDataset(digits().tensors[0].flatten(1) * columns + columns, digits().tensors[1])
    net = nn.Sequential(
        nn.BatchNorm1d(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    loss = lambda net, batch: F.cross_entropy(net(batch[0]), batch[1])  # noqa: E731
    return Control(Learner(net, loss, adamw()), raw)


class Block(nn.Module):
    """Two convolutions beside a skip; the last scale begins at zero."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels // stride, channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.last_norm.weight)
        self.skip = nn.Conv2d(channels // stride, channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.last_norm(self.second(self.norm(self.first(x)).relu()))
        return (inner + self.skip(x)).relu()


@control
def residual_network() -> Control:
    stem = (nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    net = nn.Sequential(*stem, Block(16, 1), Block(32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return classify(net, sgd(0.1, momentum=0.9, weight_decay=5e-4))


@control
def depthwise_separable_network() -> Control:
    def separable(fan_in: int, fan_out: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(fan_in, fan_in, 3, stride, 1, groups=fan_in, bias=False),
            nn.BatchNorm2d(fan_in),
            nn.ReLU6(),
            nn.Conv2d(fan_in, fan_out, 1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU6(),
        ]

    stem = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    layers = [*stem, *separable(16, 24, 1), *separable(24, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return classify(nn.Sequential(*layers, nn.Linear(32, 10)), adamw())


@control
def twenty_plain_layers_with_he_initialisation() -> Control:
    return classify(he_(mlp(64, *[64] * 19, 10)), adam(1e-3))


# -- sequences --------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Rows of a picture as tokens, encoder blocks, and a classifier of the mean token."""

    def __init__(self, pre_norm: bool, blocks: int = 2, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        options = {"dropout": 0.1, "activation": "gelu" if pre_norm else "relu", "batch_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, norm_first=pre_norm, **options) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.embed(pictures[:, 0]) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@control
def transformer_with_norms_first() -> Control:
    return classify(Tokens(pre_norm=True), adamw())


@control
def transformer_with_norms_last() -> Control:
    return classify(Tokens(pre_norm=False), adamw())


@control
def transformer_under_plain_sgd() -> Control:
    return classify(Tokens(pre_norm=True), sgd(0.1, momentum=0.9), epochs=6)


class Rows(nn.Module):
    """Rows of a picture, one a step, through a recurrence."""

    def __init__(self, recurrence: nn.Module, width: int) -> None:
        super().__init__()
        self.recurrence, self.head = recurrence, nn.Linear(width, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.recurrence(pictures[:, 0])[0][:, -1])


@control
def lstm() -> Control:
    return classify(Rows(nn.LSTM(8, 32, batch_first=True), 32), adam(1e-2))


@control
def two_layers_of_gru() -> Control:
    return classify(Rows(nn.GRU(8, 32, num_layers=2, batch_first=True), 32), adam(1e-2))


class GatedResidual(nn.Module):
    """What temporal fusion transformers are made of: ELU, a gated linear unit, a skip and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.glu(self.second(F.elu(self.first(x))), -1))


class Forecaster(nn.Module):
    """A small temporal fusion transformer: chosen variables, an LSTM, attention, gated residuals throughout."""

    def __init__(self, variables: int = 3, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(1, width) for _ in range(variables))
        self.choose = nn.Linear(variables * width, variables)
        self.recurrence = nn.LSTM(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.before, self.between, self.after = (GatedResidual(width) for _ in range(3))
        self.head = nn.Linear(width, 3)  # three quantiles

    def forward(self, series: Tensor) -> Tensor:
        embedded = torch.stack(
            [embed(x[..., None]) for embed, x in zip(self.embed, series.unbind(-1), strict=True)], -1
        )
        weights = self.choose(embedded.flatten(2)).softmax(-1)
        x = self.before((embedded * weights[:, :, None]).sum(-1))
        x = self.between(x + self.recurrence(x)[0])
        return self.head(self.after(x + self.attention(x, x, x, need_weights=False)[0])[:, -1])


@control
def temporal_fusion_transformer() -> Control:
    """Waves of any phase, beside two variables of noise; the next value by three quantiles."""
    phase, time = 6.3 * torch.rand(1800, 1), torch.arange(13.0) / 2
    waves = torch.stack([(phase + time).sin(), *(torch.randn(1800, 13) for _ in range(2))], -1)
    levels = torch.tensor([0.1, 0.5, 0.9])

    def loss(net: nn.Module, batch: list[Tensor]) -> Tensor:
        error = batch[0][:, -1, :1] - net(batch[0][:, :-1])
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    return Control(Learner(Forecaster(), loss, adam()), TensorDataset(waves))


class Words(nn.Module):
    """The next word of sentences that count up by a step of their own: an embedding that is also the output."""

    def __init__(self, words: int = 16, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.hidden = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, width))

    def forward(self, pairs: Tensor) -> Tensor:
        return F.linear(self.hidden(self.table(pairs).flatten(1)), self.table.weight)


@control
def tied_word_embeddings() -> Control:
    begin, step = torch.randint(16, (2000, 1)), torch.randint(1, 4, (2000, 1))
    sentences = TensorDataset((begin + step * torch.arange(3)) % 16)
    loss = lambda net, batch: F.cross_entropy(net(batch[0][:, :2]), batch[0][:, 2])  # noqa: E731
    return Control(Learner(Words(), loss, adam(1e-2)), sentences)


# -- what gives back its input ----------------------------------------------------------------------------------------


@control
def autoencoder() -> Control:
    return rebuild(mlp(64, 48, 16, 48, 64), adam())


@control
def convolutional_autoencoder() -> Control:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 16, 2, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 2, 2),
        nn.Flatten(),
    )
    return rebuild(net, adam())


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(64, 48), nn.Linear(48, 24)

    def forward(self, pictures: Tensor) -> Tensor:
        code = self.inner(self.outer(pictures.flatten(1)).relu())
        return F.linear(F.linear(code, self.inner.weight.T).relu(), self.outer.weight.T)


@control
def tied_autoencoder() -> Control:
    return rebuild(Tied(), adam())


class Variational(nn.Module):
    """A variational autoencoder with four latent numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 2 * 4, activation=nn.ReLU), mlp(4, 64, 64, activation=nn.ReLU)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(pictures).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return self.decoder(code), divergence


@control
def variational_autoencoder() -> Control:
    def loss(net: nn.Module, batch: list[Tensor]) -> Tensor:
        rebuilt, divergence = net(batch[0])
        return F.mse_loss(rebuilt, batch[0].flatten(1)) + 1e-3 * divergence

    return rebuild(Variational(), adam(1e-2), loss)


class UNet(nn.Module):
    """Two scales, group norms, skips by concatenation: the picture out of noise."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), nn.GroupNorm(4, width), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.SiLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.merge = nn.Sequential(nn.Conv2d(2 * width, width, 3, 1, 1), nn.GroupNorm(4, width), nn.SiLU())
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        fine = self.down(pictures)
        return self.out(self.merge(torch.cat([fine, self.up(self.middle(fine))], 1)))


@control
def u_net() -> Control:
    def loss(net: nn.Module, batch: list[Tensor]) -> Tensor:
        return F.mse_loss(net(batch[0] + 0.3 * torch.randn_like(batch[0])), batch[0])

    return rebuild(UNet(), adam(), loss)


# -- other losses -----------------------------------------------------------------------------------------------------


@control
def siamese() -> Control:
    """Two pictures through one network; those of one class near, others at least a margin apart."""

    def loss(net: nn.Module, batch: list[Tensor]) -> Tensor:
        codes, labels = net(batch[0]), batch[1]
        apart = (codes - codes.roll(1, 0)).square().sum(1).add(1e-8).sqrt()
        same = (labels == labels.roll(1, 0)).float()
        return (same * apart.square() + (1 - same) * (2 - apart).clamp(min=0).square()).mean()

    return Control(Learner(mlp(64, 64, 32, 8), loss, adam()), digits(), epochs=6)


class GraphNetwork(nn.Module):
    """Two graph convolutions over a ring whose neighbours mostly share a class."""

    def __init__(self, adjacency: Tensor, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(features, 32), nn.Linear(32, classes)

    def forward(self, nodes: Tensor) -> Tensor:
        return self.adjacency @ self.second((self.adjacency @ self.first(nodes)).relu())


@control
def graph_network() -> Control:
    """The whole graph at each step, as graph networks are trained."""
    count, classes = 96, 3
    labels = torch.arange(count) * classes // count
    nodes = F.one_hot(labels, classes).float() @ torch.randn(classes, 8) + torch.randn(count, 8)
    ring = sum(torch.eye(count).roll(shift, 0) for shift in (-1, 0, 1)) / 3
    loss = lambda net, batch: F.cross_entropy(net(nodes), labels)  # noqa: E731
    steps = TensorDataset(torch.zeros(20, 1))
    return Control(Learner(GraphNetwork(ring, 8, classes), loss, adam(1e-2)), steps, epochs=4, batch_size=1)


# -- optimized by hand ------------------------------------------------------------------------------------------------


class ByHand(L.LightningModule):
    """Manual optimization; `last_loss` is what should fall."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.last_loss = 0.0


class Adversaries(ByHand):
    """A generator of points on a circle, and a critic with batches that are balanced against it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = mlp(4, 32, 32, 2, activation=lambda: nn.LeakyReLU(0.2))
        self.critic = mlp(2, 32, 32, 1, activation=lambda: nn.LeakyReLU(0.2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        of_generator, of_critic = self.optimizers()
        real, noise = batch[0], torch.randn(len(batch[0]), 4)
        made = self.generator(noise)
        loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(made.detach())).mean()
        of_critic.zero_grad()
        self.manual_backward(loss)
        of_critic.step()
        self.toggle_optimizer(of_generator)
        of_generator.zero_grad()
        self.manual_backward(F.softplus(-self.critic(made)).mean())
        of_generator.step()
        self.untoggle_optimizer(of_generator)
        self.last_loss = float((made.norm(dim=1) - 2).abs().mean())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.9)) for net in (self.generator, self.critic)]


@control
def balanced_adversaries() -> Control:
    angles = 2 * torch.pi * torch.rand(2560, 1)
    circle = TensorDataset(2 * torch.cat([angles.cos(), angles.sin()], 1))
    return Control(Adversaries(), circle, epochs=6)


class Penalised(ByHand):
    """A critic under a gradient penalty: a derivative of the network is part of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = mlp(2, 32, 32, 1, activation=nn.Softplus)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        real, fake = batch[0], torch.randn(len(batch[0]), 2)
        between = (real + fake).div(2).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        loss = self.critic(fake).mean() - self.critic(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.last_loss = float(loss) + 4  # which ends near -3

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


@control
def gradient_penalty() -> Control:
    return Control(Penalised(), TensorDataset(torch.randn(2560, 2) + torch.tensor([4.0, 0.0])), epochs=4)


class Adapted(ByHand):
    """Learns an initialisation of which one inner step fits a line of any slope (MAML)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(1, 32, 32, 1, activation=nn.ReLU)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        losses = []
        for slope in batch[0][:4]:
            x = torch.rand(16, 1) * 2 - 1
            named = dict(self.net.named_parameters())
            inner = F.mse_loss(torch.func.functional_call(self.net, named, (x,)), slope * x)
            slopes = torch.autograd.grad(inner, list(named.values()), create_graph=True)
            moved = {name: p - 0.1 * g for (name, p), g in zip(named.items(), slopes, strict=True)}
            losses.append(F.mse_loss(torch.func.functional_call(self.net, moved, (x,)), slope * x))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        self.manual_backward(loss)
        optimizer.step()
        self.last_loss = float(loss.detach())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


@control
def learning_to_adapt() -> Control:
    return Control(Adapted(), TensorDataset(1 + torch.randn(4 * 40, 1)), epochs=4, batch_size=4)
