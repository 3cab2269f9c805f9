from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

import lightning_deadkernel
from lightning_deadkernel import DeadKernelMonitor, Thresholds, __version__
from lightning_deadkernel.cli.main import main
from lightning_deadkernel.cli.train import DeadKernelCLI
from lightning_deadkernel.demo import DigitsDataModule, SmallCNN

CONFIGS = Path(__file__).parents[2] / "configs"
MONITOR = "lightning_deadkernel.DeadKernelMonitor"
BASE = ["--model=SmallCNN", "--data=DigitsDataModule", "--trainer.accelerator=cpu"]
DRY = ["--trainer.fast_dev_run=true", "--trainer.enable_model_summary=false"]


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[L.Trainer]:
    """Every trainer the command has made, in order."""
    made: list[L.Trainer] = []
    instantiate = DeadKernelCLI.instantiate_trainer

    def remember(cli: DeadKernelCLI) -> L.Trainer:
        made.append(instantiate(cli))
        return made[-1]

    monkeypatch.setattr(DeadKernelCLI, "instantiate_trainer", remember)
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, dict[str, object]], str]:
    def write(name: str, config: dict[str, object]) -> str:
        (tmp_path / name).write_text(yaml.safe_dump(config))
        return str(tmp_path / name)

    return write


def monitors(trainer: L.Trainer) -> list[DeadKernelMonitor]:
    return [callback for callback in trainer.callbacks if isinstance(callback, DeadKernelMonitor)]


def printed_config(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_each_trainer_command_runs_with_short_names_and_ends_with_0(
    command: str, trainers: list[L.Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *BASE, *DRY]) == 0
    assert len(monitors(trainers[0])) == 1
    assert isinstance(trainers[0].lightning_module, SmallCNN)


@pytest.mark.parametrize(
    ("callbacks", "window"),
    [
        ({}, None),
        ({"callbacks": None}, None),
        ({"callbacks": []}, None),
        ({"callbacks": [{"class_path": "LearningRateFinder"}]}, None),
        ({"callbacks": {"class_path": "LearningRateFinder"}}, None),
        ({"callbacks": [{"class_path": MONITOR, "init_args": {"every_n_train_steps": 9}}]}, 9),
        ({"callbacks": {"class_path": MONITOR, "init_args": {"every_n_train_steps": 9}}}, 9),
        ({"callbacks+": [{"class_path": MONITOR, "init_args": {"every_n_train_steps": 9}}]}, 9),
        ({"callbacks+": [{"class_path": "LearningRateFinder"}]}, None),
    ],
)
def test_a_config_gets_exactly_one_monitor_its_own_where_it_has_one(
    callbacks: dict[str, object],
    window: int | None,
    trainers: list[L.Trainer],
    write: Callable[[str, dict[str, object]], str],
) -> None:
    config = write("config.yaml", {"trainer": callbacks})
    assert main(["test", *BASE, "--config", config, *DRY]) == 0
    (monitor,) = monitors(trainers[0])
    assert monitor.every_n_train_steps == window
    assert ("LearningRateFinder" in str(callbacks)) == any(
        type(callback).__name__ == "LearningRateFinder" for callback in trainers[0].callbacks
    )


def test_a_subclass_of_the_monitor_counts_as_one(
    trainers: list[L.Trainer],
    write: Callable[[str, dict[str, object]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own_monitor.py").write_text(
        "from lightning_deadkernel import DeadKernelMonitor\nclass Own(DeadKernelMonitor):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = write("config.yaml", {"trainer": {"callbacks": [{"class_path": "own_monitor.Own"}]}})
    assert main(["test", *BASE, "--config", config, *DRY]) == 0
    assert [type(monitor).__name__ for monitor in monitors(trainers[0])] == ["Own"]


def test_the_default_monitors_options_can_be_set_on_the_command_line(trainers: list[L.Trainer]) -> None:
    options = ["--trainer.callbacks.every_n_train_steps=5", "--trainer.callbacks.thresholds.dormant=0.1"]
    assert main(["test", *BASE, *options, *DRY]) == 0
    (monitor,) = monitors(trainers[0])
    assert monitor.every_n_train_steps == 5
    assert monitor.thresholds.dormant == 0.1


def test_print_config_shows_the_monitors_options_with_their_help_and_reads_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainers: list[L.Trainer]
) -> None:
    pytest.importorskip("ruamel.yaml")
    text = printed_config(capsys, ["fit", *BASE, "--print_config"])
    config = yaml.safe_load(text)
    (callback,) = config["trainer"]["callbacks"]
    assert callback["class_path"] == MONITOR
    arguments = callback["init_args"]
    expected = {"every_n_train_steps", "include", "exclude", "thresholds", "log_histograms", "log_figures"}
    assert expected | {"log_layers", "save_report", "when_compiled", "on_finding"} <= set(arguments)
    assert arguments["thresholds"]["dormant"] == 0.025
    lines = text[text.index(MONITOR) :].splitlines()
    for option in (*arguments, *arguments["thresholds"]):
        place = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{option}:"))
        assert lines[place - 1].strip().startswith("#"), f"no help text above {option}"
    (tmp_path / "printed.yaml").write_text(text)
    assert main(["test", "--config", str(tmp_path / "printed.yaml"), *DRY]) == 0
    assert len(monitors(trainers[0])) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.callbacks.every_n_train_steps=0"], ("every_n_train_steps", "got 0")),
        (["--trainer.callbacks.every_n_train_steps=soon"], ("every_n_train_steps", "soon")),
        (["--trainer.callbacks.thresholds.dormant=7"], ("thresholds.dormant", "7.0")),
        (["--trainer.callbacks.thresholds=[0.1]"], ("`thresholds` to be a Thresholds or a mapping", "[0.1]")),
        (["--trainer.callbacks.thresholds=null"], ("`thresholds` to be a Thresholds or a mapping", "None")),
        (["--trainer.callbacks.on_finding=shout"], ("on_finding", "shout")),
        (["--trainer.callbacks.nonsense=1"], ("nonsense",)),
        (["--model.activation=swish"], ("activation", "swish")),
        (["--model=NoSuchModel"], ("model", "NoSuchModel")),
        (["--config=no_such.yaml"], ("no_such.yaml",)),
    ],
)
def test_a_wrong_value_ends_with_2_and_names_option_and_value_without_a_traceback(
    args: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *BASE, *args, *DRY])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_a_training_that_breaks_ends_with_2_and_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *BASE, "--model.width=-3", *DRY]) == 2
    assert "Traceback" in (error := capsys.readouterr().err)
    assert "negative dimension -3" in error


