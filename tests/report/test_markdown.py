"""The Markdown note: verdict first, nothing left unsaid, and no text that becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tensorboard.plugin_util import markdown_to_safe_html

from helpers.example_reports import MALICIOUS, healthy_report, malicious_report, sick_report
from helpers.reports import codes
from lightning_deadkernel.report.describe import layer_table
from lightning_deadkernel.report.markdown import escape, name
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import verdict
from lightning_deadkernel.report.text import number, percent, ranges

COMMONMARK = MarkdownIt("commonmark").enable("table")


def shown(html: str) -> str:
    """The text that a reader of the HTML sees, white space made even."""
    text = re.sub(r"<[^>]*>", "", html)
    for entity, sign in (
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", '"'),
        ("&#126;", "~"),
        ("&#36;", "$"),
        ("&amp;", "&"),
    ):
        text = text.replace(entity, sign)
    return " ".join(text.split())


@pytest.mark.parametrize("kind", ["sick", "healthy"])
def test_the_note_is_the_golden_one(kind: str, golden: Callable[[str, str], None]) -> None:
    report = {"sick": sick_report, "healthy": healthy_report}[kind]()
    golden(f"{kind}.md", report.to_markdown())


def test_the_verdict_comes_before_findings_layers_and_what_was_not_watched() -> None:
    text = sick_report().to_markdown()
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Problems", "Layers", "Remarks", "What pruning would save", "Not watched", "Notes", "Run"]
    verdict = "**head: all kernels are identical (constant initialisation). In all: 4 problems and"
    assert text.index(verdict) < text.index("## Problems")


def test_a_healthy_report_says_so_with_its_counts() -> None:
    assert verdict(healthy_report()) == "Nothing found: 42 kernels in 2 layers watched over 12,000 samples."


def test_a_report_that_watched_nothing_is_not_called_healthy() -> None:
    nothing = replace(healthy_report(), layers=())
    assert verdict(nothing) == "Nothing could be watched, so nothing can be said."
    assert "Nothing found" not in nothing.to_markdown()


def test_causes_of_one_finding_are_counted_together_in_the_verdict() -> None:
    report = sick_report()
    (dead,) = [found for found in report.findings if found.kind == "dead_channels" and found.layer == "features.3"]
    other = replace(dead, channels=(9,), cause="born dead: never fired")
    said = verdict(replace(report, findings=(dead, other), problems=()))
    assert said.startswith("features.3: 6 of 32 kernels are dead (knocked out), and 1 more for other reasons.")


def test_window_0_says_that_it_is_the_state_at_initialisation() -> None:
    text = replace(healthy_report(), window=0, samples=0, batches=0).to_markdown()
    assert "window 0, the state at initialisation, before the first optimizer step" in text
    assert "Nothing found: 42 kernels in 2 layers looked at before the first step." in text


def test_an_audit_says_that_nothing_was_run() -> None:
    report = replace(healthy_report(), window=0, audited="last.ckpt")
    of_file = replace(report, layers=tuple(replace(layer, activation=None) for layer in report.layers))
    assert "the weights in last.ckpt; nothing was run" in of_file.to_markdown()
    assert "looked at by their weights alone" in of_file.to_markdown()
    assert "the weights in last.ckpt and its model; nothing was trained" in report.to_markdown()


def test_the_number_of_batches_stands_in_where_samples_cannot_be_counted() -> None:
    assert "watched over 100 batches of unknown size" in verdict(replace(healthy_report(), samples=None))


def test_columns_without_content_are_left_out() -> None:
    headings = layer_table(healthy_report().watched).headings
    assert "dead" not in headings
    assert "zero activations" not in headings
    assert "fires" in headings


def test_what_a_layers_evidence_cannot_tell_is_a_dash_and_not_a_zero() -> None:
    table = layer_table(sick_report().watched)
    cells = {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    assert cells["attention.mix"]["dead"] == "-"
    assert cells["attention.mix"]["zero gradient"] == "1"
    assert cells["features.0"]["dead"] == "2"
    assert cells["features.0"]["zero gradient"] == "0"


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        ((), ""),
        ((7,), "7"),
        ((0, 1, 2, 3, 7), "0-3, 7"),
        (tuple(range(0, 40, 2)), "0, 2, 4, 6, 8, 10, 12, 14 and 12 more"),
        (tuple(range(5000)), "0-4999"),
    ],
)
def test_channels_are_told_as_ranges(channels: tuple[int, ...], text: str) -> None:
    assert ranges(channels) == text


@settings(max_examples=50)
@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_channel_once(channels: set[int]) -> None:
    told = ranges(sorted(channels), limit=100)
    ends = [part.split("-") for part in told.split(", ") if part]
    assert [c for end in ends for c in range(int(end[0]), int(end[-1]) + 1)] == sorted(channels)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.375, "37.5%"),
        (0.0079, "0.79%"),
        (1e-6, "<0.01%"),
        (0.9999, ">99.9%"),
        (None, "-"),
    ],
)
def test_a_share_is_never_rounded_to_none_or_all_of_it(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12345, "12,345"),
        (0.0012345, "0.00123"),
        (3.14e-9, "3.1e-09"),
        (float("nan"), "-"),
        (2e7, "2.0e+07"),
    ],
)
def test_numbers_are_rounded_for_people(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("render", [COMMONMARK.render, markdown_to_safe_html], ids=["commonmark", "tensorboard"])
def test_a_malicious_name_stays_text_in_every_place(render: object) -> None:
    html = render(malicious_report().to_markdown())  # type: ignore[operator]
    visible = "a|b*c`d_<script>alert(1)</script> # [x](y) \\x1b[31m"
    assert "<script" not in html
    assert not re.search(r"<(a|em|code|img)\b", html)
    assert len(re.findall(r"<tr>", html)) == 2
    # Title and verdict, finding with its cause, advice and reference, table, note, what is not watched, notes.
    assert shown(html).count(visible) >= 12
    assert "\x1b" not in html
    assert html.count("<h1>") == 1


@pytest.mark.parametrize("render", [COMMONMARK.render, markdown_to_safe_html], ids=["commonmark", "tensorboard"])
def test_tables_lists_and_links_come_out_as_such(render: object) -> None:
    html = render(sick_report().to_markdown())  # type: ignore[operator]
    assert html.count("<table>") == 1
    assert html.count("<tr>") == 5
    assert html.count("<h3>") == len(sick_report().problems) + 3
    assert '<a href="https://proceedings.mlr.press/v9/glorot10a.html"' in html
    assert "weight_decay 0.01" in shown(html)


@settings(max_examples=50)
@example("&#1")
@example("R&D &copy &lt")
@given(st.text(st.sampled_from("ab1 |*_`~$<>&#-+.[]()!\\\n:;{}=")))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    for render in (COMMONMARK.render, markdown_to_safe_html):
        html = render(f"- x {escape(text)} y\n")
        assert shown(html) == " ".join(f"x {' '.join(text.split()) or '(blank)'} y".split())


@settings(max_examples=50)
@given(st.text(st.sampled_from("ab.1|*_`<>\\\n"), min_size=1))
def test_any_name_is_one_cell_of_a_table(text: str) -> None:
    html = COMMONMARK.render(f"| layer | n |\n| --- | --- |\n| {name(text)} | 1 |\n")
    cells = re.findall(r"<td>(.*?)</td>", html, flags=re.DOTALL)
    assert [shown(cell) for cell in cells] == [" ".join(text.split()) or "(blank)", "1"]


def test_the_start_of_a_note_opens_no_heading_and_no_list() -> None:
    notes = ("# loud", "1. first", "- dash", "> said", "+ plus")
    html = COMMONMARK.render(replace(healthy_report(), notes=notes).to_markdown())
    for note in notes:
        assert note in shown(html)
    assert html.count("<ul>") == 1
    assert "<ol" not in html
    assert "<blockquote" not in html


def test_a_long_list_of_channels_is_cut_with_a_count() -> None:
    report = sick_report()
    every_other = tuple(range(0, 2000, 2))
    layer = replace(report.layers[1], channels=2000, codes=codes(2000, {"dead": every_other}))
    finding = replace(report.findings[1], channels=every_other)
    text = replace(report, layers=(layer,), findings=(finding,)).to_markdown()
    assert "- **Channels:** 0, 2, 4, 6, 8, 10, 12, 14 and 992 more" in text


def test_an_unusual_name_is_still_told() -> None:
    assert name(MALICIOUS).startswith("a\\|b\\*c\\`d\\_&lt;script>")
    assert name("features.0") == "`features.0`"
    assert isinstance(malicious_report(), Report)


def test_for_a_dashboard_the_table_of_layers_is_narrow_and_all_else_as_it_is() -> None:
    def table(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("|")]

    whole, narrow = sick_report().to_markdown(), sick_report().to_markdown(narrow=True)
    assert table(whole)[0].count("|") > 14 > table(narrow)[0].count("|")
    assert [line for line in whole.splitlines() if line not in table(whole)] == [
        line for line in narrow.splitlines() if line not in table(narrow)
    ]
