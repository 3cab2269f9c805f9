"""What a long training leaves behind: memory, a checkpoint's size, and the time that both take, from window to window.

Windows are made by hand, and go through the diagnosis and the record as in a training; nothing is trained or drawn. All
that grows with their number is a row of numbers each (`monitor.history`) and their end by the clock.

    python tests/benchmarks/growth.py --windows 100000
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers.windows import layer, start, window
from lightning_deadkernel.diagnosis.diagnose import diagnose
from lightning_deadkernel.diagnosis.problems import find_problems
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.training.record import Record


def close(record: Record, index: int, layers: int, channels: int) -> None:
    """One window: channel 0 of the first layer is dead from window 3 on, another one every other window."""
    made = []
    for place in range(layers):
        fired = torch.ones(channels, dtype=torch.bool)
        if index >= 3 and place == 0:
            fired[0] = False
        if place == 1:
            fired[1] = bool(index % 2)
        gradient = torch.where(fired, 1e-2, 0.0)
        changes = {"fired": fired, "gradient": gradient, "weight_gradient": gradient.clone()}
        made.append(layer(f"conv{place}", channels, **changes) if index else start(f"conv{place}", channels))
    history, seen = record.copy_of_history(), window(index, *made)
    reports, findings = diagnose(seen, history, Thresholds())
    report = Report(
        window=index,
        epoch=seen.epoch,
        global_step=seen.global_step,
        samples=seen.samples,
        batches=seen.batches,
        optimizer_steps=seen.optimizer_steps,
        sampled_steps=seen.sampled_steps,
        layers=reports,
        findings=findings,
        problems=find_problems(findings, history.when),
    )
    record.append(report, history)


def resident() -> float:
    """Megabytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """Prints a line at every power of ten, and one at each fifth of the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--channels", type=int, default=32)
    options = parser.parse_args()
    record, total = Record(), options.windows
    marks = {10**power for power in range(2, 9)} | {total * part // 5 for part in range(1, 6)}
    print(f"{'windows':>9} {'kept':>5} {'RSS MB':>8} {'checkpoint kB':>14} {'state_dict ms':>14} {'a window ms':>12}")
    began, since = time.perf_counter(), 0
    for index in range(total + 1):
        close(record, index, options.layers, options.channels)
        if index in marks and index <= total:
            took = (time.perf_counter() - began) / (index - since) * 1e3
            memory = resident()
            record.state_dict()  # packs what is new, as the checkpoint before this one would have
            before = time.perf_counter()
            state = record.state_dict()
            state_ms = (time.perf_counter() - before) * 1e3
            file = io.BytesIO()
            torch.save(state, file)
            size = len(file.getvalue()) / 1e3
            print(f"{index:9,} {len(record.reports):5} {memory:8.0f} {size:14,.0f} {state_ms:14.1f} {took:12.2f}")
            began, since = time.perf_counter(), index


if __name__ == "__main__":
    main()
