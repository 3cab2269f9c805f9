"""Whether all that reads a channel gets 0 of it where its activation is off, or its kernel 0: then it may go."""

from __future__ import annotations

import heapq

import torch

from lightning_deadkernel.graph.activations import ACTIVATIONS
from lightning_deadkernel.graph.kernel_ops import KernelOps
from lightning_deadkernel.graph.ops import KEEPS_ZERO, MATMULS, NORMS, RECURRENCES

HIDES_OFF = frozenset({"Threshold", "Where", "MaskedFill"})
"""Rectifiers that do not tell what they put in the place of what they hold back."""
SUMS = frozenset({"Add", "Sub", "Rsub"})


def hands_on_zero(kernels: KernelOps, start: dict[int, bool], own: frozenset[int] = frozenset()) -> bool:
    """Whether layers, and what sums the channel up with other data, get exactly 0 of it, and the loss nothing at all.

    Args:
        kernels: the kernel ops of the graph.
        start: nodes -> whether what they make of the channel is 0, and not another number.
        own: ids of parameters that are 0 for the channel.
    """
    graph, ops, zero = kernels.graph, kernels.ops, dict(start)
    queue = [(graph.rank[reader], reader) for node in start for reader, _ in graph.readers[node]]
    heapq.heapify(queue)
    while queue:
        node = heapq.heappop(queue)[1]
        if node in zero:
            continue
        values = [value and (zero.get(value[0]), graph.parameters[value[0]]) for value in graph.inputs[node]]
        states = [value[0] for value in values if value and value[0] is not None]
        beside = [value for value in values if value is None or value[0] is None]
        if (node in ops and ops[node].layer is not None) or graph.names[node] in RECURRENCES:
            if not all(states):
                return False
            continue
        if graph.names[node] in SUMS and all(states) and any(value and value[1] is None for value in beside):
            continue  # what it is added to stays as it is
        known = len(values) > 1 and all(value and value[1] is not None and value[1] <= own for value in beside)
        zero[node] = _makes_zero(kernels, node, [bool(value and value[0]) for value in values], all(states), known)
        for reader, _ in graph.readers[node]:
            heapq.heappush(queue, (graph.rank[reader], reader))
    return all(graph.readers[node] for node in zero)  # but for the loss


def _makes_zero(kernels: KernelOps, node: int, at: list[bool], alike: bool, known: bool) -> bool:
    """Whether a node makes 0 of arguments of which some are 0.

    Args:
        kernels: the kernel ops of the graph.
        node: its index.
        at: of each argument, whether it is 0.
        alike: all that depend on the channel are.
        known: all others are, too.
    """
    name, live = kernels.graph.names[node], kernels.graph.nodes[node]
    if name == "Pow":
        return alike and bool(getattr(live, "_saved_exponent", 0) > 0)
    if name == "Mul" or (node in kernels.ops and name in MATMULS):
        return any(at)
    if name == "Div":
        return at[0] and not any(at[1:])
    if name in SUMS or name in NORMS:
        return alike and known
    if not alike or name not in ACTIVATIONS or name in KEEPS_ZERO:
        return alike and name in KEEPS_ZERO
    activation = None if name == "Glu" or name in HIDES_OFF else ACTIVATIONS[name](live)
    return activation is not None and activation.saved == "self" and not activation.output(torch.zeros(1)).any()
