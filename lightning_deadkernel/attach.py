"""Zero-code attach: with ``LIGHTNING_DEADKERNEL=1`` every Trainer of the process has a monitor.

Lightning calls `callbacks_from_environment` through the entry point group ``lightning.pytorch.callbacks_factory``
whenever a Trainer is made. With ``LIGHTNING_DEADKERNEL_TRIAL``, which `lightning-deadkernel why` sets, the process is
one training of a trial, and what it comes to is kept as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_deadkernel.analysis.trial import TASK

SWITCH = "LIGHTNING_DEADKERNEL"
CONFIG = "LIGHTNING_DEADKERNEL_CONFIG"


def callbacks_from_environment() -> list[Callback]:
    """A monitor if the environment variable ``LIGHTNING_DEADKERNEL`` is ``1``, else nothing.

    Its settings are the defaults, or those of the yaml file that ``LIGHTNING_DEADKERNEL_CONFIG`` names: a mapping of
    `DeadKernelMonitor`'s arguments. A Trainer with a monitor of its own keeps that one alone.

    Raises:
        ValueError: if the switch has another value than ``1``, ``0`` or none; if the file cannot be read, is no
            mapping, or names a setting that does not exist.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        raise ValueError(f"Expected the environment variable {SWITCH} to be 1, 0 or not set, but got {switch!r}.")
    task = os.environ.get(TASK)
    if switch != "1" and not task:
        return []
    callbacks = [_attached(_settings(os.environ.get(CONFIG)))]
    return [*callbacks, _recorder(task)] if task else callbacks


def _recorder(task: str) -> Callback:
    # here, as below
    from lightning_deadkernel.analysis.trial.recorder import Recorder
    from lightning_deadkernel.monitor import DeadKernelMonitor

    return Recorder(Path(task), DeadKernelMonitor)


def _settings(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    import yaml  # comes with Lightning

    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"Expected {CONFIG} to name a yaml file, but {path!r} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"Expected {path!r} ({CONFIG}) to hold a mapping of settings, but got {settings!r}.")
    return settings


def _attached(settings: dict[str, Any]) -> Callback:
    # here, so that without the switch a Trainer costs no import
    from lightning_deadkernel.monitor import DeadKernelMonitor

    class AttachedMonitor(DeadKernelMonitor):
        """A monitor that steps back where the user has put one of their own."""

        _alone = False

        @property
        def state_key(self) -> str:
            """Its own until it is known to be alone: Lightning refuses a second callback of the same key."""
            return self._key_of(DeadKernelMonitor.__qualname__ if self._alone else "AttachedMonitor")

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            """Leaves the Trainer if there is an explicit monitor; called before checkpoints are restored."""
            super().setup(trainer, pl_module, stage)
            others = [c for c in trainer.callbacks if isinstance(c, DeadKernelMonitor) and c is not self]  # type: ignore[attr-defined]
            self._alone = not others
            if others:
                trainer.callbacks = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]

    try:
        return AttachedMonitor(**settings)
    except TypeError as error:
        raise ValueError(f"Expected {CONFIG} to hold settings of DeadKernelMonitor: {error}") from error