def test_a_missing_data_set_ends_with_2_and_says_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model=SmallCNN", "--data=FashionMNISTDataModule", f"--data.root={tmp_path}"]
    assert main(["fit", *arguments, *DRY]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert "dataset-fashion-mnist" in message


def test_help_names_every_command_and_version_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("--help", "--version"):
        with pytest.raises(SystemExit) as end:
            main([argument])
        assert end.value.code == 0
    out = capsys.readouterr().out
    for command in ("fit", "validate", "test", "audit", "compare", "why", "show"):
        assert f"    {command} " in out
    assert f"lightning-deadkernel {__version__}" in out


def test_a_shell_is_told_the_commands_their_options_and_which_of_them_are_files(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.replace("'", "").splitlines()
    (options,) = (line for line in lines if line.startswith("_shtab_lightning_deadkernel_audit_option_strings="))
    assert " --against " in options
    files = [line.partition("=")[0] for line in lines if line.endswith("_shtab_compgen_files") and "COMPGEN" in line]
    assert "_shtab_lightning_deadkernel_audit_pos_0_COMPGEN" in files
    assert "_shtab_lightning_deadkernel_why___ckpt_COMPGEN" in files
    (commands,) = (line for line in lines if line.startswith("_shtab_lightning_deadkernel_subparsers="))
    assert all(f"{command}" in commands for command in ("fit", "audit", "compare", "why", "show"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["why", "--help"]])
def test_help_and_version_import_neither_lightning_nor_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from lightning_deadkernel.cli import main
try:
    main({arguments!r})
except SystemExit:
    print(sorted(set(sys.modules) & {{"torch", "lightning", "numpy", "rich", "jsonargparse"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    assert all(getattr(lightning_deadkernel, name).__name__ == name for name in lightning_deadkernel.__all__)
    assert set(lightning_deadkernel.__all__) <= set(dir(lightning_deadkernel))
    with pytest.raises(AttributeError, match="no attribute 'Monitor'"):
        lightning_deadkernel.Monitor  # noqa: B018


def test_a_pattern_that_matches_no_layer_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=1"]
    assert main(["fit", *BASE, *where, "--trainer.callbacks.include=['conb*']"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "'conb*' matches none of: conv1, conv2, head" in error


@pytest.mark.parametrize("args", [[], ["fti"]])
def test_no_command_or_an_unknown_one_ends_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_saved_config_of_a_run_has_the_monitor_and_repeats_the_run(
    tmp_path: Path, trainers: list[L.Trainer], write: Callable[[str, dict[str, object]], str]
) -> None:
    short = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *BASE, *short]) == 0
    (saved,) = tmp_path.rglob("config.yaml")
    assert [c["class_path"] for c in yaml.safe_load(saved.read_text())["trainer"]["callbacks"]] == [MONITOR]
    assert main(["fit", "--config", str(saved)]) == 0
    first, second = (trainer.lightning_module.state_dict() for trainer in trainers)
    assert all(first[name].equal(second[name]) for name in first)
    assert [len(monitors(trainer)) for trainer in trainers] == [1, 1]


@pytest.mark.parametrize(
    "callbacks",
    [
        {},
        {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateFinder"}]},
        {"callbacks": {"class_path": "lightning.pytorch.callbacks.LearningRateFinder"}},
    ],
)
def test_the_fragment_adds_the_monitor_to_anyones_lightning_cli_and_keeps_their_callbacks(
    callbacks: dict[str, object], write: Callable[[str, dict[str, object]], str]
) -> None:
    theirs = write("theirs.yaml", {"trainer": {"max_epochs": 1, **callbacks}})
    args = ["--config", theirs, "--config", str(CONFIGS / "monitor.yaml")]
    cli = LightningCLI(SmallCNN, DigitsDataModule, run=False, args=args, save_config_callback=None)
    assert len(monitors(cli.trainer)) == 1
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert ("LearningRateFinder" in names) == bool(callbacks)


def test_the_fragment_shows_every_option_and_every_threshold_at_its_default() -> None:
    (entry,) = yaml.safe_load((CONFIGS / "monitor.yaml").read_text())["trainer"]["callbacks+"]
    shown = entry["init_args"]

    def defaults(of: type) -> dict[str, object]:
        return {name: parameter.default for name, parameter in inspect.signature(of).parameters.items()}

    thresholds = defaults(Thresholds)
    assert shown == {**defaults(DeadKernelMonitor), "thresholds": thresholds}
    assert list(shown["thresholds"]) == list(thresholds)


def test_a_wrong_value_in_anyones_lightning_cli_names_option_and_value(
    write: Callable[[str, dict[str, object]], str],
) -> None:
    entry = {"class_path": MONITOR, "init_args": {"every_n_train_steps": -3}}
    theirs = write("theirs.yaml", {"trainer": {"callbacks": [entry]}})
    with pytest.raises(ValueError, match="`every_n_train_steps` to be None or a positive int, but got -3"):
        LightningCLI(SmallCNN, DigitsDataModule, run=False, args=["--config", theirs], save_config_callback=None)


@pytest.fixture(scope="module")
def sick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with identical kernels."""
    folder = tmp_path_factory.mktemp("run")
    model = ["--model=MLP", "--model.init=constant", "--data=DigitsDataModule", "--data.subset=64"]
    where = [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    options = ["--trainer.callbacks.log_figures=false", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    assert main(["fit", *model, *where, *options]) == 0
    (report,) = folder.rglob("report.json")
    return report.parent.parent


def test_show_takes_a_run_its_report_folder_or_the_file(sick_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    folder = sick_run / "deadkernel"
    for place in (sick_run, folder, *(folder / f"report.{ending}" for ending in ("json", "html", "md"))):
        assert main(["show", str(place)]) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1
    assert main(["show", str(sick_run.parents[1])]) == 2
    assert f"there are runs in it: {sick_run}" in capsys.readouterr().err
    assert "all kernels are identical in 3 layers" in shown[0]
    assert "layers    net.linear1, net.linear2, net.linear3" in shown[0]


def test_show_in_full_names_every_finding_and_the_other_formats_are_those_saved(
    sick_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = sick_run / "deadkernel"
    assert main(["show", str(sick_run), "--full"]) == 0
    full = capsys.readouterr().out
    for layer in range(1, 4):
        assert f"net.linear{layer}: all kernels are identical" in full
    assert main(["show", str(sick_run), "--format=json"]) == 0
    assert capsys.readouterr().out == (saved / "report.json").read_text()
    assert main(["show", str(sick_run), "--format=markdown"]) == 0
    assert capsys.readouterr().out == (saved / "report.md").read_text()


def test_show_writes_the_report_as_a_page_where_it_is_told(
    sick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(sick_run), "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert "identical" in capsys.readouterr().out
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "all kernels are identical" in page


@pytest.mark.parametrize(("limit", "status"), [("dead_fraction=1", 0), ("weight_sparsity=-1", 1), ("deadness=0", 2)])
def test_show_fails_on_a_limit(limit: str, status: int, sick_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(sick_run), "--fail-on", limit]) == status
    assert (limit.partition("=")[0] in capsys.readouterr().err) == bool(status)


@pytest.mark.parametrize(("form", "start"), [("junit", "<?xml"), ("sarif", '{\n  "$schema"')])
def test_show_prints_what_continuous_integration_reads_and_fails_on_a_limit_all_the_same(
    form: str, start: str, sick_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(sick_run), "--format", form, "--fail-on", "identical_kernels=0"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(start)
    assert "identical_kernels is" in printed.err
    assert ("identical_kernels &lt;= 0" in printed.out) == (form == "junit")


def test_show_of_what_is_no_report_ends_with_2_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for place, reason in (("report.json", "report.json"), ("empty", "no report.json"), ("nowhere", "no such file")):
        assert main(["show", str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert "Traceback" not in error


def test_compare_names_runs_by_what_tells_their_paths_apart(
    sick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = (sick_run / "deadkernel" / "report.json").read_bytes()
    for seed in ("seed0", "seed1"):
        (tmp_path / seed / "version_0" / "deadkernel").mkdir(parents=True)
        (tmp_path / seed / "version_0" / "deadkernel" / "report.json").write_bytes(report)
    places = [str(tmp_path / seed / "version_0") for seed in ("seed0", "seed1")]
    assert main(["compare", *places]) == 0
    table = capsys.readouterr().out
    assert main(["compare", *places, "--format=markdown"]) == 0
    text = capsys.readouterr().out
    for out in (table, text):
        assert "seed0" in out
        assert "seed1" in out
        assert str(tmp_path) not in out
        assert "identical_kernels" in out
        assert "stayed" in out
    assert main(["compare", places[0], places[0]]) == 0
    assert "run 2" in capsys.readouterr().out


def test_compare_of_one_report_or_of_none_ends_with_2(
    sick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(sick_run)]) == 2
    assert "at least two reports" in capsys.readouterr().err
    assert main(["compare", str(sick_run), str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(sick_run: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m lightning_deadkernel show --full {sick_run} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_on_finding_raise_ends_with_1_and_names_the_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model=MLP", "--model.init=constant", "--data=DigitsDataModule", "--data.subset=64"]
    where = [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    options = ["--trainer.callbacks.on_finding=raise", "--trainer.callbacks.log_figures=false"]
    assert main(["fit", *model, *where, *options, "--trainer.max_epochs=3"]) == 1
    error = capsys.readouterr().err
    assert "identical" in error
    assert "in 3 layers" in error
    assert "Traceback" not in error


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightning_deadkernel", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"lightning-deadkernel {__version__}\n"


def test_importing_the_package_imports_no_module_of_an_extra_that_lightning_does_not() -> None:
    # torchmetrics imports matplotlib wherever it is installed.
    code = """
import sys, lightning.pytorch, torchmetrics
before = set(sys.modules)
from lightning_deadkernel import DeadKernelMonitor, Report
print(sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lightning_deadkernel" in done.stdout
    for module in ("jsonargparse", "matplotlib", "pandas", "sklearn", "safetensors", "wandb", "mlflow"):
        assert f"'{module}'" not in done.stdout


def test_importing_the_monitor_imports_nothing_that_only_a_fit_needs() -> None:
    code = """
import sys, lightning.pytorch
before = set(sys.modules)
from lightning_deadkernel import DeadKernelMonitor
print(sorted({name for name in set(sys.modules) - before if not name.startswith("lightning_deadkernel.training")}))
print(sorted({"lightning_deadkernel.training.run", "lightning_deadkernel.training.record"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = ("errors", "monitor", "thresholds")
    assert done.stdout.splitlines() == [
        str(["lightning_deadkernel", *(f"lightning_deadkernel.{name}" for name in ours)]),
        "[]",
    ]


def test_the_command_without_jsonargparse_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["lightning_deadkernel.cli.train"], "find_spec", lambda name: None)
    assert main(["fit", *BASE, *DRY]) == 2
    assert "pip install 'lightning-deadkernel[cli]'" in capsys.readouterr().err
