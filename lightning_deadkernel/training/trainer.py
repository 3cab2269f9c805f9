"""What the monitor has to know of a running Trainer. Every private name of Lightning that it needs is here."""

from __future__ import annotations

import math
import warnings
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn

from lightning_deadkernel.training.compile import has_compiled_parts

if TYPE_CHECKING:
    from lightning_deadkernel.report.report import Report


def batch_size(batch: Any) -> int | None:
    """Samples in a batch as Lightning counts them; None where it cannot tell."""
    first = batch
    while isinstance(first, (list, tuple, dict)) and first:  # the same answer as Lightning's, without its generators
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    if isinstance(first, Tensor):
        shape = first.shape
        return shape[0] if shape else 1
    graphs = getattr(batch, "num_graphs", None)  # of PyTorch Geometric, whose first tensor has a row for each node
    if isinstance(graphs, int):
        return graphs
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
    return not bool(trainer.fit_loop._should_accumulate())  # Lightning 2.6.6


epoch_loop = attrgetter("fit_loop.epoch_loop")
"""What runs the batches of an epoch: its `batch_progress.is_last_batch` and `max_steps` are the trainer's properties
`is_last_batch` and `max_steps`, without their calls (Lightning 2.5.1 and 2.6.6)."""


def step_counter(trainer: Any) -> Any:
    """What counts the optimizer steps of a fit: its `completed` is `trainer.global_step`, without its ten calls."""
    loop = epoch_loop(trainer)
    if trainer.lightning_module.automatic_optimization:
        return loop.automatic_optimization.optim_progress.optimizer.step.total
    return loop.manual_optimization.optim_step_progress.total


def batches_of_epochs(trainer: Any, done: int, least: int, first: int) -> float:
    """Batches of as many epochs as make some optimizer steps, or are left; infinite where that is not known.

    Args:
        trainer: the running trainer.
        done: batches of them that have ended, for `max_steps` may end them sooner.
        least: optimizer steps that they are to have.
        first: epoch of them.
    """
    of_epoch, of_step = float(trainer.num_training_batches), trainer.accumulate_grad_batches
    epochs = max(1, math.ceil(least / math.ceil(of_epoch / of_step))) if math.isfinite(of_epoch) else 1
    if (trainer.max_epochs or 0) > 0:
        epochs = max(1, min(epochs, trainer.max_epochs - first))
    left = (trainer.max_steps - trainer.global_step) * of_step
    return min(of_epoch * epochs, done + left) if trainer.max_steps > 0 else of_epoch * epochs


def training_ends(trainer: Any, steps: int) -> bool:
    """Whether the training ends with this epoch, as far as it is known; `steps` are taken when the batch ends."""
    return bool(0 < (trainer.max_epochs or 0) <= trainer.current_epoch + 1 or 0 < trainer.max_steps <= steps)


def log_every(trainer: Any) -> int:
    """The trainer's `log_every_n_steps`."""
    return int(trainer.log_every_n_steps)


logger_step = attrgetter("fit_loop.epoch_loop._batches_that_stepped")
"""The x-axis that the trainer's own metrics have (Lightning 2.6.6)."""


def loss_scales(trainer: Any, optimizer: Any) -> tuple[Tensor | None, Tensor | None]:
    """The scale of the loss in fp16 training, and what of it the gradients still carry before an optimizer step.

    Returns:
        The gradient scaler's scale, None without one; and the same where the optimizer unscales gradients itself
        (fused ones), None where that is done. Both are device scalars.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return None, None
    scale = scaler._scale  # of torch's GradScaler, because `get_scale()` would wait for the device; torch 2.13
    scale = scale if isinstance(scale, Tensor) else torch.ones(())
    return scale, scale if getattr(optimizer, "_step_supports_amp_scaling", False) else None


def is_half(trainer: Any) -> bool:
    """Whether gradients are computed in float16, where small ones become exact zeros."""
    return str(trainer.precision).startswith("16")


def is_compiled(trainer: Any, model: nn.Module) -> bool:
    """Whether the module that Lightning trains, or any module in it, runs through `torch.compile`."""
    if getattr(model, "_compiler_ctx", None) is not None:  # Lightning's mark of a compiled LightningModule, 2.6.6
        return True
    strategy_model = getattr(trainer.strategy, "model", None)
    return has_compiled_parts([model, *([strategy_model] if isinstance(strategy_model, nn.Module) else [])])


def end_progress_bar(trainer: Any) -> None:
    """Ends the bar of rich, which is drawn over whatever is printed last until its own teardown; that of tqdm ends with
    the training."""
    progress = getattr(trainer.progress_bar_callback, "progress", None)
    if progress is not None:
        progress.stop()


def publish(trainer: Any, report: Report, prog_bar: bool) -> None:
    """Puts the summary where `EarlyStopping`, `ModelCheckpoint` and the progress bar look."""
    values = {f"deadkernel/{name}": torch.tensor(value) for name, value in report.summary().items()}
    trainer.callback_metrics.update(values)
    if prog_bar:
        shown = {"dead": report.dead_fraction, "vanishing": report.summary()["vanishing_layers"]}
        trainer.progress_bar_metrics.update({name: round(value, 4) for name, value in shown.items()})
