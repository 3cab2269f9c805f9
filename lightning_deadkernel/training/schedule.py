"""Where in the training a window is: the same on all ranks, also on one whose watch has failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_deadkernel.observation import ENOUGH_STEPS
from lightning_deadkernel.training.trainer import batches_of_epochs, epoch_loop, step_counter, training_ends


class Schedule:
    """When the open window ends.

    Args:
        every_n_train_steps: its length in optimizer steps; None: it ends with an epoch.
        min_steps: then the optimizer steps that it has at least, so that short epochs share one. The first window of a
            training ends with its epoch all the same, and the last with the training, as far as that is foreseen.
        trainer: whose training it is.
        first: whether the window to be opened is the first of the training.
    """

    def __init__(self, every_n_train_steps: int | None, min_steps: int, trainer: Any, first: bool) -> None:
        self._length, self._least = every_n_train_steps, min_steps
        self._trainer, self._loop, self._counter = trainer, epoch_loop(trainer), step_counter(trainer)
        self._epoch: int = trainer.current_epoch
        self._first, self.batches = first, 0
        self.open_window()

    def open_window(self, first: bool | None = None) -> None:
        """A window is open.

        Args:
            first: whether it is the training's first; None: if the one that is open was and had no batch.
        """
        self._first = self._first and not self.batches if first is None else first
        self.batches = 0
        self._began = self._before_batch = self._counter.completed
        self._epochs: tuple[int, int] | None = None
        self._sampled, self._due_at = -1, 0.0
        self.ended = False
        """The window ends with the batch that has ended."""

    def take_up(self, half_open: Mapping[str, Any]) -> None:
        """The window is open that a checkpoint holds."""
        counts, first = half_open["counts"], half_open.get("first_epoch")
        self._began, self.batches = self._counter.completed - counts["optimizer_steps"], counts["batches"]
        self._epochs = None if first is None else (first, first)

    def begin_batch(self, sampled: int, first_of_epoch: bool) -> None:
        """Foresees whether this batch is the window's `last`, if the optimizer takes one step in it, and whether it is
        `due` to be a sampled one, so that the window has `ENOUGH_STEPS` such.

        They are spread evenly; where the window's length is not known, they are its batches 1, 2, 3, 5, 9, 17, ... .

        Args:
            sampled: steps of the window so far.
            first_of_epoch: another epoch may have begun.
        """
        if first_of_epoch:
            self._epoch = self._trainer.current_epoch
        self._before_batch = taken = self._counter.completed
        done = self.batches if self._length is None else taken - self._began
        if sampled != self._sampled:
            self._sampled, self._due_at = sampled, self._next_due(done, sampled)
        self.due = done >= self._due_at
        self.last = self._ends(taken + 1, self.batches + 1)

    def _next_due(self, done: int, sampled: int) -> float:
        if sampled >= ENOUGH_STEPS:
            return math.inf
        if self._length is not None:
            length = float(self._length)
        else:
            least = 1 if self._first else self._least
            length = batches_of_epochs(self._trainer, done, least, self.epochs()[0])
        if math.isinf(length):
            return 1 << (done - 1).bit_length() if done else 0
        return sampled * (length - 1) / (ENOUGH_STEPS - 1)

    def end_batch(self) -> tuple[int, int]:
        """Counts a batch: the window's optimizer steps, and how many of them were of this batch."""
        self.batches += 1
        taken, now = self._counter.completed, self._epoch
        self._epochs = (self._epochs[0] if self._epochs else now, now)
        self.ended = self._ends(taken, self.batches)
        return taken - self._began, taken - self._before_batch

    @property
    def first_epoch(self) -> int | None:
        """In which the window began; None while it has no batch."""
        return self._epochs[0] if self._epochs else None

    def epochs(self) -> tuple[int, int]:
        """The window's first and last epoch; while it has no batch, that of the trainer."""
        return self._epochs or (self._trainer.current_epoch, self._trainer.current_epoch)

    def ends_with_epoch(self) -> bool:
        """Whether the window ends with the epoch that does."""
        return self._length is None and self._has_enough(self._counter.completed, self.batches)

    def _ends(self, taken: int, batches: int) -> bool:
        if self._length is not None:
            return bool(taken - self._began >= self._length)
        loop = self._loop
        if not (loop.batch_progress.is_last_batch or 0 < loop.max_steps <= taken):
            return False
        return self._has_enough(taken, batches) or training_ends(self._trainer, taken)

    def _has_enough(self, taken: int, batches: int) -> bool:
        # where no step is counted (optimizers that Lightning does not know) batches stand for them
        return self._first or bool((taken - self._began or batches) >= self._least)
