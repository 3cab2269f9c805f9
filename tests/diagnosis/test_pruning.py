"""The recipe of the README: what the report calls dead goes out through torch-pruning, and nothing else changes."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
from torch import nn

from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.demo import DigitsDataModule, PlainCNN

tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


@pytest.fixture(scope="module")
def trained() -> tuple[PlainCNN, DeadKernelMonitor, torch.Tensor]:
    """A CNN whose learning rate was too high for some of its kernels, its monitor, and all training images."""
    L.seed_everything(3)
    model = PlainCNN(width=16, optimizer="sgd", lr=0.4)
    data = DigitsDataModule(batch_size=32)
    monitor = DeadKernelMonitor(save_report=False, log_figures=False, log_histograms=False, on_finding="ignore")
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    images = torch.cat([batch[0] for batch in data.train_dataloader()])
    return model, monitor, images


def prune(model: nn.Module, dead: dict[str, list[int]], example: torch.Tensor) -> None:
    """Removes these output channels and whatever reads them."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    layers = dict(model.named_modules())
    functions = {nn.Conv2d: tp.prune_conv_out_channels, nn.Linear: tp.prune_linear_out_channels}
    for name, channels in dead.items():
        layer = layers[name]
        if len(channels) < layer.weight.shape[0]:  # a layer without any channel is no layer
            graph.get_pruning_group(layer, functions[type(layer)], idxs=channels).prune()


def test_removing_dead_channels_leaves_the_outputs_as_they_were_and_the_network_smaller(
    trained: tuple[PlainCNN, DeadKernelMonitor, torch.Tensor],
) -> None:
    model, monitor, images = trained
    report = monitor.report
    assert report is not None
    dead = report.dead_channels
    assert sum(map(len, dead.values())) >= 3, "the run must have killed some kernels by itself"
    assert any(len(channels) < report[name].channels for name, channels in dead.items())
    # float64, so that a sum over fewer terms may be grouped otherwise without a visible rounding
    model = copy.deepcopy(model).double().eval()
    images = images.double()
    pruned = copy.deepcopy(model)
    prune(pruned, dead, images[:2])
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), model(images), rtol=0, atol=1e-12)
    before = sum(p.numel() for p in model.parameters())
    after = sum(p.numel() for p in pruned.parameters())
    assert after < before


def test_the_report_foretells_what_pruning_saves(trained: tuple[PlainCNN, DeadKernelMonitor, torch.Tensor]) -> None:
    model, monitor, images = trained
    report = monitor.report
    assert report is not None
    assert report.savings is not None
    partly = {name: idx for name, idx in report.dead_channels.items() if len(idx) < report[name].channels}
    if partly.keys() != report.dead_channels.keys() or report.savings.unknown_consumers:
        pytest.fail("this run was chosen because every consumer is known and no layer is wholly dead")
    zero = sum(len(set(layer.zero_kernels) - set(layer.dead)) for layer in report.watched)
    pruned = copy.deepcopy(model)
    prune(pruned, partly, images[:2])
    saved = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert zero == 0
    assert report.savings.parameters == saved
