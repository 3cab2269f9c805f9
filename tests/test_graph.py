"""The graph reader on networks with channels killed by hand, each trained for two real steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_nets import Net, conv, fit, images, kill, rows, watch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_deadkernel.graph import GraphMap, walk
from lightning_deadkernel.knowledge import GraphReader
from lightning_deadkernel.layers import LayerTable

DEAD = (1, 4)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def between(f: Callable[..., Tensor], **modules: nn.Module) -> Net:
    """conv (with channels 1 and 4 far below zero) -> f -> head."""
    return Net(lambda net, x: net.head(f(net, net.conv(x))), conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1), **modules)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu in place": torch.relu_,
    "clamp from 0": lambda x: x.clamp(min=0),
    "clamp in place": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "maximum of a scalar zero": lambda x: torch.maximum(x, torch.zeros(())),
    "maximum of zeros": lambda x: torch.maximum(torch.zeros_like(x), x),
    "relu6": F.relu6,
    "relu6 in place": lambda x: F.relu6(x, inplace=True),
    "clamp 0 to 6": lambda x: x.clamp(0, 6),
    "clamp 0 to 1": lambda x: x.clamp(0, 1),
    "hardtanh 0 to 6": lambda x: F.hardtanh(x, 0.0, 6.0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "threshold above zero": lambda x: F.threshold(x, 0.1, 0.0),
    "leaky relu without slope": lambda x: F.leaky_relu(x, 0.0),
    "double relu": lambda x: F.relu(F.relu(x)),
}
LABELS = {
    "relu6": "relu6",
    "clamp 0 to 6": "relu6",
    "hardtanh 0": "relu6",
    "clamp 0 to 1": "clamp",
    "thresh": "threshold",
    "leaky": "leaky_relu",
}


@pytest.mark.parametrize("gate", GATES)
def test_channels_below_every_gate_are_dead(gate: str) -> None:
    report = watch(between(lambda net, x: GATES[gate](x)), images())
    assert report["conv"].dead == list(DEAD)
    assert report["conv"].activation == next((v for k, v in LABELS.items() if gate.startswith(k)), "relu")
    assert report["head"].activation is None
    assert report["head"].dead == []


SOFT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "leaky_relu": (F.leaky_relu, "silent"),
    "leaky_relu in place": (lambda x: F.leaky_relu(x, inplace=True), "silent"),
    "rrelu": (lambda x: F.rrelu(x, training=True), "silent"),
    "elu": (F.elu, "saturated"),
    "elu in place": (lambda x: F.elu(x, inplace=True), "saturated"),
    "selu": (F.selu, "saturated"),
    "celu": (F.celu, "saturated"),
    "gelu": (F.gelu, "saturated"),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), "saturated"),
    "silu": (F.silu, "saturated"),
    "silu in place": (lambda x: F.silu(x, inplace=True), "saturated"),
    "mish": (F.mish, "saturated"),
    "hardswish": (F.hardswish, "saturated"),
    "sigmoid": (torch.sigmoid, "saturated"),
    "tanh": (torch.tanh, "saturated"),
    "hardtanh": (lambda x: F.hardtanh(x / 10), "saturated"),
    "hardsigmoid": (F.hardsigmoid, "saturated"),
    "softplus": (F.softplus, "saturated"),
}


@pytest.mark.parametrize("activation", SOFT)
def test_channels_below_an_activation_without_a_gate_are_silent_or_saturated_but_never_dead(activation: str) -> None:
    f, state = SOFT[activation]
    layer = watch(between(lambda net, x: f(x)), images())["conv"]
    assert layer.activation == activation.split()[0]
    assert (layer.dead, getattr(layer, state)) == ([], list(DEAD))


def test_prelu_is_leaky_and_becomes_no_layer_of_its_own() -> None:
    report = watch(between(lambda net, x: net.act(x), act=nn.PReLU(8)), images())
    assert (report["conv"].activation, report["conv"].silent) == ("prelu", list(DEAD))
    assert [layer.name for layer in report.layers] == ["conv", "head"]


class Cube(torch.autograd.Function):
    """A ReLU in disguise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (ctx.saved_tensors[0] > 0)


UNREADABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "a custom autograd function": Cube.apply,
    "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "x * relu6(x + 3) / 6": lambda x: x * F.relu6(x + 3) / 6,
    "x * hardsigmoid(x)": lambda x: x * F.hardsigmoid(x),
    "x * (x > 0)": lambda x: x * (x > 0),
    "x * (x > 0).float()": lambda x: x * (x > 0).float(),
    "where(x > 0, x, 0)": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "abs": torch.abs,
    "square": lambda x: x**2,
    "x * x": lambda x: x * x,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "logsigmoid": F.logsigmoid,
    "x * relu(x)": lambda x: x * F.relu(x),
    "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
}


@pytest.mark.parametrize("op", UNREADABLE)
def test_what_cannot_be_read_is_unknown_and_said_and_never_called_dead_or_healthy(op: str) -> None:
    layer = watch(between(lambda net, x: UNREADABLE[op](x)), images())["conv"]
    assert layer.activation == "unknown"
    assert layer.note
    assert layer.dead == []
    assert layer.evidence == "gradient"


