"""One page: which kernels, since when, how the gradient flows, and what was found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_deadkernel.figures.canvas import (
    GOOD,
    GREY,
    LARGE,
    MEDIUM,
    SMALL,
    basis,
    new_figure,
    plain,
    title_height,
    write_title,
)
from lightning_deadkernel.figures.gradient_flow import (
    draw_gradient_flow,
    gradient_headline,
    measured,
    name_places,
)
from lightning_deadkernel.figures.kernel_map import draw_kernel_map, map_height, map_legend, map_note
from lightning_deadkernel.figures.life_lines import draw_life_lines, life_headline, life_note, life_of, most_changed
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.update_ratios import draw_update_ratios, update_headline, updated
from lightning_deadkernel.report.records import Finding
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import by_severity, verdict, watched_and_not
from lightning_deadkernel.report.states import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 12.0, 8.4
"""Inches."""
_LIFE, _FLOW, _LOW_FLOW = 2.0, 1.7, 1.15
"""Heights of the pictures at the right."""
_TITLE = 18.0
"""Points: can be read where a card shrinks the page to a quarter."""
_LINE = 0.185
"""Inches."""
_LETTERS = 74
"""Letters in a line of the findings."""
_SEVERITY_COLOURS = {
    "error": COLOURS["dead"],
    "warning": COLOURS["starved"],
    "info": COLOURS["frozen"],
}


@picture(0)
def overview(reports: Sequence[Report]) -> Figure | None:
    """The kernel map, the worst layer's life lines, the gradient flow and the findings; None before the first window
    and where nothing is watched."""
    report = reports[-1]
    if not report.watched or not report.window:
        return None
    header = title_height(verdict(report), basis(reports), _WIDTH, _TITLE) + 0.4
    below_life, below_flow = header + _LIFE + 1.15, header + _LIFE + 1.15 + _FLOW
    roomy = map_height(report) < 2.8  # so low that the findings go below it
    figure = new_figure(below_flow + 0.9 if roomy else _HEIGHT, _WIDTH)
    write_title(figure, verdict(report), basis(reports), _TITLE)
    height = map_height(report) if roomy else min(map_height(report), _HEIGHT - header - 0.5)
    axes = _axes(figure, 1.9, header, 3.3, height)
    shown = draw_kernel_map(axes, report)
    map_legend(axes, shown, any(layer.zero_kernels for layer in report.watched))
    _heading(axes, f"Every kernel{map_note(report)}")
    _draw_lives(figure, reports, header)
    if measured(report):
        axes = _axes(figure, 7.4, below_life, 4.4, _FLOW if roomy else _LOW_FLOW)
        draw_gradient_flow(axes, reports)
        if roomy:
            name_places(axes, [layer.name for layer in measured(report)])
        else:
            axes.set_xticks([])
            axes.set_xlabel("layers from input to output", fontsize=SMALL, labelpad=2)
        axes.set_ylabel("gradient ratio", fontsize=MEDIUM)
        _heading(axes, gradient_headline(report))
    _write_findings(figure, report, *((0.25, header + height + 0.7) if roomy else (6.85, below_life + _LOW_FLOW + 0.4)))
    return figure


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """An axes by its place in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    plain(axes)
    return axes


def _draw_lives(figure: Figure, reports: Sequence[Report], top: float) -> None:
    """The life of the layer with most to tell; where none has anything to tell, the update ratios."""
    name = most_changed(reports)
    life = life_of(reports, name) if name else None
    if life and life.channels:
        axes = _axes(figure, 7.4, top, 4.4, _LIFE)
        draw_life_lines(axes, reports, life)
        _heading(axes, life_headline(reports, life))
        if note := life_note(life):
            axes.set_xlabel(f"{axes.get_xlabel()}; {note}")
    elif updating := updated(reports[-1]):
        axes = _axes(figure, 7.4, top, 2.75, _LIFE)
        draw_update_ratios(axes, reports, updating)
        _heading(axes, update_headline(reports[-1]))


def _heading(axes: Axes, text: str) -> None:
    lines = textwrap.wrap(text, 56)
    axes.set_title("\n".join(lines[:2]), fontsize=MEDIUM, loc="left", weight="bold", y=1.0, pad=6)


def _written(report: Report, finding: Finding) -> str:
    cause = finding.cause.split(":", 1)
    return finding.headline + (f" - {cause[1].strip()}" if len(cause) > 1 else "")


def _write_findings(figure: Figure, report: Report, left: float, top: float) -> None:
    """As many findings as fit below `top`, worst first; places in inches from the upper left corner."""
    across, down = figure.get_size_inches()

    def write(text: str, x: float, y: float, size: float = MEDIUM, **style: Any) -> None:
        figure.text(x / across, 1 - y / down, text, fontsize=size, va="top", linespacing=1.25, **style)

    write("Findings", left, top, LARGE, weight="bold")
    findings, y = by_severity(report.findings), top + 0.32
    if not findings:
        lines = textwrap.wrap(f"Nothing found. {watched_and_not(report)}", _LETTERS)
        write("\n".join(lines), left, y, color=GOOD)
    for place, finding in enumerate(findings):
        lines = textwrap.wrap(_written(report, finding), _LETTERS)
        if len(lines) > 2:
            lines = [lines[0], lines[1][: _LETTERS - 3] + "..."]
        rest = len(findings) - place
        if y + (len(lines) + (rest > 1)) * _LINE > down - 0.1:
            write(f"and {rest:,} more: see the report", left, y, color=GREY)
            return
        write("■", left, y, color=_SEVERITY_COLOURS[finding.severity])
        write("\n".join(lines), left + 0.17, y)
        y += (len(lines) + 0.3) * _LINE
