"""What the monitor has to know of a running Trainer. Every private name of Lightning that it needs is here."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from lightning_deadkernel.report.report import Report


def batch_size(batch: Any) -> int | None:
    """Samples in a batch as Lightning counts them; None where it cannot tell."""
    first = batch
    while isinstance(first, (list, tuple, dict)) and first:  # the same answer as Lightning's, without its generators
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    if isinstance(first, Tensor):
        return first.shape[0] if first.ndim else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ours to count, not to complain about
            return extract_batch_size(batch)
    except Exception:  # whatever a user's batch is made of: its size is not known
        return None


def will_step(trainer: Any) -> bool:
    """Whether an optimizer step follows this batch; under manual optimization it is taken to."""
    if not trainer.lightning_module.automatic_optimization:
        return True
    return not bool(trainer.fit_loop._should_accumulate())


def epoch_ends(trainer: Any, steps: int) -> bool:
    """Whether the epoch ends with this batch, as far as it is known: by its data, or by `max_steps`.

    Args:
        trainer: the running trainer.
        steps: optimizer steps that are taken when the batch ends.
    """
    return bool(trainer.is_last_batch or 0 < trainer.max_steps <= steps)


def log_every(trainer: Any) -> int:
    """The trainer's `log_every_n_steps`."""
    return int(trainer.log_every_n_steps)


def logger_step(trainer: Any) -> int:
    """The x-axis that the trainer's own metrics have."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def scaler(trainer: Any) -> Any:
    """The gradient scaler of fp16 training, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def scale_left(scaler: Any, optimizer: Any) -> Tensor | None:
    """The factor that gradients still carry when the optimizer unscales them itself (fused ones): a device scalar."""
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    # `get_scale()` would wait for the device
    scale = scaler._scale
    return scale if isinstance(scale, Tensor) else None


def is_half(trainer: Any) -> bool:
    """Whether gradients are computed in float16, where small ones become exact zeros."""
    return str(trainer.precision).startswith("16")


def publish(trainer: Any, report: Report, prog_bar: bool) -> None:
    """Puts the summary where `EarlyStopping`, `ModelCheckpoint` and the progress bar look."""
    values = {f"deadkernel/{name}": torch.tensor(value) for name, value in report.summary().items()}
    trainer.callback_metrics.update(values)
    if prog_bar:
        shown = {"dead": report.dead_fraction, "vanishing": report.summary()["vanishing_layers"]}
        trainer.progress_bar_metrics.update({name: round(value, 4) for name, value in shown.items()})
