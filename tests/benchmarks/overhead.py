"""What watching costs: training with the monitor against plain training and against what people use instead.

All variants of a workload train the same freshly seeded network on the same synthetic batches, in one process, a few
steps each, round after round in rotated order, so that whatever else the machine does falls on all of them alike. Two
figures come out, and the second is the one to steer by, as whole steps vary by more than a per cent on most machines:

* ratio: time of a whole step over that of plain training in the same round;
* self: time spent inside the callback's own hooks, on ordinary and on sampled steps; as a share of a plain step with
  one step in `--nominal` sampled, as by Lightning's default. Work done elsewhere (forward hooks of other packages) is
  in the ratio alone.

A window's end (statistics, histograms, diagnosis, logging) is timed apart. This script asserts nothing.

Examples:
    python tests/benchmarks/overhead.py --quick
    python tests/benchmarks/overhead.py --workloads resnet18-112 resnet50-112 --json overhead.json
    python tests/benchmarks/overhead.py --device cuda --precision bf16-mixed --workloads resnet50-224 --batch-size 256
    python tests/benchmarks/overhead.py --scaling depth width window
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import logging
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_deadkernel
from lightning_deadkernel import DeadKernelMonitor

sys.path.insert(0, str(Path(__file__).parent))
from networks import WORKLOADS, Workload, kill_first_channels, mlp

WARMUP = 3
"""Steps at the start of each run that no figure contains: the first meets cold caches and reads the graph anew."""


# -- training ---------------------------------------------------------------------------------------------------------


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
            (torch.randn(shape, generator=g).to(device), torch.randint(10, (workload.batch,), generator=g).to(device))
            for _ in range(min(4, steps))
        ]
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index % len(self.batches)]


class Stopwatch(L.Callback):
    """Times whole steps from start to start, and notes peak memory; the first of the callbacks."""

    def __init__(self, device: str, steps: int):
        self.cuda, self.steps = device == "cuda", steps
        self.starts: list[float] = []
        self.peak_mib = float("nan")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.cuda and batch_idx in (WARMUP, self.steps - 1):
            torch.cuda.synchronize()  # twice a run: steps overlap as they do in training
        if batch_idx == WARMUP:
            reset_peak(self.cuda)
        if not self.cuda or batch_idx in (WARMUP, self.steps - 1):
            self.starts.append(time.perf_counter())

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


# -- what people use instead ------------------------------------------------------------------------------------------


class GradNorm(L.Callback):
    """Lightning's `grad_norm`, logged at each step."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        module.log_dict(L.pytorch.utilities.grad_norm(module, norm_type=2))


class ForwardHooks(L.Callback):
    """A forward hook on every ReLU that notes which channels fired."""

    def __init__(self) -> None:
        self.fired: dict[nn.Module, Tensor] = {}
        self.handles: list[Any] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        relus = [part for part in module.modules() if isinstance(part, nn.ReLU)]
        self.handles = [relu.register_forward_hook(self.look) for relu in relus]

    def look(self, relu: nn.Module, inputs: Any, output: Tensor) -> None:
        fired = (output > 0).transpose(0, 1).flatten(1).any(1)
        self.fired[relu] = self.fired[relu] | fired if relu in self.fired else fired

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        for handle in self.handles:
            handle.remove()


class Histograms(L.Callback):
    """TensorBoard's `add_histogram` of all weights and gradients on sampled steps."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            for name, parameter in module.named_parameters():
                trainer.logger.experiment.add_histogram(f"weights/{name}", parameter, trainer.global_step)
                trainer.logger.experiment.add_histogram(f"gradients/{name}", parameter.grad, trainer.global_step)


class Torchmortem(L.Callback):
    """The package torchmortem at its defaults."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        from torchmortem import Autopsy

        self.autopsy = Autopsy(module, optimizer=trainer.optimizers[0]).__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.autopsy.step(loss=outputs["loss"].item())

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self.autopsy.__exit__(None, None, None)


def ormas() -> L.Callback:
    """The package ormas-monitor at its defaults."""
    from ormas_monitor.integrations.lightning import OrmasMonitorCallback

    callback: L.Callback = OrmasMonitorCallback(verbose=False)
    return callback


def monitor(**options: Any) -> Callable[[], L.Callback]:
    """The monitor, silent and without pictures, which are drawn at window ends only."""
    return lambda: DeadKernelMonitor(on_finding="ignore", log_figures=False, **options)


@dataclass(frozen=True)
class Variant:
    """A way to train: plain, or with one callback."""

    name: str
    callback: Callable[[], L.Callback] | None
    every_step: bool = False
    """All steps are sampled ones."""
    dead: bool = False
    """The first channel behind every activation is dead, so no layer ever resolves."""


