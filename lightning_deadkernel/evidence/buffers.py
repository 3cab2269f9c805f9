"""What every step writes to: one flat buffer for the whole network, and a count of the parts still unseen."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
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


@lru_cache(maxsize=64)
def on_device(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n,) numbers that many steps need, copied once, not to be written to: from pageable memory, the copy of so few
    waits for nothing if it is told not to."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


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
    """Parts with channels still unseen. Which they are comes to the host without waiting for the device."""

    def __init__(self) -> None:
        self.parts: dict[Part, Any] = {}
        """Part -> (n,) int64 array of the channels that were still unseen when that was last asked; None: any."""
        self._reads = 0
        self._asked: list[tuple[list[Part], list[int], Tensor, Any]] = []
        self._left: dict[Part, Tensor] = {}

    def clear(self, parts: Iterable[Part]) -> None:
        """All channels of these parts are unseen again."""
        self.parts, self._reads, self._asked, self._left = dict.fromkeys(parts), 0, [], {}

    def take_up(self, before: PendingChannels[Part], again: set[Part]) -> None:
        """Goes on where `before` was; all channels of the parts `again` are unseen again."""
        before.poll()
        self.parts, self._reads = before.parts | dict.fromkeys(again), before._reads

    def is_count_due(self) -> bool:
        """To be asked after each read of the pending parts: whether it is time to ask what is still unseen."""
        self._reads += 1
        return not self._reads & (self._reads - 1) or not self._reads % CHECK

    def append(self, unseen: Mapping[Part, Tensor]) -> None:
        """Takes (C,) bool of each part on the device; `poll` learns of them once they have arrived."""
        masks = torch.cat(list(unseen.values()))
        sizes = [len(mask) for mask in unseen.values()]
        host, event = masks, None
        if masks.is_cuda:
            host = torch.empty_like(masks, device="cpu", pin_memory=True).copy_(masks, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._asked.append((list(unseen), sizes, host, event))

    def poll(self) -> None:
        """Takes in the answers that have arrived."""
        while self._asked and (self._asked[0][3] is None or self._asked[0][3].query()):
            parts, sizes, host, _ = self._asked.pop(0)
            # numpy reads host memory as it is: no operator runs, nothing can synchronise
            for part, mask in zip(parts, np.split(host.numpy(), np.cumsum(sizes)[:-1]), strict=True):
                self._left.pop(part, None)
                left = mask.nonzero()[0]
                if len(left) and part in self.parts:
                    self.parts[part] = left
                else:
                    self.parts.pop(part, None)

    def left(self, part: Part, device: torch.device) -> Tensor | None:
        """(n,) the channels of a part that may still be unseen, on a device; None: all."""
        if self.parts[part] is not None and part not in self._left:
            # from pageable memory, the copy of so few numbers waits for nothing if it is told not to
            self._left[part] = torch.from_numpy(self.parts[part]).to(device, non_blocking=True)
        return self._left.get(part)
