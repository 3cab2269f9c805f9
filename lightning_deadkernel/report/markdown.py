"""A report as Markdown: for the file beside the JSON, TensorBoard's text tab and artifacts of other loggers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lightning_deadkernel.report import describe as wording
from lightning_deadkernel.report.records import Finding, ReportRecord

if TYPE_CHECKING:
    from lightning_deadkernel.analysis.compare import Comparison

_URL = re.compile(r"(https?://[^\s<>|`]*[^\s<>|`.,;:)\]])")
_ACTIVE = re.compile(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK_START, _BACKSLASH = re.compile(r"^(\d*)([#+.)>-])"), r"\1\\\2"
_ENTITY = re.compile(r"&(?=#?\w+;)")
_PLAIN_NAME = re.compile(r"[\w./:-]+")


def to_markdown(report: ReportRecord) -> str:
    """The report as CommonMark with tables and without raw HTML, ending in a newline."""
    blocks = [
        f"# Dead kernels: {escape(wording.moment(report))}",
        f"**{escape(wording.verdict(report))}**",
        escape(wording.watched_and_not(report)),
    ]
    findings = wording.by_severity(report.findings)
    if findings:
        blocks.append("## Findings")
        blocks += [_finding(report, place, finding) for place, finding in enumerate(findings, start=1)]
    if report.savings is not None and report.savings.channels:
        blocks += ["## What pruning would save", escape(wording.savings(report.savings))]
    if report.watched:
        blocks += ["## Layers", table(wording.layer_table(report.watched))]
        blocks += [_list([f"{name(layer.name)}: {escape(layer.note)}" for layer in report.watched if layer.note])]
    groups = wording.not_watched(report)
    if groups:
        blocks.append("## Not watched")
        blocks.append(
            _list([f"{', '.join(name(layer.name) for layer in layers)}: {escape(why)}" for why, layers in groups])
        )
    if report.notes:
        blocks += ["## Notes", _list([escape(note) for note in report.notes])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def comparison_to_markdown(comparison: Comparison) -> str:
    """A comparison of several runs as CommonMark with tables, the answer first."""
    overlaps, findings = comparison.layer_table(), comparison.finding_table()
    blocks = [
        f"# Dead kernels compared: {escape(', '.join(comparison.runs))}",
        f"**{escape(comparison.verdict())}**",
        escape(comparison.reading()),
    ]
    if overlaps.rows:
        blocks += ["## Dead kernels", table(overlaps)]
    if findings.rows:
        blocks += ["## Findings", table(findings)]
    if comparison.left_out:
        blocks += ["## Not compared", _list([f"{name(layer)}: {escape(why)}" for layer, why in comparison.left_out])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """Any text as inline Markdown that shows just that text, on one line; web addresses become links.

    What CommonMark and Python-Markdown (TensorBoard's) treat alike is escaped by a backslash, opening angle brackets
    and what only some dialects know by entities. Underscores within a word mean nothing to
    either: they stay readable.
    """
    parts = _URL.split(_one_line(text))
    return "".join(f"<{part}>" if place % 2 else _escaped(part) for place, part in enumerate(parts))


def name(text: str) -> str:
    """A layer's name: as code where it is an ordinary one, else as escaped text."""
    # Dialects disagree on pipes and backticks within code, so no unusual name goes there.
    return f"`{text}`" if _PLAIN_NAME.fullmatch(text) else _escaped(_one_line(text))


def table(content: wording.Table) -> str:
    """A table; the first column holds names."""
    lines = [
        [escape(heading) for heading in content.headings],
        ["---:" if right else "---" for right in content.right],
        *([name(first), *map(escape, rest)] for first, *rest in content.rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _finding(report: ReportRecord, place: int, finding: Finding) -> str:
    where = "The network" if finding.layer is None else name(finding.layer)
    title = f"### {place}. {where}: {escape(finding.title)}"
    numbers = wording.evidence(finding)
    said = [
        ("Severity", f"{finding.severity} ({finding.kind})"),
        ("Channels", wording.ranges(finding.channels)),
        ("Evidence", f"{numbers}{'; ' if numbers else ''}{wording.rests_on(finding)}"),
        ("Cause", finding.cause),
        ("Advice", finding.advice),
        ("Reference", finding.reference),
    ]
    return f"{title}\n\n" + _list([f"**{label}:** {escape(text)}" for label, text in said if text])


def _list(items: list[str]) -> str:
    # The start of an item may open a heading, a quotation or another list.
    return "\n".join(f"- {_BLOCK_START.sub(_BACKSLASH, item)}" for item in items)


def _one_line(text: str) -> str:
    """Line breaks and other control characters made visible, so that none ends a line or a table cell."""
    shown = text
    if not text.isprintable():
        shown = "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)
    return re.sub(" +", " ", shown).strip() or "(blank)"


def _escaped(text: str) -> str:
    text = _ENTITY.sub("&amp;", text).replace("<", "&lt;")
    text = _ACTIVE.sub(lambda match: "\\" + match.group(), text)
    return text.replace("~", "&#126;").replace("$", "&#36;")
