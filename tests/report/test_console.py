"""Documents in a terminal of any width and in any encoding."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from helpers.example_reports import healthy_report, malicious_report, sick_report
from helpers.reports import codes, finding
from lightning_deadkernel.report.console import LEAST_WIDTH, print_document, to_text
from lightning_deadkernel.report.describe import describe, describe_briefly
from lightning_deadkernel.report.document import Document, Table
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import tally
from lightning_deadkernel.report.text import shortened


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("kind", ["sick", "healthy"])
def test_the_end_of_a_training_is_the_golden_one(kind: str, width: int, golden: Callable[[str, str], None]) -> None:
    report = {"sick": sick_report, "healthy": healthy_report}[kind]()
    golden(f"{kind}_{width}.txt", to_text(describe_briefly(report), width))


def test_the_whole_report_in_a_terminal_is_the_golden_one(golden: Callable[[str, str], None]) -> None:
    golden("sick_full_100.txt", to_text(describe(sick_report()), 100))


@pytest.mark.parametrize("describes", [describe, describe_briefly])
@pytest.mark.parametrize("width", [1, 20, 33, 57, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int, describes: Callable[[Report], Document]) -> None:
    for report in (sick_report(), healthy_report(), malicious_report(), replace(healthy_report(), layers=())):
        lines = to_text(describes(report), width).splitlines()
        assert max(map(len, lines)) <= max(width, LEAST_WIDTH)


def test_a_healthy_report_is_one_sentence() -> None:
    text = to_text(describe_briefly(healthy_report()), 80)
    assert text.splitlines()[1:] == ["Nothing found: 42 kernels in 2 layers watched over 12,000 samples."]


def test_only_layers_with_something_to_say_are_shown() -> None:
    report = sick_report()
    report = replace(report, findings=tuple(found for found in report.findings if found.layer != "head"))
    brief, full = (to_text(describes(report), 200) for describes in (describe_briefly, describe))
    rows = [line.split()[0] for line in brief.splitlines() if line.startswith(("features", "attention", "head"))]
    assert rows == ["features.0", "features.3", "attention.mix"]
    assert "head " in full
    assert "- backbone.stem: requires_grad=False" in full
    table, below = brief.split("Not watched: ")
    assert "backbone" not in table
    assert below.startswith("backbone.stem (requires_grad=False).")


def test_the_worst_problem_is_shown_with_its_advice_the_others_by_title_and_findings_are_counted() -> None:
    text = " ".join(to_text(describe_briefly(sick_report()), 120).split())
    assert "error head: all kernels are identical" in text
    assert "Initialise the weight with random values" in text
    assert "- warning: features.3: 6 of 32 kernels are dead (knocked out) - warning: attention.mix" in text
    assert "fired until" not in text
    assert f"Further: {tally(sick_report().findings[1:])}, in the report." in text


def test_of_remarks_alone_the_one_of_most_kernels_is_shown_and_that_none_is_a_problem() -> None:
    few, many = (finding("dead_channels", name, range(n), "info") for name, n in (("conv1", 2), ("conv2", 9)))
    text = to_text(describe_briefly(replace(healthy_report(), findings=(few, many, few))), 120)
    assert "info      conv2: " in text
    assert "conv1: " not in text
    assert "Further: 2 info, in the report. None of it is a problem by itself." in text


def test_of_hundreds_of_unhealthy_layers_the_worst_are_shown_and_the_others_counted() -> None:
    layers = tuple(
        LayerReport(
            name=f"l{n:03}",
            kind="Linear",
            channels=300,
            activation="relu",
            codes=codes(300, {"dead": tuple(range(n + 1))}),
        )
        for n in range(200)
    )
    text = to_text(describe_briefly(replace(healthy_report(), layers=layers)), 80)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("l") and line[1:4].isdigit()]
    assert rows == [f"l{n}" for n in range(180, 200)]
    assert "... and 180 layers more with something to say" in text


def test_names_are_cut_before_columns_are_left_out_and_those_are_counted() -> None:
    table = Table(("layer", "kernels", "dead"), (("a.very.long.layer.name", "16", "2"),), (False, True, True))
    text = to_text(Document("title", "", (table,)), 31)
    assert text.splitlines()[2:] == [
        "layer            kernels   dead",
        "───────────────────────────────",
        "a.very..r.name        16      2",
    ]
    assert to_text(Document("title", "", (table,)), 24).splitlines()[-2:] == ["(1 column more in a", "wider terminal)"]


@pytest.mark.parametrize(("width", "text"), [(20, "features.0"), (10, "features.0"), (8, "fea..s.0"), (3, "fea")])
def test_names_are_cut_in_the_middle(width: int, text: str) -> None:
    assert shortened("features.0", width) == text


def test_no_colour_reaches_what_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    stream = io.StringIO()
    print_document(describe(sick_report()), stream)
    assert "\x1b" not in stream.getvalue()
    assert "attention.mix" in stream.getvalue()


def test_a_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal(io.BytesIO(), encoding="utf-8")
    print_document(describe_briefly(sick_report()), terminal)
    assert b"\x1b[" in written(terminal)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_of_the_terminal_will_do(encoding: str) -> None:
    layer = replace(sick_report().layers[0], name="слой.0")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_document(describe(replace(sick_report(), layers=(layer,))), stream)
    assert "слой.0".encode(encoding, "backslashreplace")[:4] in written(stream)


def test_a_layers_name_does_not_steer_the_terminal() -> None:
    text = to_text(describe(malicious_report()), 300)
    assert "\x1b" not in text
    assert "\\x1b[31m" in text
    assert "[x](y)" in text


def test_what_has_no_layer_is_said_of_the_network() -> None:
    finding = replace(sick_report().findings[0], layer=None, title="the gradient explodes")
    text = to_text(describe_briefly(replace(sick_report(), findings=(finding,), problems=())), 100)
    assert "the network: the gradient explodes" in text


def test_a_report_without_any_watched_layer_is_not_called_healthy() -> None:
    nothing: Report = replace(healthy_report(), layers=())
    assert "nothing found" not in to_text(describe_briefly(nothing), 80).lower()


def test_a_rich_console_prints_a_report_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(sick_report())
    assert isinstance(console.file, io.StringIO)
    shown = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert shown == to_text(describe_briefly(sick_report()), 100).splitlines()
