"""What every step writes to: one flat buffer for the whole network, and a count of the parts still unseen."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

PAGES = 32
"""Steps that are noted before they are reduced together, so that a step costs one launch."""
CHECK = 64
"""Reads between two counts of what is still unseen, at most. Until then they follow at reads 1, 2, 4, 8, ..., so that
a part is read at most twice as often as it has to be."""

FIRST = 1 << 24
"""float32 tells integers apart up to here."""
Part = TypeVar("Part", bound=Hashable)
Number = TypeVar("Number", int, Tensor)


def marks(places: Number) -> Number:
    """What marks places in a window, counted from 0, so that the first is the largest, and 0 marks none; its own
    inverse."""
    return FIRST - places


class StepBuffer:
    """(n,) values of each of the last steps, side by side, until they are reduced together."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._pages = torch.zeros(PAGES, size, dtype=dtype, device=device)
        self._rows = list(self._pages.unbind())
        self._size, self._filled = size, 0

    def append(self, parts: list[Tensor]) -> bool:
        """Copies a step's parts, (n,) together, of any floating dtype.

        Returns:
            Whether the buffer is full and has to be flushed.

        Raises:
            ValueError: the parts are not (n,) together: a parameter has been replaced by one of another shape.
        """
        row = self._rows[self._filled]
        try:
            row = torch.cat(parts, out=row)
        except RuntimeError:  # gradients that are part of a graph themselves (`create_graph=True`), or a real error
            row = torch.cat([part.detach() for part in parts], out=row)
        if row.numel() != self._size:
            raise ValueError(f"Expected {self._size} values, but got {row.numel()}.")
        self._filled += 1
        return self._filled == PAGES

    def flush(self, largest: Tensor, nonfinite: tuple[Tensor, Tensor] | None = None, end: int = 0) -> None:
        """Takes the buffer into (n,) running values, in place; what an interrupt leaves half done is done again.

        Args:
            largest: maximum of the values that are finite.
            nonfinite: how many were not finite, and the mark of the first of them, see `marks`; with them `largest` is
                that of the magnitudes.
            end: steps that were appended so far, flushed ones included.
        """
        block = self._pages[: self._filled]
        if not block.numel():
            self._filled = 0
            return
        if nonfinite is not None:
            block.abs_()
        shown = block.amax(0)
        if shown.is_cpu and np.isfinite(shown.numpy()).all():  # on a device, to ask would be to wait
            torch.maximum(largest, shown, out=largest)
            self._filled = 0
            return
        finite = block.isfinite()
        torch.maximum(largest, torch.where(finite, block, 0).amax(0), out=largest)
        if nonfinite is not None:
            count, first = nonfinite
            places = torch.arange(end - self._filled, end, dtype=first.dtype, device=first.device)
            torch.maximum(first, torch.where(finite, 0, marks(places)[:, None]).amax(0), out=first)
            count += (~finite).sum(0)
        self._filled = 0

    def clear(self) -> None:
        """Drops what was appended since the last flush."""
        self._filled = 0


class PendingChannels(Generic[Part]):
    """Parts with channels still unseen. Their counts come to the host without waiting for the device."""

    def __init__(self) -> None:
        self.parts: set[Part] = set()
        self._reads = 0
        self._counts: list[tuple[list[Part], Tensor, Any]] = []

    def clear(self, parts: Iterable[Part]) -> None:
        """All channels of these parts are unseen again."""
        self.parts, self._reads, self._counts = set(parts), 0, []

    def take_up(self, before: PendingChannels[Part], again: set[Part]) -> None:
        """Goes on where `before` was; all channels of the parts `again` are unseen again."""
        before.poll()
        self.parts, self._reads = before.parts | again, before._reads

    def is_count_due(self) -> bool:
        """To be asked after each read of the pending parts: whether it is time to count what is still unseen."""
        self._reads += 1
        return not self._reads & (self._reads - 1) or not self._reads % CHECK

    def append(self, parts: list[Part], counts: Tensor) -> None:
        """Takes (len(parts),) int32 counts on the device; `poll` learns of them once they have arrived."""
        if counts.is_cuda:
            host = torch.empty_like(counts, device="cpu", pin_memory=True).copy_(counts, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._counts.append((parts, host, event))
        else:
            self._counts.append((parts, counts, None))

    def poll(self) -> None:
        """Takes in the counts that have arrived."""
        while self._counts and (self._counts[0][2] is None or self._counts[0][2].query()):
            parts, host, _ = self._counts.pop(0)
            # numpy reads host memory as it is: no operator runs, nothing can synchronise
            self.parts.difference_update(part for part, left in zip(parts, host.numpy(), strict=True) if left == 0)
