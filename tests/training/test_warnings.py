"""Warnings as a user gets them: one a problem, no path of source in front, and the usual filters hold."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from helpers.short_runs import mlp, train
from helpers.training import quiet
from lightning_deadkernel.errors import DeadKernelWarning, warn

SCRIPT = """
import sys, warnings
sys.path += sys.argv[1:]
from helpers.training import quiet
from test_warnings import two_dead_layers
two_dead_layers(quiet(on_finding="warn"))
warnings.warn("of another")
"""


def two_dead_layers(monitor) -> None:  # type: ignore[no-untyped-def]
    """Two problems: a layer whose shift is far negative, and one that no optimizer has."""
    torch.manual_seed(0)
    net = mlp(64, 32, 32, 10)
    with torch.no_grad():
        net[1].bias[:8] = -100
    train(net, monitor=monitor, optimized=lambda net: [p for n, p in net.named_parameters() if not n.startswith("3.")])


def test_each_problem_is_one_line_on_stderr_without_a_path() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-W", "default", "-c", SCRIPT, str(here.parent), str(here)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours = [line for line in done.stderr.splitlines() if "kernel" in line.lower()]
    assert len(ours) == 2, done.stderr
    assert all(line.startswith("DeadKernelWarning: net.") for line in ours)
    assert "window_end" not in done.stderr
    assert "lightning_deadkernel/" not in done.stderr
    assert "<string>:7: UserWarning: of another" in done.stderr  # others keep their form


def test_a_filter_that_makes_warnings_errors_ends_the_training_with_the_problem() -> None:
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeadKernelWarning)
        with pytest.raises(DeadKernelWarning, match=r"net\.1: 8 of 32 kernels are dead"):
            two_dead_layers(quiet(on_finding="warn"))
    assert warnings.formatwarning is before


def test_a_warning_is_caught_as_any_other() -> None:
    with pytest.warns(DeadKernelWarning, match=r"^net\.1: dead$"):
        warn("net.1: dead")
