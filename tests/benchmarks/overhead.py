"""What watching costs: training with the monitor against plain training and against what people use instead.

All variants of a workload train the same freshly seeded network on the same synthetic batches, in one process, a few
steps each, round after round in rotated order, so that whatever else the machine does falls on all of them alike. Two
figures come out, and the second is the one to steer by, as whole steps vary by more than a per cent on most machines:

* ratio: time of a whole step over that of plain training in the same round;
* self: time spent inside the callback's own hooks, on ordinary and on sampled steps; as a share of a plain step with
  one step in `--nominal` sampled, as by Lightning's default. Work done elsewhere (forward hooks of other packages) is
  in the ratio alone.

With `--threads 1` on the CPU the thread's own clock is read, so that a busy machine does not count.

A window's end (statistics, histograms, diagnosis, logging) is timed apart, and so is its last step, on which the update
ratio of every layer is taken. `--fits` times whole fits at default options instead, see `fits.py`. This script asserts
nothing.

Examples:
    python tests/benchmarks/overhead.py --quick
    python tests/benchmarks/overhead.py --workloads resnet18-112 resnet50-112 --json overhead.json
    python tests/benchmarks/overhead.py --device cuda --precision bf16-mixed --compile --rounds 3
    python tests/benchmarks/overhead.py --scaling depth width window
    python tests/benchmarks/overhead.py --fits --rounds 3
    python tests/benchmarks/overhead.py --fits GNN --rounds 1
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shlex
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

import lightning_deadkernel
from lightning_deadkernel.errors import DeadKernelInternalWarning

sys.path.insert(0, str(Path(__file__).parent))
from alternatives import Variant, monitor, variants
from fits import measure_ends, measure_fits
from networks import WORKLOADS, Workload, mlp
from runs import WARMUP, Run, launches, measure


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
    last_us: float | None
    """On the last step of a window."""
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
        last = [spent for run in of for spent in run.last]
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
                statistics.median(last) * 1e6 if last else None,
                share,
                statistics.median(ends) * 1e3 if ends else None,
                max(run.peak_mib for run in of),
            )
        )
    return rows


def table(titles: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """Markdown; the first `words` columns hold words, the others numbers."""
    widths = [max(len(line[i]) for line in [titles, *lines]) for i in range(len(titles))]

    def joined(cells: Sequence[str]) -> str:
        padded = [cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))]  # noqa: B905
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < words else ":") for i, w in enumerate(widths)) + "|"
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
    titles = "network|training|step ms|ratio|min|self us|sampled us|last us|share|window ms|peak MiB".split("|")
    titles += ["launches"] if args.device == "cuda" else []
    lines = [
        [r.workload, r.variant, f"{r.step_ms:.2f}", f"{r.ratio_median:.3f}", f"{r.ratio_min:.3f}",
         shown(r.self_us, ".0f"), shown(r.sampled_us, ".0f"), shown(r.last_us, ".0f"), shown(r.share, ".2%"),
         shown(r.window_end_ms, ".1f"), shown(r.peak_mib, ".0f"), shown(r.launches, ".0f")][: len(titles)]
        for r in every
    ]  # fmt: skip
    print(table(titles, lines, words=2))
    return every


def scaling(kind: str, args: Any) -> list[dict[str, Any]]:
    """Measures the cost against depth, width or steps per window and prints its table.

    ``self us``: an ordinary step once the layers have resolved; ``all dead us``: where none ever does; ``all in us``:
    mean over all steps of the run, sampled ones and window ends included.
    """
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
        plain, alive, dead = [], [], []
        for _ in range(args.rounds):
            plain.append(measure(workload, Variant("plain", None), steps))
            alive.append(measure(workload, Variant("monitor", monitor(**options)), steps))
            if kind != "window":
                dead.append(measure(workload, Variant("dead", monitor(**options), dead=True), steps))
        totals = [sum(run.ordinary) + sum(run.sampled) + sum(run.last) + sum(run.ends) for run in alive]
        figures = {title: number, "step ms": statistics.median(run.step for run in plain) * 1e3}
        if kind != "window":  # steps of windows this short are all of several kinds
            figures["self us"] = statistics.median(spent for run in alive for spent in run.ordinary) * 1e6
            figures["all dead us"] = statistics.median(spent for run in dead for spent in run.ordinary) * 1e6
        figures["window ms"] = statistics.median(spent for run in alive for spent in run.ends) * 1e3
        figures["all in us"] = statistics.median(totals) / (steps.steps - WARMUP) * 1e6
        found.append(figures)
    lines = [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in line.values()] for line in found]
    print(table(list(found[0]), lines, words=0))
    return found


def whole_fits(args: Any) -> dict[str, list[dict[str, Any]]]:
    """Times whole fits and what ends windows and runs, and prints their tables."""
    fits = measure_fits(args.rounds, args.fits, args.quick)
    lines = [
        [fit.fit, *(f"{value:.2f}" for value in (fit.plain_s, fit.watched_s, fit.ratio)), *aimed(fit.ratio, fit.target)]
        for fit in fits
    ]
    print(table(["fit", "without s", "with s", "ratio", "aimed at", "held"], lines, words=1))
    ends = [] if args.fits else measure_ends(args.quick)
    lines = []
    for end in ends:
        window = [f"{end.window_ms:.0f}", *aimed(end.window_ms, end.window_target_ms, ".0f")]
        drawing = [f"{end.drawing_ms:.0f}", *aimed(end.drawing_ms, end.drawing_target_ms, ".0f")]
        lines.append([end.network, *window, *drawing])
    if ends:
        titles = ["network", "window's end ms", "aimed at", "held", "pictures ms", "aimed at", "held"]
        print("\n" + table(titles, lines, words=1))
    return {"fits": [asdict(row) for row in fits], "ends": [asdict(row) for row in ends]}


def aimed(value: float, target: float | None, form: str = ".2f") -> list[str]:
    return ["", ""] if target is None else [format(target, form), "yes" if value <= target else "no"]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=list(WORKLOADS), help="networks to train; default: all that suit the device")
    add("--variants", nargs="+", choices=[v.name for v in variants()], help="besides plain training; default: all")
    add("--scaling", nargs="+", choices=["depth", "width", "window"], help="measure the cost's growth instead")
    add("--fits", nargs="?", const="", metavar="NAME", help="time whole fits instead, those with NAME in their name")
    add("--rounds", type=int, default=5, help="times each variant runs (default: 5)")
    add("--steps", type=int, help="steps of a run; default: by network")
    add("--batch-size", type=int, help="default: by network")
    add("--nominal", type=int, default=50, help="steps per sampled step that the share assumes (default: 50)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--precision", default="32-true", help="as Lightning's Trainer takes it, e.g. bf16-mixed")
    add("--compile", action="store_true", help="train torch.compile of the networks")
    add("--threads", type=int, help="torch.set_num_threads; default: PyTorch's own")
    add("--json", type=Path, metavar="FILE", help="write all figures there too")
    add("--quick", action="store_true", help="one small network, one round: within a minute")
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 2 * WARMUP + 2:
        parser.error(f"--steps must be at least {2 * WARMUP + 2}, but is {args.steps}")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, but is {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    if args.quick:
        args.rounds, args.steps = 1, args.steps or 12
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
    # a monitor that has given up costs nothing
    warnings.filterwarnings("error", category=DeadKernelInternalWarning)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    about = machine(args)
    print(", ".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    figures: dict[str, Any] = {"machine": about}
    if args.fits is not None:
        figures |= whole_fits(args)
    elif args.scaling:
        for kind in args.scaling:
            figures[kind] = scaling(kind, args)
            print()
    else:
        figures["rows"] = [asdict(row) for row in overhead(args)]
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