def test_an_unknown_op_is_named_once_in_the_report() -> None:
    net = Net(
        lambda net, x: net.head(Cube.apply(net.b(Cube.apply(net.a(x))))), a=conv(), b=conv(8), head=nn.Conv2d(8, 2, 1)
    )
    named = [note for note in watch(net, images()).notes if "Cube" in note]
    assert len(named) == 1
    assert named[0].startswith("a:")


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "concatenation": lambda x: F.relu(torch.cat([x, x], 1))[:, :8],
    "channels picked by index": lambda x: F.relu(x[:, torch.arange(7, -1, -1)]),
    "channels picked by index_select": lambda x: F.relu(x.index_select(1, torch.arange(7, -1, -1))),
    "channel shuffle": lambda x: F.relu(F.channel_shuffle(x, 2)),
    "channel shuffle by views": lambda x: F.relu(x.view(4, 2, 4, 8, 8).transpose(1, 2).reshape(4, 8, 8, 8)),
    "channels flipped": lambda x: F.relu(x.flip(1)),
    "channels rolled": lambda x: F.relu(x.roll(1, 1)),
    "everything rolled": lambda x: F.relu(x.roll(3)),
    "pixel shuffle": lambda x: F.relu(F.pad(F.pixel_shuffle(x, 2), (0, 0, 0, 0, 0, 6))),
    "half of the channels": lambda x: F.pad(F.relu(x[:, :4]), (0, 0, 0, 0, 0, 4)),
    "channels moved by padding": lambda x: F.relu(F.pad(x, (0, 0, 0, 0, 1, -1))),
    "channels over two axes": lambda x: F.relu(x.view(4, 2, 4, 8, 8)).view(4, 8, 8, 8),
    "chunks of channels": lambda x: torch.cat([F.relu(part) for part in x.chunk(2, 1)], 1),
    "pooling over channels": lambda x: F.relu(F.avg_pool2d(x.transpose(1, 3), 3, stride=1, padding=1).transpose(1, 3)),
    "the largest of all channels": lambda x: F.relu(x.amax(1, keepdim=True)).expand(-1, 8, -1, -1),
}


@pytest.mark.parametrize("op", LOST)
def test_where_channels_lose_their_identity_the_verdict_rests_on_gradients_and_says_so(op: str) -> None:
    layer = watch(between(lambda net, x: LOST[op](x)), images())["conv"]
    assert layer.activation == "unknown"
    assert "mixed" in (layer.note or "")
    assert layer.dead == []
    assert layer.evidence == "gradient"


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.relu(F.dropout(x, 0.5)),
    "dropout of channels": lambda x: F.relu(F.dropout2d(x, 0.1)),
    "dropout after": lambda x: F.dropout(F.relu(x), 0.5),
    "max pooling": lambda x: F.relu(F.max_pool2d(x, 2)),
    "average pooling": lambda x: F.relu(F.avg_pool2d(x, 2)),
    "global pooling": lambda x: F.relu(F.adaptive_avg_pool2d(x, 1)),
    "mean over positions": lambda x: F.relu(x.mean((2, 3)))[..., None, None],
    "upsampling": lambda x: F.relu(F.interpolate(x, scale_factor=2)),
    "bilinear upsampling": lambda x: F.relu(F.interpolate(x, scale_factor=2, mode="bilinear")),
    "padding": lambda x: F.relu(F.pad(x - 1e-3, (1, 1, 1, 1))),
    "reflection padding": lambda x: F.relu(F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "channels last": lambda x: F.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "memory format": lambda x: F.relu(x.contiguous(memory_format=torch.channels_last)),
    "a flat view": lambda x: F.relu(x.flatten(1)).view(4, 8, 8, 8),
    "flat positions": lambda x: F.relu(x.flatten(2)).view(4, 8, 8, 8),
    "tokens": lambda x: F.relu(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(4, 8, 8, 8),
    "a reshape that copies": lambda x: F.relu(x.transpose(2, 3).reshape(4, 8, 64)).view(4, 8, 8, 8),
    "another axis before the channels": lambda x: F.relu(x.view(1, 32, 8, 8)).view(4, 8, 8, 8),
    "a constant map": lambda x: F.relu(x + torch.ones(8, 8)),
    "a constant per channel": lambda x: F.relu(2 * x / 3 + torch.ones(1, 8, 1, 1)),
    "a cast": lambda x: F.relu(x.double()).float(),
    "half precision": lambda x: F.relu(x.bfloat16()).float(),
    "chunks of the batch": lambda x: torch.cat([F.relu(part) for part in x.chunk(2, 0)], 0),
    "rows of the batch": lambda x: torch.stack([F.relu(part) for part in x.unbind(0)], 0),
    "a stack": lambda x: F.relu(torch.stack([x, x], 1)).sum(1),
    "a concatenation of positions": lambda x: F.relu(torch.cat([x, x], 3)),
    "rolled windows": lambda x: F.relu(x.roll((1, 1), (2, 3))),
    "flipped positions": lambda x: F.relu(x.flip(2, 3)),
    "clone and contiguous": lambda x: F.relu(x.clone().contiguous()),
    "positions picked by index_select": lambda x: F.relu(x.index_select(2, torch.tensor([0, 3]))),
    "a norm over channels": lambda x: F.relu(F.normalize(x)),
    "a root mean square norm": lambda x: F.relu(x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)),
    "local response norm": lambda x: F.relu(F.local_response_norm(x, 2)),
    "two heads behind gates": lambda x: F.relu(x) + F.relu(2 * x),
    "squeeze and excite after": lambda x: F.relu(x) * torch.sigmoid(F.relu(x).mean((2, 3), keepdim=True)),
    "a padding mask": lambda x: F.relu(x.masked_fill(torch.ones(4, 1, 8, 8).tril() == 0, 0.0)),
}


