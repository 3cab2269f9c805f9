"""Long graphs are learned in a time that grows as they do, and what they show is known all the same."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import pytest
from torch import Tensor, nn

from helpers.tiny_nets import rows
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader


class Stream(nn.Module):
    """What each layer reads are the activations of all before it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x).relu()
        for layer in self.layers:
            x = x + layer(x).relu()
        return x


class Cell(nn.Module):
    """A recurrence written by hand."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.inputs, self.state = steps, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inputs(x).tanh()
        for _ in range(self.steps):
            gate = (self.inputs(x) + self.state(h)).sigmoid()
            h = gate * h + (1 - gate) * self.inputs(x).relu()
        return h


def calls_to_learn(net: nn.Module) -> int:
    """Calls of functions, those that are not written in Python included."""
    loss, reader, calls = net(rows(4, 4)).sum(), GraphReader(LayerTable.of(net, None, None)), Counter[str]()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: calls.update([event]))
    try:
        reader.read(loss.grad_fn)
    finally:
        sys.setprofile(before)
    return calls["call"] + calls["c_call"]


@pytest.mark.parametrize("net", [Stream, Cell])
def test_a_network_twice_as_long_takes_twice_as_much_to_learn(net: Callable[[int], nn.Module]) -> None:
    calls_to_learn(net(4))  # what is made once
    assert calls_to_learn(net(120)) < 2.2 * calls_to_learn(net(60))


def test_the_layers_before_are_known_however_long_a_recurrence_is() -> None:
    net = nn.Sequential(Cell(100), nn.Linear(4, 1))
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(rows(4, 4)).sum().grad_fn)
    assert reader.facts["1"].producers == {"0.inputs", "0.state"}
