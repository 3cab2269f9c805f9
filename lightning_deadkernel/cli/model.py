"""A model and one pass through it, from what the user names: a factory, or a LightningCLI config."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from lightning_deadkernel.analysis.audit_model import Forward
from lightning_deadkernel.cli.status import CommandError


def model_of(named: str) -> tuple[nn.Module, Forward]:
    """A model, and how to run it once.

    Args:
        named: ``package.module:factory``, whose call gives a module with an `example_input_array`, or a module and a
            batch; or the config of a LightningCLI, whose first training batch is used.

    Raises:
        CommandError: if there is no such thing.
    """
    if named.endswith((".yaml", ".yml", ".json")):
        return _of_config(named)
    module_name, _, factory_name = named.partition(":")
    if not factory_name:
        raise CommandError(f"expected package.module:factory or a config file (.yaml) for --model, but got {named!r}")
    sys.path.insert(0, "")  # as for `python -m`: the user's own modules are in the working directory
    try:
        made = getattr(import_module(module_name), factory_name)()
    except (ImportError, AttributeError) as error:
        raise CommandError(f"--model {named}: {error}") from error
    finally:
        sys.path.remove("")
    model, batch = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise CommandError(
            f"--model {named}: expected a module, or a module and a batch, but got {type(made).__name__}"
        )
    return model, lambda: _run(model, batch)


def _of_config(path: str) -> tuple[nn.Module, Forward]:
    from lightning_deadkernel.cli.train import DeadKernelCLI

    class Built(DeadKernelCLI):
        """Made, and not run."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Nothing is trained."""

    if not Path(path).is_file():
        raise CommandError(f"--model {path}: no such file")
    given = ["fit", "--config", path, "--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = Built(args=given, seed_everything_default=0)
    return built.model, lambda: _run(built.model, None, built.datamodule)


def _run(model: Any, batch: Any, data: Any = None) -> Any:
    """What the model makes of a batch: its training step, where it is Lightning's, else its forward pass."""
    steps = hasattr(model, "training_step")
    if batch is None and (data is not None or _overrides(model, "train_dataloader")):
        source = data if data is not None else model
        source.prepare_data()
        source.setup("fit")
        batch = next(iter(source.train_dataloader()))
    elif batch is None:
        steps, batch = False, getattr(model, "example_input_array", None)
        if batch is None:
            raise CommandError(
                f"{type(model).__name__} has no example_input_array: let the factory give a batch with it"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `self.log` tells that no Trainer is there
        if steps:
            return model.training_step(batch, 0)
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _overrides(model: Any, hook: str) -> bool:
    """Whether a LightningModule has a hook of its own."""
    from lightning.pytorch.core.hooks import DataHooks

    return hasattr(model, hook) and getattr(type(model), hook, None) is not getattr(DataHooks, hook, None)
