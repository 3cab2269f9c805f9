"""Kills and interrupts at random moments, as many as are asked for: what is on disk is whole and true after each.

Trainings are forked from this process, where everything is imported and warm. A kill (SIGKILL) hits a training that
writes its report and a checkpoint after every step, and the next training resumes from what is left; every second
folder has reports with a companion file. An interrupt (KeyboardInterrupt, SystemExit or SIGTERM) hits a training at any
line of anything, and what it leaves is compared with what the training has seen.

    nice python tests/faults/flood.py --kills 2000 --interrupts 500
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch

from helpers.models import DEAD, Resumable, Tiny, dead
from helpers.training import SAFELY, quiet
from helpers.twins import QUIET
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.report import arrays, codec
from lightning_deadkernel.training import outputs
from lightning_deadkernel.training.record import Record

KILLS_A_FOLDER = 10
PATIENCE = 120.0
"""Seconds after which a training that has not begun, or not ended, is taken to hang."""


class SaveEachStep(L.Callback):
    """A checkpoint after each step, and word of the first to whoever waits."""

    def __init__(self, path: Path, began: int) -> None:
        self.path, self.began = path, began

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.save_checkpoint(self.path)
        if self.began:
            os.write(self.began, b"!")
            self.began = 0


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Runs `work` in a fork, given a pipe to write to; gives the process and the pipe's other end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:  # nothing of the parent's, its test runner say, may go on here
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        warnings.simplefilter("ignore")
        work(writing)
        status = 0
    except BaseException:
        os.write(writing, traceback.format_exc(limit=-4)[-2000:].encode())
    finally:
        os._exit(status)


def heard(reading: int) -> bytes:
    """The next words through a pipe; empty where its other end is closed, or nothing comes for long."""
    ready, _, _ = select.select([reading], [], [], PATIENCE)
    return os.read(reading, 4000) if ready else b"nothing came: it hangs"


def writes_always() -> None:
    """Reports are written at every window's end, whatever that takes of the time."""
    outputs.WRITING = (1e9, 0.0)


# -- kills -------------------------------------------------------------------------------------------------------------


def train_on(folder: Path, companion: bool, began: int) -> None:
    """Trains without end, from the folder's checkpoint where there is one."""
    writes_always()
    if companion:
        codec.MOST_CHANNELS, arrays.SHORT = 0, 2
    os.chdir(folder)
    kept = folder / "last.ckpt"
    monitor = quiet(every_n_train_steps=1, save_report=True)
    options = QUIET | {"max_epochs": -1, "enable_checkpointing": True, "default_root_dir": folder}
    trainer = L.Trainer(**options, callbacks=[monitor, SaveEachStep(kept, began)])
    resumed = kept.is_file()
    trainer.fit(Tiny(), Resumable(), **({"ckpt_path": kept, **SAFELY} if resumed else {}))


def after_a_kill(folder: Path, newest: int) -> int:
    """Checks what a kill has left: the newest window in the report."""
    paths = sorted(folder.rglob("report.json"), key=lambda path: path.stat().st_mtime_ns)
    *_, report = [Report.load(path) for path in paths]  # each fit has a folder of its own
    assert report.batches == 1, report.batches
    assert report.samples == 8, report.samples
    assert dead(report) == DEAD, dead(report)
    assert report.window >= newest - 1, (report.window, newest)  # a checkpoint is of the window before, at most
    for page in folder.rglob("report.md"):
        assert page.read_text().endswith("\n"), page
    if (folder / "last.ckpt").is_file():
        state = torch.load(folder / "last.ckpt", weights_only=True)
        record = Record()
        record.load_state_dict(state["callbacks"][quiet(every_n_train_steps=1).state_key])
        assert [kept.window for kept in record.reports] == list(range(record.next_index)), record.reports
        assert len(record.summaries()) == record.next_index
        assert state["global_step"] in (record.next_index - 1, record.next_index), state["global_step"]
    return report.window


