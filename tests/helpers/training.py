"""The one monitor that only keeps its reports, and the one short and silent training of a module under it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadkernel import DeadKernelMonitor

ACCELERATOR = os.environ.get("DEADKERNEL_ACCELERATOR", "cpu")
"""What tests train on, as Lightning's Trainer takes it: with "cuda" the same tests are tests of a GPU."""
SHORT: dict[str, Any] = {
    "accelerator": ACCELERATOR,
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of a Trainer that trains one epoch and writes and prints nothing."""
looked_at = pytest.mark.skipif(
    ACCELERATOR != "cpu", reason="is seen on the CPU only: a GPU would have to be waited for"
)
SAFELY: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(L.Trainer.fit).parameters else {}
"""For what resumes or loads: only plain data is read from the checkpoint. Lightning before 2.6 cannot be asked."""


def made_on(device: torch.device) -> AbstractContextManager[Any]:
    """Where a GPU trains, constants that a step makes are made there."""
    return nullcontext() if ACCELERATOR == "cpu" else device


def quiet(**options: Any) -> DeadKernelMonitor:
    """A monitor that measures all it can, with a window for each epoch, and neither draws, writes nor warns."""
    silent = {"log_figures": False, "save_report": False, "on_finding": "ignore"}
    return DeadKernelMonitor(**{"min_steps": 1, **silent, **options})


def fit(
    net: L.LightningModule,
    inputs: Any,
    batch_size: int = 4,
    monitor: DeadKernelMonitor | None = None,
    **options: Any,
) -> DeadKernelMonitor:
    """Trains for real, one epoch unless `options` say otherwise.

    Args:
        net: the module.
        inputs: a loader; or a tensor to be cut into batches, or the batches themselves.
        batch_size: of a tensor.
        monitor: watches; None: a quiet one.
        options: of the Trainer.
    """
    monitor = monitor or quiet()
    if isinstance(inputs, Tensor):
        inputs = DataLoader(TensorDataset(inputs), batch_size)
    elif not isinstance(inputs, DataLoader):
        inputs = DataLoader(list(inputs), batch_size=None, collate_fn=lambda batch: [batch])
    L.Trainer(**{**SHORT, "callbacks": [monitor], **options}).fit(net, inputs)
    return monitor
