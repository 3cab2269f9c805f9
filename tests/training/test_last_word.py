"""What is printed last: what was found, and where the report is, whatever bar showed the progress."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from helpers.models import Tiny, loader
from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.training import outputs


def bars(kind: str, monitor: DeadKernelMonitor) -> list[Any]:
    if kind == "tqdm":
        return [TQDMProgressBar(), monitor]
    bar = RichProgressBar(console_kwargs={"force_terminal": True, "width": 80})
    return [bar, monitor] if kind == "rich first" else [monitor, bar]


def printed(folder: Path, kind: str, capsys: pytest.CaptureFixture[str], model: Any = None) -> list[str]:
    """The lines on standard output that are not empty, as far as the last carriage return leaves them."""
    monitor = DeadKernelMonitor(on_finding="ignore", log_figures=False)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=bars(kind, monitor),
        logger=CSVLogger(folder, "run", 0),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
        try:
            trainer.fit(model or Tiny(), loader())
        except RuntimeError as error:
            assert str(error) == "of theirs"  # noqa: PT017
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    return [line for whole in text.splitlines() if (line := whole.split("\r")[-1].rstrip())]


@pytest.mark.parametrize("kind", ["rich first", "rich last", "tqdm"])
def test_where_the_report_is_comes_last_and_no_bar_after_it(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("a_long_name" * 9)  # longer than a line
    lines = printed(folder, kind, capsys)
    page = folder / "run" / "version_0" / "deadkernel" / "report.html"
    assert lines[-1] == f"The whole report: {page}"
    assert page.is_file()
    last_bar = max(place for place, line in enumerate(lines) if "Epoch 1" in line)
    assert last_bar < lines.index("lightning-deadkernel: window 2 (epoch 1, global step 12)")


class Breaks(Tiny):
    """Fails in its second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch:
            raise RuntimeError("of theirs")


def test_a_run_that_breaks_off_says_where_the_report_of_what_was_seen_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        printed(tmp_path, "rich last", capsys, Breaks())
    page = tmp_path / "run" / "version_0" / "deadkernel" / "report.html"
    said = [record.getMessage() for record in caplog.records if "DeadKernelMonitor" in record.getMessage()]
    assert said == [f"DeadKernelMonitor: the report of what was seen until then: {page}"]
    assert "1 of 4 kernels is dead" in page.read_text()


def test_drawing_at_the_end_is_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    drawn = []

    def draw_all(reports: Any) -> Any:
        drawn.append([record.getMessage() for record in caplog.records])
        return outputs.figures.Drawn({}, {}, {})

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(outputs.figures, "draw_all", draw_all)
        monitor = DeadKernelMonitor(on_finding="ignore")
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[monitor],
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            **options,
        ).fit(Tiny(), loader())
    assert len(drawn) == 1
    assert "DeadKernelMonitor: drawing the pictures ..." in drawn[0]
