"""All paths of an output, against a list of all paths through the same random network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_deadkernel.graph.kernel_ops import KernelOps
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.paths import Paths
from lightning_deadkernel.graph.topology import Topology, walk
from lightning_deadkernel.graph.tracer import PathTracer

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
        """(activations reached directly, whether some path to a head meets none), by following the channels forward.

        A value is *raw* if some path from the kernel to it meets no activation.
        """
        raw, gates = [True], []
        inputs: list[list[int]] = [[]]
        for op, a, b in self.steps:
            sources = [a % len(raw)] + ([b] if b < len(raw) else [])
            inputs.append(sources)
            raw_input = any(raw[s] for s in sources)
            gates.append(op == "relu" and raw_input)
            raw.append(raw_input and op != "relu")
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


def paths_of(model: Random, shared: bool = True) -> Paths:
    """The paths of the convolution, traced alone or after all other kernels."""
    torch.manual_seed(0)
    kernels = read(model, torch.rand(2, 2, 4, 4))
    known: dict[Any, Paths] = {}
    places = sorted(kernels.ops, key=kernels.graph.rank.__getitem__, reverse=True)
    for index in places if shared else places[-1:]:
        found = kernels.output_part(index)
        assert found is not None
        paths = PathTracer(kernels, known).trace(index, found[1])
    return paths


def read(model: nn.Module, x: Tensor) -> KernelOps:
    nodes, _ = walk(model(x).mean().grad_fn)
    return KernelOps(Topology(nodes, LayerTable.of(model, None, None)))


networks = st.builds(Random, st.lists(step, max_size=8), st.lists(st.integers(0, 8), min_size=1, max_size=2))


@settings(max_examples=150)
@given(networks)
def test_a_kernel_reaches_the_first_activations_of_all_its_paths_and_goes_on_where_one_meets_none(
    model: Random,
) -> None:
    gates, is_open = model.expected()
    paths = paths_of(model)
    assert not paths.unknown
    assert paths.lost is None
    assert bool(paths.reaches) == is_open
    assert len({found.node for found in paths.reads}) == len(paths.reads) == gates


@settings(max_examples=75)
@given(networks)
def test_what_is_known_of_other_layers_changes_no_path(model: Random) -> None:
    fresh, shared = paths_of(model, shared=False), paths_of(model)
    assert {found.node for found in fresh.reads} == {found.node for found in shared.reads}
    assert (fresh.reaches, fresh.unknown, fresh.lost, fresh.shared) == (
        shared.reaches,
        shared.unknown,
        shared.lost,
        shared.shared,
    )


def block_paths(f: Any) -> Paths:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(f(self.conv(x)))  # type: ignore[no-any-return]

    kernels = read(Model(), torch.rand(2, 2, 4, 4))
    index = min(kernels.ops, key=kernels.graph.rank.__getitem__)
    found = kernels.output_part(index)
    assert found is not None
    return PathTracer(kernels, {}).trace(index, found[1])


def test_a_norm_made_of_arithmetic_is_one_path_and_is_known_as_a_norm() -> None:
    paths = block_paths(lambda x: F.relu((x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)))
    assert (len(paths.reads), paths.reaches, paths.unknown, paths.composed_norm) == (1, 0, [], True)


def test_an_average_over_channels_that_joins_nothing_again_has_lost_them() -> None:
    assert block_paths(lambda x: F.relu(x.mean(1, keepdim=True)).expand(-1, 4, -1, -1)).lost == "Mean"


def test_dropout_is_no_gate_whatever_it_drops() -> None:
    torch.manual_seed(0)
    paths = block_paths(lambda x: F.relu(F.dropout(x, 0.9)))
    assert (len(paths.reads), paths.reaches, paths.unknown) == (1, 0, [])


def test_a_product_of_the_channels_with_what_is_made_of_them_is_one_activation() -> None:
    for f in (lambda x: x * (x > 0), lambda x: x * torch.sigmoid(x), lambda x: torch.tanh(F.softplus(x)) * x):
        paths = block_paths(f)
        assert (len(paths.reads), paths.reaches, paths.unknown) == (1, 0, [])


def test_a_gate_of_another_branch_leaves_the_channels_followable() -> None:
    paths = block_paths(lambda x: F.relu(x * torch.sigmoid(torch.ones(4, 1, 1, requires_grad=True) * 2)))
    assert (len(paths.reads), paths.unknown) == (1, [])


def test_a_bound_on_a_length_is_no_activation() -> None:
    paths = block_paths(lambda x: F.relu(F.normalize(x, dim=2)))
    assert (len(paths.reads), paths.reaches, paths.unknown) == (1, 0, [])
