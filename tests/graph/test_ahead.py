"""What lies between a layer and the loss, against the networks' own drawings and against a walk of every path."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_deadkernel.graph.ahead import look_ahead
from lightning_deadkernel.graph.kernel_ops import KernelOps
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.ops import NORMS, RECURRENCES
from lightning_deadkernel.graph.reader import GraphReader
from lightning_deadkernel.graph.topology import Topology, walk


def ahead(net: nn.Module, *inputs: Tensor) -> dict[str, tuple[int, int]]:
    """Layer -> (plain layers, activations with flat ends) ahead."""
    reader = GraphReader(LayerTable.of(net, None, None))
    output = net(*inputs)
    reader.read((output[0] if isinstance(output, tuple) else output).square().sum().grad_fn)
    return {name: (facts.ahead.plain, facts.ahead.bounded) for name, facts in reader.facts.items() if facts.ahead}


def linear(activation: type[nn.Module] = nn.ReLU, count: int = 4, norm: bool = False) -> nn.Sequential:
    between: list[nn.Module] = []
    for _ in range(count):
        between += [nn.Linear(6, 6), *([nn.BatchNorm1d(6)] if norm else []), activation()]
    return nn.Sequential(*between, nn.Linear(6, 2))


ROWS = torch.randn(5, 6)


def test_layers_of_a_plain_chain_are_counted_to_its_end() -> None:
    assert ahead(linear(), ROWS) == {"0": (4, 0), "2": (3, 0), "4": (2, 0), "6": (1, 0), "8": (0, 0)}


def test_flat_ends_count_the_layers_own() -> None:
    assert [bounded for _, bounded in ahead(linear(nn.Sigmoid), ROWS).values()] == [4, 3, 2, 1, 0]
    assert [bounded for _, bounded in ahead(linear(nn.Tanh), ROWS).values()] == [4, 3, 2, 1, 0]


def test_layers_with_a_norm_are_none_and_a_norm_of_the_input_is_no_help() -> None:
    assert [plain for plain, _ in ahead(linear(norm=True), ROWS).values()] == [1, 1, 1, 1, 0]
    behind = nn.Sequential(nn.BatchNorm1d(6), *linear())
    assert [plain for plain, _ in ahead(behind, ROWS).values()] == [4, 3, 2, 1, 0]


class Skips(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.branches = nn.ModuleList(linear(nn.Sigmoid, count=2) for _ in range(3))
        for branch in self.branches:
            branch[-1] = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(self.norm(x))
        return self.head(x)


@pytest.mark.parametrize("norm", [False, True])
def test_a_skip_passes_by_what_is_in_the_branches(norm: bool) -> None:
    found = ahead(Skips(norm), ROWS)
    assert found["stem"] == (1, 0)  # the head alone
    assert found["branches.0.0"] == (3, 2)  # two more in its branch, and the head
    assert found["branches.2.4"] == (1, 0)


class ByHand(nn.Module):
    """A norm made of arithmetic follows the first layer, and a gate stands beside the second one's way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gate, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
        return self.head(self.second(x).relu() * torch.sigmoid(self.gate(x)))


def test_a_gate_beside_the_way_has_flat_ends_only_for_what_it_is_made_of() -> None:
    found = ahead(ByHand(), ROWS)
    assert (found["second"][1], found["gate"][1], found["first"][1]) == (0, 1, 0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_of_a_recurrence_are_apart_in_depth_and_each_has_flat_ends(kind: type[nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(6, 6, num_layers=4), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][-1])

    found = ahead(Recurrent(), torch.randn(7, 5, 6))
    for layer in range(4):
        own = {plain_bounded[1] for name, plain_bounded in found.items() if f"_l{layer}" in name}
        assert own == {4 - layer}, found


@st.composite
def _networks(draw: st.DrawFn) -> nn.Module:
    """Layers, norms and activations in any order, some inside skips."""

    def part() -> nn.Module:
        return draw(st.sampled_from([nn.Linear(6, 6), nn.LayerNorm(6), nn.Sigmoid(), nn.ReLU(), nn.Tanh()]))

    class Skip(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    parts = [nn.Linear(6, 6)]
    for _ in range(draw(st.integers(1, 6))):
        inner = nn.Sequential(*[part() for _ in range(draw(st.integers(1, 3)))])
        parts.append(Skip(inner) if draw(st.booleans()) else inner)
    return nn.Sequential(*parts)


@settings(max_examples=60)
@given(_networks())
def test_it_is_the_least_over_every_path(net: nn.Module) -> None:
    nodes, _ = walk(net(ROWS).square().sum().grad_fn)
    graph = Topology(nodes, LayerTable.of(net, None, None))
    layers = set(KernelOps(graph).ops)
    flat = {index for index, name in enumerate(graph.names) if name in ("Sigmoid", "Tanh")}

    def paths(index: int) -> Iterator[list[int]]:
        if not graph.readers[index]:
            yield []
        for reader, _ in graph.readers[index]:
            for rest in paths(reader):
                yield [reader, *rest]

    def plain(path: list[int]) -> int:
        marks = ["layer" if i in layers else "norm" if graph.names[i] in NORMS else "" for i in path]
        return sum(mark == "layer" and after != "norm" for mark, after in pairwise([*filter(None, marks), "loss"]))

    found = look_ahead(graph, layers, normed=(), bounded=flat)
    for index in layers:
        every = list(paths(index))
        assert found[index].plain == min(map(plain, every))
        assert found[index].bounded == min(sum(i in flat for i in path) for path in every)
    assert not any(name in RECURRENCES for name in graph.names)
