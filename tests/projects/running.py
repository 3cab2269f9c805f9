"""Trains a project's own module as its users do, on the same few batches each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import pytorch_lightning
from torch.utils.data import DataLoader

from helpers.training import SAFELY, SHORT
from helpers.twins import left_behind

Make = Callable[[], tuple[Any, Any]]
NAMESPACES = (lightning, pytorch_lightning)


@dataclass(frozen=True)
class Project:
    """How to make a project's module and data, and what is known of it."""

    make: Make
    """The module, and its batches in a list; or a data module; or None where the module makes them itself."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Options of the Trainer."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Kinds of findings that a run of its module as it is has rightly, with the reason."""
    begins_anew: str | None = None
    """Why a run that is resumed from a checkpoint goes on otherwise, with or without a monitor."""


PROJECTS: dict[str, Project] = {}


def project(name: str, **known: Any) -> Callable[[Make], Make]:
    """Puts what makes a project's module and data on the list."""

    def add(make: Make) -> Make:
        PROJECTS[name] = Project(make, **known)
        return make

    return add


class Reseed(lightning.Callback):
    """Each epoch draws the random numbers that it always draws: Lightning's checkpoints do not keep their state."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            lightning.seed_everything(trainer.current_epoch, verbose=False)


def train(
    name: str,
    *callbacks: Any,
    touch: Callable[[Any], object] | None = None,
    resume: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Makes a project's module anew, fits it for two epochs, and gives all that the training leaves behind.

    Args:
        name: the project's.
        callbacks: beside the one that seeds each epoch.
        touch: is shown the module first.
        resume: a checkpoint to go on from.
        options: of the Trainer.
    """
    lightning.seed_everything(0, verbose=False)
    module, data = PROJECTS[name].make()
    if touch is not None:
        touch(module)
    own = {"max_epochs": 2, "log_every_n_steps": 2, "limit_val_batches": 0, "callbacks": [Reseed(), *callbacks]}
    namespace = next(space for space in NAMESPACES if isinstance(module, space.LightningModule))
    trainer = namespace.Trainer(**{**SHORT, **own, **PROJECTS[name].trainer, **options})
    if isinstance(data, list):
        data = DataLoader(data, batch_size=None, collate_fn=_as_it_is)
    again = {"ckpt_path": resume, **dict.fromkeys(SAFELY, False)} if resume else {}
    trainer.fit(module, data, data if isinstance(data, DataLoader) else None, **again)
    metrics = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith("deadkernel")}
    return {**left_behind(trainer, module), "metrics": metrics}


def _as_it_is(batch: Any) -> Any:
    return batch


# -- projects that make a Trainer of their own ------------------------------------------------------------------------


class _CalledError(Exception):
    pass


def given_to_trainer(fit: Callable[[], Any], in_batches: bool = True) -> tuple[Any, Any]:
    """The module and the first batches that `fit` hands to its Trainer, or its data as they are; nothing is trained."""
    given: dict[str, Any] = {}

    def note(
        trainer: Any, model: Any, train_dataloaders: Any = None, *_: Any, datamodule: Any = None, **__: Any
    ) -> None:
        data = train_dataloaders if datamodule is None else datamodule
        if in_batches and any(isinstance(data, space.LightningDataModule) for space in NAMESPACES):
            data.prepare_data()
            data.setup("fit")
            data = data.train_dataloader()
        given.update(module=model, data=first(data) if in_batches else data)
        raise _CalledError

    with _in_place_of_fit(note), suppress(_CalledError):
        fit()
    return given["module"], given["data"]


@contextmanager
def _in_place_of_fit(replacement: Any) -> Iterator[None]:
    before = [space.Trainer.fit for space in NAMESPACES]
    for space in NAMESPACES:
        space.Trainer.fit = replacement
    try:
        yield
    finally:
        for space, own in zip(NAMESPACES, before, strict=True):
            space.Trainer.fit = own


def first(loader: Any, count: int = 4) -> list[Any]:
    """The first batches of a loader."""
    return [batch for batch, _ in zip(loader, range(count), strict=False)]
