"""What the monitor says of a window, against a second, naive pass over the whole data set."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from helpers.training import ACCELERATOR
from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.demo import MLP, DigitsDataModule, PlainCNN


def brute_force(model: nn.Module, layers: list[str], images: torch.Tensor) -> dict[str, tuple[list[int], list[int]]]:
    """Layer -> (channels dead on all images, channels dormant), by hooks on its outputs and one pass over all data.

    The dormant score is that of the authors' code (Sokar et al. 2023): mean |h| of a unit, over the mean of these in
    its layer; dormant is at or below 0.025.
    """
    found = {}
    for name in layers:
        outputs: list[torch.Tensor] = []
        handle = model.get_submodule(name).register_forward_hook(lambda m, i, out, kept=outputs: kept.append(out))
        with torch.no_grad():
            model(images)
        handle.remove()
        h = torch.relu(torch.cat(outputs)).transpose(0, 1).flatten(1).double()
        score = h.abs().mean(1) / h.abs().mean(1).mean()
        dead = (h <= 0).all(1).nonzero().flatten().tolist()
        found[name] = (dead, (score <= 0.025).nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: PlainCNN(width=16, optimizer="sgd", lr=0.4),
        lambda: MLP(depth=4, width=32, optimizer="sgd", lr=0.6),
    ],
    ids=["cnn", "mlp"],
)
def test_dead_and_dormant_channels_are_those_of_a_pass_over_the_whole_data_set(make: Any) -> None:
    L.seed_everything(3)
    options: dict[str, Any] = {
        "accelerator": ACCELERATOR,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    model, data = make(), DigitsDataModule(batch_size=32)
    L.Trainer(max_epochs=3, **options).fit(model, data)  # a learning rate that kills some
    model.lr = 0.0  # the weights stand still, so that one pass sees what the window saw
    monitor = DeadKernelMonitor(save_report=False, log_figures=False, on_finding="ignore")
    L.Trainer(max_epochs=1, log_every_n_steps=1, callbacks=[monitor], **options).fit(model, data)
    report = monitor.report
    assert report is not None
    images = torch.cat([batch[0] for batch in data.train_dataloader()])
    assert report.samples == len(images)
    gated = [layer.name for layer in report.layers if layer.activation == "relu"]
    truth = brute_force(model, gated, images)
    assert sum(len(dead) for dead, _ in truth.values()) >= 2, "the case is chosen so that some died"
    for name in gated:
        dead, dormant = truth[name]
        assert report[name].dead == dead
        assert report[name].dormant == dormant
