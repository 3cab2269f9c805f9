"""The same training with and without the monitor: whatever it leaves behind must be equal to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch

from helpers.models import loader
from helpers.training import SHORT, quiet
from lightning_deadkernel import DeadKernelMonitor

QUIET: dict[str, Any] = {**SHORT, "max_epochs": 2, "log_every_n_steps": 2}


@dataclass
class Run:
    """One training, and what came of it."""

    trainer: Any
    model: Any
    monitor: Any
    error: BaseException | None
    left_behind: dict[str, Any]

    @property
    def report(self) -> Any:
        """The last report; fails where there is none."""
        assert self.monitor.report is not None
        return self.monitor.report


def left_behind(trainer: Any, model: Any) -> dict[str, Any]:
    """Weights, buffers, gradients, optimizers and their schedulers, the scaler, random states, modes."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return {
        "weights and buffers": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "buffers": {k: v.clone() for k, v in model.named_buffers()},
        "gradients": {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.strategy._optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "scaler": scaler.state_dict() if scaler is not None else None,
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": [
            (name, kind, len(getattr(module, kind)))
            for name, module in model.named_modules()
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        ],
        "random on GPUs": torch.cuda.get_rng_state_all(),
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002,
        "progress": (trainer.global_step, trainer.current_epoch, trainer.should_stop),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_identical(monitored: Any, plain: Any, where: str = "") -> None:
    """Equal to the last bit; NaN equals NaN."""
    if isinstance(plain, torch.Tensor):
        assert isinstance(monitored, torch.Tensor), where
        assert monitored.dtype == plain.dtype, where
        assert monitored.shape == plain.shape, where
        assert monitored.layout == plain.layout, where
        monitored, plain = (t if t.layout == torch.strided else t.to_dense() for t in (monitored, plain))
        mine, other = (getattr(t, "to_local", lambda t=t: t)().detach().contiguous() for t in (monitored, plain))
        assert mine.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8)), where
    elif isinstance(plain, dict):
        assert list(monitored) == list(plain), where
        for key, value in plain.items():
            assert_identical(monitored[key], value, f"{where}/{key}")
    elif isinstance(plain, (list, tuple)):
        assert len(monitored) == len(plain), where
        for index, value in enumerate(plain):
            assert_identical(monitored[index], value, f"{where}/{index}")
    else:
        assert monitored == plain, where


def train(
    make: Callable[[], Any],
    monitor: DeadKernelMonitor | None,
    data: Callable[[], Any] = loader,
    fit: Callable[[Any, Any, Any], None] | None = None,
    raises: type[BaseException] | None = None,
    callbacks: Callable[[], list[Any]] = list,
    trainer_class: Any = L.Trainer,
    **options: Any,
) -> Run:
    """Trains from a fixed seed.

    Args:
        make: makes the module.
        monitor: to be added; None: a plain run.
        data: makes the training loader.
        fit: called with trainer, model and loader instead of `trainer.fit`.
        raises: what the training is expected to end with.
        callbacks: makes further callbacks, put before the monitor.
        trainer_class: of which namespace.
        options: of the Trainer; values that are functions without arguments are called first.
    """
    L.seed_everything(3, verbose=False)
    model = make()
    made = {name: value() if callable(value) else value for name, value in {**QUIET, **options}.items()}
    trainer = trainer_class(callbacks=[*callbacks(), *([monitor] if monitor else [])], **made)
    error: BaseException | None = None
    try:
        if fit is None:
            trainer.fit(model, data())
        else:
            fit(trainer, model, data())
    except BaseException as caught:
        if raises is None or not isinstance(caught, raises):
            raise
        error = caught
    assert (error is None) == (raises is None), f"expected the training to end with {raises}"
    return Run(trainer, model, monitor, error, left_behind(trainer, model))


def train_twice(make: Callable[[], Any], monitor: DeadKernelMonitor | None = None, **options: Any) -> Run:
    """Trains with and without a monitor, asserts that nothing differs, and gives the monitored run."""
    monitored = train(make, monitor or quiet(), **options)
    plain = train(make, None, **options)
    assert_identical(monitored.left_behind, plain.left_behind)
    with suppress(AttributeError):  # a SystemExit has no message to compare
        assert str(monitored.error) == str(plain.error)
    return monitored
