"""A document as HTML: one page that needs no network, to send to a colleague, and the same for a notebook's cell."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lightning_deadkernel.report.document import Document, Section, Strip, addresses, parts

STRIP_WIDTH = 640
"""Pixels of the widest strip of the kernel map."""
MOST_STATEMENTS, MOST_PARTS = 12, 5
"""Findings that are on the page at once, and those of one problem; a click shows the others."""
_LEAST_MARKED_CELL = 5.0


def to_html(document: Document) -> str:
    """The document as a self-contained page; every text is escaped.

    Its one script sorts tables and tells what is under the pointer; the page's content security policy names it by its
    hash and allows no other.
    """
    script = _file("page.js")
    sections = [block for block in document.blocks if isinstance(block, Section)]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _rendered("page.html.j2", document, sections=sections, script=Markup(script), digest=digest)


def to_notebook(document: Document) -> str:
    """The document as a fragment of HTML without scripts, for the output of a notebook's cell."""
    return _rendered("notebook.html.j2", document)


def _rendered(template: str, document: Document, **more: object) -> str:
    text: str = (
        _environment().get_template(template).render(document=document, style=Markup(_file("style.css")), **more)
    )
    return text


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lightning_deadkernel.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.globals.update(
        picture=_picture,
        parts=parts,
        addresses=addresses,
        packed=_packed,
        outline=outline,
        most=MOST_STATEMENTS,
        most_parts=MOST_PARTS,
        base64=lambda png: base64.b64encode(png).decode("ascii"),
    )
    return environment


@cache
def _file(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _picture(title: str, content: bytes) -> Markup:
    """An SVG as a part of the page, a PNG within it."""
    if content.startswith(b"<svg"):
        return Markup(content.decode())
    png = base64.b64encode(content).decode("ascii")
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(title, png)


def _packed(measures: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    """All measures of a strip in few letters, for the page's script: there may be tens of thousands of kernels."""
    return "|".join(";".join((title, *values)) for title, values in measures)


@dataclass(frozen=True)
class Outline:
    """A strip as it is drawn: cells of size 1, row by row."""

    columns: int
    rows: int
    cell: float
    """Pixels of a cell."""
    paths: tuple[tuple[int, str], ...]
    """Places in the legend, and the outline of all cells that show it."""
    marks: str
    """Outline of the dots on marked cells; empty where cells are too small for dots."""


def outline(strip: Strip) -> Outline:
    """Where each state's cells lie; strips of more than 64 cells wrap, and the widest have smaller cells."""
    columns, total = 64, len(strip.cells)
    while total > columns**2 / 16 and columns < STRIP_WIDTH:
        columns *= 2
    cell = STRIP_WIDTH / columns
    columns = min(columns, total)
    outlines: dict[int, list[str]] = {}
    for start in range(0, total, columns):
        for entry, run in groupby(enumerate(strip.cells[start : start + columns]), lambda item: item[1]):
            places = [place for place, _ in run]
            rectangle = f"M{places[0]} {start // columns}h{len(places)}v1h-{len(places)}z"
            outlines.setdefault(entry, []).append(rectangle)
    dots = [f"M{c % columns + 0.3:g} {c // columns + 0.5:g}a.2 .2 0 1 0 .4 0a.2 .2 0 1 0 -.4 0z" for c in strip.marks]
    return Outline(
        columns=columns,
        rows=-(-total // columns),
        cell=cell,
        paths=tuple((entry, "".join(path)) for entry, path in outlines.items()),
        marks="".join(dots) if cell >= _LEAST_MARKED_CELL else "",
    )