@pytest.mark.parametrize("op", BETWEEN)
def test_channels_are_followed_through_what_keeps_them(op: str) -> None:
    net = between(lambda net, x: BETWEEN[op](x))
    if op == "padding":  # a border of zeros is no output of a kernel, and does not fire
        assert watch(net, images())["conv"].dead == list(DEAD)
        return
    layer = watch(net, images())["conv"]
    assert (layer.dead, layer.activation, layer.note) == (list(DEAD), "relu", None)


HEARD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "relu(x) + x": lambda net, x: net.head(F.relu(x) + x),
    "a second head before the gate": lambda net, x: net.head(F.relu(x)).mean() + net.head(x).mean(),
    "the loss itself": lambda net, x: torch.cat([net.head(F.relu(x)).flatten(), x.flatten()]),
    "crelu's other half": lambda net, x: net.head(F.relu(x)) + net.head(-x),
}


@pytest.mark.parametrize("way", HEARD)
def test_a_kernel_heard_on_one_way_without_a_gate_is_not_dead(way: str) -> None:
    net = Net(lambda net, x: HEARD[way](net, net.conv(x)), conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1))
    layer = watch(net, images())["conv"]
    assert (layer.dead, layer.activation) == ([], None)


def test_a_kernel_is_dead_only_if_it_fires_behind_none_of_its_gates() -> None:
    net = between(lambda net, x: torch.relu(x) + torch.relu(-x))
    assert watch(net, images())["conv"].dead == []


NORMS: dict[str, nn.Module] = {
    "batch": nn.BatchNorm2d(8),
    "batch without statistics": nn.BatchNorm2d(8, track_running_stats=False),
    "group": nn.GroupNorm(2, 8),
    "instance": nn.InstanceNorm2d(8, affine=True),
    "layer over channels": nn.LayerNorm(8),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_channel_shifted_below_zero_by_its_norm_is_dead_and_its_shift_speaks_for_its_gradient(kind: str) -> None:
    norm = kill(NORMS[kind], 2, 7, level=-20.0)
    last = isinstance(norm, nn.LayerNorm)

    def forward(net: Any, x: Tensor) -> Any:
        x = net.conv(x)
        x = net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if last else net.norm(x)
        return net.head(F.relu(x))

    net = Net(forward, conv=conv(), norm=norm, head=nn.Conv2d(8, 2, 1))
    layer = watch(net, images())["conv"]
    assert (layer.dead, layer.activation) == ([2, 7], "relu")
    assert reader_of(net, images(4)).known["conv"].source.parameter is norm.bias


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8), nn.LayerNorm((8, 8, 8)), nn.BatchNorm2d(8, affine=False)])
def test_a_bias_before_a_norm_without_a_shift_per_channel_is_never_gradient_evidence(norm: nn.Module) -> None:
    net = between(lambda net, x: F.relu(net.norm(x)), norm=norm)
    assert watch(net, images())["conv"].activation == "relu"
    assert reader_of(net, images(4)).known["conv"].source.parameter is None


def test_a_norm_over_another_axis_of_the_same_length_gives_the_channels_no_shift() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.norm(net.fc(x)))),
        fc=kill(nn.Linear(5, 8)),
        norm=kill(nn.BatchNorm1d(8), 3, level=-20.0),  # over eight tokens, of which the fourth never fires
        head=nn.Linear(8, 2),
    )
    layer = watch(net, rows(8, 8, 5))["fc"]
    assert 3 not in layer.dead
    assert reader_of(net, rows(4, 8, 5)).known["fc"].source.parameter is None


def reader_of(net: Net, x: Tensor) -> GraphReader:
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net.train().training_step([x], 0).grad_fn)
    return reader


# -- kernels of every kind ---------------------------------------------------------------------------------------


def chain(first: nn.Module, x: Tensor, head: nn.Module) -> tuple[Net, Tensor]:
    return Net(lambda net, x: net.head(F.relu(net.first(x))), first=first, head=head), x


