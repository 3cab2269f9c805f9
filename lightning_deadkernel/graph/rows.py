"""What the rows of a weight are, as its module's type and its shape tell: not all are kernels of one op."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lightning_deadkernel.graph.sharding import is_sharded
from lightning_deadkernel.observation import Rows

GATES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LSTM: ("input", "forget", "cell", "output"),
    nn.LSTMCell: ("input", "forget", "cell", "output"),
    nn.GRU: ("reset", "update", "new"),
    nn.GRUCell: ("reset", "update", "new"),
}
"""The gates whose kernels stand one after another in `weight_ih` and `weight_hh`, in PyTorch's order."""


@dataclass(frozen=True)
class RowSpan:
    """Some rows of a weight that mean one thing."""

    kind: Rows = "kernels"
    name: str = ""
    """Appended to the weight's name where it has several."""
    start: int = 0
    stop: int | None = None
    """None: to the last row."""
    heads: int | None = None
    """Of attention, whose rows stand one head after another; None: no heads, or not known."""


KERNELS = RowSpan()


def spans_of(module: nn.Module, tensor: str, weight: Tensor) -> tuple[RowSpan, ...]:
    """The spans of a module's weight, each with an own row in the report.

    Args:
        module: the owner.
        tensor: the weight's name on it.
        weight: its values; only the shape is looked at.
    """
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return (RowSpan("table"),)
    gates = next((names for kind, names in GATES.items() if isinstance(module, kind)), ())
    if gates and tensor.startswith(("weight_ih", "weight_hh")):
        return _equal(gates, "gate", weight)
    if isinstance(module, nn.MultiheadAttention) and tensor == "in_proj_weight":
        return _equal(("q", "k", "v"), "projection", weight, module.head_dim)
    if isinstance(module, nn.MultiheadAttention) and tensor in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return _equal(("",), "projection", weight, module.head_dim)
    return (KERNELS,)


def _equal(names: tuple[str, ...], rows: Rows, weight: Tensor, head: int = 0) -> tuple[RowSpan, ...]:
    """Spans of one size each; `head`: rows of a head, 0 where there are none."""
    if is_sharded(weight):  # a rank's rows are any
        return (RowSpan(rows),)
    size = len(weight) // len(names)
    heads = size // head if head and size % head == 0 else None
    return tuple(RowSpan(rows, name, i * size, (i + 1) * size, heads) for i, name in enumerate(names))
