"""The picture of a trial, by its bars: a line a training, a cell a kernel, in the colour of what it came to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from matplotlib.colors import to_hex

from lightning_deadkernel.figures.canvas import png
from lightning_deadkernel.figures.trial import FREE, MOST_CELLS, SHOWS, Row, draw_trial

NAMED = {"conv1": [2, 5], "conv2": [7]}
ROWS = (
    Row("control", "0 of 3 free", [NAMED]),
    Row("placebo", "2 of 6 free", [{"conv1": [2, 9]}, NAMED]),
    Row("no decay", "6 of 6 free: sufficient", [{}, {}]),
)
WORDS = ("dead", "alive")


def lines(figure: Any) -> list[Counter[str]]:
    """Of each line from the top, colour -> how many cells it covers."""
    (axes,) = figure.axes
    found: dict[float, Counter[str]] = {}
    for bar in axes.patches:
        found.setdefault(round(bar.get_y(), 3), Counter())[to_hex(bar.get_facecolor())] += round(bar.get_width())
    return [found[place] for place in sorted(found)]


def test_each_training_is_a_line_and_each_kernel_that_is_named_or_found_a_cell() -> None:
    dead, alive = SHOWS.lower(), FREE.lower()
    counted = lines(draw_trial(ROWS, NAMED, "3 kernels are dead", "No decay suffices.", WORDS))
    # conv1's two, conv2's one, and conv1's ninth among the others
    assert counted == [
        Counter({dead: 3, alive: 1}),
        Counter({dead: 2, alive: 2}),
        Counter({dead: 3, alive: 1}),
        Counter({alive: 4}),
        Counter({alive: 4}),
    ]


def test_it_says_what_was_found_the_answer_and_what_each_arm_came_to() -> None:
    figure = draw_trial(ROWS, NAMED, "3 kernels are dead", "No decay suffices.", WORDS)
    (axes,) = figure.axes
    assert figure.get_suptitle() == "3 kernels are dead"
    assert "No decay suffices." in [text.get_text() for text in figure.texts]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["control", "placebo", "no decay"]
    assert [text.get_text() for text in axes.texts] == [row.text for row in ROWS]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv1: 2", "conv2: 1", "others: 1"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dead", "alive"]


@pytest.mark.parametrize("wide", [MOST_CELLS, 3 * MOST_CELLS])
def test_of_many_kernels_the_share_is_right_with_cells_and_without(wide: int) -> None:
    named = {"fc": list(range(wide))}
    (row, _) = lines(draw_trial([Row("a", "", [{"fc": list(range(0, wide, 2))}, {}])], named, "t", "b", WORDS))
    assert row == Counter({SHOWS.lower(): wide // 2, FREE.lower(): wide // 2})


def test_whole_layers_are_one_block() -> None:
    figure = draw_trial([Row("a", "", [{"fc1": []}])], {"fc1": [], "fc2": []}, "t", "b", ("shows it", "free of it"))
    assert lines(figure) == [Counter({SHOWS.lower(): 1, FREE.lower(): 1})]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["named: 2"]


def test_names_that_are_no_plain_text_can_be_drawn() -> None:
    odd = "a$\\frac$ \x1b[31m layer.with.a.very.long.name.that.goes.on.and.on.for.ever"
    assert png(draw_trial([Row(odd, odd, [{odd: [1]}])], {odd: [0]}, odd, odd, WORDS)).startswith(b"\x89PNG")
