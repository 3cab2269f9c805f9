"""docs/report_schema.md says what is written, and no more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.schema_page import schema_page
from lightning_deadkernel.report import codec
from lightning_deadkernel.report.report import Report

PAGE = Path(__file__).parents[2] / "docs" / "report_schema.md"


def test_the_page_is_that_of_the_records(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        PAGE.write_text(schema_page(), encoding="utf-8", newline="\n")
    assert PAGE.read_text(encoding="utf-8") == schema_page()


def test_the_example_on_the_page_is_a_report() -> None:
    example = re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert example is not None
    assert codec.from_json(Report, example.group(1))["conv1"].dead == [3, 11]
