"""torch.distributed over gloo: DDP with two and three processes, and what ranks owe each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.ddp_jobs import SyncBatchNormStandIn
from helpers.distributed import TESTS, launch, statuses
from helpers.models import DEAD, Layers, Resumable, Tiny, dead
from helpers.training import SAFELY, quiet
from helpers.twins import train, train_twice
from lightning_deadkernel import Report
from lightning_deadkernel.training.checkpoint import parted


def same_everywhere(seen: list[dict], name: str) -> Report:
    """The last report under `name`, which all ranks must hold alike."""
    for other in seen[1:]:
        for report, own in zip(seen[0][name], other[name], strict=True):
            assert repr(report.layers) == repr(own.layers), "as text, in which NaN equals NaN"
            assert (report.findings, report.problems) == (own.findings, own.problems)
            assert report.samples == own.samples
    return seen[0][name][-1]


@pytest.mark.setting(
    "DDP, 2 and 3 ranks over gloo: uneven batches, `no_sync`, unused parameters, static graph", evidence="activation"
)
@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [2, 3])
def test_ddp_is_untouched_and_all_ranks_hold_the_same_report(tmp_path, ranks):
    seen = launch(ranks, "helpers.ddp_jobs:settings", tmp_path)

    report = same_everywhere(seen, "ddp")
    assert dead(report) == DEAD
    assert report.samples == 48, "over all ranks"
    assert {f.samples for f in report.findings if f.kind == "dead_channels"} == {48}, "the forward passes as well"
    assert [r.window for r in seen[0]["ddp"]] == [0, 1, 2]
    assert all(rank["files"] == seen[0]["files"] and len(rank["files"]) == 1 for rank in seen), "rank zero alone writes"

    report = same_everywhere(seen, "one rank fires")
    assert dead(report) == DEAD, "what fires on one rank only is not dead"
    assert report["net.conv1"].values.firing_rate[1] == pytest.approx(1 / ranks, abs=0.15)

    report = same_everywhere(seen, "one rank is NaN")
    assert (report.non_finite_batches, dead(report)) == (1, DEAD), "the others are finite on all ranks"
    (finding,) = [finding for finding in report.findings if finding.kind == "non_finite_gradient"]
    assert (finding.layer, finding.evidence["step"]) == ("net.conv1", 2)
    assert "what enters net.conv1 was, which no layer" in finding.cause, "as the rank that saw it knows"

    report = same_everywhere(seen, "uneven")
    assert report.samples == 42, "the sampler repeats some so that all ranks have as many"
    assert dead(report) == DEAD

    report = same_everywhere(seen, "no_sync")
    batches = 48 // ranks // 8
    assert (report.batches, report.optimizer_steps) == (batches, (batches + 1) // 2)
    assert dead(report) == DEAD

    report = same_everywhere(seen, "unused")
    assert dead(report) == DEAD
    assert report["net.never"].excluded.startswith("not in the graph of the loss")
    assert report["net.seldom"].excluded is None

    report = same_everywhere(seen, "static graph")
    assert dead(report) == DEAD
    assert same_everywhere(seen, "steps").samples in (16 * ranks, 8 * ranks, 48 % (16 * ranks))


@pytest.mark.setting("resume with another number of ranks")
@pytest.mark.ddp
def test_a_window_half_open_on_two_ranks_is_taken_up_by_two_by_three_and_by_one(tmp_path):
    seen = launch(2, "helpers.ddp_jobs:checkpoints", tmp_path)
    whole, by_two = same_everywhere(seen, "whole"), same_everywhere(seen, "resumed")
    assert whole.samples == 2 * 48, "each rank saw all"
    assert by_two == whole, "as if it had not been interrupted"

    state = parted(torch.load(tmp_path / "at.ckpt", weights_only=True)["callbacks"]["DeadKernelMonitor"]["open"])
    assert state["counts"]["samples"] == 2 * 2 * 8, "two batches of eight on two ranks"
    by_three = same_everywhere(launch(3, "helpers.ddp_jobs:resumed", tmp_path), "resumed")
    by_one = train(
        Tiny,
        quiet(),
        data=Resumable,
        max_epochs=1,
        fit=lambda t, m, d: t.fit(m, d, ckpt_path=tmp_path / "at.ckpt", **SAFELY),
    ).report
    for ranks, report in ((3, by_three), (1, by_one)):
        assert (report.window, report.batches, report.optimizer_steps) == (1, 6, 6)
        assert report.samples == 2 * 2 * 8 + ranks * 4 * 8
        assert [layer.codes for layer in report.layers] == [layer.codes for layer in whole.layers]
        rates, expected = (r["net.conv2"].values.firing_rate for r in (report, whole))
        assert rates == pytest.approx(expected, abs=0.1)


@pytest.mark.setting("a fault or an exception on one rank")
@pytest.mark.ddp
def test_a_fault_on_one_rank_ends_the_watch_on_all_and_hangs_none(tmp_path):
    seen = launch(2, "helpers.ddp_jobs:faults", tmp_path)
    assert seen[0].keys() == seen[1].keys()
    for stage in seen[0]:
        (silent, steps, windows), (warned, other_steps, other_windows) = seen[0][stage], seen[1][stage]
        assert (silent, warned) == (0, 1), stage
        assert steps == other_steps == 6, stage
        assert other_windows <= windows <= (2 if stage == "diagnose" else 1), stage


@pytest.mark.setting("a fault or an exception on one rank")
@pytest.mark.ddp
def test_layers_that_change_in_mid_training_are_the_same_on_all_ranks_and_where_they_are_not_none_hangs(tmp_path):
    seen = launch(2, "helpers.ddp_jobs:changes", tmp_path)
    report = same_everywhere(seen, "all")
    assert report["net.conv1"].excluded == "requires_grad=False since epoch 1 (step 4)"
    assert dead(report) == {name: channels for name, channels in DEAD.items() if name != "conv1"}
    assert report["net.extra"].excluded.startswith("not in the graph of the loss")
    for windows, said in (rank["one"] for rank in seen):
        assert windows == [0, 1]
        assert len(said) == 1
        assert "the ranks train different layers" in said[0]


@pytest.mark.ddp
def test_after_an_exception_no_rank_waits_for_another(tmp_path):
    seen = launch(2, "helpers.ddp_jobs:exceptions", tmp_path)
    assert "on one rank" in seen[1]["error"]
    for rank in seen:
        assert rank["exchanges"] == (6, 6), "two at initialisation and two a window, none after the exception"
        assert rank["windows"] == [0, 1, 2]
        assert not rank["open"]


@pytest.mark.ddp
def test_nan_on_one_rank_is_the_same_finding_on_all(tmp_path):
    seen = launch(2, "helpers.ddp_jobs:not_a_number", tmp_path)
    report = same_everywhere(seen, "NaN on one rank")
    assert "non_finite_gradient" in {finding.kind for finding in report.findings}
    # a closed gate passes exactly zero of a NaN, so conv1's dead kernels stay finite and dead; conv2 sees NaN
    assert dead(report) == {"conv1": DEAD["conv1"]}


@pytest.mark.ddp
@pytest.mark.parametrize("how", ["killed", "killed in an exchange", "raises"])
def test_where_one_rank_ends_alone_the_others_end_as_without_the_monitor_and_leave_a_whole_report(tmp_path, how):
    codes = statuses(2, "helpers.ddp_jobs:ends", tmp_path, timeout=100, ENDS=how)
    assert codes[0] == 0, "the first rank has got the error of the lost connection that it gets without the monitor"
    assert codes[1] == (-signal.SIGKILL if "killed" in how else 1)
    report = Report.load(max(tmp_path.rglob("report.json"), key=lambda path: path.stat().st_mtime_ns))
    assert report.window == (2 if "exchange" in how else 3)
    assert (report.samples, dead(report)) == (2 * 2 * 8, DEAD)


SPAWN = """
import torch
from helpers.ddp_jobs import ddp
from helpers.models import DEAD, Tiny, dead, loader
from helpers.training import quiet
from helpers.twins import QUIET
from lightning_deadkernel import Report
import lightning as L
from pathlib import Path

