"""Where in the training a window is: the same on all ranks, also on one whose watch has failed."""

from __future__ import annotations

import math
from typing import Any

from lightning_deadkernel.observation import ENOUGH_STEPS
from lightning_deadkernel.training.trainer import batches_of_epoch, epoch_ends, step_counter


class Schedule:
    """When the open window ends.

    Args:
        every_n_train_steps: its length in optimizer steps; None: it ends with the epoch.
        trainer: whose training it is.
    """

    def __init__(self, every_n_train_steps: int | None, trainer: Any) -> None:
        self._length, self._trainer, self._counter = every_n_train_steps, trainer, step_counter(trainer)
        self.open_window()

    def open_window(self, batches: int = 0, optimizer_steps: int = 0) -> None:
        """A window is open.

        Args:
            batches: of the window so far.
            optimizer_steps: of the window so far.
        """
        self.batches = batches
        self._before_batch = self._counter.completed
        self._began = self._before_batch - optimizer_steps
        self._sampled, self._due_at = -1, 0.0
        self.ended = False
        """The window ends with the batch that has ended."""

    def begin_batch(self, sampled: int) -> None:
        """Foresees whether this batch is the window's `last`, if the optimizer takes one step in it, and whether it is
        `due` to be a sampled one, so that the window has `ENOUGH_STEPS` such.

        They are spread evenly; where the window's length is not known, they are its batches 1, 2, 3, 5, 9, 17, ... .

        Args:
            sampled: steps of the window so far.
        """
        self._before_batch = taken = self._counter.completed
        done = self.batches if self._length is None else taken - self._began
        if sampled != self._sampled:
            self._sampled, self._due_at = sampled, self._next_due(done, sampled)
        self.due = done >= self._due_at
        self.last = epoch_ends(self._trainer, taken + 1) or self._is_full(taken + 1)

    def _next_due(self, done: int, sampled: int) -> float:
        if sampled >= ENOUGH_STEPS:
            return math.inf
        length = batches_of_epoch(self._trainer, done) if self._length is None else self._length
        if math.isinf(length):
            return 1 << (done - 1).bit_length() if done else 0
        return sampled * (length - 1) / (ENOUGH_STEPS - 1)

    def end_batch(self) -> tuple[int, int]:
        """Counts a batch: the window's optimizer steps, and how many of them were of this batch."""
        self.batches += 1
        taken = self._counter.completed
        self.ended = self._is_full(taken) if self._length else epoch_ends(self._trainer, taken)
        return taken - self._began, taken - self._before_batch

    def ends_with_epoch(self) -> bool:
        """Whether an epoch's end is a window's."""
        return self._length is None

    def _is_full(self, taken: int) -> bool:
        return self._length is not None and taken - self._began >= self._length
