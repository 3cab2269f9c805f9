"""What every step writes to: one flat buffer for the whole network, and a count of the parts still unseen."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

PAGES = 32
"""Steps that are noted before they are reduced together, so that a step costs one launch."""
CHECK = 64
"""Reads between two counts of what is still unseen, at most. Until then they follow at reads 1, 2, 4, 8, ..., so that
a part is read at most twice as often as it has to be."""

Part = TypeVar("Part", bound=Hashable)


class Arena:
    """(n,) values of each of the last steps, side by side, until they are reduced together."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._pages = torch.zeros(PAGES, size, dtype=dtype, device=device)
        self._rows = list(self._pages.unbind())
        self._filled = 0

    def note(self, parts: list[Tensor]) -> bool:
        """Copies a step's parts, (n,) together, of any floating dtype.

        Returns:
            Whether the pages are full and have to be drained.

        Raises:
            ValueError: the parts are not (n,) together: a parameter has been replaced by one of another shape.
        """
        row = self._rows[self._filled]
        try:
            row = torch.cat(parts, out=row)
        except RuntimeError:  # gradients that are part of a graph themselves (`create_graph=True`), or a real error
            row = torch.cat([part.detach() for part in parts], out=row)
        if len(row) != self._pages.shape[1]:
            raise ValueError(f"Expected {self._pages.shape[1]} values, but got {len(row)}.")
        self._filled += 1
        return self._filled == PAGES

    def drain(self, largest: Tensor, wild: Tensor | None = None) -> None:
        """Takes the pages into (n,) running maxima, in place.

        Args:
            largest: of the values, NaN ignored.
            wild: of the magnitudes, NaN kept; with it `largest` is that of the magnitudes, too.
        """
        block, self._filled = self._pages[: self._filled], 0
        if not block.numel():
            return
        if wild is not None:
            torch.maximum(wild, block.abs_().amax(0), out=wild)
        torch.maximum(largest, block.nan_to_num_(0.0, torch.inf, -torch.inf).amax(0), out=largest)

    def forget(self) -> None:
        """Drops what was noted since the last drain."""
        self._filled = 0


class Countdown(Generic[Part]):
    """Parts with channels still unseen. Their counts come to the host without waiting for the device."""

    def __init__(self) -> None:
        self.pending: set[Part] = set()
        self._reads = 0
        self._flights: list[tuple[list[Part], Tensor, Any]] = []

    def begin(self, parts: Iterable[Part]) -> None:
        """Everything is unseen again."""
        self.pending, self._reads, self._flights = set(parts), 0, []

    def read(self) -> bool:
        """Notes that the pending parts were read. True: it is time to count what is still unseen."""
        self._reads += 1
        return not self._reads & (self._reads - 1) or not self._reads % CHECK

    def update(self, parts: list[Part], counts: Tensor) -> None:
        """Takes (len(parts),) int32 counts on the device; `land` learns of them once they have arrived."""
        if counts.is_cuda:
            host = torch.empty_like(counts, device="cpu", pin_memory=True).copy_(counts, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._flights.append((parts, host, event))
        else:
            self._flights.append((parts, counts, None))

    def land(self) -> None:
        """Takes in the counts that have arrived."""
        while self._flights and (self._flights[0][2] is None or self._flights[0][2].query()):
            parts, host, _ = self._flights.pop(0)
            # numpy reads host memory as it is: no operator runs, nothing can synchronise
            self.pending.difference_update(part for part, left in zip(parts, host.numpy(), strict=True) if left == 0)