def kills(count: int, rng: random.Random) -> list[str]:
    """Kills so many trainings; gives what was wrong after them."""
    wrong = []
    for place in range(count):
        if place % KILLS_A_FOLDER == 0:
            folder, newest = Path(tempfile.mkdtemp(prefix="kills")), 0
        companion = place // KILLS_A_FOLDER % 2 == 1
        child, reading = forked(lambda began, at=folder, wide=companion: train_on(at, wide, began))
        word = heard(reading)
        if word == b"!":
            time.sleep(rng.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        try:
            assert word == b"!", f"no step was taken: {word.decode()}"
            newest = after_a_kill(folder, newest)
        except Exception:  # whatever does not hold after a kill is what is looked for: it is counted, and told in full
            wrong.append(f"kill {place} in {folder}: {traceback.format_exc(limit=-2)[-1500:]}")
        if (place + 1) % KILLS_A_FOLDER == 0 and not any(str(folder) in text for text in wrong):
            shutil.rmtree(folder)  # else it stays, to be looked at
    return wrong


# -- interrupts --------------------------------------------------------------------------------------------------------


def raise_after(seconds: float, error: type[BaseException]) -> None:
    """Raises once in this process, at whatever line it is by then."""

    def handler(*_: Any) -> None:
        raise error("an interrupt") if error is SystemExit else error

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def train_interrupted(folder: Path, kind: str, seconds: float, done: int) -> None:
    """Trains until an interrupt comes, checks what is left, and says what came of it."""
    writes_always()
    os.chdir(folder)
    monitor = quiet(every_n_train_steps=3, save_report=True)
    trainer = L.Trainer(**(QUIET | {"max_epochs": 200, "default_root_dir": folder}), callbacks=[monitor])
    outcome = "ended by itself"
    try:
        if kind == "SIGTERM":
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            signal.setitimer(signal.ITIMER_REAL, seconds)
        else:
            raise_after(seconds, KeyboardInterrupt if kind == "KeyboardInterrupt" else SystemExit)
        trainer.fit(Tiny(), Resumable())
    except BaseException as error:
        outcome = f"{kind} gave {type(error).__name__}"
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    after_an_interrupt(folder, monitor)
    os.write(done, f"= {outcome}, {'in training' if monitor.report else 'before any window'}".encode())


def after_an_interrupt(folder: Path, monitor: DeadKernelMonitor) -> None:
    """Checks what an interrupt has left."""
    reports = monitor.reports
    assert [report.window for report in reports] == list(range(len(reports)))
    assert len(monitor.history) == len(reports)
    for report in reports:
        assert [layer.name for layer in report.layers] == ["net.conv1", "net.conv2", "net.head"], report.layers
        found = [(finding.kind, finding.layer, finding.channels) for finding in report.findings]
        assert len(found) == len(set(found)), found
    for report in reports[1:]:
        assert report.samples == 8 * report.batches, (report.samples, report.batches)
        assert dead(report) == DEAD, (report.window, report.batches, dead(report))
    for report in reports[1:-1]:
        assert report.batches == 3, (report.window, report.batches)
    saved = list(folder.rglob("report.json"))
    if monitor.report is not None:
        kept = Report.load(saved[0])
        last = monitor.report
        assert (kept.window, kept.batches) == (last.window, last.batches), (kept.window, last.window)


def interrupts(count: int, rng: random.Random) -> tuple[list[str], Counter[str]]:
    """Interrupts so many trainings; gives what was wrong after them, and what came of all."""
    wrong, outcomes = [], Counter[str]()
    for place in range(count):
        folder = Path(tempfile.mkdtemp(prefix="interrupts"))
        kind, seconds = ("KeyboardInterrupt", "SystemExit", "SIGTERM")[place % 3], rng.uniform(0.05, 0.4)
        child, reading = forked(lambda done, a=(folder, kind, seconds): train_interrupted(*a, done))
        word = heard(reading).decode(errors="replace")
        if word:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reading)
        if not word and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM and not any(folder.iterdir()):
            word = "= SIGTERM ended the process, before Lightning listens to it"
        if word.startswith("= "):
            outcomes[word[2:]] += 1
            shutil.rmtree(folder)
        else:
            wrong.append(f"interrupt {place} ({kind} after {seconds:.3f} s) in {folder}: {word}")
    return wrong, outcomes


def warm_up() -> None:
    """What a first training imports and learns is not learned again by each fork."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = Path.cwd()
        kept = Path(folder) / "last.ckpt"
        trainer = L.Trainer(
            **(QUIET | {"enable_checkpointing": True, "default_root_dir": folder}),
            callbacks=[quiet(save_report=True), SaveEachStep(kept, 0)],
        )
        trainer.fit(Tiny(), Resumable())
        os.chdir(before)


def main() -> int:
    """Gives 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--interrupts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    rng = random.Random(seed)
    warm_up()
    began = time.monotonic()
    wrong = kills(options.kills, rng)
    print(
        f"seed {seed}: {options.kills} kills in {time.monotonic() - began:.0f} s, wrong after {len(wrong)}", flush=True
    )
    began = time.monotonic()
    more, outcomes = interrupts(options.interrupts, rng)
    print(f"{options.interrupts} interrupts in {time.monotonic() - began:.0f} s, wrong after {len(more)}")
    for outcome, times in outcomes.most_common():
        print(f"  {times:5} x {outcome}")
    print("\n".join(wrong + more))
    return int(bool(wrong + more))


if __name__ == "__main__":
    sys.exit(main())
