"""Other people's projects train as they do without a monitor, and are told what brute force says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from helpers.short_runs import alarms
from helpers.training import quiet
from helpers.twins import assert_identical
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.report.codec import to_json
from projects.running import PROJECTS, train
from zoo.architectures import ZOO, zoo_importable
from zoo.oracle import BruteForce, Removal, shut
from zoo.test_zoo import assert_agrees

for field in ("examples", "forecasting", "images", "science", "tables_and_texts"):
    import_module(f"projects.{field}")

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.slow,
    pytest.mark.skipif(not ZOO, reason="DEADKERNEL_ZOO names no folder with the projects (see tests/projects)"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::lightning_deadkernel.errors.DeadKernelWarning"),
]


@dataclass
class Watched:
    """A project's training under the monitor, with channels that were shut before."""

    name: str
    monitor: DeadKernelMonitor
    left_behind: dict[str, Any]
    killed: dict[str, tuple[int, ...]]
    checkpoint: Path
    """Written after the first epoch."""


class SaveFirstEpoch(lightning.pytorch.callbacks.Checkpoint):
    """Saves a checkpoint where Lightning's own does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.fixture(scope="module", params=PROJECTS)
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    name, checkpoint = request.param, tmp_path_factory.mktemp("project") / "first.ckpt"
    killed: dict[str, tuple[int, ...]] = {}
    monitor = quiet()
    with zoo_importable(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkpoint.parent)  # some write files of their own
        save = SaveFirstEpoch(checkpoint)
        try:
            ends = train(name, monitor, save, touch=lambda m: killed.update(shut(m)), enable_checkpointing=True)
        except ImportError as missing:
            pytest.skip(f"cannot be imported beside torch {torch.__version__}: {missing}")
        yield Watched(name, monitor, ends, killed, checkpoint)
    checkpoint.unlink()


class EachEpoch(BruteForce):
    """What brute force saw, an epoch at a time."""

    def __init__(self) -> None:
        super().__init__({})
        self.epochs: list[BruteForce] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        epoch = BruteForce({})
        epoch.at_output, epoch.at_kernel, epoch.used = self.at_output, self.at_kernel, self.used
        self.epochs.append(epoch)
        self.at_output, self.at_kernel, self.used = {}, {}, set()


class Without(lightning.Callback):
    """Trains with 0 in the place of some channels."""

    def __init__(self, channels: Mapping[str, set[int]]) -> None:
        self.channels = channels

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        Removal(module, self.channels)


@pytest.mark.setting(
    "public Lightning projects, each with its own module, optimizers and Trainer options (tests/projects)",
    evidence="activation or gradient",
    note="verdicts equal brute force",
)
def test_training_is_bit_identical_and_verdicts_agree_with_brute_force(watched: Watched) -> None:
    oracle = EachEpoch()
    plain = train(watched.name, oracle, touch=shut)
    assert_identical(watched.left_behind, plain)
    reports = watched.monitor.reports[1:]
    for report, epoch in zip(reports, oracle.epochs, strict=True):
        assert_agrees(report, epoch, watched.killed)
    first, last = (report.dead_channels for report in reports)
    always = {layer: set(first[layer]) & set(last[layer]) for layer in first.keys() & last.keys()}
    without = train(watched.name, Without(always), touch=shut)["weights and buffers"]
    for name in plain["gradients"]:
        assert torch.equal(without[name], plain["weights and buffers"][name]), f"{name}: dead channels had a part in it"


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(watched: Watched) -> None:
    monitor = quiet()
    resumed = train(watched.name, monitor, resume=watched.checkpoint)
    if PROJECTS[watched.name].begins_anew:
        pytest.skip(f"it resumes, but {PROJECTS[watched.name].begins_anew}")
    for what in ("weights and buffers", "optimizers"):
        assert_identical(resumed[what], watched.left_behind[what], what)
    whole = watched.monitor.reports
    assert [_said(report) for report in monitor.reports] == [_said(report) for report in whole]


def _said(report: Report) -> dict[str, Any]:
    """All that a report says, but when it was made."""
    told: dict[str, Any] = json.loads(to_json(report))
    del told["run"]
    return told


def test_a_run_as_it_is_has_no_finding_that_is_not_expected(watched: Watched) -> None:
    monitor = quiet()
    train(watched.name, monitor)
    expected = PROJECTS[watched.name].expected
    assert [alarm for alarm in alarms(monitor) if not any(f" {kind} (" in alarm for kind in expected)] == []
