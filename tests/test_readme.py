"""Every code block of the README runs, and its claims about files hold."""

from __future__ import annotations

import glob
import logging
import re
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from safetensors.torch import save_file

from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.cli.main import main
from lightning_deadkernel.demo import DigitsDataModule, PlainCNN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_every_block_has_a_language_that_a_test_runs() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "yaml"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_every_picture_and_file_that_is_linked_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 10
    assert [link for link in links if not (ROOT / link).is_file()] == []
    assert [
        name for name in re.findall(r"`((?:configs|tests)/[\w/]+\.\w+)`", README) if not (ROOT / name).is_file()
    ] == []


def test_the_python_blocks_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    monkeypatch.chdir(tmp_path)
    L.seed_everything(3)
    data = DigitsDataModule(batch_size=32)
    data.prepare_data()
    data.setup("fit")
    names: dict[str, Any] = {
        "model": PlainCNN(width=16, optimizer="sgd", lr=0.4),
        "data": data,
        "images": next(iter(data.train_dataloader()))[0],
    }
    python = blocks("python")
    assert len(python) == 3
    for text in python:
        exec(compile(text, "README.md", "exec"), names)
    monitor = names["monitor"]
    assert isinstance(monitor, DeadKernelMonitor)
    report = monitor.report
    assert report is not None
    assert f"{report.dead_fraction}\n" in capsys.readouterr().out
    stop = names["stop"]
    assert stop.monitor in names["trainer"].callback_metrics
    # what was pruned is gone
    for name, channels in report.dead_channels.items():
        weight = names["model"].get_submodule(name).weight
        assert weight.shape[0] == report[name].channels - len(channels)


def test_the_yaml_block_configures_the_monitor_of_any_lightning_cli(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    config = yaml.safe_load(text)
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(config))
    cli = LightningCLI(PlainCNN, DigitsDataModule, args=["--config", str(path)], run=False)
    monitor = next(callback for callback in cli.trainer.callbacks if isinstance(callback, DeadKernelMonitor))
    assert monitor.every_n_train_steps == 500
    assert monitor.thresholds.dormant == 0.05


def test_the_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    save_file({"conv1.weight": torch.randn(8, 3, 3, 3)}, tmp_path / "model.safetensors")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lines = next(text for text in blocks("bash") if "compare" in text).splitlines()
    assert [line.split()[1] for line in lines] == ["fit", "show", "compare", "audit"]
    for line in lines:
        words = shlex.split(line)[1:]
        args = [path for word in words for path in (sorted(glob.glob(word)) if "*" in word else [word])]
        if args[0] == "fit":
            args += ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
        if args[0] == "compare":
            args.append(args[-1])  # one run alone has nothing to be compared with
        assert main(args) == 0, (line, capsys.readouterr())
        assert capsys.readouterr().out.strip()


def test_the_two_commands_are_the_ones_that_continuous_integration_takes_from_here() -> None:
    commands = re.findall(r"^<!-- (main|test) command -->\n```bash\n(.+)\n```", README, re.MULTILINE)
    assert dict(commands).keys() == {"main", "test"}
    script = (ROOT / ".ci" / "run").read_text()
    assert "readme 'main command'" in script
    assert "readme 'test command'" in script
    config = re.search(r"--config (\S+)", dict(commands)["main"])
    assert config is not None
    assert (ROOT / config[1]).is_file()
