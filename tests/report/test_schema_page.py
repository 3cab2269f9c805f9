"""docs/report_schema.md says what is written, and no more."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.schema_page import schema_page, trial_page
from lightning_deadkernel.report import codec
from lightning_deadkernel.report.report import Report

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "report_schema.md"


@pytest.mark.parametrize(("page", "made"), [(PAGE, schema_page), (DOCS / "trial_schema.md", trial_page)])
def test_the_page_is_that_of_the_records(page: Path, made: Callable[[], str], request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        page.write_text(made(), encoding="utf-8", newline="\n")
    assert page.read_text(encoding="utf-8") == made()


def test_the_example_on_the_page_is_a_report() -> None:
    example = re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert example is not None
    assert codec.from_json(Report, example.group(1))["conv1"].dead == [3, 11]
