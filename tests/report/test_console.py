"""The table in the terminal, in both forms, at any width and in any encoding."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest

from helpers.example_reports import healthy_report, malicious_report, sick_report
from helpers.reports import codes
from lightning_deadkernel.report import console
from lightning_deadkernel.report.describe import Table, shortened
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


@pytest.fixture(params=[True, False], ids=["rich", "plain"])
def rich(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("kind", ["sick", "healthy"])
def test_the_table_is_the_golden_one(kind: str, width: int, rich: bool, golden: Callable[[str, str], None]) -> None:
    report = {"sick": sick_report, "healthy": healthy_report}[kind]()
    golden(f"{kind}_{'rich' if rich else 'plain'}_{width}.txt", console.render(report, width, rich))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("width", [1, 20, 33, 57, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int, full: bool, rich: bool) -> None:
    for report in (sick_report(), healthy_report(), malicious_report(), replace(healthy_report(), layers=())):
        lines = console.render(report, width, rich, full).splitlines()
        assert max(map(len, lines)) <= max(width, console.LEAST_WIDTH)


def test_a_healthy_report_is_one_sentence(rich: bool) -> None:
    text = console.render(healthy_report(), 80, rich)
    assert text.splitlines()[1:] == ["nothing found, 42 kernels in 2 layers watched over 12,000 samples."]


def test_only_layers_with_something_to_say_are_shown(rich: bool) -> None:
    brief, full = (console.render(sick_report(), 200, rich, full) for full in (False, True))
    rows = [line.split()[0] for line in brief.splitlines() if line.startswith(("features", "attention", "head"))]
    assert rows == ["features.0", "features.3", "attention.mix"]
    assert "head " in full
    assert "Not watched: backbone.stem: requires_grad is False" in full
    assert "born" not in brief


def test_the_worst_finding_is_told_with_its_advice_and_the_others_are_counted(rich: bool) -> None:
    text = console.render(sick_report(), 120, rich)
    assert "error    attention.mix: the gradient vanishes" in text
    assert "do       Put a normalisation before the activation" in text
    assert "knocked out: the channels fired" not in text
    assert "Further: 2 warnings, 1 info, in the report." in text


def test_of_hundreds_of_sick_layers_the_worst_are_shown_and_the_others_counted(rich: bool) -> None:
    layers = tuple(
        LayerReport(
            name=f"l{n:03}",
            kind="Linear",
            channels=300,
            depth=0,
            activation="relu",
            codes=codes(300, {"dead": tuple(range(n + 1))}),
        )
        for n in range(200)
    )
    text = console.render(replace(healthy_report(), layers=layers), 80, rich)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("l") and line[1:4].isdigit()]
    assert rows == [f"l{n}" for n in range(180, 200)]
    assert "... and 180 layers more with something to say" in text


def test_columns_that_do_not_fit_are_counted() -> None:
    table = Table(("layer", "kernels", "dead"), (("a.very.long.layer.name", "16", "2"),), (False, True, True))
    assert console.plain_table(table, 29) == [
        "layer           kernels  dead",
        "-----------------------------",
        "a.very..r.name       16     2",
    ]
    assert console.plain_table(table, 22)[-1] == "(1 column more in a wider terminal)"


@pytest.mark.parametrize(("width", "text"), [(20, "features.0"), (10, "features.0"), (8, "fea..s.0"), (3, "fea")])
def test_names_are_cut_in_the_middle(width: int, text: str) -> None:
    assert shortened("features.0", width) == text


def test_no_colour_reaches_what_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    stream = io.StringIO()
    console.print_report(sick_report(), stream)
    assert "\x1b" not in stream.getvalue()
    assert "attention.mix" in stream.getvalue()


def test_a_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal(io.BytesIO(), encoding="utf-8")
    console.print_report(sick_report(), terminal)
    assert b"\x1b[" in written(terminal)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("installed", [True, False], ids=["rich", "plain"])
def test_any_encoding_of_the_terminal_will_do(encoding: str, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "has_rich", lambda: installed)
    layer = replace(sick_report().layers[0], name="слой.0")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console.print_report(replace(sick_report(), layers=(layer,)), stream)
    assert "слой.0".encode(encoding, "backslashreplace")[:4] in written(stream)


def test_without_rich_the_plain_table_is_printed(
    monkeypatch: pytest.MonkeyPatch, golden: Callable[[str, str], None]
) -> None:
    monkeypatch.setattr(console, "has_rich", lambda: False)
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    console.print_report(sick_report(), stream)
    golden("sick_plain_80.txt", stream.getvalue())


def test_a_layers_name_does_not_steer_the_terminal(rich: bool) -> None:
    text = console.render(malicious_report(), 300, rich, full=True)
    assert "\x1b" not in text
    assert "\\x1b[31m" in text
    assert "[x](y)" in text


def test_what_has_no_layer_is_told_of_the_network(rich: bool) -> None:
    finding = replace(sick_report().findings[0], layer=None, title="the gradient explodes")
    text = console.render(replace(sick_report(), findings=(finding,)), 100, rich)
    assert "the network: the gradient explodes" in text


def test_a_report_without_any_watched_layer_is_not_called_healthy(rich: bool) -> None:
    nothing: Report = replace(healthy_report(), layers=())
    assert "nothing found" not in console.render(nothing, 80, rich).lower()
