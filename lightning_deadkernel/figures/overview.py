"""One page: what is wrong, since when and what to do, and under it the pictures that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_deadkernel.figures.canvas import (
    GOOD,
    GREY,
    MEDIUM,
    WIDTH,
    Panel,
    as_written,
    basis,
    in_pixels,
    new_figure,
    part_of,
    title_height,
    wrapped,
    write_title,
)
from lightning_deadkernel.figures.gradient_flow import gradient_flow
from lightning_deadkernel.figures.kernel_map import kernel_map
from lightning_deadkernel.figures.life_lines import life_lines
from lightning_deadkernel.figures.names import labels_of
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.update_ratios import update_ratios
from lightning_deadkernel.report.records import Finding, Problem
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import by_severity, verdict, watched_and_not
from lightning_deadkernel.report.states import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN, _GUTTER = 0.15, 0.2
"""Inches."""
_WIDTH = 2 * WIDTH + _GUTTER
_LINE = 0.185
"""Inches."""
_TITLE = 18.0
"""Points: can be read where a card shrinks the page to a quarter."""
_MOST_STORIES = 3
_MOST_NAMES = 4
_SEVERITY_COLOURS = {
    "error": COLOURS["dead"],
    "warning": COLOURS["starved"],
    "info": COLOURS["frozen"],
}


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


@dataclass(frozen=True)
class _Page:
    """Stories, and under them pictures in two columns."""

    report: Report
    below: str
    stories: list[_Story]
    rest: int
    """Findings that are in none of the stories."""
    columns: tuple[dict[str, Panel], ...]
    """Name -> picture."""

    def alone(self) -> Figure:
        """The page; each picture is a part of it that is called by its name."""
        header = title_height(verdict(self.report), self.below, _WIDTH, _TITLE) + 0.1
        top = in_pixels(header + sum(story.total for story in self.stories) + bool(self.rest) * 1.4 * _LINE + 0.1)
        total = top + max(_height(column) for column in self.columns)
        figure = new_figure(total, _WIDTH)
        with as_written(figure):
            write_title(figure, verdict(self.report), self.below, (_WIDTH, total), _TITLE)
            _write_stories(figure, self.stories, self.rest, header)
            for place, column in enumerate(self.columns):
                under = top
                for name, panel in column.items():
                    panel.draw_on(part_of(figure, name, place * (WIDTH + _GUTTER), under, panel.total))
                    under += panel.total
        return figure


@picture(0)
def overview(reports: Sequence[Report]) -> _Page | None:
    """What was found and what to do, every kernel, the worst layer's history, gradients and updates.

    None before the first window and where nothing is watched.
    """
    report = reports[-1]
    if not report.watched or not report.window:
        return None
    left: dict[str, Panel] = {}
    right: dict[str, Panel] = {}
    for kind in (kernel_map, life_lines, gradient_flow, update_ratios):
        panel = kind.plan(reports)
        if isinstance(panel, Panel):
            first = kind is kernel_map or (kind is update_ratios and _height(left) < _height(right))
            (left if first else right)[kind.name] = panel
    return _Page(report, basis(reports), *_stories(report), (left, right))


def _height(column: Mapping[str, Panel]) -> float:
    return sum(panel.total for panel in column.values())


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
