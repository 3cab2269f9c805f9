"""Updates that are lost: entries of a parameter that a step leaves as they are though they have a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadkernel.evidence.buffers import on_device
from lightning_deadkernel.graph.sharding import local

ENTRIES, OF, LEAST = 1 << 12, 16, 1 << 9
"""Entries of a parameter that are asked, one in every so many of a larger one, in a network of so many parameters: a
step's share is known to 0.008. More parameters share them, down to the least, which knows it to 0.022."""


class Asked(NamedTuple):
    """A parameter, or some rows of one, before a step."""

    column: int
    """Its place among all that are counted."""
    parameter: Tensor
    rows: slice | None
    rate: float | Tensor
    """The learning rate of its group."""

    def entries(self, values: Tensor, most: int) -> Tensor:
        """(n,) what is looked at of the parameter, or of its gradient: a view where the layout allows."""
        values = local(values)
        values = values if self.rows is None else values[self.rows]
        size = values.numel()
        if size < most:
            return values.reshape(-1)
        every = (size // most + 1) | 1
        if values.is_contiguous():  # at once, where `reshape` and a slice are two operators
            return values.as_strided(((size - 1) // every + 1,), (every,))
        return values.reshape(-1)[::every]


class LostUpdates:
    """Counts over some of the sampled steps of a window.

    An entry is asked if its gradient is finite and not zero and the learning rate is not zero; one that is exactly zero
    is not, as there every step can be resolved: what stands there is held by something else (a mask). Its update is
    lost if not one bit of it has changed after the step.

    Args:
        columns: parameters, and parts of some, that are counted.
        device: where the counts are kept.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self._device = device
        self._most = max(LEAST, ENTRIES * OF // max(OF, columns))
        self.counts = torch.zeros(2, columns, dtype=torch.float64, device=device)
        """(2, columns) entries asked, and those of them whose update was lost."""
        self._open: tuple[list[Asked], list[int], Tensor, Tensor] | None = None

    def reset(self) -> None:
        """Begins a new window."""
        self.counts.zero_()
        self._open = None

    def before_step(self, asked: Sequence[Asked], valid: Tensor | None, searches: bool = False) -> None:
        """Notes entries and their gradients; a step before in the same batch is counted first.

        Args:
            asked: what the optimizer is about to step.
            valid: bool scalar, False where a gradient scaler skips the step; None: it does not.
            searches: the optimizer evaluates the loss several times a step (LBFGS): the first is what it begins from.
        """
        if self._open is not None and searches:
            return
        self.after_step()
        there = [one for one in asked if isinstance(one.rate, Tensor) or one.rate != 0]
        if not there:
            return
        entries = [one.entries(one.parameter, self._most) for one in there]
        before, sizes = self._joined(entries), self._joined([_gradient(one, self._most) for one in there]).abs_()
        moves = (sizes > 0) & (sizes < torch.inf) & (before != 0)
        ends = [end - 1 for end in accumulate(part.numel() for part in entries)]
        self._open = there, ends, before, moves if valid is None else moves & valid

    def after_step(self) -> None:
        """Counts what has not moved."""
        if self._open is None:
            return
        (asked, last, before, moves), self._open = self._open, None
        after = self._joined([one.entries(one.parameter, self._most) for one in asked])
        if after.shape != before.shape:  # a parameter has been replaced by one of another shape
            return
        ends = torch.cumsum(torch.stack([moves, moves & (after == before)]), 1, dtype=torch.int64)
        places, columns = (
            on_device(tuple(numbers), torch.int64, self._device) for numbers in (last, [one.column for one in asked])
        )
        counts = ends[:, places].diff(dim=1, prepend=ends.new_zeros(2, 1))
        self.counts.index_add_(1, columns, counts.double())

    def _joined(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat([part if part.device == self._device else part.to(self._device) for part in parts])
        return joined.detach()

    def totals(self, over_ranks: bool) -> Tensor:
        """(2, columns) the counts on the CPU; over all ranks where each has its part of the parameters, and must
        call it."""
        counts = self.counts.clone()
        if over_ranks:
            torch.distributed.all_reduce(counts)
        return counts.cpu()

    def load(self, counts: Tensor) -> None:
        """Takes up what `totals` gave."""
        self.counts.copy_(counts)


def _gradient(one: Asked, most: int) -> Tensor:
    grad: Any = one.parameter.grad
    entries = one.entries(grad, most)
    return entries * (one.rate != 0).to(entries) if isinstance(one.rate, Tensor) else entries
