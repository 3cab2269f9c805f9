"""What the pages of the docs claim: every code block runs, every link is there, what is generated is up to date."""

from __future__ import annotations

import glob
import logging
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from safetensors.torch import save_file

from helpers.settings_page import settings_page
from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.cli.main import _parsed, main
from lightning_deadkernel.demo import DigitsDataModule, PlainCNN

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "docs" / "where_it_works.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
SHOWN_ONLY = ("json", "text")
"""Languages of blocks that are no code: a report's JSON has its own test, and text is a drawing."""


@cache
def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", PAGES[page].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def test_where_it_works_is_what_the_marks_of_the_tests_say(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        SETTINGS.write_text(settings_page(), encoding="utf-8", newline="\n")
    assert SETTINGS.read_text(encoding="utf-8") == settings_page()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_that_a_test_runs(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    languages = [line[3:] for line in text.splitlines() if line.startswith("```")]
    assert set(languages) <= {"bash", "python", "yaml", "", *SHOWN_ONLY}
    assert languages.count("") * 2 == len(languages)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_picture_that_is_named_exists(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    made = ("index.md", "extending.md", "findings/index.md")
    assert [link for link in links if link not in made and not (PAGES[page].parent / link).is_file()] == []
    named = re.findall(r"`((?:configs|tests|docs)/[\w/]+(?:\.\w+|/))`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_blocks_run_in_their_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    monkeypatch.chdir(tmp_path)
    L.seed_everything(3)
    data = DigitsDataModule(batch_size=32)
    data.prepare_data()
    data.setup("fit")
    images = next(iter(data.train_dataloader()))[0]
    names: dict[str, Any] = {"model": PlainCNN(width=16, optimizer="sgd", lr=0.4), "data": data, "images": images}
    text = "\n".join(blocks(page, "python"))
    if "DeadKernelMonitor" not in text:  # a page that goes on from the training of another
        text = f"{blocks('docs/getting_started.md', 'python')[0]}\n{text}"
    exec(compile(text, page, "exec"), names)
    if "trial" in names:
        assert "A tenth of the rate suffices" in names["trial"].verdict
        return
    monitor = names["monitor"]
    assert isinstance(monitor, DeadKernelMonitor)
    report = monitor.report
    assert report is not None
    if "stop" in names:
        assert names["stop"].monitor in names["trainer"].callback_metrics
    if "prune" in text:  # what is dead is gone
        for name, channels in report.dead_channels.items():
            assert names["model"].get_submodule(name).weight.shape[0] == report[name].channels - len(channels)


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "yaml")])
def test_the_yaml_blocks_configure_the_monitor_of_any_lightning_cli_and_of_hydra(text: str, tmp_path: Path) -> None:
    config = yaml.safe_load(text)
    if "_target_" in text:
        hydra, omegaconf = pytest.importorskip("hydra.utils"), pytest.importorskip("omegaconf")
        (callback,) = config.values()
        monitor = hydra.instantiate(omegaconf.OmegaConf.create(callback))
        asked = {name: value for name, value in callback.items() if name != "_target_"}
    else:
        path = tmp_path / "theirs.yaml"
        path.write_text(text)
        trainer = LightningCLI(PlainCNN, DigitsDataModule, args=["--config", str(path)], run=False).trainer
        (monitor,) = (callback for callback in trainer.callbacks if isinstance(callback, DeadKernelMonitor))
        asked = config["trainer"]["callbacks"][0]["init_args"]
    assert asked.keys() == {"every_n_train_steps", "thresholds"}
    assert monitor.every_n_train_steps == asked["every_n_train_steps"]
    assert {name: getattr(monitor.thresholds, name) for name in asked["thresholds"]} == asked["thresholds"]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("bash"))
def test_the_commands_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    save_file({"conv1.weight": torch.randn(8, 3, 3, 3)}, tmp_path / "model.safetensors")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lines = [
        command.strip() for text in blocks(page, "bash") for command in re.split(r"\n|&&", text) if command.strip()
    ]
    for line in lines:
        words = shlex.split(line)
        if words[0] != "lightning-deadkernel":
            # what installs or measures is run by .ci/run
            known = words == ["pytest"] or words[:2] == ["pip", "install"] or words[1].startswith("tests/benchmarks/")
            assert known, f"{page}: what runs `{line}`?"
            continue
        if words[1] == "why":  # many trainings, which tests/cli/test_why.py makes of the same configs in less time
            assert _parsed(words[1:]).config
            continue
        args = [path for word in words[1:] for path in (sorted(glob.glob(word)) if "*" in word else [word])]
        if args[0] == "fit":
            args += ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
        if args[0] == "compare":
            args.append(args[-1])  # one run alone has nothing to be compared with
        assert main(args) == 0, (line, capsys.readouterr())
        assert capsys.readouterr().out.strip()


def test_the_readme_is_read_in_one_go() -> None:
    assert len(PAGES["README.md"].read_text(encoding="utf-8").splitlines()) <= 150


def test_the_two_commands_are_the_ones_that_continuous_integration_takes_from_the_readme() -> None:
    text = PAGES["README.md"].read_text(encoding="utf-8")
    commands = dict(re.findall(r"^<!-- (main|test) command -->\n```bash\n(.+)\n```", text, re.MULTILINE))
    assert commands.keys() == {"main", "test"}
    script = (ROOT / ".ci" / "run").read_text()
    assert "readme 'main command'" in script
    assert "readme 'test command'" in script
    config = re.search(r"--config (\S+)", commands["main"])
    assert config is not None
    assert (ROOT / config[1]).is_file()
