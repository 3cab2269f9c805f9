"""`why`: real trials of the demo's configs and of a script of one's own, with answers that are known beforehand."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from lightning_deadkernel.analysis.trial import TASK
from lightning_deadkernel.cli import trainings
from lightning_deadkernel.cli.main import _parsed, main
from lightning_deadkernel.demo.datamodules import DEBIAN_FASHION_MNIST
from lightning_deadkernel.training.description import why_command

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "--config", str(CONFIGS / "frozen_weights.yaml"), "--trainer.max_epochs=2", "--trainer.limit_val_batches=0",
    "--trainer.limit_train_batches=20", "--model.init_args.width=32",
]  # fmt: skip
"""A run of a second in which a third of 32 kernels is knocked out."""


class InThisProcess:
    """Stands for a process: runs the command here and now, which spares it the imports."""

    started: list[list[str]] = []

    def __init__(self, words: list[str], stdout: Any, env: dict[str, str], **_: Any) -> None:
        self.started.append(words)
        before = dict(os.environ)
        os.environ.update({name: env[name] for name in (TASK, "PL_GLOBAL_SEED")})
        self.pid, self.returncode = -1, 0
        try:
            assert words[:3] == [sys.executable, "-m", "lightning_deadkernel"]
            main(words[3:])
        except SystemExit as end:
            self.returncode = int(end.code or 0)
        except Exception:  # as a process would, it prints it and ends with 1
            stdout.write(traceback.format_exc().encode())
            self.returncode = 1
        finally:
            os.environ.clear()
            os.environ.update(before)

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run, in this process."""
    monkeypatch.setattr(InThisProcess, "started", [])
    monkeypatch.setattr(trainings.subprocess, "Popen", InThisProcess)
    return InThisProcess.started


def trial(folder: Path, *options: str) -> dict[str, Any]:
    """The why.json of a trial that is made one training after the other."""
    assert main(["why", "--folder", str(folder), "--jobs=1", *options]) == 0
    record: dict[str, Any] = json.loads((folder / "why.json").read_text())
    return record


def verdicts(record: dict[str, Any]) -> dict[str, str]:
    return {arm["name"]: arm["verdict"] for arm in record["arms"] if arm["verdict"]}


def changes(record: dict[str, Any]) -> dict[str, list[str]]:
    return {arm["name"]: arm["changes"] for arm in record["arms"] if arm["changes"]}


# -- the five questions -----------------------------------------------------------------------------------------------


def cure(name: str) -> dict[str, Any]:
    """What the cured twin of a config changes."""
    sick, cured = (
        yaml.safe_load((CONFIGS / f"{stem}.yaml").read_text())["model"]["init_args"] for stem in (name, f"{name}_cured")
    )
    return {key: cured.get(key) for key in sick | cured if sick.get(key) != cured.get(key)}


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten trainings
def test_of_the_zero_kernels_decay_through_adam_is_the_cause_and_adamw_the_smallest_change(
    started: list[list[str]], tmp_path: Path
) -> None:
    options = ["--trainer.max_epochs=18", "--trainer.limit_val_batches=0"]
    found = trial(tmp_path, "--config", str(CONFIGS / "zero_kernels.yaml"), "--seeds=2", *options)
    assert found["bit_for_bit"]
    assert found["causes"] == ["decayed"]
    assert cure("zero_kernels") == {"optimizer": "adamw"}
    assert verdicts(found)["AdamW in place of Adam"] == "sufficient"
    assert changes(found)["AdamW in place of Adam"] == ["--model.init_args.optimizer=adamw"]
    assert changes(found)["no weight decay"] == ["--model.init_args.weight_decay=0"]
    assert found["conclusion"][0].startswith("Each of ")
    assert "The smallest change is AdamW in place of Adam" in found["conclusion"][0]


@pytest.mark.slow
@pytest.mark.seeds
def test_of_the_frozen_weights_a_tenth_of_the_rate_suffices_and_is_not_named_alone(
    started: list[list[str]], tmp_path: Path
) -> None:
    found = trial(tmp_path, "--config", str(CONFIGS / "frozen_weights.yaml"), "--seeds=1", "--trainer.max_epochs=4")
    assert cure("frozen_weights") == {"lr": 0.1}
    assert changes(found)["a tenth of the learning rate"] == ["--model.init_args.lr=0.1"]
    sufficient = [name for name, verdict in verdicts(found).items() if verdict == "sufficient"]
    assert "a tenth of the learning rate" in sufficient
    assert "gradients clipped at 1" in sufficient
    assert "none of them alone is the cause" in found["conclusion"][0]
    assert 0 < found["arms"][2]["runs"][0]["free"] < len(found["named"]["net.linear1"])  # by chance: some, not all


