"""Kernels that die, and what took them: a reckless step, the first draw, a penalty on activations, the targets."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from helpers.short_runs import Training, digits, found, he_, last, mlp, sgd, train
from lightning_deadkernel import DeadKernelMonitor
from reports import Eye, serious, situation


@situation(
    "https://cs231n.github.io/neural-networks-1/",
    first=("dead_channels net.*: knocked out", "update_too_large net.*: reckless updates"),
    advice=("lr=2 of SGD", "warm it up"),
    besides=("starved_channels net.*: dead downstream",),
    never=("weight decay",),
)
def much_of_the_network_died_at_a_learning_rate_that_was_too_high() -> DeadKernelMonitor:
    eye = Eye("net.2", "net.4", "net.6")
    monitor = train(mlp(64, 64, 64, 64, 64, 10), sgd(2.0), beside=[eye])
    for layer, activation in (("net.1", "net.2"), ("net.3", "net.4"), ("net.5", "net.6")):
        assert last(monitor)[layer].dead == eye.never(activation)
    assert found(last(monitor), "dead_channels")
    return monitor


class Encoder(nn.Module):
    """Post-norm blocks as torch has them, with ReLU between their two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(pictures[:, 0])).mean(1))


@situation(
    "https://github.com/autonomousvision/transfuser/issues/146",
    first="dead_channels net.blocks.layers.*.linear1: knocked out",
    advice=("lr=0.1 of Adam",),
    besides=("dead_channels *.linear1: *", "starved_channels *: *", "update_too_large *: *", "vanishing_gradient *: *"),
    never=("add norms", "no norm", "put a norm"),
)
def relus_in_the_mlps_of_a_transformer_die_at_a_high_rate_of_adam() -> DeadKernelMonitor:
    monitor = train(Encoder(), lambda parameters: torch.optim.Adam(parameters, lr=0.1), epochs=3)
    assert sum(len(layer.dead) for layer in last(monitor).layers) > 10
    return monitor


@situation(
    "https://datarekha.com/interview/deep-learning/dead-relu-problem/",
    first=("dead_channels net.*: off-scale inputs", "update_too_large *: off-scale inputs"),
    advice=("Scale what enters",),
    besides=("dead_channels net.*: *", "starved_channels net.*: dead downstream"),
    never=("weight decay", "add norms"),
)
def pixels_from_0_to_255_and_every_picture_gets_the_same_answer() -> DeadKernelMonitor:
    pictures, labels = digits().tensors
    pictures = 255 * (pictures - pictures.min()) / (pictures.max() - pictures.min())
    eye = Eye("net.2", "net.4")
    monitor = train(mlp(64, 32, 32, 10), sgd(0.01), data=TensorDataset(pictures, labels), epochs=3, beside=[eye])
    report = last(monitor)
    assert report["net.1"].dead == eye.never("net.2")
    assert report["net.3"].dead == eye.never("net.4")
    assert len(report["net.1"].dead) + len(report["net.3"].dead) > 16
    return monitor


@situation(
    "https://arxiv.org/abs/1903.06733",
    first=("dead_channels net.*: born dead",),
    advice=("He initialisation",),
    besides=("dead_channels net.*: *", "starved_channels net.*: *", "no_gradient *: *", "zero_kernels *: *"),
    never=("learning rate (", "weight decay"),
)
def a_narrow_deep_network_is_dead_from_the_first_draw() -> DeadKernelMonitor:
    """Width 2 and 12 layers: born dead in 9 draws of 10; drawn again until it is, by a forward pass by hand."""
    inputs = torch.linspace(-(3**0.5), 3**0.5, 256)[:, None]
    while True:
        layers = [[nn.Linear(i, o), nn.ReLU()] for i, o in pairwise([1, *[2] * 11])]
        net = he_(nn.Sequential(*(module for pair in layers for module in pair), nn.Linear(2, 1)))
        if not bool((net[:-1](inputs) > 0).any()):
            break
    monitor = train(net, sgd(1e-3), data=TensorDataset(inputs, inputs.abs()), loss=F.mse_loss)
    x, gone = inputs, []
    for name, module in net.named_children():
        x = module(x)
        if isinstance(module, nn.ReLU) and not bool((x > 0).any()):
            gone.append(f"net.{int(name) - 1}")
    report = last(monitor)
    assert [layer.name for layer in report.layers if len(layer.dead) == layer.channels] == gone
    assert report.problems[0].findings[0].layer == gone[0]
    return monitor