KERNELS: dict[str, Callable[[], tuple[Net, Tensor]]] = {
    "conv1d": lambda: chain(kill(nn.Conv1d(3, 8, 3), *DEAD), rows(8, 3, 9), nn.Conv1d(8, 2, 1)),
    "conv3d": lambda: chain(kill(nn.Conv3d(3, 8, 3), *DEAD), rows(8, 3, 5, 5, 5), nn.Conv3d(8, 2, 1)),
    "grouped": lambda: chain(kill(nn.Conv2d(4, 8, 3, groups=2), *DEAD), images(channels=4), nn.Conv2d(8, 2, 1)),
    "depthwise": lambda: chain(kill(nn.Conv2d(8, 8, 3, groups=8), *DEAD), images(channels=8), nn.Conv2d(8, 2, 1)),
    "depthwise times two": lambda: chain(
        kill(nn.Conv2d(4, 8, 3, groups=4), *DEAD), images(channels=4), nn.Conv2d(8, 2, 1)
    ),
    "dilated": lambda: chain(kill(nn.Conv2d(3, 8, 3, dilation=2), *DEAD), images(), nn.Conv2d(8, 2, 1)),
    "reflecting": lambda: chain(
        kill(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), *DEAD), images(), nn.Conv2d(8, 2, 1)
    ),
    "transposed": lambda: chain(kill(nn.ConvTranspose2d(3, 8, 3), *DEAD), images(), nn.Conv2d(8, 2, 1)),
    "transposed in groups": lambda: chain(
        kill(nn.ConvTranspose2d(4, 8, 3, groups=2), *DEAD), images(channels=4), nn.Conv2d(8, 2, 1)
    ),
    "transposed 1d": lambda: chain(kill(nn.ConvTranspose1d(3, 8, 3), *DEAD), rows(8, 3, 9), nn.Conv1d(8, 2, 1)),
    "linear on (N, C)": lambda: chain(kill(nn.Linear(5, 8), *DEAD), rows(8, 5), nn.Linear(8, 2)),
    "linear on (N, T, C)": lambda: chain(kill(nn.Linear(5, 8), *DEAD), rows(8, 3, 5), nn.Linear(8, 2)),
    "linear on (N, T, S, C)": lambda: chain(kill(nn.Linear(5, 8), *DEAD), rows(8, 3, 2, 5), nn.Linear(8, 2)),
    "as many tokens as channels": lambda: chain(kill(nn.Linear(8, 8), *DEAD), rows(8, 8, 8), nn.Linear(8, 2)),
    "unbatched conv": lambda: (
        Net(
            lambda net, x: torch.stack([net.head(F.relu(net.first(one))) for one in x]),
            first=conv(dead=DEAD),
            head=nn.Conv2d(8, 2, 1),
        ),
        images(),
    ),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kind_of_kernel_names_its_own_dead_channels(kernel: str) -> None:
    net, x = KERNELS[kernel]()
    layer = watch(net, x)["first"]
    assert (layer.dead, layer.activation, layer.channels) == (list(DEAD), "relu", 8)


@torch.no_grad()
def negative(module: nn.Module, *channels: int, dim: int = 0) -> nn.Module:
    """Without a bias, on positive inputs: kernels of negative weights never fire."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.abs_()
    weight.select(dim, channels[0]).neg_()
    for channel in channels[1:]:
        weight.select(dim, channel).neg_()
    return module


BIASLESS: dict[str, Callable[[], tuple[Net, Tensor]]] = {
    "conv": lambda: chain(negative(conv(bias=False), *DEAD), images(), nn.Conv2d(8, 2, 1)),
    "linear on (N, C)": lambda: chain(negative(nn.Linear(5, 8, bias=False), *DEAD), rows(8, 5), nn.Linear(8, 2)),
    "linear on (N, T, C)": lambda: chain(negative(nn.Linear(5, 8, bias=False), *DEAD), rows(8, 3, 5), nn.Linear(8, 2)),
    "transposed": lambda: chain(
        negative(nn.ConvTranspose2d(3, 8, 3, bias=False), *DEAD, dim=1), images(), nn.Conv2d(8, 2, 1)
    ),
}


@pytest.mark.parametrize("kernel", BIASLESS)
def test_kernels_without_bias_are_judged_by_their_own_gradient(kernel: str) -> None:
    net, x = BIASLESS[kernel]()
    layer = watch(net, x)["first"]
    assert (layer.dead, layer.activation) == (list(DEAD), "relu")
    assert reader_of(net, x[:4]).known["first"].source.parameter is None


class Raw(nn.Module):
    """A weight without a layer class; the functional op is the user's."""

    def __init__(self, shape: tuple[int, ...], f: Callable[[Tensor, Tensor], Tensor], dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(shape) + 0.1)
        self.f = f
        negative(self, *DEAD, dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.weight)