if __name__ == "__main__":
    torch.set_num_threads(1)
    L.seed_everything(3)
    trainer = L.Trainer(**{**QUIET, "strategy": ddp(start_method="spawn")(), "devices": 2},
        callbacks=[quiet(save_report=True)])
    trainer.fit(Tiny(), loader())
    (path,) = Path().rglob("report.json")
    report = Report.load(path)
    assert dead(report) == DEAD, dead(report)
    assert report.samples == 48
    assert float(trainer.callback_metrics["deadkernel/dead_channels"]) == 3
"""


@pytest.mark.setting("DDP by spawn", evidence="activation", note="reports stay in the children")
@pytest.mark.ddp
def test_ddp_by_spawn_pickles_the_monitor_and_writes_one_report(tmp_path):
    (tmp_path / "script.py").write_text(SPAWN)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Synced(Tiny):
    """The node that SyncBatchNorm leaves in a graph, by a stand-in: the real one runs on GPUs only."""

    def make_net(self):
        class WithStandIn(Layers):
            def forward(self, x):
                x = F.relu(self.conv1(x))
                x = SyncBatchNorm.apply(self.conv2(x), self.norm.weight, self.norm.bias)
                return self.head(F.relu(x).mean((2, 3)))

        return WithStandIn(nn.BatchNorm2d)


SyncBatchNorm = type("SyncBatchNorm", (SyncBatchNormStandIn,), {})


@pytest.mark.setting(
    "SyncBatchNorm", evidence="activation", note="by a stand-in node; the real one needs CUDA: not run here"
)
def test_the_node_of_a_sync_batch_norm_is_passed_as_a_norm():
    run = train_twice(Synced)
    assert dead(run.report) == DEAD
    assert run.report["net.conv2"].activation == "relu"


@pytest.mark.setting("FSDP2, `ModelParallelStrategy`, 2 and 3 ranks over gloo", evidence="activation")
@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [2, 3])
def test_fsdp2_by_the_model_parallel_strategy_gives_the_same_reports_as_ddp(tmp_path, ranks):
    seen = launch(ranks, "helpers.ddp_jobs:sharded", tmp_path)
    sharded, ddp = same_everywhere(seen, "sharded"), same_everywhere(seen, "ddp")
    assert dead(sharded) == dead(ddp) == DEAD
    assert sharded.samples == 48
    assert seen[0]["files"] == 1
    assert sharded.gradient_norm == pytest.approx(ddp.gradient_norm, rel=1e-4)
    for mine, other in zip(sharded.layers, ddp.layers, strict=True):
        assert mine.name == other.name
        assert mine.codes == other.codes
        assert mine.values.norms == pytest.approx(other.values.norms, rel=1e-4)
        assert mine.values.gradient == pytest.approx(other.values.gradient, rel=1e-2, abs=1e-6)
        assert mine.update_ratio == pytest.approx(other.update_ratio, rel=1e-3)
        assert mine.gradient_ratio == pytest.approx(other.gradient_ratio, rel=1e-3)
        assert mine.parameters == other.parameters
