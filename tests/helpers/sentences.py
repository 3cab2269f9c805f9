"""Every sentence that the package can print, as its source has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import lightning_deadkernel

PACKAGE = Path(lightning_deadkernel.__file__).parent
WORDS = 4
"""Texts of fewer words are names, titles of columns and the like."""


@dataclass(frozen=True)
class Sentence:
    """A text in the source; what is filled in is None."""

    place: str
    """``"diagnosis/causes.py:12"``."""
    parts: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """With an ellipsis for what is filled in."""
        return "".join("…" if part is None else part for part in self.parts)

    def is_in(self, line: str) -> bool:
        """Whether a line has its parts, one after the other, whatever is filled in."""
        place = 0
        for part in self.parts:
            found = line.find(part.strip("\n"), place) if part is not None else place
            if found < 0:
                return False
            place = found + len(part or "")
        return True


@cache
def sentences(*folders: str) -> tuple[Sentence, ...]:
    """The sentences in some folders, or files, of the package; docstrings and what is only compared left out."""
    paths = [path for folder in folders for path in sorted((PACKAGE / folder).rglob("*.py") or [PACKAGE / folder])]
    paths += [PACKAGE / folder for folder in folders if folder.endswith(".py")]
    return tuple(sentence for path in paths for sentence in _in_file(path))


def _in_file(path: Path) -> Iterator[Sentence]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = tuple(part.value if isinstance(part, ast.Constant) else None for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts = re.split(r"\{\w*\}", node.value)
            parts = tuple(part for text in texts for part in (text, None))[:-1]
        else:
            continue
        sentence = Sentence(f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}", parts)
        if len(re.findall(r"[A-Za-z]{2,}", sentence.text)) >= WORDS and " " in sentence.text.strip():
            yield sentence
