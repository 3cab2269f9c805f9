"""Checkpoint and resume: the resumed run's reports are those of the uninterrupted one."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

import lightning_deadkernel.evidence.step_statistics
import lightning_deadkernel.training.record
from helpers.models import DEAD, Layers, Resumable, Save, Tiny, dead, images
from helpers.training import SAFELY, quiet
from helpers.twins import assert_identical, train
from lightning_deadkernel.errors import DeadKernelInternalWarning, DeadKernelWarning
from lightning_deadkernel.training.checkpoint import parted


def resume(path, **options):
    loading = options.pop("loading", {})

    def fit(trainer, model, data):
        trainer.fit(model, data, ckpt_path=path, **loading)

    return train(options.pop("make", Tiny), options.pop("monitor", quiet()), data=Resumable, fit=fit, **options)


def saved(path, step: int, monitor=None, **options):
    """An uninterrupted run that saves a checkpoint at `step` on its way."""
    return train(
        options.pop("make", Tiny),
        monitor or quiet(),
        data=Resumable,
        callbacks=lambda: [Save(path, step)],
        enable_checkpointing=True,
        **options,
    )


def same_reports(resumed, whole) -> None:
    assert [report.window for report in resumed] == [report.window for report in whole]
    for mine, other in zip(resumed, whole, strict=True):
        assert mine.compact() == other.compact()
    assert resumed[-1] == whole[-1]


@pytest.mark.setting("resume, `weights_only`, a checkpoint from before the monitor, changed layers")
@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize("step", [1, 3, 6, 8, 11], ids=lambda step: f"step {step}")
def test_the_history_of_a_resumed_run_equals_the_uninterrupted_runs(tmp_path, step, every):
    path = tmp_path / "at.ckpt"
    whole = saved(path, step, quiet(every_n_train_steps=every))
    resumed = resume(path, monitor=quiet(every_n_train_steps=every), loading=SAFELY)
    same_reports(resumed.monitor.reports, whole.monitor.reports)
    assert dead(resumed.report) == DEAD
    assert_identical(resumed.monitor.state_dict()["history"], whole.monitor.state_dict()["history"], "history")
    assert_identical(
        resumed.left_behind["weights and buffers"], whole.left_behind["weights and buffers"], "after resuming"
    )


def test_a_checkpoint_and_resume_leave_training_as_it_is_without_the_monitor(tmp_path):
    for name, monitor in (("with", quiet()), ("without", None)):
        train(
            Tiny,
            monitor,
            data=Resumable,
            callbacks=lambda name=name: [Save(tmp_path / f"{name}.ckpt", 8)],
            enable_checkpointing=True,
        )
    monitored = resume(tmp_path / "with.ckpt")
    plain = resume(tmp_path / "without.ckpt", monitor=None)
    assert_identical(monitored.left_behind, plain.left_behind)


class InTurn(Tiny):
    """Two networks with an optimizer each: every batch has two graphs."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))

    def training_step(self, batch, batch_idx):
        x, y = batch
        for network, optimizer in zip((self.other, self.net), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(network(x), y))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.other, self.net)]


def test_graphs_that_are_new_after_a_resume_make_no_difference_to_any_number(tmp_path):
    whole = saved(tmp_path / "at.ckpt", 12, make=InTurn)
    resumed = resume(tmp_path / "at.ckpt", make=InTurn)
    gradients = [run.report["other.1"].values.gradient for run in (resumed, whole)]
    assert gradients[0] == gradients[1]
    same_reports(resumed.monitor.reports, whole.monitor.reports)


def test_what_was_said_is_not_said_again_after_a_resume(tmp_path):
    with pytest.warns(DeadKernelWarning, match="net.conv1: .* dead"):
        saved(tmp_path / "at.ckpt", 6, quiet(on_finding="warn"))
    with pytest.warns() as caught:  # Lightning's own
        resume(tmp_path / "at.ckpt", monitor=quiet(on_finding="warn"))
    assert not [w for w in caught if " dead" in str(w.message)]


@pytest.mark.setting("resume, `weights_only`, a checkpoint from before the monitor, changed layers")
def test_a_checkpoint_from_before_the_monitor_begins_a_history_there(tmp_path):
    path = tmp_path / "plain.ckpt"
    train(Tiny, None, data=Resumable, callbacks=lambda: [Save(path, 8)], enable_checkpointing=True)
    run = resume(path)
    assert [(r.window, r.global_step, r.batches) for r in run.monitor.reports] == [(0, 8, 0), (1, 12, 4)]
    assert dead(run.report) == DEAD
    causes = {finding.cause_word for finding in run.report.findings if finding.kind == "dead_channels"}
    assert "born dead" not in causes, "nobody saw its beginning"


