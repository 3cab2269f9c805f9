"""Zero-code attach, through the entry point as an installed package has it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tomllib

from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.attach import callbacks_from_environment
from lightning_matrix import models

ROOT = Path(models.__file__).parents[2]

SCRIPT = """
import lightning as L, torch
from lightning_matrix.models import Tiny, loader, dead, DEAD
from lightning_matrix.twins import QUIET
torch.set_num_threads(1)
{imports}
trainer = L.Trainer(**{{**QUIET, "max_epochs": 1}}, callbacks=[{callbacks}])
trainer.fit(Tiny(), loader())
monitors = [c for c in trainer.callbacks if "Monitor" in type(c).__name__]
print("monitors", len(monitors), [m.every_n_train_steps for m in monitors], [m.state_key for m in monitors])
print("dead", [dead(m.report) == DEAD for m in monitors])
"""


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder that makes the package look installed, with the entry points of its pyproject."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    folder = tmp_path / "site" / "lightning_deadkernel-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-deadkernel\nVersion: 0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    return folder.parent


def run(installed: Path, imports: str = "", callbacks: str = "", **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_DEADKERNEL")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (installed, ROOT, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT.format(imports=textwrap.dedent(imports), callbacks=callbacks)],
        env=environment | variables,
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_variable_nothing_is_attached(installed):
    assert "monitors 0" in run(installed)


def test_with_the_variable_a_monitor_with_default_settings_is_attached_and_writes_its_report(installed):
    shown = run(installed, LIGHTNING_DEADKERNEL="1")
    assert "monitors 1 [None] ['DeadKernelMonitor']" in shown
    assert "dead [True]" in shown
    assert list(installed.glob("deadkernel/version_0/report.json"))


def test_settings_come_from_a_yaml_file_and_an_explicit_monitor_is_not_doubled(installed):
    config = installed / "monitor.yaml"
    config.write_text("every_n_train_steps: 3\nthresholds: {dormant: 0.1}\nsave_report: false\n")
    variables = {"LIGHTNING_DEADKERNEL": "1", "LIGHTNING_DEADKERNEL_CONFIG": str(config)}
    assert "monitors 1 [3]" in run(installed, **variables)
    explicit = run(
        installed,
        "from lightning_deadkernel import DeadKernelMonitor",
        "DeadKernelMonitor(every_n_train_steps=2)",
        **variables,
    )
    assert "monitors 1 [2] ['DeadKernelMonitor']" in explicit
    assert "dead [True]" in explicit


def test_the_factory_gives_nothing_unless_it_is_switched_on(monkeypatch):
    monkeypatch.delenv("LIGHTNING_DEADKERNEL", raising=False)
    assert callbacks_from_environment() == []
    monkeypatch.setenv("LIGHTNING_DEADKERNEL", "0")
    assert callbacks_from_environment() == []
    monkeypatch.setenv("LIGHTNING_DEADKERNEL", "1")
    assert isinstance(callbacks_from_environment()[0], DeadKernelMonitor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "to hold a mapping of settings, but got"),
        ("evry_n_train_steps: 3", "settings of DeadKernelMonitor"),
        ("thresholds: {domant: 1}", "settings of Thresholds"),
        ("a: [", "cannot be read"),
        ("every_n_train_steps: 0", "every_n_train_steps"),
    ],
)
def test_a_wrong_config_is_a_clear_error(monkeypatch, tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content)
    monkeypatch.setenv("LIGHTNING_DEADKERNEL", "1")
    monkeypatch.setenv("LIGHTNING_DEADKERNEL_CONFIG", str(tmp_path / "config.yaml"))
    with pytest.raises(ValueError, match=message):
        callbacks_from_environment()


def test_a_wrong_switch_and_a_missing_config_are_clear_errors(monkeypatch):
    monkeypatch.setenv("LIGHTNING_DEADKERNEL", "yes")
    with pytest.raises(ValueError, match="1, 0 or not set, but got 'yes'"):
        callbacks_from_environment()
    monkeypatch.setenv("LIGHTNING_DEADKERNEL", "1")
    monkeypatch.setenv("LIGHTNING_DEADKERNEL_CONFIG", "nowhere.yaml")
    with pytest.raises(ValueError, match=r"'nowhere.yaml' cannot be read"):
        callbacks_from_environment()