@pytest.mark.slow
@pytest.mark.seeds
@pytest.mark.skipif(not Path(DEBIAN_FASHION_MNIST).is_dir(), reason="dataset-fashion-mnist is not installed")
def test_of_the_silent_maps_a_tenth_of_the_rate_alone_suffices(started: list[list[str]], tmp_path: Path) -> None:
    small = ["--trainer.max_epochs=2", "--data.subset=4000", "--data.val_size=500", "--trainer.limit_val_batches=0"]
    found = trial(tmp_path, "--config", str(CONFIGS / "silent_maps.yaml"), "--seeds=1", *small)
    assert cure("silent_maps") == {"lr": 0.002}
    assert verdicts(found)["a tenth of the learning rate"] == "sufficient"
    assert verdicts(found)["gradients clipped at 1"] != "sufficient"  # Adam divides by the gradient's size
    assert found["seeds"]["p_value"] > 0.05


@pytest.mark.slow
@pytest.mark.seeds
def test_of_what_the_twin_of_the_vanishing_gradient_changes_each_is_told_apart(
    started: list[list[str]], tmp_path: Path
) -> None:
    config = ["--config", str(CONFIGS / "vanishing_sigmoid.yaml"), "--trainer.max_epochs=2"]
    config += ["--trainer.limit_val_batches=0"]
    assert cure("vanishing_sigmoid").items() >= {"activation": "relu", "norm": True, "init": "he"}.items()
    identical = trial(tmp_path / "identical", *config, "--seeds=1")
    assert identical["kind"] == "identical_kernels"
    assert verdicts(identical) == {"He initialisation": "sufficient"}
    vanishing = trial(tmp_path / "vanishing", *config, "--seeds=3", "--finding=2")
    assert vanishing["kind"] == "vanishing_gradient"
    assert verdicts(vanishing) == {
        "He initialisation": "sufficient",  # of eight sigmoids each passes a quarter of the gradient or less
        "ReLU in place of sigmoid or tanh": "sufficient",  # and each layer of small weights as much again
        "with norms": "no difference from chance",
    }


@pytest.mark.slow
@pytest.mark.seeds
def test_of_the_sparse_weights_the_l1_term_is_the_cause(started: list[list[str]], tmp_path: Path) -> None:
    small = ["--trainer.limit_val_batches=0"]
    found = trial(tmp_path, "--config", str(CONFIGS / "sparse_weights.yaml"), "--seeds=2", *small)
    assert cure("sparse_weights") == {"l1": None}
    assert verdicts(found) == {"no L1 term": "sufficient"}
    assert found["conclusion"][0].startswith("No L1 term suffices (--model.init_args.l1=0)")


# -- what is kept, and what is told -----------------------------------------------------------------------------------

NO_CLIP = "--arm=smaller steps: --model.init_args.lr=0.1"
"""With a lower rate no unit is knocked out."""


