"""Epochs with fewer than `min_steps` optimizer steps share a window, and the report says which they are."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from helpers.models import DEAD, Resumable, Save, Tiny, dead
from helpers.training import SAFELY, quiet
from helpers.twins import train
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.figures.canvas import basis

STEPS = 6
"""Of `Tiny`'s epochs."""


def spans(reports: list[Report]) -> list[tuple[int | None, int, int]]:
    """First epoch where several share it, last epoch and optimizer steps of every window of training."""
    return [(report.first_epoch, report.epoch, report.optimizer_steps) for report in reports[1:]]


@pytest.mark.setting("epochs of few steps, of one", evidence="activation", note="they share a window")
def test_short_epochs_share_windows_but_for_the_first_and_the_last() -> None:
    run = train(Tiny, quiet(min_steps=10), max_epochs=6)
    assert spans(run.monitor.reports) == [(None, 0, 6), (1, 2, 12), (3, 4, 12), (None, 5, 6)]
    assert [report.samples for report in run.monitor.reports[1:]] == [48, 96, 96, 48]
    assert all(dead(report) == DEAD for report in run.monitor.reports[1:])


def test_by_default_a_window_has_16_steps() -> None:
    run = train(Tiny, DeadKernelMonitor(on_finding="ignore", log_figures=False, save_report=False), max_epochs=8)
    assert spans(run.monitor.reports) == [(None, 0, 6), (1, 3, 18), (4, 6, 18), (None, 7, 6)]


