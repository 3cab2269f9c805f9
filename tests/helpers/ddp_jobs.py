"""What each rank of the distributed tests runs; many settings in one process, since starting one takes longest."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from helpers.models import Guarded, Layers, Tiny, images
from helpers.training import SAFELY, quiet
from helpers.twins import assert_identical, train
from lightning_deadkernel.errors import DeadKernelInternalWarning
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.open_window import OpenWindow
from lightning_deadkernel.evidence.step_statistics import StepStatistics
from lightning_deadkernel.observation import Window
from lightning_deadkernel.training import window_end

RANK = int(os.environ.get("RANK", 0))


def ddp(**options: Any) -> Any:
    return lambda: DDPStrategy(process_group_backend="gloo", **options)


def shared(name: str, make: Any = Tiny, **options: Any) -> tuple[str, Any]:
    """Trains with and without the monitor on all ranks; what this rank saw."""
    options = {"strategy": ddp(), "devices": int(os.environ["WORLD_SIZE"]), **options}
    monitor = options.pop("monitor", None) or quiet()
    monitored = train(make, monitor, **options)
    plain = train(make, None, **options)
    assert_identical(monitored.left_behind, plain.left_behind, name)
    return name, monitor.reports


class RankedDigits(Tiny):
    """Channel 1 of conv1 fires on the last rank's samples alone: it wants a bright image."""

    def make_net(self) -> nn.Module:
        net = Layers()
        with torch.no_grad():
            net.conv1.weight[1] = 1.0
            net.conv1.bias[1] = -500.0
        return net


def bright() -> DataLoader[Any]:
    """Sample i goes to rank i % world; those of the last rank are bright."""
    x, y = images().tensors
    world = int(os.environ["WORLD_SIZE"])
    x = x.clone()
    x[world - 1 :: world] += 100.0
    return DataLoader(TensorDataset(x, y), 8)


def spoilt() -> DataLoader[Any]:
    """Sample i goes to rank i % world; one of the last rank's second batch is NaN."""
    x, y = images().tensors
    world = int(os.environ["WORLD_SIZE"])
    x = x.clone()
    x[8 * world + world - 1] = torch.nan
    data = TensorDataset(x, y)
    return DataLoader(data, 8, sampler=DistributedSampler(data, world, RANK, shuffle=False))


class Unused(Tiny):
    """A layer that takes no part, and one that does on odd batches only."""

    def make_net(self) -> nn.Module:
        net = Layers()
        net.never = nn.Linear(3, 3)
        net.seldom = nn.Linear(3, 3)
        return net

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        made = self.net(x)
        return F.cross_entropy(self.net.seldom(made) if batch_idx % 2 else made, y)


class SyncBatchNormStandIn(torch.autograd.Function):
    """A custom function with the arguments of `torch.nn.modules._functions.SyncBatchNorm`."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
        ctx.save_for_backward(x, weight)
        return x * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight = ctx.saved_tensors
        return grad * weight[:, None, None], (grad * x).sum((0, 2, 3)), grad.sum((0, 2, 3))


def settings(folder: Path) -> dict[str, Any]:
    """Every plain DDP setting."""
    os.chdir(folder)
    monitor = quiet(save_report=True)
    seen = dict(
        [
            shared("ddp", monitor=monitor),
            shared("one rank fires", RankedDigits, data=bright, use_distributed_sampler=True, max_epochs=1),
            shared("one rank is NaN", Guarded, data=spoilt, use_distributed_sampler=False, max_epochs=1),
            shared("uneven", data=lambda: DataLoader(images(41), 8, shuffle=True), max_epochs=1),
            shared("no_sync", accumulate_grad_batches=2, max_epochs=1),
            shared("unused", Unused, strategy=ddp(find_unused_parameters=True), max_epochs=1),
            shared("static graph", strategy=ddp(static_graph=True), max_epochs=1),
            shared("steps", monitor=quiet(every_n_train_steps=2), max_epochs=1),
        ]
    )
    seen["files"] = sorted(str(path) for path in Path().rglob("report.json"))
    return seen


def _resumable() -> dict[str, Any]:
    """All ranks see the same samples, in an order that a resumed run takes up."""
    from helpers.models import Resumable

    world = int(os.environ["WORLD_SIZE"])
    return {"strategy": ddp(), "devices": world, "data": Resumable, "use_distributed_sampler": False, "max_epochs": 1}


def checkpoints(folder: Path) -> dict[str, Any]:
    """A checkpoint in mid-epoch by all ranks, and a resume from it."""
    from helpers.models import Save

    os.chdir(folder)
    path = folder / "at.ckpt"
    whole = train(Tiny, quiet(), callbacks=lambda: [Save(path, 2)], enable_checkpointing=True, **_resumable())
    return {"whole": whole.monitor.reports} | resumed(folder)


def resumed(folder: Path) -> dict[str, Any]:
    """A resume from the checkpoint in the folder, whatever the number of ranks."""
    os.chdir(folder)
    path = folder / "at.ckpt"
    run = train(Tiny, quiet(), fit=lambda t, m, d: t.fit(m, d, ckpt_path=path, **SAFELY), **_resumable())
    return {"resumed": run.monitor.reports}


def faults(folder: Path) -> dict[str, Any]:
    """A fault on the last rank alone, at several stages: nobody waits for it in vain."""
    os.chdir(folder)
    seen: dict[str, Any] = {}
    options = {"strategy": ddp(), "devices": int(os.environ["WORLD_SIZE"]), "max_epochs": 2}
    last = int(os.environ["WORLD_SIZE"]) - 1
    for owner, stage in (
        (Observer, "__init__"),
        (Observer, "before_backward"),
        (Observer, "after_backward"),
        (StepStatistics, "before_step"),
        (StepStatistics, "after_step"),
        (OpenWindow, "compare_weights"),
        (OpenWindow, "to_share"),
        (OpenWindow, "prepare"),
        (Observer, "check_layers"),
        (window_end, "diagnose"),
    ):
        original = getattr(owner, stage)

        def broken(first: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            at_start = isinstance(first, Window) and first.index == 0
            if last == RANK and not at_start:
                raise ZeroDivisionError("on one rank")
            return _original(first, *args, **kwargs)

        setattr(owner, stage, broken)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor = quiet(every_n_train_steps=2 if owner is window_end else None)
            keep = ModelCheckpoint(folder / f"kept {stage}", every_n_train_steps=1)
            run = train(Tiny, monitor, callbacks=lambda keep=keep: [keep], enable_checkpointing=True, **options)
        setattr(owner, stage, original)
        ours = [w for w in caught if issubclass(w.category, DeadKernelInternalWarning)]
        seen[stage] = (len(ours), run.trainer.global_step, len(monitor.reports))
    return seen


class Freezes(Tiny):
    """Freezes a layer and adds another, in the middle of the second epoch; on the last rank alone if so asked."""

    alone = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        last = int(os.environ["WORLD_SIZE"]) - 1
        if (self.current_epoch, batch_idx) == (1, 1) and (last == RANK or not self.alone):
            self.net.conv1.requires_grad_(False)
            self.net.extra = nn.Linear(2, 2)


class FreezesAlone(Freezes):
    alone = True


def changes(folder: Path) -> dict[str, Any]:
    """Layers that change in mid-training, on all ranks and on one alone."""
    os.chdir(folder)
    unused = {"strategy": ddp(find_unused_parameters=True), "max_epochs": 3}
    seen = dict([shared("all", Freezes, **unused)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, reports = shared("one", FreezesAlone, **unused)
    said = [str(w.message) for w in caught if issubclass(w.category, DeadKernelInternalWarning)]
    return seen | {"one": ([report.window for report in reports], said)}


class NotANumberOnOne(Tiny):
    """Two batches of the last rank are NaN."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        spoilt = self.global_step in (1, 2) and int(os.environ["WORLD_SIZE"]) - 1 == RANK
        return loss * float("nan") if spoilt else loss


