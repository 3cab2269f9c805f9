"""What only a graph tells of a weight's rows: whether they are experts, and whether a tensor holds kernels at all."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lightning_deadkernel.graph.channel_axis import output_shape
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.ops import FUNCTIONS, MATMULS, peek
from lightning_deadkernel.graph.topology import Topology
from lightning_deadkernel.observation import Rows

LOOKUPS = frozenset("Embedding EmbeddingBag".split())
DISTANCES = frozenset("Sub Rsub MseLoss L1Loss SmoothL1Loss HuberLoss".split())
TAKEN_FROM = frozenset("Select Unbind Index".split())
"""Ops that take some of the matrices of a batch of weights."""
NO_KERNEL_OPS = FUNCTIONS | frozenset(
    "Add Sub Rsub Mul Div Neg Addcmul Addcdiv Where Index IndexSelect Gather Cat Stack Softplus Sigmoid Tanh".split()
)
"""What is done to scales, shifts, positions and tokens, and to no kernel."""


def rows_in(graph: Topology, layer: Layer) -> Rows:
    """What the rows of a layer are, as far as its type, its shape and this graph tell."""
    leaf = graph.leaves.get(id(layer.main))
    unsettled = layer.span.kind == "table" or (layer.span.kind == "kernels" and not layer.standard)
    if unsettled and layer.main.ndim == 2 and leaf is not None:
        readers = graph.behind_views(leaf)
        if all(_picks_rows(graph, reader) for reader in readers) and _is_compared(graph, readers):
            return "codes"
    if layer.span.kind != "kernels" or layer.standard or layer.main.ndim != 3 or leaf is None:
        return layer.span.kind
    experts = len(layer.main)
    for reader in graph.behind_views(leaf):
        name = graph.names[reader]
        together = name in ("Bmm", "Baddbmm") and output_shape(graph.nodes[reader])[0] == experts
        if name in TAKEN_FROM or name == "GroupedMm" or together:
            return "experts"
    return "kernels"


def first_ops(graph: Topology, layer: Layer) -> set[str]:
    """Names of the ops that consume a weight, or a view of it."""
    return {graph.names[reader] for reader in readers_of(graph, layer)}


def readers_of(graph: Topology, layer: Layer) -> set[int]:
    """The ops that consume a weight, or a view of it."""
    leaves = [graph.leaves[id(leaf)] for leaf in layer.leaves if id(leaf) in graph.leaves]
    return {reader for leaf in leaves for reader in graph.behind_views(leaf)}


def is_factor(graph: Topology, layer: Layer) -> bool:
    """Whether a matrix is multiplied with other parameters alone, as a low-rank adapter is before it is added."""
    leaf = graph.leaves.get(id(layer.main))
    return leaf is not None and any(
        graph.names[reader] in MATMULS and graph.parameters[reader] is not None for reader in graph.behind_views(leaf)
    )


def lookups_of(graph: Topology, layer: Layer) -> tuple[int, ...]:
    """The nodes that look rows of a table up; none where it is consumed in another way as well."""
    leaf = graph.leaves.get(id(layer.main))
    found = set() if leaf is None else graph.behind_views(leaf)
    return tuple(sorted(found)) if all(graph.names[node] in LOOKUPS for node in found) else ()


def _picks_rows(graph: Topology, node: int) -> bool:
    """Whether an op takes rows of a table: by their numbers, or as a product with ones among zeros."""
    name = graph.names[node]
    if name != "Mm":
        return name in LOOKUPS or name in ("Index", "IndexSelect")
    picks = peek(graph.nodes[node], "self") if graph.inputs[node][0] is None else None
    if picks is None or picks.layout is not torch.strided:
        return False
    return bool(((picks == 0) | (picks == 1)).all() and (picks.sum(1) == 1).all())


def _is_compared(graph: Topology, lookups: Iterable[int]) -> bool:
    """Whether what is looked up is compared with something, as codes are, and read by no layer."""
    readers = {reader for node in lookups for reader in graph.behind_views(node)}
    return bool(readers) and all(graph.names[reader] in DISTANCES for reader in readers)
