"""One training run of the benchmark: whole steps by a stopwatch, and the time a callback spends in its own hooks."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from alternatives import Variant
from lightning.pytorch.loggers import TensorBoardLogger
from networks import Workload, kill_first_channels
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

WARMUP = 3
"""Steps at the start of each run that no figure contains: the first meets cold caches and reads the graph anew."""


class Classifier(L.LightningModule):
    """A network, cross-entropy and SGD with momentum."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Four batches over and over, already on the device."""

    def __init__(self, workload: Workload, steps: int, device: str):
        g = torch.Generator().manual_seed(1)
        shape = (workload.batch, *workload.input)
        self.batches = [
            (inputs(shape, workload.tokens, g).to(device), torch.randint(10, (workload.batch,), generator=g).to(device))
            for _ in range(min(4, steps))
        ]
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index % len(self.batches)]


def inputs(shape: tuple[int, ...], tokens: int | None, g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g) if tokens is None else torch.randint(tokens, shape, generator=g)


class Stopwatch(L.Callback):
    """Times whole steps from start to start, and notes peak memory; the first of the callbacks."""

    def __init__(self, device: str, steps: int, clock: Callable[[], float]):
        self.cuda, self.steps, self.clock = device == "cuda", steps, clock
        self.starts: list[float] = []
        self.peak_mib = float("nan")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.cuda and batch_idx in (WARMUP, self.steps - 1):
            torch.cuda.synchronize()  # twice a run: steps overlap as they do in training
        if batch_idx == WARMUP:
            reset_peak(self.cuda)
        if not self.cuda or batch_idx in (WARMUP, self.steps - 1):
            self.starts.append(self.clock())

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.steps - 1:
            self.peak_mib = read_peak(self.cuda)

    @property
    def step_seconds(self) -> float:
        if self.cuda:
            return (self.starts[1] - self.starts[0]) / (self.steps - 1 - WARMUP)
        gaps = [end - start for start, end in zip(self.starts, self.starts[1:], strict=False)]
        return statistics.median(gaps[WARMUP:])


def reset_peak(cuda: bool) -> None:
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(cuda: bool) -> float:
    if cuda:
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform != "linux":
        return float("nan")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


class SelfTimer:
    """Adds up the time that a callback spends in its own hooks, step by step."""

    HOOKS = (
        "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
        "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "look",
    )  # fmt: skip

    def __init__(self, callback: L.Callback, steps: int, log_every: int, every_step: bool, clock: Callable[[], float]):
        self.callback, self.clock = callback, clock
        self.now = -1
        self.by_step = [0.0] * steps
        self.sampled = [every_step or (step + 1) % log_every == 0 for step in range(steps)]
        self.ends: list[float] = []
        for name in self.HOOKS:
            if hasattr(callback, name):
                setattr(callback, name, self.timed(name, getattr(callback, name)))

    def timed(self, name: str, hook: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            if name == "on_train_batch_start":
                self.now += 1
            windows = len(getattr(self.callback, "reports", ()))
            start = self.clock()
            hook(*args, **kwargs)
            spent = self.clock() - start
            if len(getattr(self.callback, "reports", ())) > windows:
                if windows:  # the first report is of the weights at initialisation
                    self.ends.append(spent)
            else:
                self.by_step[self.now] += spent
            watched = getattr(self.callback, "_run", None)
            self.sampled[self.now] = self.sampled[self.now] or (watched is not None and watched.sampled)

        return run

    def split(self) -> tuple[list[float], list[float], list[float]]:
        """Seconds of the ordinary and of the sampled steps after the warm-up, and of the last step of the window."""
        pairs = list(zip(self.by_step, self.sampled, strict=True))[WARMUP:-1]
        ordinary, sampled = [spent for spent, yes in pairs if not yes], [spent for spent, yes in pairs if yes]
        return ordinary, sampled, self.by_step[-1:] if self.ends else []


@dataclass
class Run:
    """What one variant showed in one round; seconds."""

    step: float
    ordinary: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    peak_mib: float = float("nan")


def fit(callbacks: list[L.Callback], workload: Workload, dead: bool, steps: int, log_every: int, args: Any) -> None:
    torch.manual_seed(0)
    network = workload.network()
    if dead:
        kill_first_channels(network)
    if args.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    loader = DataLoader(Batches(workload, steps, args.device), batch_size=None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=1,
            precision=args.precision,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=log_every,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Classifier(network), loader)
    gc.collect()


def measure(workload: Workload, variant: Variant, args: Any) -> Run:
    steps = args.steps or workload.steps
    log_every = 1 if variant.every_step else max(2, steps // 3)
    # one thread does all of the work: what others do on the machine meanwhile is none of it
    clock = time.thread_time if args.device == "cpu" and args.threads == 1 else time.perf_counter
    stopwatch = Stopwatch(args.device, steps, clock)
    callbacks: list[L.Callback] = [stopwatch]
    timer = None
    if variant.callback is not None:
        callbacks.append(variant.callback())
        timer = SelfTimer(callbacks[-1], steps, log_every, variant.every_step, clock)
    fit(callbacks, workload, variant.dead, steps, log_every, args)
    if timer is None:
        return Run(stopwatch.step_seconds, peak_mib=stopwatch.peak_mib)
    return Run(stopwatch.step_seconds, *timer.split(), timer.ends, stopwatch.peak_mib)


class LaunchCounter(L.Callback):
    """Counts kernels and copies of ordinary steps on the GPU."""

    FIRST, LAST = 10, 14
    """After 8 batches, and before 16, what has not fired is counted: in neither of these."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.FIRST:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profiler.start()
        if batch_idx == self.LAST:
            torch.cuda.synchronize()
            self.profiler.stop()
            on_device = [e for e in self.profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
            self.per_step = len(on_device) / (self.LAST - self.FIRST)


def launches(workload: Workload, variant: Variant, args: Any) -> float:
    counter = LaunchCounter()
    watching = [] if variant.callback is None else [variant.callback()]
    fit([counter, *watching], workload, variant.dead, LaunchCounter.LAST + 1, 1 if variant.every_step else 1000, args)
    return counter.per_step