def test_a_shared_window_has_eight_sampled_steps_that_are_spread_over_it() -> None:
    sampled = []

    class Noting(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            sampled.append(monitor._run.sampled)

    monitor = quiet(min_steps=20)
    run = train(Tiny, monitor, max_epochs=6, callbacks=lambda: [Noting()], log_every_n_steps=1000)
    assert spans(run.monitor.reports) == [(None, 0, 6), (1, 4, 24), (None, 5, 6)]
    steps = [step for step in range(6, 30) if sampled[step]]
    assert (len(steps), steps[0], steps[-1]) == (8, 6, 29)
    assert max(after - before for before, after in pairwise(steps)) <= 4
    assert sampled[30:] == [True] * 6


def test_every_n_train_steps_means_exactly_that() -> None:
    run = train(Tiny, quiet(every_n_train_steps=4, min_steps=100), max_epochs=2)
    assert spans(run.monitor.reports) == [(None, 0, 4), (0, 1, 4), (None, 1, 4)]


def test_a_report_says_which_epochs_it_speaks_of() -> None:
    report = train(Tiny, quiet(min_steps=30), max_epochs=6).report
    assert str(report).splitlines()[0] == "window 2 (epochs 1 to 5, global step 36)"
    assert "# Dead kernels: window 2 (epochs 1 to 5, global step 36)" in report.to_markdown()
    assert basis([report]).startswith("epochs 1 to 5, global step 36, 240 samples")


def test_the_epochs_are_in_the_json(tmp_path: Any) -> None:
    report = train(Tiny, quiet(min_steps=30), max_epochs=6).report
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert (saved["first_epoch"], saved["epoch"]) == (1, 5)
    assert Report.load(tmp_path / "report.json").first_epoch == 1


class Seen(L.Callback):
    """The dead fraction as other callbacks find it at each epoch's end."""

    def __init__(self) -> None:
        self.values: list[float | None] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        value = trainer.callback_metrics.get("deadkernel/dead_fraction")
        self.values.append(None if value is None else float(value))


def test_other_callbacks_find_the_last_windows_values_at_every_epochs_end() -> None:
    seen = Seen()
    stopping = EarlyStopping("deadkernel/dead_fraction", patience=100, strict=True, check_on_train_epoch_end=True)
    run = train(Tiny, quiet(min_steps=15), max_epochs=5, callbacks=lambda: [seen, stopping])
    assert spans(run.monitor.reports) == [(None, 0, 6), (1, 3, 18), (None, 4, 6)]
    assert seen.values == pytest.approx([3 / 15] * 5)


def test_a_training_that_stops_early_closes_the_window_that_is_open() -> None:
    stopping = EarlyStopping("deadkernel/dead_fraction", patience=3, check_on_train_epoch_end=True)
    run = train(Tiny, quiet(min_steps=100), max_epochs=50, callbacks=lambda: [stopping])
    assert spans(run.monitor.reports) == [(None, 0, 6), (1, 3, 18)]


@pytest.mark.setting("epochs of few steps, of one", evidence="activation", note="they share a window")
@pytest.mark.parametrize("step", [9, 12, 15], ids=lambda step: f"step {step}")
def test_a_resumed_run_goes_on_in_the_middle_of_a_shared_window(tmp_path: Any, step: int) -> None:
    def saving() -> list[Any]:
        return [Save(tmp_path / "at.ckpt", step)]

    whole = train(Tiny, quiet(min_steps=15), data=Resumable, callbacks=saving, enable_checkpointing=True, max_epochs=5)

    def fit(trainer: Any, model: Any, data: Any) -> None:
        trainer.fit(model, data, ckpt_path=tmp_path / "at.ckpt", **SAFELY)

    seen = Seen()
    resumed = train(Tiny, quiet(min_steps=15), data=Resumable, fit=fit, callbacks=lambda: [seen], max_epochs=5)
    assert spans(resumed.monitor.reports) == [(None, 0, 6), (1, 3, 18), (None, 4, 6)]
    assert resumed.report == whole.report
    assert [report.compact() for report in resumed.monitor.reports] == [
        report.compact() for report in whole.monitor.reports
    ]
    assert seen.values == pytest.approx([3 / 15] * len(seen.values)), "the key is there from the first epoch on"


def test_a_resumed_run_has_no_first_window_of_its_own(tmp_path: Any) -> None:
    train(Tiny, quiet(min_steps=15), data=Resumable, callbacks=lambda: [Save(tmp_path / "at.ckpt", 6)], max_epochs=1,
          enable_checkpointing=True)  # fmt: skip

    def fit(trainer: Any, model: Any, data: Any) -> None:
        trainer.fit(model, data, ckpt_path=tmp_path / "at.ckpt", **SAFELY)

    run = train(Tiny, quiet(min_steps=15), data=Resumable, fit=fit, max_epochs=4)
    assert spans(run.monitor.reports) == [(None, 0, 6), (1, 3, 18)]


class OneStep(L.LightningModule):
    """Two graph convolutions over all nodes at once; the second unit of the first is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)
        with torch.no_grad():
            self.first.bias[1] = -100.0

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        nodes, adjacency, labels = batch
        hidden = (adjacency @ self.first(nodes)).relu()
        return nn.functional.cross_entropy(adjacency @ self.second(hidden), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


def graph() -> DataLoader[Any]:
    g = torch.Generator().manual_seed(0)
    adjacency = (torch.rand(20, 20, generator=g) < 0.2).float() + torch.eye(20)
    return DataLoader([(torch.randn(20, 5, generator=g), adjacency, torch.arange(20) % 3)], batch_size=None)


@pytest.mark.setting("epochs of few steps, of one", evidence="activation", note="they share a window")
def test_a_full_batch_graph_network_has_a_window_every_16_epochs() -> None:
    assert DeadKernelMonitor().min_steps == 16
    run = train(OneStep, quiet(min_steps=16), data=graph, max_epochs=48)
    assert spans(run.monitor.reports) == [(None, 0, 1), (1, 16, 16), (17, 32, 16), (33, 47, 15)]
    assert all(1 in report["first"].dead for report in run.monitor.reports[1:])
    assert run.report.samples == 15 * 20


def test_epochs_without_a_known_length_share_windows_too() -> None:
    def data() -> DataLoader[Any]:
        batches = [(torch.randn(8, 1, 8, 8), torch.arange(8) % 3) for _ in range(STEPS)]

        class Unknown(IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter(batches)

        return DataLoader(Unknown(), batch_size=None)

    run = train(Tiny, quiet(min_steps=10), data=data, max_epochs=4)
    assert spans(run.monitor.reports) == [(None, 0, 6), (1, 2, 12), (None, 3, 6)]


def test_where_no_optimizer_step_is_counted_batches_stand_for_them() -> None:
    class ByHand(Tiny):
        automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            optimizer = torch.optim.SGD(self.parameters(), 0.01)
            self.manual_backward(self.loss(batch))
            optimizer.step()
            self.zero_grad()

        def configure_optimizers(self) -> None:
            return None

    run = train(ByHand, quiet(min_steps=10), max_epochs=6)
    assert [(r.first_epoch, r.epoch, r.batches) for r in run.monitor.reports[1:]] == [
        (None, 0, 6), (1, 2, 12), (3, 4, 12), (None, 5, 6)
    ]  # fmt: skip
