"""A report in the terminal: a short table and the worst finding, through rich where it is installed."""

from __future__ import annotations

import importlib.util
import io
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

from lightning_deadkernel.report import describe as wording
from lightning_deadkernel.report.records import Finding, LayerReport, ReportRecord
from lightning_deadkernel.report.states import STATE_BITS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lightning_deadkernel.analysis.compare import Comparison

TITLE = "lightning-deadkernel"
MOST_ROWS = 20
"""Layers in the table; the rest is counted and is in the report."""
LEAST_WIDTH = 20
_LABEL = 8
_COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def has_rich() -> bool:
    """Whether rich can be imported."""
    return importlib.util.find_spec("rich") is not None


def print_report(report: ReportRecord, file: TextIO | None = None, full: bool = False) -> None:
    """Print the report to `file` (standard output), in colour only where that is a terminal.

    Args:
        report: what to print.
        file: where to; standard output if None.
        full: show every watched layer and every finding, not only the worst.
    """
    file = sys.stdout if file is None else file
    if has_rich():
        from rich.console import Console

        console = Console(file=file, highlight=False)
        with console.capture() as captured:
            console.print(_renderable(report, full, console.width))
        text = captured.get()
    else:
        text = render(report, shutil.get_terminal_size().columns, rich=False, full=full)
    write(text, file)


def render(report: ReportRecord, width: int, rich: bool, full: bool = False) -> str:
    """The report as text without colour, at most `width` columns wide (20 at least), ending in a newline.

    Args:
        report: what to show.
        width: columns of the terminal.
        rich: lay out with rich, which must be installed; else in plain ASCII, but for what names and texts hold.
        full: show every watched layer and every finding, not only the worst.
    """
    width = max(width, LEAST_WIDTH)
    return _uncoloured(_renderable(report, full, width), width) if rich else _plain(report, width, full)


def render_comparison(comparison: Comparison, width: int, rich: bool) -> str:
    """A comparison as text without colour, as `render` does it."""
    width = max(width, LEAST_WIDTH)
    tables = [table for table in (comparison.layer_table(), comparison.finding_table()) if table.rows]
    around = [
        f"{TITLE}: {', '.join(comparison.runs)}",
        comparison.verdict(),
        comparison.reading(),
        *(f"Not compared: {layer}: {why}" for layer, why in comparison.left_out),
    ]
    title, verdict, *remarks = [printable(line) for line in around if line]
    if not rich:
        blocks = [[title, verdict], *(plain_table(table, width) for table in tables), remarks]
        return "\n\n".join("\n".join(_wrapped_all(block, width)) for block in blocks if block) + "\n"
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(title), Text(verdict, style="bold")]
    for table in tables:
        parts += ["", *rich_table(table, width)]
    return _uncoloured(Group(*parts, *([""] if remarks else []), *map(Text, remarks)), width)


def _uncoloured(renderable: RenderableType, width: int) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False, legacy_windows=False).print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def write(text: str, file: TextIO) -> None:
    """Write text to a terminal of any encoding: what it cannot show comes as a backslash escape."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def printable(text: str) -> str:
    """Text on one line without control characters: a layer's name must not steer the terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)


# -- what is shown -----------------------------------------------------------------------------------------------------


def _opening(report: ReportRecord) -> str:
    """The line under the title."""
    said = wording.verdict(report)
    healthy = "Nothing found: "
    return said.replace(healthy, "nothing found, ", 1) if said.startswith(healthy) else wording.watched_and_not(report)


def _shown_layers(report: ReportRecord, full: bool) -> tuple[list[LayerReport], int]:
    """The layers to show in forward order, and how many that have something to say are left out."""
    if full:
        return list(report.watched), 0
    severities = {finding.layer: finding.severity for finding in reversed(wording.by_severity(report.findings))}
    speaking = [
        layer for layer in report.watched if layer.name in severities or any(c & STATE_BITS for c in layer.codes)
    ]
    ranks = {"error": 0, "warning": 1, "info": 2}
    worst = sorted(
        speaking, key=lambda layer: (ranks.get(severities.get(layer.name, ""), 3), -len(layer.dead) / layer.channels)
    )[:MOST_ROWS]
    kept = {layer.name for layer in worst}
    return [layer for layer in speaking if layer.name in kept], len(speaking) - len(worst)


def _shown_findings(report: ReportRecord, full: bool) -> tuple[list[Finding], str]:
    """The findings to show, and what to say of the others."""
    findings = wording.by_severity(report.findings)
    shown, rest = (findings, []) if full else (findings[:1], findings[1:])
    return shown, f"Further: {wording.tally(rest)}, in the report." if rest else ""