def not_a_number(folder: Path) -> dict[str, Any]:
    """NaN on one rank, which the all-reduce brings to all."""
    os.chdir(folder)
    return dict([shared("NaN on one rank", NotANumberOnOne, max_epochs=2)])


class Ends(Tiny):
    """The last rank ends in its eighth step, by a kill or by an exception; the others go on."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 7 and int(os.environ["WORLD_SIZE"]) - 1 == RANK:
            if os.environ["ENDS"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if "raises" in os.environ["ENDS"]:
                raise ZeroDivisionError("on one rank alone")
        return super().training_step(batch, batch_idx)


def ends(folder: Path) -> None:
    """One rank ends alone, in a step or while all exchange what they have seen; with the monitor, or without."""
    os.chdir(folder)
    original = torch.distributed.all_gather_object
    calls: list[int] = []

    def killed_in_exchange(theirs: Any, mine: Any) -> None:
        calls.append(1)
        last = int(os.environ["WORLD_SIZE"]) - 1 == RANK
        if os.environ["ENDS"] == "killed in an exchange" and len(calls) == 7 and last:  # of the third window
            os.kill(os.getpid(), signal.SIGKILL)
        original(theirs, mine)

    torch.distributed.all_gather_object = killed_in_exchange
    monitor = None if os.environ["ENDS"] == "raises, unwatched" else quiet(every_n_train_steps=2, save_report=True)
    options = {"strategy": ddp(), "devices": int(os.environ["WORLD_SIZE"]), "max_epochs": 4}
    run = train(Ends, monitor, raises=(RuntimeError,), **options)
    print("ended by", repr(run.error))


class Raises(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 2 and int(os.environ["WORLD_SIZE"]) - 1 == RANK:
            raise RuntimeError("on one rank")
        if self.global_step == 2:
            raise KeyError("the others end too, at another place")
        return super().training_step(batch, batch_idx)


def exceptions(folder: Path) -> dict[str, Any]:
    """An exception in the user's step: the monitor calls no collective, in which ranks could wait for one another."""
    os.chdir(folder)
    called: list[str] = []
    original = torch.distributed.all_gather_object
    options = {"strategy": ddp(), "devices": int(os.environ["WORLD_SIZE"])}

    def counting(*args: Any, **kwargs: Any) -> Any:
        called.append("all_gather_object")
        return original(*args, **kwargs)

    torch.distributed.all_gather_object = counting
    monitor = quiet(every_n_train_steps=1, save_report=True)
    run = train(Raises, monitor, raises=(RuntimeError, KeyError), **options)
    before = len(called)
    state = monitor.state_dict()
    torch.distributed.all_gather_object = original
    return {
        "error": str(run.error),
        "exchanges": (before, len(called)),
        "open": "open" in state,
        "windows": [report.window for report in monitor.reports],
    }


class Sharded(Tiny):
    """FSDP2: two convolutions sharded each by itself, the rest together."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for module in (self.net.conv1, self.net.conv2, self.net):
            fully_shard(module, mesh=mesh)


def sharded(folder: Path) -> dict[str, Any]:
    """Lightning's ModelParallelStrategy with FSDP2 over gloo."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    os.chdir(folder)
    world = int(os.environ["WORLD_SIZE"])

    def strategy() -> Any:
        return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, process_group_backend="gloo")

    seen = dict(
        [
            shared("sharded", Sharded, strategy=strategy, monitor=quiet(save_report=True)),
            shared("ddp", max_epochs=2),
        ]
    )
    seen["files"] = len(list(Path().rglob("report.json")))
    return seen