def test_what_has_ended_is_not_run_again_and_what_has_changed_is(
    started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "own.yaml"
    shutil.copy(CONFIGS / "frozen_weights.yaml", config)
    options = ["--config", str(config), *SMALL[2:], "--seeds=1"]
    first = trial(tmp_path / "trial", *options, NO_CLIP)
    assert len(started) == 7  # control, again, placebo, clipped, warmed up, own (which is a tenth), another seed
    assert trial(tmp_path / "trial", *options, NO_CLIP) == first
    assert len(started) == 7
    assert "(kept from before)" in capsys.readouterr().err
    trial(tmp_path / "trial", *options, "--arm=smaller steps: --model.init_args.lr=0.01")
    assert [line[-3] for line in started[7:]] == ["--model.init_args.lr=0.01", "--model.init_args.lr=0.1"]
    config.write_text(config.read_text().replace("lr: 1.0", "lr: 0.9"))
    trial(tmp_path / "trial", *options)
    assert len(started) >= 9 + 7  # nothing is as it was


def test_an_arm_of_ones_own_comes_first_and_one_that_fails_is_a_line(
    started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trial(tmp_path, *SMALL, "--seeds=1", "--arm=typo: --model.init_args.widht=9", NO_CLIP)
    assert list(verdicts(found))[:2] == ["typo", "smaller steps"]
    assert verdicts(found)["typo"] == "failed"
    (typo,) = (arm for arm in found["arms"] if arm["name"] == "typo")
    assert "widht" in typo["error"]
    assert "Traceback" not in capsys.readouterr().out
    assert verdicts(found)["smaller steps"] == "sufficient"


def test_nothing_of_the_users_is_written_and_every_training_keeps_its_config(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trial(Path("kept"), *SMALL, "--seeds=1")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    configs = sorted((tmp_path / "kept").glob("*/config.yaml"))
    assert len(configs) == len(started)
    tenth = [path for path in configs if "tenth" in path.parent.name]
    assert [yaml.safe_load(path.read_text())["model"]["init_args"]["lr"] for path in tenth] == [0.1]
    assert not list((tmp_path / "kept").rglob("*.ckpt"))
    assert (tmp_path / "kept" / "why.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_that_is_given_saves_a_training_and_is_what_is_asked_about(
    started: list[list[str]], tmp_path: Path
) -> None:
    found = trial(tmp_path / "one", *SMALL, "--seeds=1")
    (report,) = (tmp_path / "one").glob("control.0.*/report.json")
    again = trial(tmp_path / "two", *SMALL, "--seeds=1", f"--report={report}")
    assert found["named"] == again["named"]
    assert [arm["name"] for arm in again["arms"]][:2] == ["control", "placebo (other order)"]
    assert again["bit_for_bit"]
    assert len(started) == 7 + 6


def test_a_run_without_a_seed_is_given_one_and_that_is_told(started: list[list[str]], tmp_path: Path) -> None:
    found = trial(tmp_path, *SMALL, "--seeds=1", "--seed_everything=false", "--layer=net.linear1")
    assert found["bit_for_bit"]
    assert found["notes"] == [
        "The run sets no seed, so that no training of it is like another: --seed_everything=0 was added."
    ]
    assert len(started) == 1 + 7
    assert trial(tmp_path, *SMALL, "--seeds=1", "--seed_everything=false", "--layer=net.linear1") == found
    assert len(started) == 1 + 7


def test_when_the_time_is_over_nothing_further_begins_and_that_is_told(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(trainings.time, "monotonic", lambda: next(now))
    found = trial(tmp_path, *SMALL, "--seeds=1", "--max_minutes=3")
    assert found["stopped"] == "3 minutes were over"
    out = capsys.readouterr().out
    assert "Stopped before its end: 3 minutes were over." in out
    assert "Not run: " in out
    assert len(started) < 7
    missing = {arm["name"] for arm in found["arms"] if arm["missing"]}
    assert "a tenth of the learning rate" in missing
    assert found["conclusion"][0] == "No change was trained to its end, so nothing follows of what did it."


def test_of_a_healthy_run_there_is_nothing_to_explain(
    started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = ["--config", str(CONFIGS / "digits.yaml"), "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    assert main(["why", *healthy, "--folder", str(tmp_path)]) == 2
    assert "nothing was found in the run, so there is nothing to explain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "expected --config, or after -- the command that trains"),
        (["--config", "a.yaml", "--", "python", "main.py"], "either a command after -- or --config, but got both"),
        (["--arm", "no colon"], "expected NAME: --option=value ..., but got 'no colon'"),
        (["--seeds", "0"], "expected a positive int, but got '0'"),
        (["--max_minutes", "soon"], "expected a positive float, but got 'soon'"),
        (["--finding", "1", "--layer", "conv1"], "not allowed with"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--", "no_such_program", "fit"], "no_such_program"),
        (["--config", "a.yaml", "--report", "nowhere"], "nowhere: no such file or folder"),
        (["--config", "a.yaml", "--arm", "a: --b=1", "--arm", "a: --b=2"], "a different name for each"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_a_line(
    args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["why", *args])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert words in capsys.readouterr().err


def test_the_reason_why_a_command_ends_is_told_though_it_stands_in_the_lines_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "error: Parser key \"model\":\n  Errors:\n    - Option 'lrr' is not accepted\n"
    (tmp_path / "main.py").write_text(f"raise SystemExit({said!r})")
    command = ["--folder", str(tmp_path / "trial"), "--", sys.executable, str(tmp_path / "main.py"), "fit"]
    assert main(["why", *command]) == 2
    assert "the control failed: error: Parser key \"model\": Errors: - Option 'lrr' is not" in capsys.readouterr().err


# -- commands of one's own --------------------------------------------------------------------------------------------

SCRIPT = """
import os
from pathlib import Path
import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self, bias: float = -50.0, lr: float = 0.01):
        super().__init__()
        self.hidden, self.head, self.lr = torch.nn.Linear(8, 24), torch.nn.Linear(24, 3), lr
        torch.nn.init.constant_(self.hidden.bias[:10], bias)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.head(self.hidden(batch[0]).relu()), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        draw = torch.Generator().manual_seed(0)
        x, y = torch.rand(96, 8, generator=draw), torch.randint(3, (96,), generator=draw)
        return DataLoader(TensorDataset(x, y), 8, shuffle=True)


class OwnCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--slow", type=float, default=0.0)


if __name__ == "__main__":
    save = {} if os.environ.get("SAVE") else {"save_config_callback": None}
    cli = OwnCLI(Net, Data, **save)
    Path("after_the_fit.txt").touch()
"""


@pytest.fixture
def own_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "main.py").write_text(SCRIPT)
    trainer = {"max_epochs": 1, "accelerator": "cpu", "callbacks": [{"class_path": "LearningRateMonitor"}]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"seed_everything": 7, "trainer": trainer}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.seeds
def test_a_script_of_ones_own_is_trained_by_its_own_command_in_processes(
    own_script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAVE", "1")
    own = ["--", sys.executable, "main.py", "fit", "-c", "own.yaml"]
    assert main(["why", "--seeds=1", "--arm=no bias: --model.bias=0", *own]) == 0
    folder = own_script / "trials" / "own"
    found = json.loads((folder / "why.json").read_text())
    assert found["named"] == {"hidden": list(range(10))}
    assert (found["causes"], found["bit_for_bit"]) == (["shift driven negative"], True)
    assert verdicts(found)["no bias"] == "sufficient"
    assert verdicts(found)["a tenth of the learning rate"] != "sufficient"
    assert found["conclusion"][0].startswith("No bias suffices (--model.bias=0)")
    # the script ended with its fit, and no logger or checkpoint of its own was written
    assert sorted(path.name for path in own_script.iterdir()) == ["main.py", "own.yaml", "trials"]
    assert "sufficient" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.seeds
@pytest.mark.timeout(900)  # processes that are waited for
def test_ctrl_c_tells_what_there_is_ends_what_runs_and_the_same_command_goes_on(own_script: Path) -> None:
    words = [sys.executable, "-m", "lightning_deadkernel", "why", "--jobs=1", "--seeds=1"]
    words += ["--arm=no bias: --model.bias=0", "--", sys.executable, "main.py", "fit", "-c", "own.yaml"]
    # without its config saved no setting is known, and there is no suspect: five trainings
    running = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background shells ignore it
    )
    assert running.stderr is not None
    for line in running.stderr:
        if "control, again" in line:
            running.send_signal(signal.SIGINT)
            break
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Stopped before its end: interrupted." in out
    assert "Not run: " in out
    folder = own_script / "trials" / "own"
    found = json.loads((folder / "why.json").read_text())
    assert found["stopped"] == "interrupted"
    tasks = {path.parent.name for path in folder.glob("*/task.json")}
    ended = {path.parent.name for path in folder.glob("*/result.json")}
    assert len(tasks - ended) <= 1  # that which was running
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder.name) not in [line for line in alive.splitlines() if "main.py fit" in line]
    times = {name: (folder / name / "result.json").stat().st_mtime_ns for name in ended}
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "kept from before" in done.stderr
    assert json.loads((folder / "why.json").read_text())["stopped"] == ""
    assert {name: (folder / name / "result.json").stat().st_mtime_ns for name in ended} == times


# -- the hint at the end of fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/venv/bin/lightning-deadkernel", "fit", "--config", "a.yaml"], "lightning-deadkernel why --config a.yaml"),
        (["-m", "lightning_deadkernel", "fit", "-c", "my a.yaml"], "lightning-deadkernel why -c 'my a.yaml'"),
        (
            ["main.py", "fit", "-c", "a.yaml", "--model.lr=3"],
            "lightning-deadkernel why -- python main.py fit -c a.yaml --model.lr=3",
        ),
        (["-m", "pkg.main", "fit"], "lightning-deadkernel why -- python -m pkg.main fit"),
    ],
)
def test_the_end_of_fit_names_the_command_that_asks_why_and_it_is_one_that_is_understood(
    argv: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", *argv])
    trainer = SimpleNamespace(callbacks=[SaveConfigCallback.__new__(SaveConfigCallback)], world_size=1)
    assert why_command(trainer) == command
    parsed = _parsed(shlex.split(command)[1:])
    told = [*(f"--config={config}" for config in parsed.config), *parsed.options]
    assert (parsed.command_given[1:] or None) == (None if parsed.config else argv)
    assert bool(told) == bool(parsed.config)


@pytest.mark.parametrize("why_not", ["no LightningCLI", "no fit", "several processes"])
def test_no_command_is_named_that_may_not_be_true(why_not: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["python", "main.py", "train" if why_not == "no fit" else "fit"]
    monkeypatch.setattr(sys, "orig_argv", words)
    callbacks = [] if why_not == "no LightningCLI" else [SaveConfigCallback.__new__(SaveConfigCallback)]
    trainer = SimpleNamespace(callbacks=callbacks, world_size=2 if why_not == "several processes" else 1)
    assert why_command(trainer) == ""


@pytest.mark.parametrize(("config", "told"), [("frozen_weights", True), ("digits", False)])
def test_the_console_names_it_after_a_problem_and_only_then(
    config: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "/bin/lightning-deadkernel", "fit", "--config", "a.yaml"])
    small = [*SMALL[2:5], f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    assert main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *small]) == 0
    line = "Which change would have spared them: lightning-deadkernel why --config a.yaml"
    assert (line in capsys.readouterr().out.splitlines()) == told