class Changed(Tiny):
    """Another width in the middle."""

    strict_loading = False

    def make_net(self):
        net = Layers()
        net.conv2, net.norm, net.head = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)
        net.extra = nn.Linear(3, 3)
        return net

    def loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net.extra(self.net(x)), y)

    def on_load_checkpoint(self, checkpoint):
        own = self.state_dict()
        checkpoint["state_dict"] = {
            k: v if k in own and own[k].shape == v.shape else own[k]
            for k, v in checkpoint["state_dict"].items()
            if k in own
        }
        checkpoint["optimizer_states"] = [self.configure_optimizers().state_dict()]


@pytest.mark.setting("resume, `weights_only`, a checkpoint from before the monitor, changed layers")
@pytest.mark.parametrize("step", [6, 8])
def test_changed_layers_are_one_clear_warning_and_begin_a_fresh_history(tmp_path, step):
    saved(tmp_path / "at.ckpt", step)
    with pytest.warns(DeadKernelWarning, match=r"history of .*net\.conv2.* does not fit .* begins anew") as caught:
        run = resume(tmp_path / "at.ckpt", make=Changed)
    ours = [str(w.message) for w in caught if issubclass(w.category, DeadKernelWarning)]
    assert "net.conv1" not in ours[0]
    assert len(ours) == (1 if step == 6 else 2), "mid-epoch the half-open window is told of as well"
    assert dead(run.report) == {"conv1": [2, 3]}
    assert run.report["net.conv2"].channels == 6
    assert run.report.window == 2


def test_a_damaged_state_is_one_warning_and_training_resumes(tmp_path):
    saved(tmp_path / "at.ckpt", 6)
    checkpoint = torch.load(tmp_path / "at.ckpt", weights_only=True)
    checkpoint["callbacks"]["DeadKernelMonitor"]["history"] = 3
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.warns(DeadKernelInternalWarning, match="could not read its state"):
        run = resume(tmp_path / "damaged.ckpt")
    assert run.trainer.global_step == 12
    assert dead(run.report) == DEAD


def test_a_damaged_half_open_window_is_one_warning_and_training_resumes(tmp_path):
    saved(tmp_path / "at.ckpt", 8)
    checkpoint = torch.load(tmp_path / "at.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["DeadKernelMonitor"]
    state["open"] = parted(state["open"]) | {"segments": 3}
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.warns(DeadKernelInternalWarning, match="stops watching"):
        run = resume(tmp_path / "damaged.ckpt")
    assert run.trainer.global_step == 12
    assert [report.window for report in run.monitor.reports] == [0, 1]


def test_testing_or_validating_an_old_checkpoint_leaves_the_reports_as_training_left_them(tmp_path):
    run = saved(tmp_path / "at.ckpt", 3)
    before = list(run.monitor.reports)
    assert len(before) == 3
    run.trainer.validate(run.model, DataLoader(images(), 8), ckpt_path=tmp_path / "at.ckpt", verbose=False)
    assert run.monitor.reports == before


def test_a_newer_versions_state_is_refused_in_words(tmp_path):
    monitor = quiet()
    with pytest.warns(DeadKernelInternalWarning, match="its version is 99"):
        monitor.load_state_dict({"version": 99})
    assert monitor.reports == []


@pytest.mark.setting("TensorBoard's x-axis after a resume")
def test_tensorboards_axis_goes_on_from_the_true_step(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def steps(run):
        found = events.EventAccumulator(run.trainer.logger.log_dir).Reload()
        return [event.step for event in found.Scalars("deadkernel/dead_fraction")]

    def logger(name):
        return lambda: TensorBoardLogger(tmp_path, name=name)

    whole = saved(tmp_path / "at.ckpt", 8, logger=logger("whole"), accumulate_grad_batches=1)
    resumed = resume(tmp_path / "at.ckpt", logger=logger("resumed"))
    assert steps(whole)[-1:] == steps(resumed)
    assert len(steps(whole)) == 2


def test_a_checkpoint_packs_only_what_no_earlier_one_has_packed(monkeypatch):
    packed = []
    original = lightning_deadkernel.training.record.pack

    def counting(report):
        packed.append(report.window)
        return original(report)

    monkeypatch.setattr(lightning_deadkernel.training.record, "pack", counting)
    keep = ModelCheckpoint(every_n_train_steps=1)
    run = train(Tiny, quiet(), callbacks=lambda: [keep], enable_checkpointing=True, max_epochs=3)
    assert packed == [0, 1, 2, 3][: len(packed)]
    assert len(packed) >= 3
    state = run.monitor.state_dict()
    fresh = quiet()
    fresh.load_state_dict(state)
    assert [report.compact() for report in fresh.reports] == [report.compact() for report in run.monitor.reports]


def test_whose_turn_it_is_to_be_measured_outlives_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning_deadkernel.evidence.step_statistics, "TURN", 1)  # one layer on each sampled step
    path = tmp_path / "at.ckpt"
    every_step = {"log_every_n_steps": 1, "max_epochs": 2}
    whole = saved(path, 3, **every_step)
    same_reports(resume(path, **every_step).monitor.reports, whole.monitor.reports)
