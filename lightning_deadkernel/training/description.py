"""Whose training a report is about, what was typed to start it, and what to type next."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from lightning_deadkernel.report.describe import PROGRAM
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
        gradient_clip=_clip(trainer, model),
        versions={"python": platform.python_version(), **_versions()},
        started=now(),
    )


def _clip(trainer: Any, model: nn.Module) -> float | None:
    hook = "configure_gradient_clipping"
    owner = next((kind for kind in type(model).__mro__ if hook in vars(kind)), None)
    if owner is None or owner.__name__ != "LightningModule":  # of either namespace; one's own may make anything of it
        return None
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


def why_command(trainer: Any) -> str:
    """The command that tries what did it, where a LightningCLI started this fit from the command line; else empty."""
    words = sys.orig_argv[1:]
    cli = any("SaveConfigCallback" in {kind.__name__ for kind in type(one).__mro__} for one in trainer.callbacks)
    if not cli or "fit" not in words or trainer.world_size > 1:  # of several processes each sees its own command
        return ""
    own = Path(words[0]).name == PROGRAM or words[:2] == ["-m", "lightning_deadkernel"]
    return shlex.join([PROGRAM, "why", *(words[words.index("fit") + 1 :] if own else ["--", "python", *words])])