RAW: dict[str, tuple[tuple[int, ...], int, Callable[[Tensor, Tensor], Tensor], Tensor, nn.Module]] = {
    "x @ w": ((5, 8), 1, lambda x, w: x @ w, rows(8, 5), nn.Linear(8, 2)),
    "(N, T, C) @ w": ((5, 8), 1, lambda x, w: x @ w, rows(8, 3, 5), nn.Linear(8, 2)),
    "square x @ w": ((8, 8), 1, lambda x, w: x @ w, rows(8, 8), nn.Linear(8, 2)),
    "square x @ w.T": ((8, 8), 0, lambda x, w: x @ w.T, rows(8, 8), nn.Linear(8, 2)),
    "w @ x": ((8, 5), 0, lambda x, w: (w @ x.T).T, rows(8, 5), nn.Linear(8, 2)),
    "F.linear": ((8, 5), 0, F.linear, rows(8, 5), nn.Linear(8, 2)),
    "F.conv2d": ((8, 3, 3, 3), 0, F.conv2d, images(), nn.Conv2d(8, 2, 1)),
    "einsum": ((5, 8), 1, lambda x, w: torch.einsum("nti,io->nto", x, w), rows(8, 3, 5), nn.Linear(8, 2)),
    "einsum, turned": ((8, 5), 0, lambda x, w: torch.einsum("nti,oi->nto", x, w), rows(8, 3, 5), nn.Linear(8, 2)),
}


@pytest.mark.parametrize("op", RAW)
def test_a_plain_parameter_that_a_product_consumes_is_a_layer_with_its_channels_found(op: str) -> None:
    shape, dim, f, x, head = RAW[op]
    net, x = chain(Raw(shape, f, dim), x, head)
    layer = watch(net, x)["first"]
    assert (layer.dead, layer.activation, layer.channels) == (list(DEAD), "relu", 8)


