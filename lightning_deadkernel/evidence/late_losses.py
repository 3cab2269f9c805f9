"""Losses on a device that steps do not wait for: whether one was NaN or infinite is found out later, there."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from lightning_deadkernel.evidence.buffers import PAGES, marks


class LateLosses:
    """Keeps the losses of a window until they are asked about together, so that a step costs no launch."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._start = 0
        self._mark: Tensor | None = None

    def append(self, place: int, loss: Tensor) -> None:
        """Takes the loss of a backward, ().

        Args:
            place: of this backward in the window; of all that follow one another without a gap.
            loss: its value is kept, its graph is not.
        """
        if not self._kept:
            self._start = place
        self._kept.append(loss.detach())
        if len(self._kept) == PAGES:
            self._take()

    def first_bad(self) -> int | None:
        """Place of the first that was NaN or infinite; waits for the device."""
        self._take()
        mark = 0 if self._mark is None else int(self._mark)
        return marks(mark) if mark else None

    def _take(self) -> None:
        if not self._kept:
            return
        device = self._kept[0].device
        dtype = reduce(torch.promote_types, (loss.dtype for loss in self._kept))
        losses = torch.stack([loss.to(device, dtype) for loss in self._kept])
        places = torch.arange(self._start, self._start + len(losses), dtype=torch.float32, device=device)
        mark = torch.where(losses.isfinite(), 0, marks(places)).amax()
        self._mark = mark if self._mark is None else torch.maximum(self._mark.to(device), mark)
        self._kept = []
