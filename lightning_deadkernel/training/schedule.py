"""Where in the training a window is: the same on all ranks, also on one whose watch has failed."""

from __future__ import annotations

import math
from typing import Any

from lightning_deadkernel.observation import ENOUGH_STEPS
from lightning_deadkernel.training.trainer import batches_of_epoch, epoch_ends


class Schedule:
    """When the open window ends.

    Args:
        every_n_train_steps: its length in optimizer steps; None: it ends with the epoch.
    """

    def __init__(self, every_n_train_steps: int | None) -> None:
        self._length = every_n_train_steps
        self.open_window(0)

    def open_window(self, step: int, batches: int = 0, optimizer_steps: int = 0) -> None:
        """A window is open.

        Args:
            step: the trainer's global step.
            batches: of the window so far.
            optimizer_steps: of the window so far.
        """
        self.batches = batches
        self._began = self._before_batch = step - optimizer_steps
        self._taken = step

    def begin_batch(self, trainer: Any) -> None:
        """Foresees whether this batch is the window's `last`, if the optimizer takes one step in it."""
        self._before_batch = taken = trainer.global_step
        self.last = epoch_ends(trainer, taken + 1) or self._is_full(taken + 1)

    def is_due(self, trainer: Any, sampled: int) -> bool:
        """Whether to sample this batch, so that the window has `ENOUGH_STEPS` such.

        They are spread evenly; where the window's length is not known, they are its batches 1, 2, 3, 5, 9, 17, ... .

        Args:
            trainer: the running trainer.
            sampled: steps of the window so far.
        """
        if sampled >= ENOUGH_STEPS:
            return False
        done, length = self.batches, batches_of_epoch(trainer, self.batches)
        if self._length is not None:
            done, length = self._before_batch - self._began, self._length
        last = length - 1
        return not done & (done - 1) if math.isinf(last) else done * (ENOUGH_STEPS - 1) >= sampled * last

    def end_batch(self, trainer: Any) -> tuple[int, int]:
        """Counts a batch: the window's optimizer steps, and how many of them were of this batch."""
        self.batches += 1
        self._taken = taken = trainer.global_step
        return taken - self._began, taken - self._before_batch

    def ends(self, trainer: Any) -> bool:
        """Whether the window ends with the batch that has ended."""
        return self._is_full(self._taken) if self._length else epoch_ends(trainer, self._taken)

    def ends_with_epoch(self) -> bool:
        """Whether an epoch's end is a window's."""
        return self._length is None

    def _is_full(self, steps: int) -> bool:
        return self._length is not None and steps - self._began >= self._length