class SparseCode(nn.Module):
    """A ReLU autoencoder four times as wide as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.off, self.decoder = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = pictures.flatten(1)
        code = self.off(self.encoder(x))
        return self.decoder(code), x, code


class WithPenaltyOnCode(Training):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        out, x, code = self.net(batch[0])
        return F.mse_loss(out, x) + 0.2 * code.sum(1).mean()


@situation(
    "https://github.com/decoderesearch/SAELens/issues/543",
    first="dead_channels net.encoder: *",
    never=("weight decay", "add norms"),
)
def most_latents_of_a_sparse_autoencoder_never_fire() -> DeadKernelMonitor:
    module = WithPenaltyOnCode(SparseCode(), lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    eye = Eye("net.off")
    monitor = train(module, epochs=8, beside=[eye])
    assert last(monitor)["net.encoder"].dead == eye.never("net.off")
    assert len(eye.never("net.off")) > 128
    return monitor


@situation(
    "https://github.com/ProteomicsML/ProteomicsML/pull/203",
    first="dead_channels net.3: *",
    advice=("outputs of the network", "take away the rectifier"),
    besides=("starved_channels net.1: dead downstream", "no_gradient *: *"),
    never=("prune", "wider"),
)
def outputs_behind_a_relu_are_all_zero_and_stay_so() -> DeadKernelMonitor:
    """Two of three targets are negative: behind a ReLU their outputs go to zero and cannot come back."""
    pictures = digits().tensors[0]
    targets = torch.tensor([-3.0, -3.0, 1.0]).expand(len(pictures), 3)
    net = nn.Sequential(*mlp(64, 32, 3), nn.ReLU())
    eye = Eye("net.4")
    monitor = train(net, sgd(0.2), data=TensorDataset(pictures, targets), loss=F.mse_loss, epochs=6, beside=[eye])
    report = last(monitor)
    assert report["net.3"].dead == eye.never("net.4") == [0, 1]
    assert report.savings is None or report.savings.channels == 0
    assert serious(report)
    return monitor


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, 32)
        with torch.no_grad():
            self.encoder.bias[[3, 5, 7]] = -50.0

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.flatten(1)
        self.code = self.encoder(x).relu()
        return F.linear(self.code, self.encoder.weight.t()).view_as(pictures)


@situation(
    "https://github.com/greenelab/tybalt/pull/123",
    first="dead_channels net.encoder: shift driven negative",
    advice=("Set the shift of these channels to 0",),
)
def hidden_units_of_a_tied_autoencoder_are_dead() -> DeadKernelMonitor:
    pictures = digits().tensors[0]
    net = Tied()
    monitor = train(net, sgd(0.1), data=TensorDataset(pictures, pictures), loss=F.mse_loss)
    with torch.no_grad():
        net(pictures)
    truth = (~(net.code > 0).any(0)).nonzero().flatten().tolist()
    assert last(monitor)["net.encoder"].dead == truth == [3, 5, 7]
    return monitor


class Separable(nn.Module):
    """Depthwise and pointwise convolutions with batch norms, as in MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.depth_norm = nn.BatchNorm2d(16)
        self.pointwise, self.point_norm = nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(pictures)).relu()
        x = self.depth_norm(self.depthwise(x)).relu()
        return self.head(self.point_norm(self.pointwise(x)).relu().mean((2, 3)))


@situation(
    "https://github.com/matterport/Mask_RCNN/pull/306",
    first="dead_channels net.depthwise: shift driven negative",
    besides=("starved_channels net.stem: dead downstream",),
    advice=("Set the shift",),
    never=("outgoing zero", "weights that read them are zero"),
)
def channels_of_a_depthwise_network_are_dead_and_starve_those_before_them() -> DeadKernelMonitor:
    """Each channel of a depthwise convolution has one reader: a dead one starves that very channel, and no other."""
    net = Separable()
    with torch.no_grad():
        net.depth_norm.bias[[2, 9]] = -20.0
    monitor = train(net, sgd(0.1))
    report = last(monitor)
    assert report["net.depthwise"].dead == [2, 9]
    assert report["net.stem"].starved == [2, 9]
    assert len(report.problems) == 1
    return monitor


class Bounded(nn.Module):
    """Two layers; what the first makes is cut off at a hundredth of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.first(pictures.flatten(1)).clamp(0, 1e-4))


@situation(
    "https://github.com/graphdeco-inria/gaussian-splatting/issues/1046",
    first="saturated_channels net.first: saturated",
    advice=("a norm before the activation",),
)
def activations_are_cut_off_far_below_what_they_are() -> DeadKernelMonitor:
    net = Bounded()
    before = net.first.weight.clone()
    monitor = train(net)
    never_moved = (net.first.weight == before).all(1).nonzero().flatten().tolist()
    assert never_moved
    assert set(never_moved) <= set(last(monitor)["net.first"].saturated)
    return monitor


@situation(
    "https://cs231n.github.io/neural-networks-2/",
    first="dead_channels net.1: shift driven negative",
    besides=("dead_channels net.3: upstream dead", "starved_channels net.3: *", "dead_channels net.3: *"),
    advice=("how it is initialised",),
    never=("the draw of the initial weights", "learning rate"),
)
def all_biases_of_a_layer_begin_at_minus_eight() -> DeadKernelMonitor:
    net = mlp(64, 32, 32, 10)
    nn.init.constant_(net[1].bias, -8.0)
    pictures = digits().tensors[0]
    assert not bool((net[1](pictures.flatten(1)) > 0).any())
    return train(net)
