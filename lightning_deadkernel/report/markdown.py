"""A document as Markdown: for the file beside the JSON, TensorBoard's text tab and artifacts of other loggers."""

from __future__ import annotations

import re

from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.document import (
    Block,
    Bullets,
    Document,
    Name,
    Paragraph,
    Section,
    Statement,
    Statements,
    Table,
    Text,
    addresses,
    parts,
)

_ACTIVE = re.compile(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK_START, _BACKSLASH = re.compile(r"^(\d*)([#+.)>-])"), r"\1\\\2"
_ENTITY = re.compile(r"&(?=#?\w)")
"""With or without its semicolon: browsers read ``&copy`` as a sign too."""
_PLAIN_NAME = re.compile(r"[\w./:-]+")


def to_markdown(document: Document) -> str:
    """The document as CommonMark with tables and without raw HTML, ending in a newline; pictures are left out."""
    top = [f"# {escape(document.title)}", f"**{escape(document.verdict)}**" if document.verdict else ""]
    blocks = [*top, *(_block(block, level=2) for block in document.blocks)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _block(block: Block, level: int) -> str:
    if isinstance(block, Section):
        inner = [text for text in (_block(part, level + 1) for part in block.blocks) if text]
        return "\n\n".join([f"{'#' * level} {escape(block.title)}", *inner]) if inner else ""
    if isinstance(block, Paragraph):
        return _BLOCK_START.sub(_BACKSLASH, _line(block.text))
    if isinstance(block, Bullets):
        return _list([_line(item) for item in block.items])
    if isinstance(block, Table):
        return "\n\n".join([_table(block), *([escape(block.rest)] if block.rest else [])])
    if isinstance(block, Statements):
        return "\n\n".join(_statement(place, item, level) for place, item in enumerate(block.items, start=1))
    return ""


def _statement(place: int, statement: Statement, level: int) -> str:
    facts = (("Severity", f"{statement.severity} ({statement.kind})"), *statement.facts)
    items = [f"**{label}:** {escape(text)}" for label, text in facts]
    items += [f"**{part.severity}** in {_line(part.line)}" for part in statement.parts]
    return f"{'#' * level} {place}. {_line(statement.title)}\n\n{_list(items)}"


def _table(content: Table) -> str:
    lines = [
        [escape(heading) for heading in content.headings],
        ["---:" if right else "---" for right in content.right],
        *([name(first), *map(escape, rest)] for first, *rest in content.rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(items: list[str]) -> str:
    # The start of an item may open a heading, a quotation or another list.
    return "\n".join(f"- {_BLOCK_START.sub(_BACKSLASH, item)}" for item in items)


def _line(text: Text) -> str:
    return "".join(name(part.text) if isinstance(part, Name) else _words(part) for part in parts(text))


def _words(text: str) -> str:
    """Escaped, with the blanks that part it from the names beside it."""
    inner = text.strip()
    before, after = text.partition(inner)[::2] if inner else (text, "")
    return f"{before}{escape(inner) if inner else ''}{after}"


def escape(text: str) -> str:
    """Any text as inline Markdown that shows just that text, on one line; web addresses become links.

    What CommonMark and Python-Markdown (TensorBoard's) treat alike is escaped by a backslash, opening angle brackets
    and what only some dialects know by entities. Underscores within a word mean nothing to
    either: they stay readable.
    """
    found = addresses(_one_line(text))
    return "".join(f"<{part}>" if place % 2 else _escaped(part) for place, part in enumerate(found))


def name(text: str) -> str:
    """A layer's name: as code where it is an ordinary one, else as escaped text."""
    # Dialects disagree on pipes and backticks within code, so no unusual name goes there.
    return f"`{text}`" if _PLAIN_NAME.fullmatch(text) else _escaped(_one_line(text))


def _one_line(text: str) -> str:
    """Blanks made even, as Markdown would show them."""
    return re.sub(" +", " ", printable(text)).strip() or "(blank)"


def _escaped(text: str) -> str:
    text = _ENTITY.sub("&amp;", text).replace("<", "&lt;")
    text = _ACTIVE.sub(lambda match: "\\" + match.group(), text)
    return text.replace("~", "&#126;").replace("$", "&#36;")
