"""In the process of one training of a trial: keeps it from writing anything of the user's, and says how it ended."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_deadkernel.report.report import write_atomically

RESULT, REPORT = "result.json", "report.json"
_LEFT_OUT = {"Checkpoint", "ProgressBar", "ModelSummary"}
"""Callbacks that write files of the user's, or to the console, and change no training."""
_SEED = "PL_GLOBAL_SEED"
"""Where Lightning keeps the seed."""

Groups = list[list[dict[str, Any]]]
"""Of each optimizer, of each of its parameter groups: settings by name."""


class Recorder(Callback):
    """Prepares one training, and writes what it came to beside its task.

    The training has no logger and saves no checkpoint, and its process ends with the fit. With another order than 0 the
    random numbers of the training are others than the run's, while the initial weights, which are drawn before, stay.
    Where a checkpoint gives optimizers their settings back, what the arm has changed is put in again.

    Args:
        task: the file.
        monitor: the class of the monitor.
    """

    def __init__(self, task: Path, monitor: type[Any]) -> None:
        self._folder, self._monitor_kind = task.parent, monitor
        self._task = json.loads(task.read_text(encoding="utf-8"))
        self._parent = os.getppid()
        self._begin: Groups = []
        self._seed = 0
        self._end: int | str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes away what writes."""
        trainer.loggers = [DummyLogger()]
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [one for one in callbacks if not _LEFT_OUT & _names(one)]  # type: ignore[attr-defined]
        for monitor in self._monitors(trainer):
            monitor.save_report = monitor.log_figures = monitor.log_histograms = monitor.log_layers = False
            monitor.on_finding = "ignore"

    def _monitors(self, trainer: Trainer) -> list[Any]:
        return [one for one in trainer.callbacks if isinstance(one, self._monitor_kind)]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizers' settings, before a checkpoint restores its own."""
        self._begin = [[_plain(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        if self._task["order"]:
            self._seed = int(os.environ.get(_SEED) or 0) + int(self._task["order"])
            os.environ[_SEED] = str(self._seed)  # for distributed samplers, which are made next and ask for it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Other random numbers from here on, where it is asked for."""
        if trainer.ckpt_path is not None and self._task["groups"] is not None:
            _put_in_again(trainer, self._task["groups"], self._begin)
        if self._task["order"]:
            seed_everything(self._seed, workers=True, verbose=False)

    def on_train_batch_end(self, *_: Any) -> None:
        """Ends a training whose trial is no more."""
        if os.getppid() != self._parent:
            raise SystemExit("the trial has ended")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the report and what else there is to know."""
        report = next((one.report for one in reversed(self._monitors(trainer)) if one.report is not None), None)
        self._end = 0 if report is not None else "error: nothing was trained, so there is no report"
        if report is None or not trainer.is_global_zero:
            return
        report.save(self._folder / REPORT)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        result = {
            "metrics": {n: v for n, v in metrics.items() if math.isfinite(v) and not n.startswith("deadkernel")},
            "settings": _settings(trainer),
            "groups": self._begin,
            "device": pl_module.device.type,
        }
        write_atomically(self._folder / RESULT, json.dumps(result, allow_nan=False))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the process: what a script does after its fit is not what is asked about."""
        if self._end is not None:
            raise SystemExit(self._end)


def _names(callback: object) -> set[str]:
    return {kind.__name__ for kind in type(callback).__mro__}


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, flags and lists of numbers by name."""
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in group.items()}
    return {
        name: value
        for name, value in settings.items()
        if name != "params" and isinstance(value, (bool, int, float, list)) and value == value
    }


def _put_in_again(trainer: Trainer, unchanged: Groups, changed: Groups) -> None:
    for optimizer, before, now in zip(trainer.optimizers, unchanged, changed, strict=False):
        for group, old, new in zip(optimizer.param_groups, before, now, strict=False):
            for name, value in new.items():
                if name in group and name in old and old[name] != value:
                    # a rate is where its schedule has taken it
                    group[name] = group[name] * value / old[name] if name in ("lr", "initial_lr") else value
    for config in trainer.lr_scheduler_configs:
        rates = getattr(config.scheduler, "base_lrs", None)
        if rates:
            config.scheduler.base_lrs = [
                group.get("initial_lr", group["lr"]) for group in config.scheduler.optimizer.param_groups
            ]


def _settings(trainer: Trainer) -> dict[str, Any]:
    """All settings of the command line interface that made the trainer; none where that cannot be told."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if "SaveConfigCallback" in _names(callback):
            flat = vars(callback.config.as_flat())
            return {name: _as_json(value) for name, value in flat.items() if value == value}
    return {}


def _as_json(value: object) -> object:
    if isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value):
        return list(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
