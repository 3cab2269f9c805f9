"""A report as one HTML file that needs no network and no script: what a colleague is sent."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from lightning_deadkernel.report import describe as wording
from lightning_deadkernel.report.records import LayerReport, ReportRecord
from lightning_deadkernel.report.states import COLOURS, FLAGS, SHOWN, STATES, word_of

MEANINGS = {word.name: word.meaning for word in SHOWN if word.name != "excluded"}

STRIP_WIDTH = 640
"""Pixels of the widest strip of the kernel map."""
_LEAST_MARKED_CELL = 5.0
_MISSING = (
    "The HTML report needs jinja2, which is not installed; `pip install 'lightning-deadkernel[plots]'` brings it."
)


@dataclass(frozen=True)
class Strip:
    """One layer of the kernel map: cells of size 1, row by row."""

    columns: int
    rows: int
    cell: float
    """Pixels of a cell."""
    paths: tuple[tuple[str, str], ...]
    """What the cells are shown as, a state or a flag, and their outline."""
    marks: str
    """Outline of the dots on zero kernels; empty where cells are too small for dots."""


def to_html(report: ReportRecord, pictures: Mapping[str, bytes] | None = None) -> str:
    """The report as a self-contained HTML page; every text is escaped.

    Args:
        report: what to show.
        pictures: title -> PNG, shown in this order.

    Raises:
        ImportError: if jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(_MISSING) from error

    environment = Environment(
        loader=PackageLoader("lightning_deadkernel.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template("report.html.j2").render(
        report=report,
        findings=wording.by_severity(report.findings),
        wording=wording,
        table=wording.layer_table(report.watched) if report.watched else None,
        strip=strip,
        told=told,
        words=[word for word in MEANINGS if word in {word_of(c) for layer in report.watched for c in layer.codes}],
        meanings=MEANINGS,
        colours=COLOURS,
        marked=any(layer.zero_kernels for layer in report.watched),
        pictures={title: base64.b64encode(png).decode("ascii") for title, png in (pictures or {}).items()},
    )
    return page


def strip(layer: LayerReport) -> Strip:
    """Where each state's cells lie; layers wider than 64 channels wrap, and the widest have smaller cells."""
    columns = 64
    while layer.channels > columns**2 / 16 and columns < STRIP_WIDTH:
        columns *= 2
    cell = STRIP_WIDTH / columns
    columns = min(columns, layer.channels)
    outlines: dict[str, list[str]] = {}
    for start in range(0, layer.channels, columns):
        row = list(enumerate(layer.codes[start : start + columns]))
        for word, run in groupby(row, lambda item: word_of(item[1])):
            places = [place for place, _ in run]
            rectangle = f"M{places[0]} {start // columns}h{len(places)}v1h{-len(places)}z"
            outlines.setdefault(word, []).append(rectangle)
    dots = [
        f"M{c % columns + 0.3:g} {c // columns + 0.5:g}a.2 .2 0 1 0 .4 0a.2 .2 0 1 0 -.4 0z" for c in layer.zero_kernels
    ]
    return Strip(
        columns=columns,
        rows=-(-layer.channels // columns) if columns else 0,
        cell=cell,
        paths=tuple((state, "".join(path)) for state, path in outlines.items()),
        marks="".join(dots) if cell >= _LEAST_MARKED_CELL else "",
    )


def told(layer: LayerReport) -> list[str]:
    """The strip in words: ``["2 dead: 3, 11", "1 rare: 7"]``; ``["all active"]`` where there is nothing to say."""
    by_state = [(state, [c for c, s in enumerate(layer.states) if s == state]) for state in STATES[1:]]
    by_flag = [
        (flag.replace("_", " "), [c for c, code in enumerate(layer.codes) if code & bit])
        for flag, bit in FLAGS.items()
        if not (flag == "frozen" and "frozen" in layer.states)
    ]
    said = [f"{len(where):,} {word}: {wording.ranges(where)}" for word, where in by_state + by_flag if where]
    return said or ["all active"]
