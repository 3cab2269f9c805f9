"""Zero-code attach, through the entry point as an installed package has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import models
from helpers.models import DEAD, Tiny, dead
from helpers.training import quiet
from helpers.twins import train
from lightning_deadkernel import DeadKernelMonitor, Thresholds
from lightning_deadkernel.attach import callbacks_from_environment

ROOT = Path(models.__file__).parents[2]

SCRIPT = """
import lightning as L
from helpers.models import DEAD, Tiny, dead, loader
from helpers.twins import QUIET

trainer = L.Trainer(**{**QUIET, "max_epochs": 1})
trainer.fit(Tiny(), loader())
(monitor,) = [c for c in trainer.callbacks if type(c).__name__ == "AttachedMonitor"]
assert dead(monitor.report) == DEAD
"""


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder that makes the package look installed, with the entry points of its pyproject."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    folder = tmp_path / "site" / "lightning_deadkernel-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-deadkernel\nVersion: 0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    return folder.parent


@pytest.fixture
def trainers(installed, monkeypatch):
    """Makes a Trainer under some environment variables, and trains with it; gives its monitors."""
    monkeypatch.syspath_prepend(installed)

    def fit(*callbacks, **variables: str) -> list[DeadKernelMonitor]:
        for name in ("LIGHTNING_DEADKERNEL", "LIGHTNING_DEADKERNEL_CONFIG"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        run = train(Tiny, None, callbacks=lambda: list(callbacks), max_epochs=1)
        return [callback for callback in run.trainer.callbacks if isinstance(callback, DeadKernelMonitor)]

    return fit


@pytest.mark.setting("`LIGHTNING_DEADKERNEL=1` (`lightning` namespace)", evidence="activation")
def test_a_script_needs_nothing_but_the_variable(installed):
    environment = os.environ | {"LIGHTNING_DEADKERNEL": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (installed, ROOT, ROOT / "tests")))
    (installed / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], env=environment, cwd=installed, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert list(installed.glob("deadkernel/version_0/report.json"))


def test_without_the_variable_nothing_is_attached(trainers):
    assert trainers() == []
    assert trainers(LIGHTNING_DEADKERNEL="0") == []


def test_with_the_variable_a_monitor_with_default_settings_is_attached(trainers):
    (monitor,) = trainers(LIGHTNING_DEADKERNEL="1")
    assert dead(monitor.report) == DEAD
    assert monitor.thresholds == Thresholds()
    assert monitor.every_n_train_steps is None


@pytest.mark.setting("`LIGHTNING_DEADKERNEL=1` (`lightning` namespace)", evidence="activation")
def test_settings_come_from_a_yaml_file_and_an_explicit_monitor_is_not_doubled(trainers, tmp_path):
    (tmp_path / "monitor.yaml").write_text("every_n_train_steps: 3\nthresholds: {dormant: 1e-1}\nlog_figures: false\n")
    variables = {"LIGHTNING_DEADKERNEL": "1", "LIGHTNING_DEADKERNEL_CONFIG": str(tmp_path / "monitor.yaml")}
    (monitor,) = trainers(**variables)
    assert [report.batches for report in monitor.reports] == [0, 3, 3]
    assert monitor.thresholds.dormant == 0.1
    explicit = quiet(every_n_train_steps=2)
    assert trainers(explicit, **variables) == [explicit]
    assert [report.batches for report in explicit.reports] == [0, 2, 2, 2]


def test_an_attached_monitors_checkpoint_is_an_explicit_ones_and_resumes(trainers, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DEADKERNEL", "1")
    first = train(Tiny, None, max_epochs=1)
    first.trainer.save_checkpoint(tmp_path / "attached.ckpt")
    checkpoint = torch.load(tmp_path / "attached.ckpt", weights_only=True)
    assert list(checkpoint["callbacks"]) == ["DeadKernelMonitor"]
    second = train(Tiny, None, fit=lambda t, m, d: t.fit(m, d, ckpt_path=tmp_path / "attached.ckpt"))
    (monitor,) = [c for c in second.trainer.callbacks if isinstance(c, DeadKernelMonitor)]
    assert [report.window for report in monitor.reports] == [0, 1, 2]


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
        ("thresholds: {domant: 1}", "`thresholds` has no 'domant'; near names: dormant"),
        ("thresholds: [1]", "`thresholds` to be a Thresholds or a mapping of their names, but got"),
        ("thresholds: {dormant: low}", "`thresholds.dormant` to be a float in .*, but got 'low'"),
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
