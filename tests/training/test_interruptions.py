"""Whatever ends a training, or goes wrong inside the monitor: training's own outcome is what it is without it."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint

import lightning_deadkernel.training.run
import lightning_deadkernel.training.window_end
from helpers.models import DEAD, Tiny, dead
from helpers.training import SAFELY, quiet
from helpers.twins import train, train_twice
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.errors import DeadKernelError, DeadKernelInternalWarning
from lightning_deadkernel.evidence.channel_evidence import ChannelEvidence
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.open_window import OpenWindow
from lightning_deadkernel.evidence.step_statistics import StepStatistics
from lightning_deadkernel.graph.reader import GraphReader
from lightning_deadkernel.training.outputs import Outputs
from lightning_deadkernel.training.record import Record


def breaking(error: BaseException, where: str = "training_step", step: int = 8) -> type[Tiny]:
    """A module that raises after `step` optimizer steps."""

    def hook(self, *args):
        if self.global_step == step:
            raise error
        return getattr(Tiny, where)(self, *args)

    return type("Breaking", (Tiny,), {where: hook})


def reports_on_disk() -> Report:
    (path,) = Path().rglob("report.json")
    return Report.load(path)


# -- the user's own ends ----------------------------------------------------------------------------------------------


@pytest.mark.setting("exceptions, Ctrl-C, out of memory, NaN, SIGKILL, faults of the monitor")
@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (RuntimeError("the user's own"), RuntimeError),
        (torch.OutOfMemoryError("out of memory"), torch.OutOfMemoryError),
        (KeyboardInterrupt(), SystemExit),
    ],
    ids=["an exception", "out of memory", "KeyboardInterrupt"],
)
@pytest.mark.parametrize("where", ["training_step", "on_before_optimizer_step", "on_train_batch_end", "backward"])
def test_the_users_exception_comes_through_and_what_was_seen_is_on_disk(error, ends, where):
    handler = signal.getsignal(signal.SIGINT)
    try:
        run = train_twice(breaking(error, where), quiet(save_report=True), raises=ends, log_every_n_steps=1)
    finally:
        signal.signal(signal.SIGINT, handler)
    kept = reports_on_disk()
    assert kept.window == 2
    assert kept.batches == 2
    assert dead(kept) == DEAD
    assert run.monitor.report.window == 2


class NotANumber(Tiny):
    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (float("nan") if self.global_step == 8 else 1)


def test_a_nan_loss_is_a_finding_and_neither_kills_nor_revives():
    run = train_twice(NotANumber)
    first, second = run.monitor.reports[1:]
    assert dead(first) == DEAD
    assert dead(second) == DEAD  # by the batches before
    assert second.non_finite_batches == 4
    assert {finding.kind for finding in second.findings if finding.severity != "info"} == {"non_finite_gradient"}
    assert "revived_channels" not in {finding.kind for finding in second.findings}


def test_an_error_on_finding_raise_goes_through_after_the_report_is_saved():
    run = train(Tiny, quiet(on_finding="raise", save_report=True), raises=DeadKernelError)
    assert reports_on_disk().window == 1
    assert run.trainer.global_step == 6


def test_a_checkpoint_that_is_saved_on_an_exception_can_be_resumed(tmp_path):
    train(
        breaking(RuntimeError("stop")),
        quiet(),
        raises=RuntimeError,
        callbacks=lambda: [OnExceptionCheckpoint(tmp_path)],
        enable_checkpointing=True,
    )
    path = tmp_path / "on_exception.ckpt"
    run = train(Tiny, quiet(), fit=lambda t, m, d: t.fit(m, d, ckpt_path=path, **SAFELY))
    assert run.trainer.global_step == 12
    assert dead(run.report) == DEAD


# -- faults of our own ------------------------------------------------------------------------------------------------

STAGES = {
    "table": (lightning_deadkernel.training.run.LayerTable, "of"),
    "observer": (Observer, "__init__"),
    "output": (Outputs, "__init__"),
    "walk": (GraphReader, "read"),
    "learn": (GraphReader, "learn"),
    "layout": (OpenWindow, "arrange"),
    "activations": (ChannelEvidence, "add_samples"),
    "gradients": (ChannelEvidence, "read_gradients"),
    "kernels": (ChannelEvidence, "read_kernels"),
    "before step": (StepStatistics, "before_step"),
    "after step": (StepStatistics, "after_step"),
    "tables": (StepStatistics, "tables"),
    "checksums": (OpenWindow, "compare_weights"),
    "merge": (OpenWindow, "merge"),
    "exchange": (lightning_deadkernel.training.run, "exchange"),
    "summarize": (lightning_deadkernel.training.window_end, "summarize"),
    "diagnose": (lightning_deadkernel.training.window_end, "diagnose"),
    "savings": (lightning_deadkernel.training.window_end, "savings"),
    "publish": (lightning_deadkernel.training.run, "publish"),
    "should_sample": (DeadKernelMonitor, "should_sample"),
    "will_step": (lightning_deadkernel.training.run, "will_step"),
    "warn": (lightning_deadkernel.training.window_end, "new_problems"),
}


@pytest.mark.setting("exceptions, Ctrl-C, out of memory, NaN, SIGKILL, faults of the monitor")
@pytest.mark.parametrize("later", [False, True], ids=["at once", "after a window"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_in_any_stage_is_one_warning_and_training_is_untouched(monkeypatch, stage, later):
    owner, name = STAGES[stage]
    original = getattr(owner, name)
    monitor = quiet(save_report=True)

    def broken(*args, **kwargs):
        if monitor.report is not None or not later:
            raise ZeroDivisionError("a fault of our own")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train_twice(Tiny, monitor, max_epochs=3)
    ours = [w for w in caught if issubclass(w.category, DeadKernelInternalWarning)]
    if later and stage in ("table", "observer", "output", "learn", "layout"):
        assert not ours, "it runs once, at the start"
        return
    assert len(ours) == 1, [str(w.message) for w in ours]
    assert "a fault of our own" in str(ours[0].message)
    assert "raining goes on" in str(ours[0].message)
    assert run.trainer.global_step == 18
    if later:
        assert dead(monitor.report) == DEAD
        assert reports_on_disk().window == monitor.report.window


@pytest.mark.parametrize("part", ["window", "end"])
def test_an_output_that_fails_as_a_whole_is_one_warning_and_the_watch_goes_on(monkeypatch, part):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(Outputs, part, full)
    with pytest.warns(DeadKernelInternalWarning, match="no space left") as caught:
        run = train_twice(Tiny, quiet(save_report=True))
    assert len([w for w in caught if issubclass(w.category, DeadKernelInternalWarning)]) == 1
    assert run.report.window == 2
    assert dead(run.report) == DEAD


def test_an_activation_that_cannot_be_read_costs_its_own_layer_alone(monkeypatch):
    original = lightning_deadkernel.evidence.observer.sums_of

    def broken(group, channels):
        if any(sample.key == ("net.conv2",) for sample in group):
            raise RuntimeError("cannot read this")
        return original(group, channels)

    monkeypatch.setattr(lightning_deadkernel.evidence.observer, "sums_of", broken)
    with pytest.warns(DeadKernelInternalWarning, match=r"no longer watches net\.conv2: .*cannot read this") as caught:
        run = train_twice(Tiny)
    assert len([w for w in caught if issubclass(w.category, DeadKernelInternalWarning)]) == 1
    assert "cannot read this" in run.report["net.conv2"].excluded
    assert dead(run.report) == {"conv1": DEAD["conv1"]}


def test_a_fault_while_saving_a_checkpoint_saves_the_checkpoint(monkeypatch, tmp_path):
    def broken(*args):
        raise ZeroDivisionError("a fault of our own")

    run = train(Tiny, quiet())
    monkeypatch.setattr(Record, "state_dict", broken)
    with pytest.warns(DeadKernelInternalWarning, match="state_dict"):
        run.trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").exists()


def test_wrong_patterns_are_an_error_before_the_first_step():
    run = train(Tiny, quiet(include=["nowhere.*"]), raises=ValueError)
    assert run.trainer.global_step == 0
    assert "net.conv1" in str(run.error)
