"""`report.plot`: every kind of picture by its name, for a script and for a notebook's cell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import Tiny, loader
from helpers.reports import SMALL, history
from helpers.training import fit, quiet
from lightning_deadkernel import Report, figures, plot_feature_maps, revive

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("kind", list(figures.PICTURES))
def test_every_picture_can_be_asked_for_by_its_name(kind: str) -> None:
    report = history(SMALL, 2, dies={"conv2": {0: 1}})[-1]
    figure, axes = report.plot(kind)
    assert figure.get_suptitle()
    assert axes in figure.axes or axes == figure.axes
    assert report.plot(kind)._repr_png_().startswith(b"\x89PNG")


def test_the_overview_is_what_is_drawn_unless_another_is_asked_for() -> None:
    report = history(SMALL, 2, dies={"conv2": {0: 1}})[-1]
    assert report.plot().figure.get_suptitle() == report.plot("overview").figure.get_suptitle()
    with pytest.raises(ValueError, match=r"to be one of 'overview', .*, 'kernel_map', .*, but got 'overviews'\."):
        report.plot("overviews")
    with pytest.raises(ValueError, match=r"nothing for the picture 'weights' .* it has: overview, .*, update_ratios\."):
        report.compact().plot("weights")
    with pytest.raises(ValueError, match="nothing for the picture 'life_lines'; pictures that it has: overview, "):
        history(SMALL, 2)[-1].plot("life_lines")


def test_before_a_fit_there_is_nothing_to_draw_to_show_and_to_revive() -> None:
    monitor = quiet()
    with pytest.raises(ValueError, match="no report to draw"):
        monitor.plot()
    net: Any = torch.nn.Linear(2, 2)
    asks: list[Callable[[Any], object]] = [
        lambda report: revive(net, report, []),
        lambda report: plot_feature_maps(net, torch.ones(1, 2), "", report),
    ]
    for ask in asks:
        with pytest.raises(TypeError, match=r"Expected `report` to be a Report, .*, but got None\."):
            ask(monitor.report)


def test_what_a_missing_package_is_installed_by_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install 'lightning-deadkernel\[plots\]'"):
        history()[-1].plot()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pandas: pip install 'lightning-deadkernel\[dataframe\]'"):
        history()[-1].to_dataframe()


def test_the_monitor_draws_all_windows() -> None:
    monitor = fit(Tiny(), loader(), monitor=quiet(), max_epochs=3)
    assert monitor.report is not None
    assert "from the start" in monitor.plot("kernel_map").figure.get_suptitle()
    assert "since epoch 2 or before" in monitor.report.plot("kernel_map").figure.get_suptitle()


def test_a_report_that_is_loaded_can_be_drawn_with_nothing_else_imported(tmp_path: Path) -> None:
    history(SMALL, 2, dies={"conv2": {0: 1}})[-1].save(tmp_path / "report.json")
    code = "from lightning_deadkernel import Report; Report.load('report.json').plot().figure.savefig('x.png')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_one_class_wherever_it_is_imported_from() -> None:
    from lightning_deadkernel.report.report import Report as home

    assert Report is home
