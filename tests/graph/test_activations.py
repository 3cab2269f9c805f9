"""What the graph reader makes of each activation, and of each op between a kernel and it; channels killed by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decompositions  # what CUDA runs where it must be deterministic
from torch.nn.utils import prune

from helpers.tiny_nets import DEAD, Net, between, conv, images, kill, reader_of, rows, watch
from lightning_deadkernel.graph.facts import LayerFacts
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphMap, GraphReader
from lightning_deadkernel.graph.topology import walk


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def read(model: nn.Module, x: Tensor) -> GraphMap:
    table = LayerTable.of(model, None, None)
    nodes, _ = walk(model(x).square().mean().grad_fn)
    return GraphMap(nodes, table, {}, {layer.name: LayerFacts(layer) for layer in table.layers})


def test_two_steps_of_the_same_model_have_equal_keys_and_another_graph_has_another() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    one, two = (walk(model(rows(2, 4)).sum().grad_fn)[1] for _ in range(2))
    other = walk(model(model(rows(2, 4))).sum().grad_fn)[1]
    assert one == two
    assert hash(one) == hash(two)
    assert one != other


def test_no_node_of_a_step_is_kept_alive() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    reader = GraphReader(LayerTable.of(model, None, None))
    hidden = weakref.ref(model[1].register_forward_hook(lambda module, args, out: None) and model[1])
    loss = model(rows(2, 4)).sum()
    activation = weakref.ref(loss.grad_fn.next_functions[0][0].next_functions[1][0]._saved_result)
    _, found, _ = reader.read(loss.grad_fn)
    assert len(found.reads) == 1
    del loss
    assert hidden() is model[1]
    assert activation() is None


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))  # type: ignore[no-any-return]


def test_ways_that_layers_of_one_stream_share_are_found_for_each_of_them() -> None:
    blocks = 12
    model = nn.Sequential(*[PreActivation(2) for _ in range(blocks)], nn.ReLU(), nn.Conv2d(2, 1, 1))
    graph = read(model, images(2, 2, 4))
    reads = {use.layer.name: [read.node for read in use.paths.reads] for use in graph.uses}
    for i in range(blocks):  # every later block's gate, and the last one
        assert len(reads[f"{i}.conv"]) == blocks - i
        assert set(reads[f"{i}.conv"][1:]) == set(reads[f"{min(i + 1, blocks - 1)}.conv"]) or i == blocks - 1
    assert not any(use.paths.reaches for use in graph.uses[:-1])


def test_producers_and_consumers_are_the_neighbours_behind_the_activations() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    )
    table = LayerTable.of(model, None, None)
    reader = GraphReader(table)
    reader.read(model(images(4)).square().mean().grad_fn)
    found = {name: reader.consumers(name) for name in ("0", "3", "6")}
    assert [(c.layer, c.parameters_per_channel) for c in found["0"] or ()] == [("3", 54)]
    assert [(c.layer, c.parameters_per_channel) for c in found["3"] or ()] == [("6", 80)]
    assert found["6"] is None
    assert [reader.facts[name].producers for name in ("0", "3", "6")] == [None, {"0"}, {"3"}]


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
    "erfinv before the activation": lambda x: F.relu(torch.erfinv(x / 1000)),
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


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "channels picked by index": lambda x: F.relu(x[:, torch.arange(7, -1, -1)]),
    "channels picked by index_select": lambda x: F.relu(x.index_select(1, torch.arange(7, -1, -1))),
    "channel shuffle": lambda x: F.relu(F.channel_shuffle(x, 2)),
    "channel shuffle by views": lambda x: F.relu(x.view(4, 2, 4, 8, 8).transpose(1, 2).reshape(4, 8, 8, 8)),
    "channels flipped": lambda x: F.relu(x.flip(1)),
    "channels rolled": lambda x: F.relu(x.roll(1, 1)),
    "pixel shuffle": lambda x: F.relu(F.pad(F.pixel_shuffle(x, 2), (0, 0, 0, 0, 0, 6))),
    "pixel unshuffle": lambda x: F.relu(F.pixel_unshuffle(x, 2)).view(4, 8, 4, 4, 4).mean(2),
    "channels over two axes": lambda x: F.relu(x.view(4, 2, 4, 8, 8)).view(4, 8, 8, 8),
    "channels over three axes": lambda x: F.relu(x.view(4, 2, 2, 2, 8, 8).transpose(1, 3)).reshape(4, 8, 8, 8),
    "an index twice over": lambda x: F.relu(x[:, torch.tensor([7, 1, 0, 1, 2, 3, 4, 5, 6])])[:, 1:],
    "a shuffle of a half": lambda x: F.relu(F.channel_shuffle(torch.cat([x, x], 1), 4)[:, 1:9]),
    "the half of a shuffle": lambda x: F.relu(F.channel_shuffle(x, 2).chunk(2, 1)[0]).repeat(1, 2, 1, 1),
    "an identity of pooling": lambda x: F.relu(F.adaptive_avg_pool2d(x.transpose(1, 2), (8, 8)).transpose(1, 2)),
    "cut and turned in both": lambda x: F.relu(x.view(4, 2, 4, 8, 8).flip(1, 2).roll((1, -1), (1, 2))).flatten(1, 2),
    "unbound groups": lambda x: torch.cat([F.relu(part) for part in x.view(4, 2, 4, 8, 8).unbind(1)], 1),
    "selected groups": lambda x: torch.cat([F.relu(x.view(4, 4, 2, 8, 8)[:, i]) for i in range(4)], 1),
    "channels unbound": lambda x: torch.stack([F.relu(channel) for channel in x.unbind(1)], 1),
}


LEFT_OUT = {"a shuffle of a half": [3, 6, 7], "the half of a shuffle": [2, 3, 6, 7]}


@pytest.mark.parametrize("op", MOVED)
def test_channels_that_are_only_moved_are_read_where_they_are(op: str) -> None:
    layer = watch(between(lambda net, x: MOVED[op](x)), images())["conv"]
    assert (layer.activation, layer.dead) == ("relu", list(DEAD))
    assert layer.zero_gradient == LEFT_OUT.get(op, [])


@pytest.mark.parametrize("fixed", [True, False])
def test_an_order_of_the_channels_that_changes_from_step_to_step_is_not_taken_from_the_first(fixed: bool) -> None:
    order = nn.Parameter(torch.arange(7, -1, -1), requires_grad=False)
    steps: list[int] = []

    def forward(net: Any, x: Tensor) -> Tensor:
        steps.append(0)
        return net.head(F.relu(net.conv(x)[:, order if fixed else order.roll(len(steps))]))  # type: ignore[no-any-return]

    layer = watch(Net(forward, conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1)), images(12))["conv"]
    assert (layer.activation, layer.dead) == (("relu", list(DEAD)) if fixed else ("unknown", []))
    assert fixed or "Index" in (layer.note or "")


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "everything rolled": lambda x: F.relu(x.roll(3)),
    "pooling over channels": lambda x: F.relu(F.avg_pool2d(x.transpose(1, 3), 3, stride=1, padding=1).transpose(1, 3)),
    "the mean of all channels": lambda x: F.relu(x.mean(1, keepdim=True)).expand(-1, 8, -1, -1),
}

MIXED = ("pooling over channels", "the mean of all channels")
"""Of these, the ones that make one value of several channels, and do not only move them."""


@pytest.mark.parametrize("op", LOST)
def test_where_channels_lose_their_identity_the_verdict_rests_on_gradients_and_says_so(op: str) -> None:
    layer = watch(between(lambda net, x: LOST[op](x)), images())["conv"]
    assert layer.activation == ("mixed" if op in MIXED else "unknown")
    assert "mixed" in (layer.note or "")
    assert layer.dead == []
    assert layer.evidence == "gradient"


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.relu(F.dropout(x, 0.5)),
    "dropout of channels": lambda x: F.relu(F.dropout2d(x, 0.1)),
    "dropout after": lambda x: F.dropout(F.relu(x), 0.5),
    "max pooling": lambda x: F.relu(F.max_pool2d(x, 2)),
    "average pooling": lambda x: F.relu(F.avg_pool2d(x, 2)),
    "max unpooling": lambda x: F.relu(F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "global pooling": lambda x: F.relu(F.adaptive_avg_pool2d(x, 1)),
    "mean over positions": lambda x: F.relu(x.mean((2, 3)))[..., None, None],
    "upsampling": lambda x: F.relu(F.interpolate(x, scale_factor=2)),
    "bilinear upsampling": lambda x: F.relu(F.interpolate(x, scale_factor=2, mode="bilinear")),
    "bilinear upsampling by indices": lambda x: F.relu(decompositions.upsample_bilinear2d(x, [16, 16], False)),
    "bicubic upsampling by indices": lambda x: F.relu(decompositions.upsample_bicubic2d_default(x, [16, 16], False)),
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


NORMS: dict[str, tuple[nn.Module, str]] = {
    "batch": (nn.BatchNorm2d(8), "dead"),
    "batch without statistics": (nn.BatchNorm2d(8, track_running_stats=False), "dead"),
    "instance": (nn.InstanceNorm2d(8, affine=True), "dead"),
    "group of one": (nn.GroupNorm(8, 8), "dead"),
    "group": (nn.GroupNorm(2, 8), "silent"),
    "layer over channels": (nn.LayerNorm(8), "silent"),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_channel_below_zero_behind_its_norm_is_dead_unless_the_norm_takes_it_into_the_statistics_of_others(
    kind: str,
) -> None:
    norm, state = NORMS[kind]
    kill(norm, 2, 7, level=-20.0)
    last = isinstance(norm, nn.LayerNorm)

    def forward(net: Any, x: Tensor) -> Any:
        x = net.conv(x)
        x = net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if last else net.norm(x)
        return net.head(F.relu(x))

    net = Net(forward, conv=conv(), norm=norm, head=nn.Conv2d(8, 2, 1))
    layer = watch(net, images())["conv"]
    assert (layer.dead, layer.silent) == (([2, 7], []) if state == "dead" else ([], [2, 7]))
    assert layer.activation == "relu"
    assert reader_of(net, images(4)).facts["conv"].source.parameter is norm.bias


WRITTEN_NORMS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "the mean of all channels": (lambda x: x - x.mean(1, keepdim=True), "silent"),
    "F.normalize": (F.normalize, "silent"),
    "root mean square": (lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5), "silent"),
    "local response": (lambda x: F.local_response_norm(x, 2), "silent"),
    "F.normalize of positions": (lambda x: F.normalize(x, dim=2), "dead"),
    "softmax by hand": (lambda x: (e := torch.exp(x / 99)) / e.sum(1, keepdim=True) - 0.01, "silent"),
    "layer norm of all": (lambda x: F.layer_norm(x, x.shape[1:]), "silent"),
    "the mean of each channel": (lambda x: x - x.mean((2, 3), keepdim=True), "dead"),
    "of each channel": (lambda x: x / (1 + x.abs().mean((0, 2, 3), keepdim=True)), "dead"),
}


@pytest.mark.parametrize("kind", WRITTEN_NORMS)
def test_a_norm_made_of_arithmetic_is_told_by_what_its_statistics_are_taken_over(kind: str) -> None:
    f, state = WRITTEN_NORMS[kind]
    net = between(lambda net, x: F.relu(f(x) - net.shift.view(8, 1, 1)))
    net.conv.bias.data.fill_(1.0)
    net.shift = nn.Parameter(torch.full((8,), -0.1).index_fill(0, torch.tensor(DEAD), 100.0))
    layer = watch(net, images())["conv"]
    assert set(DEAD) <= set(layer.dead if state == "dead" else layer.silent)
    assert layer.dead == [] or state == "dead"
    assert (layer.activation, layer.note) == ("relu", None)


@pytest.mark.parametrize(("level", "state"), [(1.0, "dead"), (0.0, "zero-gradient")])
def test_a_zero_kernel_in_a_mean_square_is_dead_if_its_inputs_were_none(level: float, state: str) -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.norm(net.fc(x) + 0.001 * net.shift.weight[0]) - 0.1)),
        fc=nn.Linear(5, 8, bias=False),
        shift=nn.Linear(8, 1),
        norm=nn.RMSNorm(8),
        head=nn.Linear(8, 2),
    )
    with torch.no_grad():
        net.fc.weight[3] = 0.0
        net.shift.weight.fill_(1.0)[0, 3] = 0.0
    layer = watch(net, level * rows(8, 5))["fc"]
    assert layer.states[3] == state
    assert layer.activation == "relu"


def test_a_masked_kernel_in_a_norm_over_channels_is_not_dead_for_the_gradient_that_its_mask_takes() -> None:
    net = Net(lambda net, x: net.head(F.relu(F.normalize(net.fc(x), dim=1))), fc=nn.Linear(5, 8), head=nn.Linear(8, 2))
    prune.custom_from_mask(net.fc, "weight", torch.arange(8)[:, None].expand(8, 5) != 3)
    with torch.no_grad():
        net.fc.bias[3] = -1.0  # never passes the relu, and is part of every other channel's length
    assert watch(net, rows(8, 5))["fc"].states[3] != "dead"


def test_only_channels_whose_removal_changes_nothing_count_as_savings() -> None:
    def dead(norm: nn.Module) -> int:
        net = Net(
            lambda net, x: net.head(F.relu(net.norm(net.fc(x)))),
            fc=nn.Linear(5, 8),
            norm=kill(norm, 3, level=-20.0),
            head=nn.Linear(8, 2),
        )
        savings = watch(net, rows(8, 5)).savings
        assert savings is not None
        return savings.channels

    assert (dead(nn.LayerNorm(8)), dead(nn.BatchNorm1d(8))) == (0, 1)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8), nn.LayerNorm((8, 8, 8)), nn.BatchNorm2d(8, affine=False)])
def test_a_bias_before_a_norm_without_a_shift_per_channel_is_never_gradient_evidence(norm: nn.Module) -> None:
    net = between(lambda net, x: F.relu(net.norm(x)), norm=norm)
    assert watch(net, images())["conv"].activation == "relu"
    assert reader_of(net, images(4)).facts["conv"].source.parameter is None


def test_a_norm_over_another_axis_of_the_same_length_gives_the_channels_no_shift() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.norm(net.fc(x)))),
        fc=kill(nn.Linear(5, 8)),
        norm=kill(nn.BatchNorm1d(8), 3, level=-20.0),  # over eight tokens, of which the fourth never fires
        head=nn.Linear(8, 2),
    )
    layer = watch(net, rows(8, 8, 5))["fc"]
    assert 3 not in layer.dead
    assert reader_of(net, rows(4, 8, 5)).facts["fc"].source.parameter is None
