"""Several processes over gloo on 127.0.0.1: `launch` runs a function of a test module on each rank.

Run as a script, this file is one rank; its folder is where ranks leave what they saw.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(ranks: int, job: str, folder: Path, timeout: float = 150) -> list[Any]:
    """Runs `job` ("module:function") on all ranks at once, as torchrun does, and gives what each returned."""
    codes = statuses(ranks, job, folder, timeout)
    logs = [(folder / f"rank{rank}.log").read_text()[-3000:] for rank in range(ranks)]
    assert codes == [0] * ranks, "\n".join(f"-- rank {rank}\n{log}" for rank, log in enumerate(logs))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


def statuses(ranks: int, job: str, folder: Path, timeout: float = 150, **variables: str) -> list[int]:
    """Runs `job` on all ranks at once with these environment variables, and gives how each ended."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "matrix",  # so that Lightning joins these processes and starts none itself
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
        **variables,
    }
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "helpers.distributed", job, str(folder)]
    started = []
    for rank in range(ranks):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"rank{rank}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=own, cwd=folder, stdout=log, stderr=subprocess.STDOUT))
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


if __name__ == "__main__":
    torch.set_num_threads(1)
    module, function = sys.argv[1].split(":")
    seen = getattr(importlib.import_module(module), function)(Path(sys.argv[2]))
    torch.save(seen, Path(sys.argv[2]) / f"rank{os.environ['RANK']}.pt")
    sys.stdout.flush()
    os._exit(0)  # whatever a strategy leaves running ends here
