"""Copies of a monitor, several monitors in one Trainer, several fits at once."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from helpers.models import DEAD, Save, Tiny, dead, loader
from helpers.training import quiet
from helpers.twins import QUIET, assert_identical, train
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.training.compile import Stance


@pytest.mark.parametrize("make", [copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))])
@pytest.mark.parametrize("where", ["on_train_batch_end", "on_before_backward", "on_train_epoch_end"])
def test_a_copy_made_during_a_fit_holds_the_reports_and_watches_anew(make: Any, where: str) -> None:
    copies = []

    def hook(self: Tiny, *args: Any) -> None:
        if self.global_step == 8 or where == "on_train_epoch_end":
            copies.append(make(next(c for c in self.trainer.callbacks if isinstance(c, DeadKernelMonitor))))

    copying = type("Copying", (Tiny,), {where: hook})
    original = train(copying, quiet(every_n_train_steps=4))
    plain = train(Tiny, quiet(every_n_train_steps=4))
    assert [r.layers for r in original.monitor.reports] == [r.layers for r in plain.monitor.reports]
    assert_identical(original.left_behind["weights and buffers"], plain.left_behind["weights and buffers"])
    made = copies[0]
    assert [report.window for report in made.reports] in ([0, 1], [0, 1, 2])
    assert dead(made.report) == DEAD
    again = train(Tiny, made)
    assert [report.window for report in again.monitor.reports] == [0, 1, 2, 3]
    assert dead(again.report) == DEAD


def by_steps_and_by_epochs() -> list[DeadKernelMonitor]:
    return [quiet(save_report=True), quiet(save_report=True, every_n_train_steps=4, include=["net.conv*"])]


def test_two_monitors_in_one_trainer_each_keep_their_reports_their_files_and_their_state(tmp_path: Path) -> None:
    def fit(monitors: list[DeadKernelMonitor], **options: Any) -> Any:
        return train(Tiny, None, callbacks=lambda: [*monitors, Save(tmp_path / "at.ckpt", 7)], **options)

    by_epoch, by_steps = monitors = by_steps_and_by_epochs()
    fit(monitors, enable_checkpointing=True)
    assert [report.batches for report in by_epoch.reports] == [0, 6, 6]
    assert [report.batches for report in by_steps.reports] == [0, 4, 4, 4]
    assert dead(by_epoch.report) == dead(by_steps.report) == DEAD
    (one, other) = sorted(Path().rglob("report.json"), key=lambda path: Report.load(path).batches)
    assert (Report.load(one).window, Report.load(other).window) == (3, 2)
    assert [layer.name for layer in Report.load(one).watched] == ["net.conv1", "net.conv2"]

    again = by_steps_and_by_epochs()
    fit(again, enable_checkpointing=True, fit=lambda t, m, d: t.fit(m, d, ckpt_path=tmp_path / "at.ckpt"))
    assert [report.batches for report in again[0].reports] == [0, 6, 6]
    assert [report.batches for report in again[1].reports] == [0, 4, 4, 4]


def test_a_monitor_whose_options_have_changed_takes_up_the_state_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "at.ckpt"
    train(Tiny, quiet(), callbacks=lambda: [Save(path, 6)], enable_checkpointing=True)
    changed = quiet(every_n_train_steps=3)
    train(Tiny, changed, fit=lambda t, m, d: t.fit(m, d, ckpt_path=path))
    assert [report.batches for report in changed.reports] == [0, 6, 3, 3]


def test_fits_in_several_threads_do_not_mix() -> None:
    def fit(_: int) -> DeadKernelMonitor:
        monitor = quiet()
        L.Trainer(**QUIET, callbacks=[monitor]).fit(Tiny(), loader())
        return monitor

    with ThreadPoolExecutor(3) as pool:
        monitors = list(pool.map(fit, range(3)))
    for monitor in monitors:
        assert [report.batches for report in monitor.reports] == [0, 6, 6]
        assert dead(monitor.report) == DEAD


def test_the_last_of_several_that_hold_the_stance_gives_it_back() -> None:
    def stance() -> str:
        return str(torch._dynamo.eval_frame._stance.stance)

    one, other = Stance(), Stance()
    for stance_of in (one, other):
        stance_of.force_eager()
    one.restore()
    assert stance() == "force_eager"
    other.restore()
    one.restore()
    assert stance() == "default"
