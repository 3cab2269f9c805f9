"""Names of layers are anyone's: control characters, formulas, markup and lone surrogates reach no terminal or page."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from helpers.training import SHORT
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.figures import PICTURES
from lightning_deadkernel.training import outputs

HOSTILE = "\x1b[2J\x9b31m\u202e\ud800$a_{$</svg>|`"


class Net(L.LightningModule):
    """Two linear layers of that name; half of the first one's units are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(f"{HOSTILE}1", nn.Linear(4, 20))
        self.add_module(f"{HOSTILE}2", nn.Linear(20, 3))
        with torch.no_grad():
            getattr(self, f"{HOSTILE}1").bias[:10] = -1000.0

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        hidden = F.relu(getattr(self, f"{HOSTILE}1")(batch))
        return getattr(self, f"{HOSTILE}2")(hidden).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def is_clean(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture
def fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[DeadKernelMonitor, list[str], str]:
    """A monitor after a fit with every outlet, the warnings of it, and what came to the terminal."""
    monkeypatch.setattr(outputs, "WRITING", (1e9, 0.0))
    monkeypatch.setattr(outputs, "DRAWING", (1e9, 0.0))
    monitor = DeadKernelMonitor()
    loggers = [TensorBoardLogger(tmp_path, name="board", version=0), CSVLogger(tmp_path, name="csv", version=0)]
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = L.Trainer(**SHORT | {"max_epochs": 2, "logger": loggers, "callbacks": [monitor]})
        trainer.fit(Net(), torch.utils.data.DataLoader(data, 2))
    shown = capsys.readouterr()
    return monitor, [str(warning.message) for warning in caught], shown.out + shown.err.replace("\r", "")


@pytest.mark.filterwarnings("ignore")
def test_a_hostile_name_reaches_no_terminal_page_picture_or_tag(
    fitted: tuple[DeadKernelMonitor, list[str], str], tmp_path: Path
) -> None:
    monitor, warned, shown = fitted
    report = monitor.report
    assert report is not None
    assert report[f"{HOSTILE}1"].dead == list(range(10))
    assert any("10 of" in text for text in warned), warned
    assert all(map(is_clean, warned))
    said = [str(report), repr(report), report.verdict, *(finding.headline for finding in report.findings)]
    said += [text for problem in report.problems for text in (problem.title, problem.story, problem.cause)]
    assert all(map(is_clean, said))
    assert "\\x1b[2J" in shown
    assert is_clean(shown)
    folder = tmp_path / "board" / "version_0" / "deadkernel"
    for path in [*folder.glob("report.*"), tmp_path / "csv" / "version_0" / "metrics.csv"]:
        assert is_clean(path.read_text("utf-8")), path
    assert "</svg>1" not in (folder / "report.html").read_text("utf-8")
    assert Report.load(folder / "report.json")[f"{HOSTILE}1"].dead == list(range(10))
    events = EventAccumulator(str(tmp_path / "board" / "version_0")).Reload()
    tags = events.Tags()
    assert any("\\x1b[2J" in tag for tag in tags["scalars"])
    assert all(is_clean(tag) for kind in ("scalars", "histograms", "images", "tensors") for tag in tags[kind])
    assert is_clean(events.Tensors("deadkernel/report/text_summary")[-1].tensor_proto.string_val[0].decode())
    assert {"overview.png", "kernel_map.png", "life_lines.png"} <= {path.name for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")
def test_pictures_show_a_dollar_as_a_dollar_and_no_control_character(
    fitted: tuple[DeadKernelMonitor, list[str], str],
) -> None:
    reports = fitted[0].reports
    drawn = {name: kind(reports) for name, kind in PICTURES.items()}
    shown = 0
    for name, figure in drawn.items():
        if figure is None:
            continue
        figure.canvas.draw()
        texts = figure.findobj(Text)
        assert all(is_clean(text.get_text()) for text in texts), name
        assert not any(text.get_parse_math() for text in texts if "$" in text.get_text()), name
        shown += sum("$a_{$" in text.get_text() for text in texts)
    assert shown
