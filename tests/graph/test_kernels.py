"""Every kind of kernel, with channels killed by hand, and modules that are used more than once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from helpers.tiny_nets import DEAD, Net, chain, conv, images, kill, negative, reader_of, rows, watch


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


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
    assert reader_of(net, x[:4]).facts["first"].source.parameter is None


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


class Octave(nn.Conv2d):
    """Two convolutions that share one weight by halves."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.conv2d(x, self.weight[:4]), F.conv2d(x[:, :2], self.weight[4:, :2])], 1)


def test_a_weight_used_by_parts_has_each_kernel_read_where_it_is_used() -> None:
    first = negative(Octave(3, 8, 3, bias=False), 1, 6)
    layer = watch(Net(lambda net, x: net.head(F.relu(net.first(x))), first=first, head=nn.Conv2d(8, 2, 1)), images())[
        "first"
    ]
    assert (layer.channels, layer.activation, layer.dead, layer.note) == (8, "relu", [1, 6], None)


def test_a_linear_layer_of_which_some_units_are_used_has_those_read() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(F.linear(x, net.first.weight[2:6]))),
        first=negative(nn.Linear(5, 8, bias=False), 1, 4),
        head=nn.Linear(4, 2),
    )
    layer = watch(net, rows(8, 5))["first"]
    assert (layer.dead, layer.zero_gradient) == ([4], [0, 1, 6, 7])


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


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", REWEIGHTED)
def test_data_that_a_reparametrized_layer_makes_for_the_right_of_a_product_is_no_weight(kind: str) -> None:
    net = Net(
        lambda net, x: net.other(x) @ net.first(x).t(),
        first=REWEIGHTED[kind](nn.Linear(5, 8)),
        other=nn.Linear(5, 8),
    )
    report = watch(net, rows(8, 5))
    assert {layer.name: len(layer.states) for layer in report.layers} == {"other": 8, "first": 8}
    assert {layer.activation for layer in report.layers} == {"attention"}


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
