"""One page: which kernels, since when, how the gradient flows, and what was found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_deadkernel.figures.canvas import (
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
from lightning_deadkernel.figures.flow import (
    draw_gradient_flow,
    draw_update_ratios,
    gradient_headline,
    has_gradients,
    name_places,
    update_headline,
)
from lightning_deadkernel.figures.kernel_map import draw_kernel_map, map_height, map_legend, map_note
from lightning_deadkernel.figures.life_lines import draw_life_lines, life_headline, life_note, life_of, most_told
from lightning_deadkernel.palette import GOOD, STATE_COLOURS
from lightning_deadkernel.report import Finding, Report
from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.wording import by_severity, headline, verdict, watched_and_not

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 12.0
_HEIGHT, _LOW_HEIGHT = 8.0, 6.2
"""Inches; the second where the kernel map is so low that the findings go below it."""
_TITLE = 18.0
"""Points: can be read where a card shrinks the page to a quarter."""
_LETTERS = 62
"""Letters in a line of the findings."""
_SEVERITY_COLOURS = {
    "error": STATE_COLOURS["dead"],
    "warning": STATE_COLOURS["starved"],
    "info": STATE_COLOURS["frozen"],
}


def overview(reports: Sequence[Report]) -> Figure | None:
    """The kernel map, the worst layer's life lines, the gradient flow and the findings; None before the first window
    and where nothing is watched."""
    report = reports[-1]
    if not report.watched or not report.window:
        return None
    roomy = map_height(report) < 0.45 * _LOW_HEIGHT
    total = _LOW_HEIGHT if roomy else _HEIGHT
    figure = new_figure(total, _WIDTH)
    write_title(figure, verdict(report), basis(reports), _TITLE)
    top = 1 - (title_height(verdict(report), basis(reports), _WIDTH, _TITLE) + 0.4) / total
    height = min(0.8, map_height(report) / total)
    left = figure.add_axes((0.125, top - height, 0.31, height))
    plain(left)
    shown = draw_kernel_map(left, report)
    map_legend(left, shown, any(layer.zero_kernels for layer in report.watched))
    _heading(left, f"Every kernel{map_note(report)}")
    name = most_told(reports)
    life = life_of(reports, name) if name else None
    if life and life.channels:
        axes = figure.add_axes((0.585, top - 0.275, 0.395, 0.275))
        plain(axes)
        draw_life_lines(axes, reports, life)
        _heading(axes, life_headline(reports, life))
        if note := life_note(life):
            axes.set_xlabel(f"{axes.get_xlabel()}; {note}")
    elif updating := [layer for layer in report.watched if layer.update_ratio is not None]:
        axes = figure.add_axes((0.585, top - 0.275, 0.3, 0.275))
        plain(axes)
        draw_update_ratios(axes, reports, updating, Thresholds())
        _heading(axes, update_headline(report, Thresholds()))
    if has_gradients(reports):
        axes = figure.add_axes((0.585, 0.19, 0.395, 0.265) if roomy else (0.585, 0.345, 0.395, 0.14))
        plain(axes)
        draw_gradient_flow(axes, reports, Thresholds())
        if roomy:
            name_places(axes, [layer.name for layer in report.watched if layer.gradient_ratio is not None])
        else:
            axes.set_xticks([])
            axes.set_xlabel("layers from input to output", fontsize=SMALL, labelpad=2)
        axes.set_ylabel("gradient ratio", fontsize=MEDIUM)
        _heading(axes, gradient_headline(report, Thresholds()))
    if roomy:
        _write_findings(figure, report, 0.025, top - height - 0.12)
    else:
        _write_findings(figure, report, 0.545, 0.285)
    return figure


def _heading(axes: Axes, text: str) -> None:
    lines = textwrap.wrap(text, 58)
    axes.set_title("\n".join(lines[:2]), fontsize=MEDIUM, loc="left", weight="bold", y=1.0, pad=6)


def _written(report: Report, finding: Finding) -> str:
    cause = finding.cause.split(":", 1)
    return headline(report, finding) + (f" - {cause[1].strip()}" if len(cause) > 1 else "")


def _write_findings(figure: Figure, report: Report, x: float, y: float) -> None:
    """As many findings as fit below `y`, worst first."""
    line = 0.2 / figure.get_size_inches()[1]
    figure.text(x, y, "Findings", fontsize=LARGE, weight="bold", va="top")
    y -= 1.5 * line
    findings = by_severity(report.findings)
    if not findings:
        said = textwrap.wrap(f"Nothing found. {watched_and_not(report)}", _LETTERS)
        figure.text(x, y, "\n".join(said), fontsize=MEDIUM, va="top", color=GOOD)
        return
    for place, finding in enumerate(findings):
        lines = textwrap.wrap(_written(report, finding), _LETTERS)
        if len(lines) > 2:
            lines = [lines[0], lines[1][: _LETTERS - 3] + "..."]
        rest = len(findings) - place
        if y - len(lines) * line < 0.02 + (line if rest > 1 else 0):
            figure.text(x, y, f"and {rest:,} more: see the report", fontsize=MEDIUM, color=GREY, va="top")
            return
        figure.text(x, y, "■", fontsize=MEDIUM, va="top", color=_SEVERITY_COLOURS[finding.severity])
        figure.text(x + 0.013, y, "\n".join(lines), fontsize=MEDIUM, va="top", linespacing=1.25)
        y -= (len(lines) + 0.35) * line
