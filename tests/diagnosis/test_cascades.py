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
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader
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
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_read_dead_kernels_and_have_faded_are_named(way: str) -> None:
    torch.manual_seed(0)
    net = WAYS[way]()
    kill(net.conv, *DEAD)
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net.training_step([images()], 0).grad_fn)
    (consumer,) = reader.consumers("conv") or ()
    with torch.no_grad():
        net.next.weight[:, [place for channel in DEAD for place in consumer.inputs(channel)]] *= 1e-30
    report = watch(net, images())
    assert report["conv"].dead == list(DEAD)
    note = report["next"].note or ""
    assert "its weights that read 2 dead or zero kernels of conv (1, 4) are next to zero, too (at most " in note
    assert note.endswith("): they go with these")
    assert report["conv"].note is None


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
