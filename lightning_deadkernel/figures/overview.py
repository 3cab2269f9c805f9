"""One page: what is wrong, since when and what to do, and under it the pictures that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_deadkernel.figures.canvas import (
    GOOD,
    GREY,
    MEDIUM,
    SMALL,
    basis,
    new_figure,
    plain,
    title_height,
    wrapped,
    write_title,
)
from lightning_deadkernel.figures.gradient_flow import (
    draw_gradient_flow,
    gradient_headline,
    measured,
    name_places,
    room_for_names,
)
from lightning_deadkernel.figures.kernel_map import draw_kernel_map, map_layout, map_legend, map_note
from lightning_deadkernel.figures.life_lines import (
    Life,
    draw_life_lines,
    life_headline,
    life_note,
    life_of,
    most_changed,
    row_label,
)
from lightning_deadkernel.figures.names import labels_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.update_ratios import draw_update_ratios, update_headline, updated
from lightning_deadkernel.report.records import Finding, Problem
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import by_severity, verdict, watched_and_not
from lightning_deadkernel.report.states import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _MARGIN, _GUTTER = 12.0, 0.15, 0.35
"""Inches."""
_COLUMN = (_WIDTH - 2 * _MARGIN - _GUTTER) / 2
_LINE = 0.185
"""Inches."""
_TITLE = 18.0
"""Points: can be read where a card shrinks the page to a quarter."""
_MOST_STORIES = 3
_MOST_NAMES = 4
_MOST_ROWS = 40
"""Of the map, which has half of the page."""
_SEVERITY_COLOURS = {
    "error": COLOURS["dead"],
    "warning": COLOURS["starved"],
    "info": COLOURS["frozen"],
}


@dataclass(frozen=True)
class _Panel:
    """A picture in a column of the page. All sizes in inches."""

    heading: str
    height: float
    """Of its axes."""
    left: float
    right: float
    below: float
    """Room for what is around its axes."""
    draw: Callable[[Axes], object]

    @property
    def above(self) -> float:
        """Room for its heading."""
        return len(wrapped(self.heading, _COLUMN, MEDIUM, bold=True)) * 0.17 + 0.08

    @property
    def total(self) -> float:
        """All of it."""
        return self.above + self.height + self.below


@dataclass(frozen=True)
class _Story:
    """One thing found: what, why, and what to do about it."""

    severity: str
    title: list[str]
    lines: list[str]

    @property
    def total(self) -> float:
        """Inches that it takes."""
        return (len(self.title) + len(self.lines) + 0.4) * _LINE


@picture(0)
def overview(reports: Sequence[Report]) -> Figure | None:
    """What was found and what to do, every kernel, the worst layer's history, gradients and updates.

    None before the first window and where nothing is watched.
    """
    report = reports[-1]
    if not report.watched or not report.window:
        return None
    stories, rest = _stories(report)
    header = title_height(verdict(report), basis(reports), _WIDTH, _TITLE) + 0.1
    body = header + sum(story.total for story in stories) + bool(rest) * 1.4 * _LINE + 0.1
    columns = _columns(reports)
    figure = new_figure(body + max(sum(panel.total for panel in column) for column in columns), _WIDTH)
    write_title(figure, verdict(report), basis(reports), _TITLE)
    _write_stories(figure, stories, rest, header)
    for place, column in enumerate(columns):
        top = body
        for panel in column:
            _draw_panel(figure, panel, _MARGIN + place * (_COLUMN + _GUTTER), top)
            top += panel.total
    return figure


def _stories(report: Report) -> tuple[list[_Story], int]:
    """The problems, then what is worth knowing, layers of one fate together; and how many findings are left out."""
    stated = {place for problem in report.problems[:_MOST_STORIES] for place in problem.places}
    stories = [
        _Story(
            problem.severity,
            wrapped(problem.title, _WIDTH - 0.4, MEDIUM, bold=True),
            wrapped(_after_title(problem), _WIDTH - 0.4, MEDIUM),
        )
        for problem in report.problems[:_MOST_STORIES]
    ]
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    in_problems = {place for problem in report.problems for place in problem.places}
    for finding in by_severity([f for place, f in enumerate(report.findings) if place not in in_problems]):
        groups.setdefault((finding.kind, finding.cause_word, finding.advice), []).append(finding)
    labels = labels_of([layer.name for layer in report.layers])
    more = list(groups.values())[: _MOST_STORIES - len(stories)]
    stories += [_story(group, labels) for group in more]
    if not stories:
        return [_Story("none", [], wrapped(watched_and_not(report), _WIDTH - 0.4, MEDIUM))], 0
    return stories, len(report.findings) - len(stated) - sum(map(len, more))


def _after_title(problem: Problem) -> str:
    """The story without the title that it may begin with, which stands above it."""
    rest = problem.story.removeprefix(problem.title).lstrip(":. ")
    return rest[:1].upper() + rest[1:]


def _story(findings: Sequence[Finding], labels: Mapping[str, str]) -> _Story:
    """Findings of one fate: the first in full, the other layers by name."""
    first, *others = findings
    names = list(dict.fromkeys(labels[other.layer] for other in others if other.layer not in (None, first.layer)))
    also = f"; also {', '.join(names[:_MOST_NAMES])}" if names else ""
    more = f" and {len(names) - _MOST_NAMES:,} more layers" if len(names) > _MOST_NAMES else ""
    title = wrapped(f"{first.headline}{also}{more}", _WIDTH - 0.4, MEDIUM, bold=True)
    why = f"Why: {first.cause.split(':', 1)[-1].strip()}."
    lines = [line for text in (why, f"Do: {first.advice}") for line in wrapped(text, _WIDTH - 0.4, MEDIUM)]
    return _Story(first.severity, title, lines)


def _write_stories(figure: Figure, stories: Sequence[_Story], rest: int, top: float) -> None:
    across, down = figure.get_size_inches()

    def write(text: str, x: float, y: float, **style: Any) -> None:
        figure.text(x / across, 1 - y / down, text, fontsize=MEDIUM, va="top", linespacing=1.25, **style)

    for story in stories:
        if story.severity == "none":
            write("\n".join(story.lines), _MARGIN, top, color=GOOD)
        else:
            write("■", _MARGIN, top, color=_SEVERITY_COLOURS[story.severity])
            write("\n".join(story.title), _MARGIN + 0.17, top, weight="bold")
            write("\n".join(story.lines), _MARGIN + 0.17, top + len(story.title) * _LINE)
        top += story.total
    if rest:
        write(f"and {rest:,} more finding{'s' * (rest > 1)}: see the report", _MARGIN, top, color=GREY)


def _columns(reports: Sequence[Report]) -> tuple[list[_Panel], list[_Panel]]:
    """The map at the left; at the right the worst layer's history and the gradients; updates where there is room."""
    left, right = [_map_panel(reports[-1])], []
    name = most_changed(reports)
    life = life_of(reports, name) if name else None
    if life is not None:
        right.append(_life_panel(reports, life))
    if measured(reports[-1]):
        right.append(_flow_panel(reports))
    if updated(reports[-1]):
        sums = [sum(panel.total for panel in column) for column in (left, right)]
        (left if sums[0] < sums[1] else right).append(_update_panel(reports))
    return left, right


