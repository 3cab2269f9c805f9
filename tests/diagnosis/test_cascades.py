"""Weights that read dead or zero kernels: which they are in the layers behind, through pooling and flattening."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny_nets import Net, images, kill, watch
from helpers.windows import Run, begun, each, layer, off, start
from lightning_deadkernel.analysis.audit import audit_state_dict
from lightning_deadkernel.observation import Consumer, InputSlice

DEAD = (1, 4)
WAYS: dict[str, Callable[[], Net]] = {
    "convolution": lambda: Net(
        lambda m, x: m.next(F.relu(m.conv(x))), conv=nn.Conv2d(3, 6, 3), next=nn.Conv2d(6, 5, 3)
    ),
    "pooled": lambda: Net(
        lambda m, x: m.next(F.max_pool2d(F.relu(m.conv(x)), 2)), conv=nn.Conv2d(3, 6, 3), next=nn.Conv2d(6, 5, 3)
    ),
    "flattened": lambda: Net(
        lambda m, x: m.next(F.relu(m.conv(x)).flatten(1)), conv=nn.Conv2d(3, 6, 3), next=nn.Linear(6 * 36, 5)
    ),
    "channels last": lambda: Net(
        lambda m, x: m.next(F.relu(m.conv(x)).permute(0, 2, 3, 1).flatten(1)),
        conv=nn.Conv2d(3, 6, 3),
        next=nn.Linear(6 * 36, 5),
    ),
    "turned over": lambda: Net(
        lambda m, x: m.next(F.relu(m.conv(x)).flip(1)), conv=nn.Conv2d(3, 6, 3), next=nn.Conv2d(6, 5, 1)
    ),
    "in groups": lambda: Net(
        lambda m, x: m.next(F.relu(m.conv(x))), conv=nn.Conv2d(3, 6, 3), next=nn.Conv2d(6, 4, 3, groups=2)
    ),
    "transposed": lambda: Net(
        lambda m, x: m.next(F.relu(m.conv(x))), conv=nn.Conv2d(3, 6, 3), next=nn.ConvTranspose2d(6, 6, 3, groups=3)
    ),
}
IN_GROUPS: dict[str, tuple[Callable[[], Net], tuple[int, ...]]] = {
    "depthwise": (
        lambda: Net(
            lambda m, x: m.next(F.relu(m.conv(x))).relu(), conv=nn.Conv2d(3, 6, 3), next=nn.Conv2d(6, 6, 3, groups=6)
        ),
        DEAD,
    ),
    "depthwise, rolled": (
        lambda: Net(
            lambda m, x: m.next(F.relu(m.conv(x)).roll(1, 1)).relu(),
            conv=nn.Conv2d(3, 6, 3),
            next=nn.Conv2d(6, 6, 3, groups=6),
        ),
        (2, 5),
    ),
    "depthwise, two kernels each": (
        lambda: Net(
            lambda m, x: m.next(F.relu(m.conv(x))).relu(), conv=nn.Conv2d(3, 6, 3), next=nn.Conv2d(6, 12, 3, groups=6)
        ),
        (2, 3, 8, 9),
    ),
}
"""Networks, and the kernels of ``next`` by which alone channels 1 and 4 of ``conv`` are read."""


def on_the_dead(net: Net) -> torch.Tensor:
    """The weights of ``next`` that read channels 1 and 4 of ``conv``, as a mask: those that these give a gradient."""
    with torch.no_grad():
        net.conv.bias.fill_(-100.0)[list(DEAD)] = 100.0
    (gradient,) = torch.autograd.grad(net.training_step([images()], 0), net.next.weight)
    return gradient != 0


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_read_dead_kernels_and_have_faded_are_named(way: str) -> None:
    torch.manual_seed(0)
    net = WAYS[way]()
    reading = on_the_dead(net)
    kill(net.conv, *DEAD)
    with torch.no_grad():
        net.next.weight[reading] *= 1e-30
    report = watch(net, images())
    assert report["conv"].dead == list(DEAD)
    note = report["next"].note or ""
    assert "its weights that read 2 dead or zero kernels of conv (1, 4) are next to zero, too (at most " in note
    assert note.endswith("): they go with these")
    assert report["conv"].note is None


def starved(net: Net) -> set[tuple[str, tuple[int, ...]]]:
    """The causes for which kernels of ``conv`` are starved, each with these."""
    kill(net.conv)
    report = watch(net, images())
    found = {(f.cause_word, f.channels) for f in report.findings if (f.kind, f.layer) == ("starved_channels", "conv")}
    assert sorted(report["conv"].starved) == sorted(channel for _, some in found for channel in some)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_kernels_whose_readers_weights_are_zero_are_starved_by_these_wherever_they_are_read(way: str) -> None:
    torch.manual_seed(0)
    net = WAYS[way]()
    reading = on_the_dead(net)
    with torch.no_grad():
        net.next.weight[reading] = 0.0
    net.next.weight.register_hook(lambda gradient: gradient.masked_fill(reading, 0.0))
    assert starved(net) == {("outgoing zero", DEAD)}


@pytest.mark.parametrize("way", IN_GROUPS)
def test_kernels_that_dead_kernels_of_a_group_alone_read_are_starved_by_these(way: str) -> None:
    torch.manual_seed(0)
    make, dead = IN_GROUPS[way]
    net = make()
    kill(net.next, *dead)
    assert starved(net) == {("dead downstream", DEAD)}


def test_weights_that_read_living_kernels_or_are_as_large_as_others_are_not_named() -> None:
    reads = {"consumers": (Consumer("next", 4, (InputSlice(0, 4, 0, 4),)),)}
    for of_next, dead in (((1.0, 1, 1, 1), off(0)), ((1e-30, 1, 1, 1), off(1)), ((0.0, 0, 0, 0), off(0))):
        run = (
            Run().next(start(), start("next")).next(layer(**reads, **dead), layer("next", input_largest=each(*of_next)))
        )
        assert run.report("next").note is None


def test_a_file_names_the_inputs_on_which_all_weights_are_next_to_zero() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5, 2))
    with torch.no_grad():
        net[2].weight[:, [1, 4]] *= 1e-33
    report = audit_state_dict(net.state_dict(), "net.pt")
    assert (report["2"].note or "").startswith("its weights on 2 of 6 inputs (1, 4) are next to zero (at most ")
    assert report["0"].note is report["4"].note is None
    assert begun().report().note is None
