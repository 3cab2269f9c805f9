"""Where a report goes, and how much of the run's time that may take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.training import outputs


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(folder: Path, monitor: DeadKernelMonitor, epochs: int = 3, **options: Any) -> L.Trainer:
    options = {"logger": TensorBoardLogger(folder, name="run"), "enable_progress_bar": False} | options
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
    trainer.fit(Net(), torch.utils.data.DataLoader(data, 8))
    return trainer


def image_steps(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder / "run" / "version_0")).Reload()
    return [image.step for image in events.Images("deadkernel/overview")]


def test_the_folder_holds_the_report_in_three_forms_and_the_pictures(tmp_path: Path) -> None:
    monitor = DeadKernelMonitor(on_finding="ignore")
    fit(tmp_path, monitor)
    folder = tmp_path / "run" / "version_0" / "deadkernel"
    names = {path.name for path in folder.iterdir()}
    assert {"report.json", "report.md", "report.html", "overview.png", "kernel_map.png"} <= names
    assert not [name for name in names if "tmp" in name]
    assert Report.load(folder / "report.json").window == 3
    assert monitor.report is not None
    assert (folder / "report.md").read_text() == monitor.report.to_markdown()
    assert (folder / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_drawn_at_the_first_window_and_at_the_end_whatever_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "DRAWING_SHARE", 0.0)
    fit(tmp_path, DeadKernelMonitor(on_finding="ignore"), epochs=4)
    assert image_steps(tmp_path) == [3, 15]


def test_pictures_are_drawn_at_every_window_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "DRAWING_SHARE", 1.0)
    fit(tmp_path, DeadKernelMonitor(on_finding="ignore"), epochs=4)
    assert image_steps(tmp_path) == [3, 7, 11, 15]


def test_without_pictures_none_is_drawn_and_none_is_written(tmp_path: Path) -> None:
    fit(tmp_path, DeadKernelMonitor(on_finding="ignore", log_figures=False))
    assert not list(tmp_path.rglob("*.png"))


def test_without_matplotlib_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outputs.figures, "why_none", lambda report: "No pictures: matplotlib is not installed.")
    with caplog.at_level("INFO"):
        fit(tmp_path, DeadKernelMonitor(on_finding="ignore"))
    assert sum("matplotlib is not installed" in record.getMessage() for record in caplog.records) == 1
    assert not list(tmp_path.rglob("*.png"))


def test_a_long_window_end_says_what_the_next_one_is_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outputs, "LONG", 0.0)
    with caplog.at_level("INFO"):
        fit(tmp_path, DeadKernelMonitor(on_finding="ignore", log_figures=False), epochs=2)
    said = [record.getMessage() for record in caplog.records]
    assert "DeadKernelMonitor: saving the report ..." in said
    assert "DeadKernelMonitor: logging ..." in said


def test_without_a_logger_the_report_goes_under_the_root_folder_and_to_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, DeadKernelMonitor(on_finding="ignore", log_figures=False), logger=False)
    (path,) = tmp_path.rglob("report.json")
    assert Report.load(path).samples == 32
    assert "10 kernels in 2 layers watched over 32 samples" in capsys.readouterr().out


def test_without_save_report_no_file_is_written(tmp_path: Path) -> None:
    fit(tmp_path, DeadKernelMonitor(on_finding="ignore", save_report=False), logger=False)
    assert not list(tmp_path.iterdir())


def test_the_progress_bar_shows_the_summary_only_if_asked(tmp_path: Path) -> None:
    asked = fit(tmp_path / "a", DeadKernelMonitor(on_finding="ignore", log_figures=False, prog_bar=True))
    unasked = fit(tmp_path / "b", DeadKernelMonitor(on_finding="ignore", log_figures=False))
    assert asked.progress_bar_metrics.keys() >= {"dead", "vanishing"}
    assert not unasked.progress_bar_metrics.keys() & {"dead", "vanishing"}
