"""Where a report goes, and how much of the run's time that may take."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.errors import DeadKernelInternalWarning
from lightning_deadkernel.loggers import run_log
from lightning_deadkernel.training import outputs, run


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(
    folder: Path, monitor: DeadKernelMonitor, epochs: int = 3, model: L.LightningModule | None = None, **options: Any
) -> L.Trainer:
    options = {"logger": TensorBoardLogger(folder, name="run", version=0), "enable_progress_bar": False} | options
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    trainer.fit(model or Net(), torch.utils.data.DataLoader(data, 8))
    return trainer


def image_steps(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder / "run" / "version_0")).Reload()
    return [image.step for image in events.Images("deadkernel/overview")]


def test_the_folder_holds_the_report_in_three_forms_and_the_pictures(tmp_path: Path) -> None:
    monitor = DeadKernelMonitor(min_steps=1, on_finding="ignore")
    fit(tmp_path, monitor)
    folder = tmp_path / "run" / "version_0" / "deadkernel"
    names = {path.name for path in folder.iterdir()}
    assert {"report.json", "report.md", "report.html", "overview.png", "kernel_map.png"} <= names
    assert not [name for name in names if "tmp" in name]
    assert Report.load(folder / "report.json").window == 3
    assert monitor.report is not None
    assert (folder / "report.md").read_text() == monitor.report.to_markdown()
    assert (folder / "overview.png").read_bytes().startswith(b"\x89PNG")


ALWAYS, NEVER = (1e9, 0.0), (0.0, 1.0)
"""Shares of the time, and what the first time takes: enough for every window, and for none."""


def test_pictures_are_drawn_at_the_end_whatever_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "DRAWING", NEVER)
    fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore"), epochs=4)
    assert image_steps(tmp_path) == [15]


def test_pictures_are_drawn_at_every_window_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "DRAWING", ALWAYS)
    fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore"), epochs=4)
    assert image_steps(tmp_path) == [3, 7, 11, 15]


@pytest.mark.parametrize(("writing", "steps"), [(NEVER, [15]), (ALWAYS, [3, 7, 11, 15])])
def test_the_report_in_words_is_logged_while_there_is_time_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writing: tuple[float, float], steps: list[int]
) -> None:
    monkeypatch.setattr(outputs, "WRITING", writing)
    fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore", log_figures=False), epochs=4)
    events = EventAccumulator(str(tmp_path / "run" / "version_0")).Reload()
    assert [text.step for text in events.Tensors("deadkernel/report/text_summary")] == steps
    assert [event.step for event in events.Scalars("deadkernel/dead_fraction")] == [3, 7, 11, 15]


def test_a_budget_holds_the_first_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(outputs.time, "monotonic", lambda: now)
    budget = outputs.Budget(share=0.05, expected=1.5)
    moments = []
    for _ in range(3):
        while not budget.allows():
            now += 1.0
        moments.append(now - 100.0)
        with budget.spent():
            now += 3.0
    # 1.5 of 30 seconds; then 3 + 3 of 120, 6 + 3 of 180
    assert moments == [30.0, 120.0, 180.0]


@pytest.mark.parametrize("ends", [RuntimeError, KeyboardInterrupt, SIGTERMException])
def test_what_no_window_had_time_to_save_is_saved_when_the_run_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: type[BaseException]
) -> None:
    monkeypatch.setattr(outputs, "WRITING", NEVER)
    folder = tmp_path / "run" / "version_0" / "deadkernel"

    class Broken(Net):
        def on_train_batch_start(self, batch: torch.Tensor, index: int) -> None:
            if self.current_epoch == 2:
                assert not (folder / "report.json").exists()
                raise ends

    with pytest.raises((SystemExit, ends)):
        fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore"), model=Broken())
    assert Report.load(folder / "report.json").window == 2
    assert (folder / "report.md").exists()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_collector_waits_while_a_window_closes_and_is_as_before_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool, fails: bool
) -> None:
    seen: dict[str, list[bool]] = {}

    def noting(owner: Any, name: str) -> None:
        called = getattr(owner, name)

        def note(*args: Any, **options: Any) -> Any:
            seen.setdefault(name, []).append(gc.isenabled())
            if fails and name == "draw_all":
                raise OSError("of this test")
            return called(*args, **options)

        monkeypatch.setattr(owner, name, note)

    noting(run, "close_window")
    noting(outputs.figures, "draw_all")
    noting(torch.optim.SGD, "step")
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(tmp_path, DeadKernelMonitor())
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert not any(seen["close_window"] + seen["draw_all"])
    assert set(seen["step"]) == {enabled}


def test_without_pictures_none_is_drawn_and_none_is_written(tmp_path: Path) -> None:
    fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore", log_figures=False))
    assert not list(tmp_path.rglob("*.png"))


def test_without_matplotlib_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outputs.figures, "why_none", lambda: "No pictures: matplotlib is not installed.")
    with caplog.at_level("INFO"):
        fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore"))
    assert sum("matplotlib is not installed" in record.getMessage() for record in caplog.records) == 1
    assert not list(tmp_path.rglob("*.png"))


def test_a_long_window_end_says_what_the_next_one_is_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outputs, "LONG", 0.0)
    monkeypatch.setattr(outputs, "WRITING", ALWAYS)
    with caplog.at_level("INFO"):
        fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore", log_figures=False), epochs=2)
    said = [record.getMessage() for record in caplog.records]
    assert "DeadKernelMonitor: saving the report ..." in said
    assert "DeadKernelMonitor: logging ..." in said


def test_without_a_logger_the_report_goes_under_the_root_folder_and_to_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore", log_figures=False), logger=False)
    (path,) = tmp_path.rglob("report.json")
    assert Report.load(path).samples == 32
    assert "10 kernels in 2 layers watched over 32 samples" in capsys.readouterr().out


def test_without_save_report_no_file_is_written(tmp_path: Path) -> None:
    fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore", save_report=False), logger=False)
    assert not list(tmp_path.iterdir())


def test_the_progress_bar_shows_the_summary_only_if_asked(tmp_path: Path) -> None:
    asked = fit(tmp_path / "a", DeadKernelMonitor(min_steps=1, on_finding="ignore", log_figures=False, prog_bar=True))
    unasked = fit(tmp_path / "b", DeadKernelMonitor(min_steps=1, on_finding="ignore", log_figures=False))
    assert asked.progress_bar_metrics.keys() >= {"dead", "vanishing"}
    assert not unasked.progress_bar_metrics.keys() & {"dead", "vanishing"}


# -- one fault costs one part -----------------------------------------------------------------------------------------

FILES = ("report.json", "report.md", "report.html", "kernel_map.png")


@pytest.mark.parametrize("broken", FILES)
def test_a_file_that_cannot_be_written_costs_itself_alone(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "run" / "version_0" / "deadkernel"
    (folder / broken).mkdir(parents=True)  # no file can take the place of a folder
    with pytest.warns(DeadKernelInternalWarning, match=f"could not write {broken} this time") as caught:
        fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore"))
    assert len([w for w in caught if issubclass(w.category, DeadKernelInternalWarning)]) == 1
    assert {path.name for path in folder.iterdir() if path.is_file()} >= {*FILES} - {broken}
    assert image_steps(tmp_path)[-1] == 11


def test_a_file_that_can_be_written_later_is_written_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "WRITING", ALWAYS)
    folder = tmp_path / "run" / "version_0" / "deadkernel"
    (folder / "report.json").mkdir(parents=True)

    class Freed(Net):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2:
                (folder / "report.json").rmdir()

    with pytest.warns(DeadKernelInternalWarning, match=r"could not write report\.json"):
        fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore", log_figures=False), model=Freed())
    assert Report.load(folder / "report.json").window == 3


def test_a_folder_that_cannot_be_made_ends_the_files_and_not_the_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").write_text("in the way")
    monitor = DeadKernelMonitor(min_steps=1, on_finding="ignore")
    with pytest.warns(DeadKernelInternalWarning, match="could not write the report's folder") as caught:
        fit(tmp_path / "a file", monitor, logger=False)
    assert len([w for w in caught if issubclass(w.category, DeadKernelInternalWarning)]) == 1
    assert [report.window for report in monitor.reports] == [0, 1, 2, 3]
    assert "10 kernels in 2 layers" in capsys.readouterr().out


PARTS = {
    "scalars": ("layer_scalars", "Scalars", "deadkernel/dead_fraction"),
    "histograms": ("within_share", "Histograms", "deadkernel.histograms.firing_rate/net.0"),
    "the report in words": ("", "Tensors", "deadkernel/report/text_summary"),
    "the pictures": ("_picture_key", "Images", "deadkernel/overview"),
}


@pytest.mark.parametrize("part", ["scalars", "histograms", "the pictures"])
def test_what_cannot_be_made_for_the_loggers_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("cannot be made")

    monkeypatch.setattr(run_log, PARTS[part][0], broken)
    with pytest.warns(DeadKernelInternalWarning, match=f"could not write {part} to the loggers this time") as caught:
        fit(tmp_path, DeadKernelMonitor(min_steps=1, on_finding="ignore"))
    assert len([w for w in caught if issubclass(w.category, DeadKernelInternalWarning)]) == 1
    events = EventAccumulator(str(tmp_path / "run" / "version_0")).Reload()
    there = {name for name, (_, kind, tag) in PARTS.items() if tag in events.Tags()[kind.lower()]}
    assert there == PARTS.keys() - {part}


def test_a_report_that_cannot_be_put_in_words_is_still_saved_drawn_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(report: Report) -> str:
        raise ZeroDivisionError("no words")

    monkeypatch.setattr(Report, "to_markdown", broken)
    monitor = DeadKernelMonitor(min_steps=1, on_finding="ignore")
    with pytest.warns(DeadKernelInternalWarning, match="could not write the report in words"):
        fit(tmp_path, monitor)
    folder = tmp_path / "run" / "version_0" / "deadkernel"
    assert Report.load(folder / "report.json").window == 3
    assert (folder / "report.html").exists()
    events = EventAccumulator(str(folder.parent)).Reload()
    assert [event.step for event in events.Scalars("deadkernel/dead_fraction")] == [3, 7, 11]
    assert image_steps(tmp_path)[-1] == 11


class InputsFirst(Net):
    """A weight kept as (in, out), as GPT-2 keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))
        self.net = nn.Linear(8, 2)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.net((batch @ self.weight).relu()).square().mean()


def test_a_weight_kept_with_its_inputs_first_is_drawn_and_logged(tmp_path: Path) -> None:
    monitor = DeadKernelMonitor(min_steps=1, on_finding="ignore")
    fit(tmp_path, monitor, model=InputsFirst())
    assert monitor.report is not None
    assert monitor.report["weight"].channels == 8
    names = {path.name for path in (tmp_path / "run" / "version_0" / "deadkernel").iterdir()}
    assert {*FILES, "overview.png"} <= names
    assert image_steps(tmp_path)[-1] == 11
