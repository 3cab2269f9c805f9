"""All ways of an output, against a list of all paths through the same random network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.paths import Ways
from lightning_deadkernel.graph.topology import GraphMap, walk

OPS = ("relu", "scale", "norm", "pool", "drop")
step = st.tuples(st.sampled_from(OPS), st.integers(0, 5), st.integers(0, 5))
"""(op, place of its input, place of what is added to it) among the values so far."""


class Random(nn.Module):
    """conv -> a random network without kernels -> head, which reads the last value (and a second one)."""

    def __init__(self, steps: list[tuple[str, int, int]], heads: list[int]) -> None:
        super().__init__()
        self.steps, self.heads = steps, heads
        self.conv, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in steps)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.conv(x)]
        for (op, a, b), norm in zip(self.steps, self.norms, strict=True):
            y = values[a % len(values)]
            if b < len(values):
                y = y + values[b]
            values.append(_apply(op, y, norm))
        return sum(self.head(values[place % len(values)]).mean() for place in self.heads)  # type: ignore[return-value]

    def expected(self) -> tuple[int, bool]:
        """(activations heard directly, whether some way to a head meets none), by following the channels forward.

        A value is *raw* if some way from the kernel to it meets no activation.
        """
        raw, gates = [True], []
        inputs: list[list[int]] = [[]]
        for op, a, b in self.steps:
            sources = [a % len(raw)] + ([b] if b < len(raw) else [])
            inputs.append(sources)
            heard = any(raw[s] for s in sources)
            gates.append(op == "relu" and heard)
            raw.append(heard and op != "relu")
        used = {place % len(raw) for place in self.heads}
        for value in range(len(raw) - 1, -1, -1):
            if value in used:
                used.update(inputs[value])
        gates_used = sum(gate for place, gate in enumerate(gates, 1) if place in used)
        return gates_used, any(raw[place % len(raw)] for place in self.heads)


def _apply(op: str, y: Tensor, norm: nn.Module) -> Tensor:
    if op == "relu":
        return F.relu(y)
    if op == "scale":
        return y * 2.0
    if op == "norm":
        return norm(y)  # type: ignore[no-any-return]
    if op == "pool":
        return F.max_pool2d(y, 3, stride=1, padding=1)
    return F.dropout(y, 0.5)


def ways_of(model: Random, remember: bool = True) -> Ways:
    torch.manual_seed(0)
    graph = read(model, torch.rand(2, 2, 4, 4))
    if not remember:
        graph.ways_after = _Forgetful()
    index = min(graph.kernels, key=graph.rank.__getitem__)
    graph.nodes = graph.kept  # type: ignore[attr-defined]
    layer, _, weight, _ = graph.kernels[index]
    assert layer is not None
    at = graph._output_axis(index, layer, weight)
    assert at is not None
    return graph.follow(index, at)


class _Forgetful(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        return


def read(model: nn.Module, x: Tensor) -> GraphMap:
    nodes, _ = walk(model(x).mean().grad_fn)
    graph = GraphMap(nodes, LayerTable.of(model, None, None))
    graph.kept = nodes  # type: ignore[attr-defined]
    return graph


networks = st.builds(Random, st.lists(step, max_size=8), st.lists(st.integers(0, 8), min_size=1, max_size=2))


@settings(max_examples=150, deadline=None)
@given(networks)
def test_a_kernel_is_heard_at_the_first_activations_of_all_its_ways_and_openly_where_one_meets_none(
    model: Random,
) -> None:
    gates, is_open = model.expected()
    ways = ways_of(model)
    assert not ways.unknown
    assert ways.lost is None
    assert ways.open == is_open
    assert len({tap.node for tap in ways.taps}) == len(ways.taps) == gates


@settings(max_examples=75, deadline=None)
@given(networks)
def test_what_is_remembered_of_other_layers_changes_no_way(model: Random) -> None:
    fresh, remembered = ways_of(model, remember=False), ways_of(model)
    assert {tap.node for tap in fresh.taps} == {tap.node for tap in remembered.taps}
    assert (fresh.open, fresh.unknown, fresh.lost, fresh.shared) == (
        remembered.open,
        remembered.unknown,
        remembered.lost,
        remembered.shared,
    )


def block_ways(f: Any) -> Ways:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(f(self.conv(x)))  # type: ignore[no-any-return]

    graph = read(Model(), torch.rand(2, 2, 4, 4))
    return next(entry.ways for entry in graph.found if entry.layer.name == "conv")


def test_a_norm_made_of_arithmetic_is_one_way_and_is_known_as_a_norm() -> None:
    ways = block_ways(lambda x: F.relu((x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)))
    assert (len(ways.taps), ways.open, ways.unknown, ways.composed_norm) == (1, False, [], True)


def test_an_average_over_channels_that_joins_nothing_again_has_lost_them() -> None:
    assert block_ways(lambda x: F.relu(x.mean(1, keepdim=True)).expand(-1, 4, -1, -1)).lost == "Mean"


def test_dropout_is_no_gate_whatever_it_drops() -> None:
    torch.manual_seed(0)
    ways = block_ways(lambda x: F.relu(F.dropout(x, 0.9)))
    assert (len(ways.taps), ways.open, ways.unknown) == (1, False, [])


def test_a_mask_made_of_the_channels_themselves_is_unreadable() -> None:
    assert block_ways(lambda x: x * (x > 0)).unknown == ["a product with a mask"]
    assert block_ways(lambda x: x * torch.sigmoid(x)).unknown == ["a product of the channels with their own activation"]


def test_a_gate_of_another_branch_leaves_the_channels_followable() -> None:
    ways = block_ways(lambda x: F.relu(x * torch.sigmoid(torch.ones(4, 1, 1, requires_grad=True) * 2)))
    assert (len(ways.taps), ways.unknown) == (1, [])