class Standardized(nn.Conv2d):
    """A subclass with a forward of its own (weight standardisation)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, padding=1)


def test_a_subclass_with_its_own_forward_is_watched_like_its_parent() -> None:
    net = Net(lambda net, x: net.head(F.relu(net.first(x))), first=kill(Standardized(3, 8, 3), *DEAD), head=conv(8, 2))
    layer = watch(net, images())["first"]
    assert (layer.dead, layer.activation, layer.kind) == (list(DEAD), "relu", "Standardized")


REWEIGHTED: dict[str, Callable[[Any], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "legacy weight_norm": nn.utils.weight_norm,
    "legacy spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda module: prune.random_unstructured(module, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", REWEIGHTED)
@pytest.mark.parametrize("base", ["conv", "linear"])
def test_reparametrized_weights_are_one_layer_with_its_own_name(kind: str, base: str) -> None:
    if base == "conv":
        first, head, x = conv(dead=DEAD), conv(8, 2), images()
    else:
        first, head, x = kill(nn.Linear(8, 8), *DEAD), nn.Linear(8, 2), rows(8, 8)
    net, x = chain(REWEIGHTED[kind](first), x, head)
    report = watch(net, x)
    assert [layer.name for layer in report.layers] == ["first", "head"]
    assert (report["first"].dead, report["first"].activation) == (list(DEAD), "relu")
    assert report["first"].kind == ("Conv2d" if base == "conv" else "Linear")


# -- modules used more than once ---------------------------------------------------------------------------------


def test_a_module_called_twice_is_dead_only_where_it_fires_in_neither_call() -> None:
    both = conv(3, 3, dead=[1])
    with torch.no_grad():
        both.bias[2] = -0.2
        both.weight[2] = torch.tensor([0.5, 0.0, 0.0])[:, None, None] / 9  # fires on large inputs only
    net = Net(lambda net, x: net.head(F.relu(net.both(100 * F.relu(net.both(x))))), both=both, head=conv(3, 2))
    report = watch(net, images() * 0.1)
    assert report["both"].dead == [1]
    assert [layer.name for layer in report.layers] == ["both", "head"]


def test_siamese_use_counts_both_inputs() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        left, right = x.chunk(2, 1)
        return net.head(F.relu(net.body(left)) - F.relu(net.body(right)))

    body = conv(3, 4, dead=[3])
    with torch.no_grad():
        body.weight[0], body.bias[0] = -1.0, 0.1  # fires where the input is next to nothing
    x = torch.cat([images() + 1, torch.zeros(8, 3, 8, 8)], 1)
    report = watch(Net(forward, body=body, head=conv(4, 2)), x)
    assert (report["body"].dead, report["body"].activation) == ([3], "relu")


def test_a_module_called_with_two_activations_names_both() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.both(x)) + torch.tanh(net.both(x))), both=conv(dead=DEAD), head=conv(8, 2)
    )
    layer = watch(net, images())["both"]
    assert (layer.activation, layer.dead) == ("relu+tanh", [])


def test_tied_weights_are_watched_once_and_the_twin_says_where() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    kill(first, 2)
    kill(second, 2)
    net = Net(
        lambda net, x: net.head(F.relu(net.second(F.relu(net.first(x))))),
        first=first,
        second=second,
        head=nn.Linear(6, 2),
    )
    report = watch(net, rows(8, 6))
    assert report["first"].dead == [2]
    assert report["second"].excluded == "it shares its weight with first, where it is watched"


def test_a_weight_tied_to_an_embedding_is_watched_at_its_linear_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, 6)
            self.out = nn.Linear(6, 9, bias=False)
            self.out.weight = self.tokens.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.tokens(x))  # type: ignore[no-any-return]

    report = watch(Net(lambda net, x: net.body(x), body=Tied()), torch.arange(8).view(8, 1) % 9)
    assert [layer.name for layer in report.layers] == ["body.out"]
    assert report["body.out"].excluded is None


# -- whole architectures -----------------------------------------------------------------------------------------


def test_a_residual_block_is_gated_after_its_addition_and_forward_order_and_depth_are_the_graphs() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.c2(F.relu(net.c1(x))) + net.short(x))),
        head=conv(8, 2),
        c2=conv(8, 8, dead=[5]),
        short=conv(3, 8, dead=[5]),
        c1=conv(3, 8, dead=[1]),
    )
    report = watch(net, images())
    assert [layer.name for layer in report.layers] == ["c1", "c2", "short", "head"]
    assert [layer.depth for layer in report.layers] == [2, 1, 1, 0]
    assert [layer.dead for layer in report.layers] == [[1], [5], [5], []]


def test_a_pre_activation_block_hears_its_stream_at_every_later_gate() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        x = x + net.c1(F.relu(net.n1(x)))
        x = x + net.c2(F.relu(net.n2(x)))
        return net.head(F.relu(net.n3(x)))

    modules: dict[str, nn.Module] = {f"n{i}": nn.BatchNorm2d(8) for i in (1, 2, 3)}
    for norm in modules.values():
        kill(norm, 2, level=-20.0)
    kill(modules["n3"], 6, level=-20.0)
    net = Net(forward, stem=conv(), c1=conv(8), c2=conv(8), head=conv(8, 2), **modules)
    report = watch(net, images())
    assert [layer.dead for layer in report.layers] == [[2], [2], [2, 6], []]
    assert {layer.activation for layer in report.layers[:3]} == {"relu"}


def test_a_stream_that_ends_without_a_gate_is_heard_there() -> None:
    net = Net(
        lambda net, x: net.head((s := net.stem(x)) + net.c1(F.relu(s))), stem=conv(dead=[3]), c1=conv(8), head=conv(8)
    )
    report = watch(net, images())
    assert (report["stem"].dead, report["stem"].activation) == ([], None)


def test_the_layers_of_a_dense_block_are_not_given_the_wide_activation_as_their_own() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.norm(torch.cat([y := F.relu(net.a(x)), net.b(y)], 1)))),
        a=conv(3, 4, dead=[1]),
        b=conv(4, 4, dead=[2]),
        norm=nn.BatchNorm2d(8),
        head=conv(8, 2),
    )
    report = watch(net, images())
    assert report["a"].dead == [1]
    assert (report["b"].activation, report["b"].dead) == ("unknown", [])
    assert "Cat" in (report["b"].note or "")


def test_a_unet_finds_each_layers_own_gate_before_the_concatenation() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        skip = F.relu(net.down(x))
        deep = F.relu(net.middle(F.max_pool2d(skip, 2)))
        return net.head(F.relu(net.up(torch.cat([skip, F.interpolate(deep, scale_factor=2)], 1))))

    net = Net(
        forward, down=conv(3, 4, dead=[0]), middle=conv(4, 6, dead=[5]), up=conv(10, 4, dead=[2]), head=conv(4, 1)
    )
    report = watch(net, images())
    assert {layer.name: layer.dead for layer in report.layers} == {"down": [0], "middle": [5], "up": [2], "head": []}


def test_a_squeeze_and_excite_block_has_its_gates_told_apart() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = F.relu(net.body(x))
        gate = torch.sigmoid(net.excite(F.relu(net.squeeze(x.mean((2, 3), keepdim=True)))))
        return net.head(x * gate)

    net = Net(
        forward,
        body=conv(dead=DEAD),
        squeeze=kill(nn.Conv2d(8, 4, 1), 3),
        excite=nn.Conv2d(4, 8, 1),
        head=conv(8, 2),
    )
    report = watch(net, images())
    assert [(la.name, la.activation) for la in report.layers] == [
        ("body", "relu"),
        ("squeeze", "relu"),
        ("excite", "sigmoid"),
        ("head", None),
    ]
    assert (report["body"].dead, report["squeeze"].dead, report["excite"].dead) == (list(DEAD), [3], [])


def test_a_gate_that_reads_the_ungated_channels_makes_their_product_unknown() -> None:
    net = between(lambda net, x: x * torch.sigmoid(net.gate(x)), gate=nn.Conv2d(8, 8, 1))
    layer = watch(net, images())["conv"]
    assert layer.dead == []
    assert layer.activation is None  # the gate's kernel hears it


def test_window_partitions_and_shifts_keep_channels() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.embed(x).permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = F.relu(x)
        x = x.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c).roll((2, 2), (1, 2))
        return net.head(x)

    report = watch(Net(forward, embed=conv(dead=DEAD), head=nn.Linear(8, 2)), images())
    assert report["embed"].dead == list(DEAD)


def test_a_convnext_block_is_read_through_its_permutes_and_layer_norm() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.depthwise(x).permute(0, 2, 3, 1)
        y = net.shrink(F.gelu(net.widen(net.norm(y)))) * net.scale.weight
        return x + y.permute(0, 3, 1, 2)

    scale = nn.Module()
    scale.register_parameter("weight", nn.Parameter(torch.ones(8)))
    net = Net(
        forward,
        depthwise=nn.Conv2d(8, 8, 7, padding=3, groups=8),
        norm=nn.LayerNorm(8),
        widen=kill(nn.Linear(8, 16), 9),
        shrink=nn.Linear(16, 8),
        scale=scale,
    )
    report = watch(net, images(channels=8))
    assert [(la.name, la.activation) for la in report.layers] == [
        ("depthwise", None),
        ("widen", "gelu"),
        ("shrink", None),
    ]
    assert report["widen"].saturated == [9]


def test_a_gated_linear_unit_gives_its_gate_an_activation_and_its_value_none() -> None:
    net = Net(
        lambda net, x: net.down(F.silu(net.gate(x)) * net.up(x)),
        gate=kill(nn.Linear(5, 8), 2),
        up=nn.Linear(5, 8),
        down=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 3, 5))
    assert [(la.name, la.activation) for la in report.layers] == [("gate", "silu"), ("up", None), ("down", None)]
    assert report["gate"].saturated == [2]


@pytest.mark.parametrize("weights", [False, True])
def test_attention_watches_its_projections_and_calls_none_of_them_dead(weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    kill(attention.out_proj)
    net = Net(
        lambda net, x: net.fc(F.relu(net.attention(x, x, x, need_weights=weights)[0])),
        attention=attention,
        fc=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 5, 8))
    assert {la.name: la.activation for la in report.layers} == {
        "attention.in_proj_weight": "unknown",
        "attention.out_proj": "relu",
        "fc": None,
    }
    assert all(la.excluded is None and not la.dead for la in report.layers)


def test_a_transformer_layer_in_training_is_watched_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="relu")
    kill(layer.linear1, 3, 7)
    report = watch(Net(lambda net, x: net.body(x), body=layer), rows(8, 5, 8))
    assert report["body.linear1"].dead == [3, 7]
    assert not [la.name for la in report.layers if la.excluded]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_are_read_or_left_out_with_a_reason_and_hide_nothing_behind_them(kind: Any) -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.fc(net.body(x)[0]))),
        body=kind(5, 6, batch_first=True),
        fc=kill(nn.Linear(6, 8), *DEAD),
        head=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 3, 5))
    assert (report["fc"].dead, report["fc"].note, report["head"].note) == (list(DEAD), None, None)
    weights = [report[f"body.weight_{part}_l0"] for part in ("ih", "hh")]
    assert not any(layer.dead for layer in weights)
    assert all(layer.excluded or layer.note or layer.activation == "tanh" for layer in weights)


def test_an_lstm_is_left_out_with_its_op_as_the_reason() -> None:
    net = Net(lambda net, x: net.body(x)[0], body=nn.LSTM(5, 6))
    assert "MkldnnRnnLayer" in (watch(net, rows(8, 3, 5))["body.weight_ih_l0"].excluded or "")


# -- what is not watched -----------------------------------------------------------------------------------------


def test_frozen_and_unused_layers_are_left_out_with_their_reason() -> None:
    frozen = conv().requires_grad_(False)
    net = Net(
        lambda net, x: net.head(F.relu(net.conv(F.relu(net.frozen(x))))),
        frozen=frozen,
        conv=conv(8, 8, dead=DEAD),
        spare=conv(),
        head=conv(8, 2),
    )
    report = watch(net, images())
    assert report["frozen"].excluded == "requires_grad is False"
    assert report["spare"].excluded == "not in the graph of the loss: never used in the training step, or detached"
    assert report["conv"].dead == list(DEAD)
    assert [la.name for la in report.layers][:2] == ["conv", "head"]


def test_a_detached_branch_is_not_watched() -> None:
    net = Net(lambda net, x: net.head(F.relu(net.conv(x)).detach()), conv=conv(), head=conv(8, 2))
    assert "detached" in (watch(net, images())["conv"].excluded or "")


def test_a_layer_unused_in_one_window_is_told_from_one_never_used() -> None:
    class Late(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = F.relu(self.a(batch[0]))
            if self.current_epoch == 0:
                x = F.relu(self.b(x))
            return self.head(x).square().mean()

    net = Late(lambda net, x: None, a=conv(), b=conv(8, 8, dead=[6]), head=conv(8, 2))
    monitor = fit(net, images(), max_epochs=2)
    first, second = monitor.reports[1], monitor.reports[2]
    assert (first["b"].dead, first["b"].excluded) == ([6], None)
    assert second["b"].excluded == "not used in this window"
    assert second["a"].excluded is None


# -- graphs that change ------------------------------------------------------------------------------------------


def test_a_layer_skipped_on_most_steps_is_read_on_the_others() -> None:
    class Depth(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = F.relu(self.a(batch[0]))
            if batch_idx % 3 == 1:
                x = x + F.relu(self.b(x))
            return self.head(x).square().mean()

    net = Depth(lambda net, x: None, a=conv(dead=[0]), b=conv(8, 8, dead=[6]), head=conv(8, 2))
    report = watch(net, images(24))
    assert (report["a"].dead, report["b"].dead) == ([0], [6])


def test_random_depth_makes_new_graphs_and_loses_no_layer() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList([conv(8, 8, dead=[i]) for i in range(6)])

    def forward(net: Any, x: Tensor) -> Any:
        x = F.relu(net.stem(x))
        for block in net.blocks:
            if torch.rand(()) < 0.7:
                x = x + F.relu(block(x))
        return net.head(x)

    report = watch(Net(forward, stem=conv(), blocks=blocks, head=conv(8, 2)), images(48))
    assert [report[f"blocks.{i}"].dead for i in range(6)] == [[i] for i in range(6)]


@pytest.mark.parametrize("flat", [False, True])
def test_batches_of_changing_size_are_all_read(flat: bool) -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.conv(x)
        x = F.relu(x.flatten(1)).view(x.shape) if flat else F.relu(x)
        return net.head(x)

    net = Net(forward, conv=conv(dead=[1, 4, 7]), head=conv(8, 2))
    with torch.no_grad():
        net.conv.weight[7], net.conv.bias[7] = 1.0, -20.0  # fires only on the last, brightest batch
    batches = [images(4, size=8), images(3, size=6), images(4, size=8), images(1, size=7), images(2, size=6) * 9]
    report = watch(net, batches)
    assert (report["conv"].dead, report["conv"].activation) == (list(DEAD), "relu")


def test_single_samples_are_batches_too() -> None:
    net = between(lambda net, x: F.relu(x))
    assert watch(net, images(3), batch_size=1)["conv"].dead == list(DEAD)


def test_lazy_modules_are_watched_once_they_have_been_given_their_shape() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.first(x)).flatten(1)), first=nn.LazyConv2d(8, 3), head=nn.LazyLinear(2)
    )
    with torch.no_grad():
        net._forward(net, images(2))
        kill(net.first, *DEAD)
    assert watch(net, images())["first"].dead == list(DEAD)


@pytest.mark.parametrize("linear", [False, True])
def test_autocast_does_not_hide_a_layer(linear: bool) -> None:
    if linear:
        net, x = chain(kill(nn.Linear(5, 8), *DEAD), rows(8, 3, 5), nn.Linear(8, 2))
    else:
        net, x = chain(conv(dead=DEAD), images(), conv(8, 2))
    layer = watch(net, x, precision="bf16-mixed")["first"]
    assert (layer.dead, layer.activation, layer.note) == (list(DEAD), "relu", None)
    assert reader_of(net, x[:4]).known["first"].source.parameter is net.first.bias


def test_a_penalty_in_the_loss_keeps_dead_channels_dead() -> None:
    class Penalised(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + 1e-3 * sum(p.square().sum() for p in self.parameters())

    net = Penalised(lambda net, x: net.head(F.relu(net.conv(x))), conv=conv(dead=DEAD), head=conv(8, 2))
    assert watch(net, images())["conv"].dead == list(DEAD)


# -- the map itself ----------------------------------------------------------------------------------------------


def read(model: nn.Module, x: Tensor) -> tuple[LayerTable, GraphMap]:
    table = LayerTable.of(model, None, None)
    nodes, _ = walk(model(x).square().mean().grad_fn)
    return table, GraphMap(nodes, table)


def test_two_steps_of_the_same_model_have_equal_keys_and_another_graph_has_another() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    one, two = (walk(model(rows(2, 4)).sum().grad_fn)[1] for _ in range(2))
    other = walk(model(model(rows(2, 4))).sum().grad_fn)[1]
    assert one == two
    assert hash(one) == hash(two)
    assert one != other


def test_a_map_keeps_no_node_of_its_step_alive() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    _, graph = read(model, rows(2, 4))
    assert graph.nodes == []
    assert all(tap.activation.label == "relu" for entry in graph.found for tap in entry.ways.taps)


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))  # type: ignore[no-any-return]


def test_ways_that_layers_of_one_stream_share_are_found_for_each_of_them() -> None:
    blocks = 12
    model = nn.Sequential(*[PreActivation(2) for _ in range(blocks)], nn.ReLU(), nn.Conv2d(2, 1, 1))
    _, graph = read(model, images(2, 2, 4))
    taps = {entry.layer.name: [tap.node for tap in entry.ways.taps] for entry in graph.found}
    for i in range(blocks):  # every later block's gate, and the last one
        assert len(taps[f"{i}.conv"]) == blocks - i
        assert set(taps[f"{i}.conv"][1:]) == set(taps[f"{min(i + 1, blocks - 1)}.conv"]) or i == blocks - 1
    assert not any(entry.ways.open for entry in graph.found[:-1])


def test_producers_and_consumers_are_the_neighbours_behind_the_activations() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    )
    table = LayerTable.of(model, None, None)
    reader = GraphReader(table)
    reader.read(model(images(4)).square().mean().grad_fn)
    found = {name: reader.windows_consumers(name) for name in ("0", "3", "6")}
    assert [(c.layer, c.parameters_per_channel) for c in found["0"] or ()] == [("3", 54)]
    assert [(c.layer, c.parameters_per_channel) for c in found["3"] or ()] == [("6", 80)]
    assert found["6"] is None
    assert [reader.known[name].producers for name in ("0", "3", "6")] == [None, {"0"}, {"3"}]
