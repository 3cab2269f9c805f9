"""The trainings of a trial: each a process of its own that runs the user's command, several at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_deadkernel import __version__
from lightning_deadkernel.analysis.trial import TASK
from lightning_deadkernel.analysis.trial.conduct import Stopped
from lightning_deadkernel.analysis.trial.records import Failed, Job, Run
from lightning_deadkernel.cli.progress import Progress
from lightning_deadkernel.report.report import Report, write_atomically

MOST_AT_A_TIME = 4
"""Unless more are asked for: each takes its memory."""
HASHED = 10_000_000
"""Bytes up to which a file that the command names is known by its content, above by its size and time."""
POLL = 0.05
"""Seconds."""
GRACE = 5.0
"""Seconds that a training has to end when it is told to."""
_SEED = "--seed_everything"
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception)\b.*|.*\berror: .*)$", re.MULTILINE)


@dataclass
class _Training:
    """One that is running."""

    job: Job
    folder: Path
    process: subprocess.Popen[bytes]
    began: float

    def stop(self) -> None:
        """Ends it with all that it has started."""
        for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):  # Windows has neither that
            with suppress(ProcessLookupError):
                getattr(os, "killpg", os.kill)(self.process.pid, number)  # nor groups
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
                return


class Trainings:
    """Runs a command again and again, each time with what a job changes. What has ended is not run again.

    Args:
        words: the command.
        folder: one inside it for each training, named after what the training depends on.
        at_a_time: how many run at once; None: as many as there are cores, four at most, and one on an accelerator.
        max_minutes: after which they are stopped; None: never.
        progress: what is told of each.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, at_a_time: int | None, max_minutes: float | None, progress: Progress
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._words, self._folder, self._progress = list(words), folder, progress
        self._asked, self._at_a_time = at_a_time, at_a_time or min(cores, MOST_AT_A_TIME)
        self._minutes, self._ends = max_minutes, time.monotonic() + 60 * max_minutes if max_minutes else None
        # a logger of the run's own must not see these trainings; nor is the number of threads to differ between them
        self._environment = {
            "PL_GLOBAL_SEED": "0",
            "OMP_NUM_THREADS": str(max(1, cores // self._at_a_time)),
            **os.environ,
        }
        self._groups: Any = None
        self._seed: int | None = None
        self.notes: list[str] = []
        """What to know of how they were made."""

    def perform(self, jobs: Sequence[Job]) -> Iterator[Run | Failed]:
        """Trains, and yields each as it ends.

        Raises:
            Stopped: when the time is over.
        """
        self._progress.add(len(jobs))
        waiting, running = deque(jobs), list[_Training]()
        try:
            while waiting or running:
                while waiting and len(running) < self._at_a_time:
                    job = waiting.popleft()
                    known = self._kept(job, self._place(job))
                    if known is None:
                        self._check_time()
                        running.append(self._start(job))
                    elif self._is_unseeded(known):
                        waiting.appendleft(job)
                    else:
                        yield self._told(known, again=True)
                for training in [one for one in running if one.process.poll() is not None]:
                    running.remove(training)
                    ended = self._ended(training)
                    if self._is_unseeded(ended):
                        waiting.append(training.job)
                    else:
                        yield self._told(ended)
                if running:
                    self._check_time()
                    self._progress.tick()
                    time.sleep(POLL)
        finally:
            for training in running:
                training.stop()

    def _check_time(self) -> None:
        if self._ends is not None and time.monotonic() > self._ends:
            raise Stopped(f"{self._minutes:g} minutes were over")

    def _told(self, one: Run | Failed, again: bool = False) -> Run | Failed:
        self._progress.ended(one, again, self._at_a_time)
        return one

    def _is_unseeded(self, one: Run | Failed) -> bool:
        """The run sets no seed: from now on it is given one, and this training is no part of the trial."""
        if not isinstance(one, Run) or one.settings.get("seed_everything") is not False or self._seed is not None:
            return False
        self._seed = 0
        self._words.append(f"{_SEED}=0")
        self.notes.append(f"The run sets no seed, so that no training of it is like another: {_SEED}=0 was added.")
        return True

    # -- one training ------------------------------------------------------------------------------------------------

    def _changes(self, job: Job) -> list[str]:
        if job.arm.role == "seed":
            return [f"{_SEED}={(self._seed or 0) + job.order}"]
        return list(job.arm.changes)

    def _place(self, job: Job) -> Path:
        """The training's folder: another where the command, a file that it names, or the change is another."""
        known = [__version__, job.order, job.arm.role == "seed", *self._changes(job), *self._words]
        digest = hashlib.sha256(json.dumps(known).encode())
        for word in self._words:
            for part in (word, word.partition("=")[2]):
                digest.update(_content(Path(part)))
        name = re.sub(r"[^\w.-]+", "_", job.arm.name)[:50].strip("_")
        return self._folder / f"{name}.{job.order}.{digest.hexdigest()[:8]}"

    def _start(self, job: Job) -> _Training:
        folder = self._place(job)
        folder.mkdir(parents=True, exist_ok=True)
        task = folder / "task.json"
        # other seeds are set from the start, so nothing is to be changed afterwards
        order = 0 if job.arm.role == "seed" else job.order
        write_atomically(task, json.dumps({"order": order, "groups": self._groups if job.arm.changes else None}))
        for old in ("config.yaml", "result.json"):  # of a training that was stopped
            (folder / old).unlink(missing_ok=True)
        words = [
            *self._words,
            *self._changes(job),
            "--trainer.logger=false",
            f"--trainer.default_root_dir={folder.resolve()}",
        ]
        with (folder / "log.txt").open("wb") as log:
            log.write(f"{' '.join(words)}\n\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, TASK: str(task.resolve())},
                start_new_session=True,  # Ctrl-C is for the trial, which then ends them
            )
        return _Training(job, folder, process, time.monotonic())

    def _ended(self, training: _Training) -> Run | Failed:
        seconds = time.monotonic() - training.began
        result = training.folder / "result.json"
        if result.is_file():
            kept = json.loads(result.read_text(encoding="utf-8"))
            write_atomically(result, json.dumps({**kept, "seconds": seconds}))
        return self._kept(training.job, training.folder) or Failed(training.job, self._why(training))

    def _why(self, training: _Training) -> str:
        log = training.folder / "log.txt"
        text = log.read_text(encoding="utf-8", errors="replace")
        found = _ERROR.findall(text)
        last = found[-1] if found else next((line for line in reversed(text.splitlines()) if line.strip()), "")
        if last.endswith(":"):  # the reason stands in the lines below
            last += f" {' '.join(text[text.rindex(last) + len(last) :].split())}"
        status = training.process.returncode
        if status == 0:
            last = "it ended without a fit that was watched: is lightning-deadkernel installed where the command runs?"
        return f"{last.strip()[:500] or f'exit status {status}'} (all of it: {log})"

    def _kept(self, job: Job, folder: Path) -> Run | None:
        """One that has ended, now or in an earlier trial."""
        try:
            kept = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            report = Report.load(folder / "report.json")
            run = Run(job, report, kept["seconds"], kept["metrics"], kept["settings"])
        except (OSError, ValueError, KeyError):  # not there, or stopped while it was written: it is run
            return None
        if job.arm.role == "control" and self._groups is None:
            self._groups = kept["groups"]
            seed = run.settings.get("seed_everything")
            self._seed = seed if isinstance(seed, int) and not isinstance(seed, bool) else self._seed
            if kept["device"] != "cpu" and self._asked is None:
                self._at_a_time = 1
        return run


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        size, time_ = path.stat().st_size, path.stat().st_mtime_ns
        return path.read_bytes() if size <= HASHED else f"{size} {time_}".encode()
    except (OSError, ValueError):  # no path at all
        return b""
