"""docs/what_is_read.md says what the tests show, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from graph import test_activations as plain
from graph import test_written_activations as written
from graph.what_is_read import facts_of, page, slope_at_zero

PAGE = Path(__file__).parents[2] / "docs" / "what_is_read.md"


def test_the_page_is_what_the_tables_of_forms_make(request: pytest.FixtureRequest) -> None:
    made = page()
    if request.config.getoption("--update-golden"):
        PAGE.write_text(made, encoding="utf-8", newline="\n")
    assert PAGE.read_text(encoding="utf-8") == made


GATES = {**plain.GATES, **{name: form for name, (form, _, state) in written.FORMS.items() if state == "dead"}}


@pytest.mark.parametrize("gate", GATES)
def test_what_a_rectifier_does_at_exactly_zero_is_what_its_derivative_says(gate: str) -> None:
    facts = facts_of(GATES[gate])
    assert facts.gating == "rectifier"
    # hardswish is off below -3, and what a mask keeps at zero counts as on
    if facts.activation not in ("hardswish", "masked_fill"):
        assert facts.passes_at_zero == (slope_at_zero(GATES[gate]) != 0)
