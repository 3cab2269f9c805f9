"""A finding has one title, and all that shows it shows that."""

from __future__ import annotations

import warnings

import lightning  # noqa: F401 (it tells which rank may warn)
import pytest

from helpers.windows import FIRST_OFF, Run, layer, start
from lightning_deadkernel.report.console import to_text
from lightning_deadkernel.report.describe import describe, describe_briefly
from lightning_deadkernel.report.html import to_html
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.training.window_end import warn_new_problems

HEADLINE = "conv: 1 of 4 kernels is dead (knocked out)"
TITLE = "1 of 4 kernels is dead (knocked out)"


@pytest.fixture
def report() -> Report:
    run = Run().next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF))
    return Report(2, 1, 40, 600, 20, 20, 5, tuple(run.layers.values()), run.findings, problems=run.problems)


def test_the_warning_and_every_document_say_the_same_of_a_finding(report: Report) -> None:
    assert [finding.headline for finding in report.findings] == [HEADLINE]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_new_problems(report, set(), "warn")
    assert str(caught[0].message).startswith(HEADLINE)
    assert report.verdict.startswith(HEADLINE)
    assert f"conv`: {TITLE}" in report.to_markdown()
    assert TITLE in to_html(describe(report))
    for document in (describe(report), describe_briefly(report)):
        assert HEADLINE in " ".join(to_text(document, 200).split())
