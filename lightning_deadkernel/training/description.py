"""Whose training a report is about."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from lightning_deadkernel.report.records import OptimizerDescription, RunDescription

PACKAGES = ("torch", "lightning", "pytorch-lightning", "lightning-deadkernel")


def now() -> str:
    """The time with its zone, ISO 8601, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def describe_run(trainer: Any, model: nn.Module, ranks: int) -> RunDescription:
    """The model, its optimizers as they begin, the precision and the versions."""
    return RunDescription(
        model=type(model).__name__,
        optimizers=describe_optimizers(trainer.optimizers),
        precision=str(trainer.precision),
        ranks=ranks,
        gradient_clip=_clip(trainer),
        versions={"python": platform.python_version(), **_versions()},
        started=now(),
    )


def _clip(trainer: Any) -> float | None:
    algorithm = trainer.gradient_clip_algorithm
    by_norm = algorithm is None or str(getattr(algorithm, "value", algorithm)) == "norm"
    return float(trainer.gradient_clip_val) if trainer.gradient_clip_val and by_norm else None


def describe_optimizers(optimizers: Sequence[Any]) -> tuple[OptimizerDescription, ...]:
    """Each optimizer by its class and its first group's settings."""
    return tuple(
        OptimizerDescription(
            name=type(getattr(optimizer, "optimizer", optimizer)).__name__,
            settings=_settings(optimizer.param_groups[0]) if optimizer.param_groups else {},
            groups=len(optimizer.param_groups),
        )
        for optimizer in optimizers
    )


def _settings(group: dict[str, Any]) -> dict[str, float | int | str]:
    """Numbers and texts by name; of a tuple, such as Adam's betas, each by its place."""
    found: dict[str, float | int | str] = {}
    for name, value in group.items():
        if isinstance(value, bool) or value is None or name == "params":
            continue
        if isinstance(value, int | float | str):
            found[name] = value
        elif isinstance(value, tuple) and all(isinstance(item, int | float) for item in value):
            found |= {f"{name}[{place}]": item for place, item in enumerate(value)}
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
