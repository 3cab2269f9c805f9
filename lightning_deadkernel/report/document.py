"""What a page says, whatever its form: titles, paragraphs, tables, findings and kernels, which every renderer lays out.

Text is plain and of one line: nothing in it is escaped for any format, and no control character is left in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias

from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.records import Severity

_ADDRESS = re.compile(r"(https?://[^\s<>|`]*[^\s<>|`.,;:)\]])")


@dataclass(frozen=True)
class Name:
    """A layer, or what else bears a name given outside of this package; shown as code."""

    text: str


Text: TypeAlias = "str | tuple[str | Name, ...]"
"""One line, of words and of names among them."""

Tone = Literal["plain", "strong", "good"]


@dataclass(frozen=True)
class Paragraph:
    """Some sentences."""

    text: Text
    tone: Tone = "plain"


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column holds names, numbers stand right."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]
    """Which columns stand right."""
    rest: str = ""
    """What was left out."""


_IN_LINE = ("Channels", "Evidence")


@dataclass(frozen=True)
class Statement:
    """A problem, or a finding."""

    severity: Severity
    kind: str
    """Of the finding, or of the problem's root."""
    title: Text
    facts: tuple[tuple[str, str], ...]
    """Label and text, such as ``("Advice", "Lower the learning rate.")``; the first is what to read first."""
    parts: tuple[Statement, ...] = ()
    """The findings that a problem is made of; where space is short, each is a line."""

    @property
    def line(self) -> Text:
        """Its title and evidence in a line."""
        shown = [f"channels {text}" if label == "Channels" else text for label, text in self.facts if label in _IN_LINE]
        return (*parts(self.title), f"; {'; '.join(shown)}" if shown else "")


@dataclass(frozen=True)
class Statements:
    """Problems or findings, the worst first."""

    items: tuple[Statement, ...]


@dataclass(frozen=True)
class LegendEntry:
    """What a cell of a kernel map may be."""

    name: str
    meaning: str
    colour: str


@dataclass(frozen=True)
class Strip:
    """One layer of a kernel map."""

    name: str
    cells: bytes
    """Of each cell its place in the map's legend."""
    marks: tuple[int, ...]
    """Cells with a mark."""
    text: str
    """The same in words."""
    measures: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What was measured, and of each kernel how much: ``("fires", ("50%", "0%"))``."""


@dataclass(frozen=True)
class KernelMap:
    """Every kernel as a cell; left out where only text can be shown."""

    legend: tuple[LegendEntry, ...]
    mark: str
    """What a mark on a cell means; empty where none is marked."""
    strips: tuple[Strip, ...]
    per_cell: int = 1
    """Kernels that a cell stands for, the last of a strip for fewer; it shows the worst of them."""


@dataclass(frozen=True)
class Pictures:
    """PNGs, or SVGs that are parts of a page, by title; left out where only text can be shown."""

    items: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Section:
    """What belongs together, under a heading."""

    title: str
    blocks: tuple[Block, ...]


Block: TypeAlias = "Paragraph | Bullets | Table | Statements | KernelMap | Pictures | Section"


@dataclass(frozen=True)
class Document:
    """A page."""

    title: str
    """What it is about."""
    verdict: str
    """The answer, in a line; empty where the blocks open with it."""
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        # once, here, so that no renderer can forget it: a layer's name must not steer a terminal or end a table's row
        for field in fields(self):
            object.__setattr__(self, field.name, _printable(getattr(self, field.name)))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, tuple):
        return tuple(map(_printable, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _printable(getattr(value, field.name)) for field in fields(value)})
    return value


def parts(text: Text) -> Iterator[str | Name]:
    """The words and names of a line."""
    yield from (text,) if isinstance(text, str) else text


def addresses(text: str) -> list[str]:
    """A text cut at web addresses: words, address, words, ... , words."""
    return _ADDRESS.split(text)


def plain(text: Text) -> str:
    """A line without marks on its names."""
    return "".join(part if isinstance(part, str) else part.text for part in parts(text))