def _map_panel(report: Report) -> _Panel:
    layout = map_layout(report.watched, _MOST_ROWS)

    def draw(axes: Axes) -> None:
        map_legend(axes, draw_kernel_map(axes, layout), report, layout)

    left = 0.15 + 0.073 * max(map(len, layout.names()))
    return _Panel(f"Every kernel{map_note(report, layout)}", layout.height, left, 1.5, 0.6, draw)


def _life_panel(reports: Sequence[Report], life: Life) -> _Panel:
    def draw(axes: Axes) -> None:
        draw_life_lines(axes, reports, life)
        axes.set_xlabel(f"{axes.get_xlabel()} ({life_note(life)})", fontsize=SMALL, loc="right")

    left = 0.4 + 0.073 * max(len(row_label(row)) for row in life.rows)
    return _Panel(life_headline(reports, life), min(max(0.16 * len(life.rows), 0.6), 2.4), left, 0.1, 0.7, draw)


def _flow_panel(reports: Sequence[Report]) -> _Panel:
    names = [layer.name for layer in measured(reports[-1])]

    def draw(axes: Axes) -> None:
        draw_gradient_flow(axes, reports)
        name_places(axes, names)
        axes.set_ylabel("gradient ratio", fontsize=MEDIUM)

    return _Panel(gradient_headline(reports[-1]), 1.7, 0.85, 0.15, room_for_names(names) + 0.1, draw)


def _update_panel(reports: Sequence[Report]) -> _Panel:
    right = 0.2 + 0.073 * max(map(len, labels_of([layer.name for layer in updated(reports[-1])]).values()))

    def draw(axes: Axes) -> None:
        draw_update_ratios(axes, reports)
        axes.set_ylabel("update ratio", fontsize=MEDIUM)

    return _Panel(update_headline(reports), 1.7, 0.85, right, 0.6, draw)


def _draw_panel(figure: Figure, panel: _Panel, x: float, top: float) -> None:
    across, down = figure.get_size_inches()
    text = "\n".join(wrapped(panel.heading, _COLUMN, MEDIUM, bold=True))
    figure.text(x / across, 1 - top / down, text, fontsize=MEDIUM, weight="bold", va="top", linespacing=1.15)
    width = _COLUMN - panel.left - panel.right
    bottom = top + panel.above + panel.height
    axes = figure.add_axes(
        ((x + panel.left) / across, 1 - bottom / down, width / across, panel.height / down), label=panel.heading
    )
    plain(axes)
    panel.draw(axes)