def variants() -> list[Variant]:
    found = [
        Variant("plain", None),
        Variant("monitor", monitor()),
        Variant("monitor, all dead", monitor(), dead=True),
        Variant("monitor, each step", monitor(), every_step=True),
        Variant("grad_norm", GradNorm, every_step=True),
        Variant("forward hooks", ForwardHooks, every_step=True),
        Variant("add_histogram", Histograms),
    ]
    if importlib.util.find_spec("ormas_monitor"):
        found.append(Variant("ormas-monitor", ormas))
    if importlib.util.find_spec("torchmortem"):
        found.append(Variant("torchmortem", Torchmortem))
    return found


# -- one run ----------------------------------------------------------------------------------------------------------


class SelfTimer:
    """Adds up the time that a callback spends in its own hooks, step by step."""

    HOOKS = (
        "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
        "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "look",
    )  # fmt: skip

    def __init__(self, callback: L.Callback, steps: int, log_every: int, every_step: bool):
        self.callback, self.steps, self.log_every, self.every_step = callback, steps, log_every, every_step
        self.now = -1
        self.by_step = [0.0] * steps
        self.ends: list[float] = []
        for name in self.HOOKS:
            if hasattr(callback, name):
                setattr(callback, name, self.timed(name, getattr(callback, name)))

    def timed(self, name: str, hook: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            if name == "on_train_batch_start":
                self.now += 1
            windows = len(getattr(self.callback, "reports", ()))
            start = time.perf_counter()
            hook(*args, **kwargs)
            spent = time.perf_counter() - start
            if len(getattr(self.callback, "reports", ())) > windows:
                self.ends.append(spent)
            else:
                self.by_step[self.now] += spent

        return run

    def split(self) -> tuple[list[float], list[float]]:
        """Seconds of the ordinary and of the sampled steps after the warm-up."""
        last = self.steps - 1 if isinstance(self.callback, DeadKernelMonitor) else -1
        sampled = [self.every_step or step == last or (step + 1) % self.log_every == 0 for step in range(self.steps)]
        pairs = list(zip(self.by_step, sampled, strict=True))[WARMUP:]
        return [spent for spent, yes in pairs if not yes], [spent for spent, yes in pairs if yes]


@dataclass
class Run:
    """What one variant showed in one round; seconds."""

    step: float
    ordinary: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    peak_mib: float = float("nan")


def fit(callbacks: list[L.Callback], workload: Workload, dead: bool, steps: int, log_every: int, args: Any) -> None:
    torch.manual_seed(0)
    network = workload.network()
    if dead:
        kill_first_channels(network)
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
    stopwatch = Stopwatch(args.device, steps)
    callbacks: list[L.Callback] = [stopwatch]
    timer = None
    if variant.callback is not None:
        callbacks.append(variant.callback())
        timer = SelfTimer(callbacks[-1], steps, log_every, variant.every_step)
    fit(callbacks, workload, variant.dead, steps, log_every, args)
    if timer is None:
        return Run(stopwatch.step_seconds, peak_mib=stopwatch.peak_mib)
    ordinary, sampled = timer.split()
    return Run(stopwatch.step_seconds, ordinary, sampled, timer.ends[1:], stopwatch.peak_mib)


class LaunchCounter(L.Callback):
    """Counts kernels and copies of ordinary steps on the GPU."""

    FIRST, LAST = 6, 10

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
    fit([counter, *watching], workload, variant.dead, 14, 1 if variant.every_step else 1000, args)
    return counter.per_step


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table."""

    workload: str
    variant: str
    step_ms: float
    ratio_median: float
    ratio_min: float
    self_us: float | None
    """Per ordinary step, median."""
    sampled_us: float | None
    share: float | None
    """Self time over a plain step's, one step in `--nominal` sampled, from means."""
    window_end_ms: float | None
    peak_mib: float
    launches: float | None = None


def rows_of(workload: Workload, runs: dict[str, list[Run]], nominal: int) -> list[Row]:
    plain = [run.step for run in runs["plain"]]
    rows = []
    for name, of in runs.items():
        ratios = [run.step / base for run, base in zip(of, plain, strict=True)]
        ordinary = [spent for run in of for spent in run.ordinary]
        sampled = [spent for run in of for spent in run.sampled]
        ends = [spent for run in of for spent in run.ends]
        share = None
        if sampled:
            usual = statistics.mean(ordinary) if ordinary else statistics.mean(sampled)
            mean = (usual * (nominal - 1) + statistics.mean(sampled)) / nominal
            share = mean / statistics.median(plain)
        rows.append(
            Row(
                workload.name,
                name,
                statistics.median(run.step for run in of) * 1e3,
                statistics.median(ratios),
                min(ratios),
                statistics.median(ordinary) * 1e6 if ordinary else None,
                statistics.median(sampled) * 1e6 if sampled else None,
                share,
                statistics.median(ends) * 1e3 if ends else None,
                max(run.peak_mib for run in of),
            )
        )
    return rows


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [titles, *lines]) for i in range(len(titles))]

    def joined(cells: Sequence[str]) -> str:
        padded = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))]  # noqa: B905
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < 2 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([joined(titles), rule, *map(joined, lines)])


def shown(value: float | None, form: str) -> str:
    return "" if value is None or value != value else format(value, form)


