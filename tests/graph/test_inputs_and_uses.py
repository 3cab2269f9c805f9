"""Parameters and gradients at the inputs, second derivatives, weights used twice, constants that change, a surprise."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import DEAD, Net, between, conv, images, kill, reader_of, rows, watch
from lightning_deadkernel.graph.kernel_ops import KernelOps


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


# -- what comes before the first layer ---------------------------------------------------------------------------


class Learned(nn.Module):
    """x op parameter."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.value, self.f = nn.Parameter(torch.rand(shape) / 10 + 0.1), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.value)


FIRST: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "BatchNorm1d": lambda: nn.BatchNorm1d(5),
    "LayerNorm": lambda: nn.LayerNorm(5),
    "a learned bias": lambda: Learned(lambda x, p: x - p, 5),
    "a learned scale": lambda: Learned(lambda x, p: p * x, 5),
    "a learned number": lambda: Learned(lambda x, p: x * p, 1),
    "PReLU": lambda: nn.PReLU(5),
    "a learned position": lambda: Learned(lambda x, p: x + p, 1, 5),
    "a gradient at the inputs": lambda: Learned(lambda x, p: x.clone().requires_grad_(), 1),
    "a norm by hand": lambda: Learned(lambda x, p: (x - x.mean(0)) / x.std(0) * p, 5),
    "a mask of the inputs": lambda: Learned(lambda x, p: x.masked_fill(x < 0.1, 0.0) * p, 5),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_parameter_that_meets_the_data_first_hides_no_layer(first: str, tokens: bool) -> None:
    if tokens and first in ("BatchNorm1d", "PReLU"):
        pytest.skip("its channels are another axis there")
    net = Net(
        lambda net, x: net.head(F.relu(net.b(F.relu(net.a(net.first(x)))))),
        first=FIRST[first](),
        a=kill(nn.Linear(5, 8), *DEAD),
        b=kill(nn.Linear(8, 6), 3),
        head=nn.Linear(6, 2),
    )
    report = watch(net, rows(8, 4, 5) if tokens else rows(8, 5))
    assert (report["a"].dead, report["b"].dead) == (list(DEAD), [3])
    assert (report["a"].note, report["b"].note) == (None, None)


def test_a_learned_image_is_data_for_the_layers_behind_it() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.conv(net.image.value + 0 * x.mean()))),
        image=Learned(lambda x, p: p, 2, 3, 6, 6),
        conv=conv(dead=DEAD),
        head=nn.Conv2d(8, 2, 1),
    )
    assert watch(net, images())["conv"].dead == list(DEAD)


