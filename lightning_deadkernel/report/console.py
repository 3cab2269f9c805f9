"""A document in a terminal, through rich; without colour where that is none."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from lightning_deadkernel.report.document import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Section,
    Statement,
    Statements,
    Table,
    plain,
)
from lightning_deadkernel.report.text import count, shortened

LEAST_WIDTH = 20
_LABEL = 9
"""Columns for the severity and the labels of facts."""
_LEAST_NAME = 12
_GAP = 3
"""Between two columns rich puts a border, a blank here, and the padding on both its sides."""
_SEVERITIES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_TONES = {"plain": "", "strong": "bold", "good": "green"}


def print_document(document: Document, file: TextIO | None = None) -> None:
    """Print to `file` (standard output), in colour only where that is a terminal, of whatever encoding."""
    file = sys.stdout if file is None else file
    console = Console(file=file, highlight=False, force_jupyter=False)  # which would show it in a cell of its own
    with console.capture() as captured:
        console.print(renderable(document))
    write(captured.get(), file)


def write(text: str, file: TextIO) -> None:
    """Write text to a terminal of any encoding: what it cannot show comes as a backslash escape."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def to_text(document: Document, width: int) -> str:
    """The document without colour, at most `width` columns wide (20 at least), ending in a newline."""

    buffer = io.StringIO()
    console = Console(
        file=buffer, width=max(width, LEAST_WIDTH), color_system=None, highlight=False, legacy_windows=False
    )
    console.print(renderable(document))
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def renderable(document: Document) -> RenderableType:
    """The document for a rich console; pictures and kernel maps are left out."""

    title, colon, rest = document.title.partition(":")
    lines: list[RenderableType] = [Text.assemble((title, "bold"), colon, rest)]
    if document.verdict:
        lines.append(Text(document.verdict, style="bold"))
    before: type[Block] = Paragraph
    for block in document.blocks:
        drawn = list(_drawn(block))
        if not drawn:
            continue
        if not isinstance(block, Paragraph) or before is not Paragraph:
            lines.append("")  # paragraphs follow one another, all else stands apart
        lines += drawn
        before = type(block)
    return Group(*lines)


def _drawn(block: Block) -> Iterator[RenderableType]:

    if isinstance(block, Section):
        inner = [line for part in block.blocks for line in (*_drawn(part), "")]
        if any(inner):
            yield Text(block.title, style="bold underline")
            yield from inner[:-1]
    elif isinstance(block, Paragraph):
        yield Text(plain(block.text), style=_TONES[block.tone])
    elif isinstance(block, Bullets):
        for item in block.items:
            yield _labelled("-", plain(item), width=1)
    elif isinstance(block, Table):
        yield _FittedTable(block)
        if block.rest:
            yield Text(block.rest)
    elif isinstance(block, Statements):
        for place, statement in enumerate(block.items):
            yield from ([""] if place else [])
            yield _statement(statement)


def _statement(statement: Statement) -> RenderableType:
    return _labelled(
        statement.severity,
        plain(statement.title),
        *statement.facts,
        *((part.severity, plain(part.line)) for part in statement.parts),
        label_style=_SEVERITIES[statement.severity],
        style="bold",
    )


def _labelled(
    label: str, text: str, *facts: tuple[str, str], width: int = _LABEL, label_style: str = "", style: str = ""
) -> RenderableType:
    """Labels on the left, texts wrapped on the right."""
    grid = Grid.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style=label_style), Text(text, style=style))
    for name, fact in facts:
        grid.add_row(Text(name.lower(), style="dim"), Text(fact))
    return grid


@dataclass(frozen=True)
class _FittedTable:
    """A table that is as wide as the terminal allows: names are cut first, then columns from the right."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:

        table, left_out = fitted(self.table, options.max_width)
        drawn = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for heading, right in zip(table.headings, table.right, strict=True):
            drawn.add_column(heading, justify="right" if right else "left", no_wrap=True)
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        yield drawn
        if left_out:
            yield Text(f"({count(left_out, 'column')} more in a wider terminal)")


def fitted(table: Table, width: int) -> tuple[Table, int]:
    """The table at most `width` columns wide: names are cut first, then columns from the right.

    Returns:
        The table, and how many of its columns were left out.
    """
    widths = [max(map(len, column)) for column in zip(table.headings, *table.rows, strict=True)]
    kept = len(widths)
    least = min(widths[0], _LEAST_NAME)
    while kept > 1 and least + sum(_GAP + w for w in widths[1:kept]) > width:
        kept -= 1
    room = min(widths[0], width - sum(_GAP + w for w in widths[1:kept]))
    rows = tuple((shortened(row[0], room), *row[1:kept]) for row in table.rows)
    return Table(table.headings[:kept], rows, table.right[:kept], table.rest), len(widths) - kept
