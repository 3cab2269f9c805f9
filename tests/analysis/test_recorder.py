"""One training of a trial: which random numbers it has, what it leaves out, and what it keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from helpers.training import SAFELY, SHORT, quiet
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.analysis.trial.recorder import Recorder
from lightning_deadkernel.attach import callbacks_from_environment


class Net(L.LightningModule):
    """Keeps what it began from, and the batches that it saw."""

    def __init__(self, weight_decay: float = 0.1, lr: float = 0.1, adamw: bool = False) -> None:
        super().__init__()
        self.hidden, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)
        self.options = {"weight_decay": weight_decay, "lr": lr}
        self.kind = torch.optim.AdamW if adamw else torch.optim.Adam
        self.begun = {name: value.clone() for name, value in self.state_dict().items()}
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch[0])
        loss = self.head(self.hidden(batch[0]).relu()).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.kind(self.parameters(), **self.options)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def trained(
    folder: Path, order: int = 0, groups: Any = None, net: dict[str, Any] | None = None, **options: Any
) -> tuple[Net, L.Trainer]:
    """A training of a trial, whose process is this one."""
    folder.mkdir(exist_ok=True)
    (folder / "task.json").write_text(json.dumps({"order": order, "groups": groups}))
    L.seed_everything(3, verbose=False)
    model, loader = Net(**(net or {})), DataLoader(TensorDataset(torch.randn(32, 4)), 4, shuffle=True)
    callbacks = [quiet(), *options.pop("callbacks", []), Recorder(folder / "task.json", DeadKernelMonitor)]
    ckpt = options.pop("ckpt_path", None)
    trainer = L.Trainer(**{**SHORT, "callbacks": callbacks, **options})
    with pytest.raises(SystemExit) as end:
        trainer.fit(model, loader, ckpt_path=ckpt, **(SAFELY if ckpt else {}))
    assert end.value.code == 0
    return model, trainer


@pytest.fixture(autouse=True)
def _seed_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def test_another_order_has_the_same_initial_weights_and_other_batches_each_time_the_same(tmp_path: Path) -> None:
    first, other, again, plain = (
        trained(tmp_path / name, order)[0] for name, order in (("a", 0), ("b", 1), ("c", 1), ("d", 0))
    )
    assert all(torch.equal(value, other.begun[name]) for name, value in first.begun.items())
    assert not all(map(torch.equal, first.seen, other.seen))
    assert all(map(torch.equal, other.seen, again.seen))
    assert all(map(torch.equal, first.seen, plain.seen))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_runs_own_order_is_that_of_a_training_without_it_to_the_last_bit(tmp_path: Path) -> None:
    recorded, _ = trained(tmp_path / "a")
    L.seed_everything(3, verbose=False)
    model, loader = Net(), DataLoader(TensorDataset(torch.randn(32, 4)), 4, shuffle=True)
    L.Trainer(**SHORT).fit(model, loader)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in recorded.state_dict().items())


def test_it_keeps_the_report_and_what_was_logged_and_leaves_out_what_writes(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints")
    _, trainer = trained(
        tmp_path / "a",
        callbacks=[checkpoint, LearningRateMonitor()],
        enable_checkpointing=True,
        enable_progress_bar=True,
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "report.json", "result.json", "task.json"]
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert Report.load(tmp_path / "a" / "report.json")["hidden"].channels == 8
    assert result["metrics"]["train_loss"] > 0
    assert not any(name.startswith("deadkernel") for name in result["metrics"])
    assert (result["device"], result["settings"]) == ("cpu", {})
    assert checkpoint not in trainer.callbacks


def test_it_keeps_the_settings_of_the_command_by_their_dotted_names(tmp_path: Path) -> None:
    class SaveConfigCallback(L.Callback):  # as Lightning's, it has the config of the command
        config = Namespace(model=Namespace(lr=0.1, betas=(0.9, 0.99), name="a", none=None), data=[Namespace(a=1)])

    trained(tmp_path / "a", callbacks=[SaveConfigCallback()])
    settings = json.loads((tmp_path / "a" / "result.json").read_text())["settings"]
    assert settings.pop("data").startswith("[Namespace")
    assert settings == {"model.lr": 0.1, "model.betas": [0.9, 0.99], "model.name": "a", "model.none": None}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"weight_decay": 0.0}, {"weight_decay": 0.0, "lr": 0.025}),
        ({"lr": 0.01}, {"weight_decay": 0.1, "lr": 0.0025}),  # a tenth of where the schedule has taken it
        ({"adamw": True}, {"weight_decay": 0.1, "lr": 0.025}),
    ],
)
def test_what_an_arm_changes_is_put_in_again_after_a_checkpoint_has_restored_its_own(
    changed: dict[str, Any], expected: dict[str, float], tmp_path: Path
) -> None:
    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append({**trainer.optimizers[0].param_groups[0]})

    L.seed_everything(3, verbose=False)
    model, loader = Net(), DataLoader(TensorDataset(torch.randn(32, 4)), 4, shuffle=True)
    before = L.Trainer(**{**SHORT, "max_epochs": 2, "callbacks": [quiet()]})
    before.fit(model, loader)
    before.save_checkpoint(tmp_path / "last.ckpt")
    seen: list[dict[str, Any]] = []
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 4, "callbacks": [Look()]}
    trained(tmp_path / "control", **resumed)
    assert {name: seen[0][name] for name in expected} == pytest.approx({"weight_decay": 0.1, "lr": 0.025})
    groups = json.loads((tmp_path / "control" / "result.json").read_text())["groups"]
    seen.clear()
    trained(tmp_path / "arm", 0, groups, changed, **resumed)
    assert {name: seen[0][name] for name in expected} == pytest.approx(expected)
    assert seen[-1]["lr"] == pytest.approx(expected["lr"] / 2)  # and the schedule goes on from there
    if "decoupled_weight_decay" in seen[0]:
        assert seen[0]["decoupled_weight_decay"] == ("adamw" in changed)


def test_a_training_whose_trial_has_ended_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Orphan(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                monkeypatch.setattr(os, "getppid", lambda: 1)

    (tmp_path / "task.json").write_text(json.dumps({"order": 0, "groups": None}))
    model, loader = Net(), DataLoader(TensorDataset(torch.randn(32, 4)), 4)
    recorder = Recorder(tmp_path / "task.json", DeadKernelMonitor)
    with pytest.raises(SystemExit, match="the trial has ended"):
        L.Trainer(**{**SHORT, "callbacks": [quiet(), Orphan(), recorder]}).fit(model, loader)
    assert len(model.seen) == 3
    assert not (tmp_path / "result.json").exists()


def test_a_fit_that_trains_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"order": 0, "groups": None}))
    recorder = Recorder(tmp_path / "task.json", DeadKernelMonitor)
    loader = DataLoader(TensorDataset(torch.randn(32, 4)), 4)
    with pytest.raises(SystemExit, match="nothing was trained"):
        L.Trainer(**{**SHORT, "callbacks": [quiet(), recorder], "limit_train_batches": 0}).fit(Net(), loader)
    assert not (tmp_path / "result.json").exists()


def test_the_environment_brings_a_monitor_and_the_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"order": 0, "groups": None}))
    monkeypatch.setenv("LIGHTNING_DEADKERNEL_TRIAL", str(tmp_path / "task.json"))
    monitor, recorder = callbacks_from_environment()
    assert isinstance(monitor, DeadKernelMonitor)
    assert isinstance(recorder, Recorder)