def overhead(args: Any) -> list[Row]:
    """Measures the chosen workloads and variants and prints their table."""
    chosen = [variant for variant in variants() if not args.variants or variant.name in ("plain", *args.variants)]
    every: list[Row] = []
    for name in args.workloads:
        workload = WORKLOADS[name]
        if args.batch_size:
            workload = workload.with_batch(args.batch_size)
        measure(workload, chosen[0], args)  # thread pools, allocator and caches
        runs: dict[str, list[Run]] = {variant.name: [] for variant in chosen}
        for turn in range(args.rounds):
            at = turn % len(chosen)
            for variant in chosen[at:] + chosen[:at]:
                runs[variant.name].append(measure(workload, variant, args))
        rows = rows_of(workload, runs, args.nominal)
        if args.device == "cuda":
            for row, variant in zip(rows, chosen, strict=True):
                row.launches = launches(workload, variant, args)
        every += rows
    titles = [
        "network",
        "training",
        "step ms",
        "ratio",
        "min",
        "self us",
        "sampled us",
        "share",
        "window ms",
        "peak MiB",
    ]
    titles += ["launches"] if args.device == "cuda" else []
    lines = [
        [r.workload, r.variant, f"{r.step_ms:.2f}", f"{r.ratio_median:.3f}", f"{r.ratio_min:.3f}",
         shown(r.self_us, ".0f"), shown(r.sampled_us, ".0f"), shown(r.share, ".2%"), shown(r.window_end_ms, ".1f"),
         shown(r.peak_mib, ".0f"), shown(r.launches, ".0f")][: len(titles)]
        for r in every
    ]  # fmt: skip
    print(table(titles, lines))
    return every


def scaling(kind: str, args: Any) -> list[dict[str, Any]]:
    """Measures the cost against depth, width or steps per window and prints its table."""
    few = args.quick
    if kind == "depth":
        points = [("layers", n, mlp(n, 64), {}) for n in ((10, 100) if few else (10, 30, 100, 300, 1000))]
    elif kind == "width":
        points = [("width", n, mlp(4, n), {}) for n in ((64, 256) if few else (64, 256, 1024, 4096))]
    else:
        lengths = (1, 10) if few else (1, 10, 100)
        points = [("steps per window", n, WORKLOADS["cnn-small"], {"every_n_train_steps": n}) for n in lengths]
    found = []
    for title, number, workload, options in points:
        steps = argparse.Namespace(**{**vars(args), "steps": 30 if few else 200 if options else 40})
        plain = measure(workload, Variant("plain", None), steps)
        alive = measure(workload, Variant("monitor", monitor(**options)), steps)
        dead = measure(workload, Variant("dead", monitor(**options), dead=True), steps)
        total = sum(alive.ordinary) + sum(alive.sampled) + sum(alive.ends)
        found.append({
            title: number,
            "step ms": plain.step * 1e3,
            "self us": statistics.median(alive.ordinary or [float("nan")]) * 1e6,
            "all dead us": statistics.median(dead.ordinary or [float("nan")]) * 1e6,
            "window ms": statistics.median(alive.ends) * 1e3,
            "all in us": total / (steps.steps - WARMUP) * 1e6,
        })  # fmt: skip
    lines = [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in line.values()] for line in found]
    print(table(list(found[0]), lines))
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=list(WORKLOADS), help="networks to train; default: all that suit the device")
    add("--variants", nargs="+", choices=[v.name for v in variants()], help="besides plain training; default: all")
    add("--scaling", nargs="+", choices=["depth", "width", "window"], help="measure the cost's growth instead")
    add("--rounds", type=int, default=5, help="times each variant runs (default: 5)")
    add("--steps", type=int, help="steps of a run; default: by network")
    add("--batch-size", type=int, help="default: by network")
    add("--nominal", type=int, default=50, help="steps per sampled step that the share assumes (default: 50)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--precision", default="32-true", help="as Lightning's Trainer takes it, e.g. bf16-mixed")
    add("--threads", type=int, help="torch.set_num_threads; default: PyTorch's own")
    add("--json", type=Path, metavar="FILE", help="write all figures there too")
    add("--quick", action="store_true", help="small networks, two rounds: within a minute")
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 2 * WARMUP + 2:
        parser.error(f"--steps must be at least {2 * WARMUP + 2}, but is {args.steps}")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, but is {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    if args.quick:
        args.rounds, args.steps = 2, args.steps or 15
    if args.workloads is None:
        args.workloads = (
            ["cnn-small"] if args.quick else [w.name for w in WORKLOADS.values() if args.device in w.devices]
        )
    return args


def machine(args: Any) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "lightning_deadkernel": lightning_deadkernel.__version__,
        "precision": args.precision,
        "command": shlex.join(["python", *sys.argv]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    about = machine(args)
    print(", ".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    figures: dict[str, Any] = {"machine": about}
    if args.scaling:
        for kind in args.scaling:
            figures[kind] = scaling(kind, args)
            print()
    else:
        figures["rows"] = [asdict(row) for row in overhead(args)]
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