def _lines(report: ReportRecord, finding: Finding) -> list[tuple[str, str]]:
    """Label and text, the headline first."""
    channels = wording.ranges(finding.channels)
    said = [
        (finding.severity, finding.headline),
        ("channels", channels),
        ("seen", wording.evidence(finding)),
        ("cause", finding.cause),
        ("do", finding.advice),
        ("read", finding.reference),
    ]
    return [(label, printable(text)) for label, text in said if text]


def _table(report: ReportRecord, full: bool) -> tuple[wording.Table | None, str]:
    layers, left_out = _shown_layers(report, full)
    rest = f"... and {wording.count(left_out, 'layer')} more with something to say, in the report." if left_out else ""
    return (wording.layer_table(layers, brief=not full) if layers else None), rest


def _closing(report: ReportRecord, full: bool) -> list[str]:
    lines = []
    if report.savings is not None and report.savings.channels:
        lines.append(wording.savings(report.savings))
    if full:
        for why, layers in wording.not_watched(report):
            lines.append(f"Not watched: {', '.join(layer.name for layer in layers)}: {why}")
        lines += [f"Note: {note}" for note in report.notes]
    return [printable(line) for line in lines]


# -- plain -------------------------------------------------------------------------------------------------------------


def _plain(report: ReportRecord, width: int, full: bool) -> str:
    blocks = [[f"{TITLE}: {printable(wording.moment(report))}", printable(_opening(report))]]
    table, rest = _table(report, full)
    blocks.append([*([] if table is None else plain_table(table, width)), rest])
    findings, further = _shown_findings(report, full)
    for finding in findings:
        lines = [f"{label:<{_LABEL}} {text}" for label, text in _lines(report, finding)]
        blocks.append([_wrapped(line, width, indent=_LABEL + 1) for line in lines])
    blocks.append([further, *_closing(report, full)])
    wrapped = ["\n".join(_wrapped_all(block, width)) for block in blocks]
    return "\n\n".join(block for block in wrapped if block) + "\n"


def _wrapped_all(lines: list[str], width: int) -> list[str]:
    # What has line breaks is wrapped already.
    return [line if "\n" in line else _wrapped(line, width) for line in lines if line]


def _wrapped(line: str, width: int, indent: int = 0) -> str:
    if len(line) <= width:
        return line
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def plain_table(table: wording.Table, width: int) -> list[str]:
    """A table in lines of at most `width` columns."""
    table, left_out = _printable(table).fitted(width, gap=2)
    widths = [max(map(len, column)) for column in zip(table.headings, *table.rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, table.right, strict=True)
        )
        for row in (table.headings, *table.rows)
    ]
    lines.insert(1, "-" * len(lines[0]))
    return [*(line.rstrip() for line in lines), *_columns_left_out(left_out)]


def _printable(table: wording.Table) -> wording.Table:
    rows = tuple(tuple(map(printable, row)) for row in table.rows)
    return wording.Table(tuple(map(printable, table.headings)), rows, table.right)


def _columns_left_out(number: int) -> list[str]:
    return [f"({wording.count(number, 'column')} more in a wider terminal)"] if number else []


# -- rich --------------------------------------------------------------------------------------------------------------


def _renderable(report: ReportRecord, full: bool, width: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    healthy = not report.findings and bool(report.watched)
    parts: list[RenderableType] = [
        Text.assemble((TITLE, "bold"), ": ", printable(wording.moment(report))),
        Text(printable(_opening(report)), style="green" if healthy else ""),
    ]
    table, rest = _table(report, full)
    if table is not None:
        parts += ["", *rich_table(table, width)]
    if rest:
        parts.append(Text(rest))
    findings, further = _shown_findings(report, full)
    for finding in findings:
        colour = _COLOURS[finding.severity]
        grid = Table.grid(padding=(0, 1), collapse_padding=True)
        grid.add_column(min_width=_LABEL, no_wrap=True)
        grid.add_column(overflow="fold")
        (severity, head), *lines = _lines(report, finding)
        grid.add_row(Text(severity, style=colour), Text(head, style="bold"))
        for label, text in lines:
            grid.add_row(Text(label, style="dim"), Text(text))
        parts += ["", grid]
    closing = [further, *_closing(report, full)]
    if any(closing):
        parts += ["", *(Text(line) for line in closing if line)]
    return Group(*parts)


def rich_table(table: wording.Table, width: int) -> list[RenderableType]:
    """A table for a rich console of `width` columns, and a line on columns left out, if any."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Between two columns rich puts a border, a blank here, and the padding on both its sides.
    fitting, left_out = _printable(table).fitted(width, gap=3)
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for heading, right in zip(fitting.headings, fitting.right, strict=True):
        drawn.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in fitting.rows:
        drawn.add_row(*map(Text, row))
    return [drawn, *map(Text, _columns_left_out(left_out))]