def test_a_weight_computed_from_its_parameters_is_no_data() -> None:
    class Low(nn.Linear):
        """A low-rank change of the weight, as adapters make it."""

        def __init__(self) -> None:
            super().__init__(5, 8)
            self.down, self.up = nn.Parameter(torch.rand(2, 5) / 10), nn.Parameter(torch.zeros(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 1.0 + (self.up @ self.down) * 0.5, self.bias)

    net = Net(lambda net, x: net.head(F.relu(net.fc(x))), fc=kill(Low(), *DEAD), head=nn.Linear(8, 2))
    assert watch(net, rows(8, 5))["fc"].dead == list(DEAD)


# -- second derivatives ------------------------------------------------------------------------------------------


class Twice(Net):
    """The loss is `f` of the output and its derivative by the inputs."""

    def __init__(self, f: Callable[[Tensor, Tensor, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__(lambda net, x: net.body(x), **modules)
        self.f = f

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0].clone().requires_grad_()
        y = self._forward(self, x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return self.f(x, y, slope)


def penalty(x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    return y.mean() + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()


def physics(x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return (curvature + y.mean()).square().mean()


def test_a_gradient_penalty_reads_the_forward_uses_and_takes_no_input_for_a_kernel() -> None:
    body = nn.Sequential(kill(nn.Linear(6, 5), 1, 4), nn.ReLU(), kill(nn.Linear(5, 3), 2), nn.ReLU(), nn.Linear(3, 1))
    report = watch(Twice(penalty, body=body), rows(8, 6))
    assert [(la.name, la.channels, la.activation) for la in report.layers] == [
        ("body.0", 5, "relu"),
        ("body.2", 3, "relu"),
        ("body.4", 1, None),
    ]
    assert [la.dead for la in report.layers] == [[1, 4], [2], []]


class InputsFirst(nn.Module):
    """x W with a weight of (inputs, outputs): only its first use tells which axis holds the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_the_first_use_is_found_where_backward_numbers_its_nodes_anew_in_a_thread_of_its_own() -> None:
    class Penalised(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = batch[0].clone().requires_grad_()
            y = self.body(x).square().sum()
            with ThreadPoolExecutor(1) as device:  # as the engine does for the nodes of a CUDA device
                (slope,) = device.submit(torch.autograd.grad, y, x, create_graph=True).result()
            return slope.square().mean()

    report = watch(Penalised(lambda net, x: net.body(x), body=InputsFirst()), rows(8, 6))
    assert report["body"].channels == 4


def test_a_gradient_penalty_through_convolutions_is_read_too() -> None:
    body = nn.Sequential(conv(dead=DEAD), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 1, 1))
    report = watch(Twice(penalty, body=body), images())
    assert (report["body.0"].dead, report["body.0"].channels) == (list(DEAD), 8)
    assert (report["body.2"].activation, report["body.2"].channels) == ("leaky_relu", 4)


@pytest.mark.parametrize("f", [penalty, physics])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.Sigmoid])
def test_smooth_networks_under_a_derivative_keep_their_channels(f: Any, activation: type[nn.Module]) -> None:
    first = nn.Linear(1, 6)
    with torch.no_grad():
        first.weight[[0, 3]], first.bias[[0, 3]] = 1.0, -500.0
    body = nn.Sequential(first, activation(), nn.Linear(6, 4), activation(), nn.Linear(4, 1))
    report = watch(Twice(f, body=body), rows(8, 1))
    assert [la.channels for la in report.layers] == [6, 4, 1]
    assert report["body.0"].saturated == [0, 3]
    assert [la.note for la in report.layers] == [None, None, None]


# -- one weight, several uses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [6, 8])
def test_a_tied_autoencoder_has_the_channels_of_its_encoder(hidden: int) -> None:
    net = Net(
        lambda net, x: F.relu(F.linear(F.relu(net.encoder(x)), net.encoder.weight.t())),
        encoder=kill(nn.Linear(8, hidden), 1, 4),
    )
    layer = watch(net, rows(8, 8))["encoder"]
    assert (layer.channels, layer.dead, layer.activation, layer.excluded) == (hidden, [1, 4], "relu", None)


def test_a_decoder_that_uses_the_weight_for_other_values_makes_its_kernels_silent() -> None:
    net = Net(
        lambda net, x: torch.cat(
            [F.relu(net.encoder(x)).flatten(), F.linear(net.other(x), net.encoder.weight.t()).flatten()]
        ),
        encoder=kill(nn.Linear(8, 6), 1, 4),
        other=nn.Linear(8, 6),
    )
    layer = watch(net, rows(8, 8))["encoder"]
    assert (layer.channels, layer.dead, layer.silent) == (6, [], [1, 4])


def test_a_convolution_with_its_own_transpose_has_its_own_channels() -> None:
    net = Net(lambda net, x: F.conv_transpose2d(F.relu(net.conv(x)), net.conv.weight, padding=1), conv=conv(dead=DEAD))
    layer = watch(net, images())["conv"]
    assert (layer.channels, layer.dead, layer.activation) == (8, list(DEAD), "relu")


def test_a_head_that_is_used_by_two_branches_reaches_what_either_does() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.fc(x))).mean() + F.relu(net.head(F.relu(net.fc(2 * x)))).mean(),
        fc=kill(nn.Linear(5, 8), *DEAD),
        head=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 5))
    assert (report["fc"].dead, report["head"].activation) == (list(DEAD), None)


# -- constants ---------------------------------------------------------------------------------------------------

ANNEALED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "the upper bound of a clamp": lambda x, t: x.clamp(0, 1 + t),
    "the lower bound of a clamp": lambda x, t: x.clamp(-200 * t, 6) if t else x.clamp(0, 6),
    "the bounds of a hardtanh": lambda x, t: F.hardtanh(x, -200 * t, 6.0),
    "a threshold": lambda x, t: F.threshold(x, -200 * t, 0.0),
    "a leaky slope": lambda x, t: F.leaky_relu(x, t),
    "the other side of a maximum": lambda x, t: torch.maximum(x, torch.full((), -200 * t)),
}


@pytest.mark.parametrize("form", ANNEALED)
def test_constants_that_are_annealed_are_read_as_they_are(form: str) -> None:
    class Annealed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = ANNEALED[form](self.conv(batch[0]), float(batch_idx > 0))
            return self.head(x).square().mean()

    net = Annealed(lambda net, x: None, conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1))
    layer = watch(net, images(16))["conv"]
    assert layer.dead == (list(DEAD) if form == "the upper bound of a clamp" else [])


# -- at exactly zero ---------------------------------------------------------------------------------------------

AT_ZERO: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "clamp(min=0)": (lambda x: x.clamp(min=0), True),
    "clamp(0, 1)": (lambda x: x.clamp(0, 1), True),
    "maximum": (lambda x: torch.maximum(x, torch.zeros(())), True),
    "relu": (F.relu, False),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 6.0), False),
    "threshold": (lambda x: F.threshold(x, 0.0, 0.0), False),
}


@pytest.mark.parametrize("form", AT_ZERO)
def test_a_zero_kernel_is_silent_behind_what_passes_the_gradient_of_zero_and_dead_elsewhere(form: str) -> None:
    f, passes = AT_ZERO[form]
    net = between(lambda net, x: f(x))
    with torch.no_grad():
        net.conv.weight[6], net.conv.bias[6] = 0.0, 0.0
    layer = watch(net, images(4))["conv"]  # one step: afterwards it has woken
    assert (layer.dead, layer.silent) == ((list(DEAD), [6]) if passes else ([1, 4, 6], []))


# -- losses and layouts ------------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "by hand": lambda a, b: (a - b).square(),
    "kl_div": lambda a, b: F.kl_div(a, b, reduction="batchmean"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_between_two_outputs_is_no_path_past_their_activations(loss: str) -> None:
    net = Net(
        lambda net, x: LOSSES[loss](F.relu(net.a(x)), F.relu(net.b(x)) + 0.1),
        a=kill(nn.Linear(5, 8), *DEAD),
        b=kill(nn.Linear(5, 8), 2),
    )
    report = watch(net, rows(8, 5))
    assert (report["a"].dead, report["b"].dead) == (list(DEAD), [2])


def test_two_layouts_of_the_same_channels_in_one_sum_are_followed_apart() -> None:
    body = kill(nn.Conv1d(3, 4, 1), 1)
    net = Net(
        lambda net, x: net.head(F.relu((h := net.body(x)).flatten(1) + h.transpose(1, 2).flatten(1))),
        body=body,
        head=nn.Linear(16, 2),
    )
    with torch.no_grad():
        body.bias[1], body.bias[[0, 2, 3]] = -3.0, 6.0  # off alone, and on wherever another channel is added
    layer = watch(net, rows(8, 3, 4))["body"]
    assert layer.dead == []
    assert layer.activation == "relu"


def test_the_same_layout_twice_is_one() -> None:
    net = between(lambda net, x: F.relu(x.flatten(1) + x.flatten(1)).view(4, 8, 8, 8))
    assert watch(net, images())["conv"].dead == list(DEAD)


# -- surprises ---------------------------------------------------------------------------------------------------


def test_a_surprise_at_one_layer_costs_that_layer_its_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    own = KernelOps.output_part

    def surprised(self: KernelOps, index: int) -> Any:
        layer = self.ops[index].layer
        if layer is not None and layer.name == "b":
            raise TypeError("a Python scalar where a tensor was expected")
        return own(self, index)

    monkeypatch.setattr(KernelOps, "output_part", surprised)
    net = Net(
        lambda net, x: net.head(F.relu(net.b(F.relu(net.a(x))))),
        a=kill(nn.Linear(5, 8), *DEAD),
        b=nn.Linear(8, 6),
        head=nn.Linear(6, 2),
    )
    report = watch(net, rows(8, 5))
    assert report["a"].dead == list(DEAD)
    assert (report["b"].activation, report["b"].excluded) == ("unknown", None)
    assert "a Python scalar" in (report["b"].note or "")


def test_attention_in_plain_operations_is_read_whatever_it_saves() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        q, k, v = net.qkv(x).chunk(3, -1)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            x = F.scaled_dot_product_attention(q, k, v)
        return net.head(F.relu(net.out(x)))

    net = Net(forward, qkv=nn.Linear(8, 24), out=kill(nn.Linear(8, 8), *DEAD), head=nn.Linear(8, 2))
    report = watch(net, rows(8, 5, 8))
    assert (report["qkv"].dead, report["qkv"].note) == ([], None)
    assert report["out"].dead == list(DEAD)


# -- cost --------------------------------------------------------------------------------------------------------


def gru() -> Net:
    return Net(
        lambda net, x: net.head(net.body(x)[0][:, -1]), body=nn.GRU(3, 4, batch_first=True), head=nn.Linear(4, 2)
    )


def visits(steps: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many nodes are looked at to learn a recurrence of so many steps."""
    from lightning_deadkernel.graph import channel_axis, parts

    count = 0

    def counted(node: Any, slot: int = 0) -> Any:
        nonlocal count
        count += 1
        return own(node, slot)

    own = channel_axis.output_shape
    with monkeypatch.context() as patched:
        for module in (channel_axis, parts):
            patched.setattr(module, "output_shape", counted)
        reader_of(gru(), rows(2, steps, 3))
    return count


def test_learning_a_recurrence_is_linear_in_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = visits(20, monkeypatch), visits(80, monkeypatch)
    assert long < 5 * short


def test_a_recurrence_is_read_by_its_gates() -> None:
    facts = reader_of(gru(), rows(2, 6, 3)).facts
    gates = {name.removeprefix("body.weight_"): known.activation for name, known in facts.items() if "weight" in name}
    assert gates == {
        f"{part}_l0.{gate}": label
        for part in ("ih", "hh")
        for gate, label in (("reset", "sigmoid"), ("update", "sigmoid"), ("new", "tanh"))
    }
    assert all(known.readable == 15 for name, known in facts.items() if "weight" in name)
