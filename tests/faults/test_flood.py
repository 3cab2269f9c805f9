"""A few kills and interrupts at random moments in each run of the tests; `flood.py` by hand makes thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FLOOD = Path(__file__).with_name("flood.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_whatever_moment_a_training_ends_at_what_it_leaves_is_whole_and_true() -> None:
    done = subprocess.run([sys.executable, FLOOD], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "20 kills in" in done.stdout
    assert "20 interrupts in" in done.stdout
