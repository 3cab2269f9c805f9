"""The GitHub Action's step, run as GitHub runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ACTION = Path(__file__).parents[2] / ".github" / "actions" / "audit" / "action.yml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "status"),
    [("", 0), ("zero_kernel_fraction=0.5\n", 0), ("zero_kernel_fraction=0.5\n\nzero_kernels=0", 1), ("nonsense=1", 2)],
)
def test_the_action_writes_the_audit_into_the_summary_and_fails_beyond_a_limit(
    limits: str, status: int, tmp_path: Path
) -> None:
    weight = torch.randn(8, 3, 3, 3)
    weight[2] = 0
    torch.save({"conv1.weight": weight}, tmp_path / "a model.pt")
    step = yaml.safe_load(ACTION.read_text())["runs"]["steps"][-1]
    assert step["shell"] == "bash"
    environment = os.environ | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "CHECKPOINT": str(tmp_path / "a model.pt"),
        "FAIL_ON": limits,
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    assert step["env"].keys() < environment.keys()
    (tmp_path / "step.sh").write_text(step["run"])
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(tmp_path / "step.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    if status < 2:
        assert "conv1" in (tmp_path / "summary.md").read_text()
