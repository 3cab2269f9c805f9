"""Layers' names where there is little room."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.stages import shared_parts
from lightning_deadkernel.report.text import shortened

LENGTH = 24


def labels_of(names: Sequence[str], length: int = LENGTH) -> dict[str, str]:
    """Each name in at most `length` letters as far as that leaves it apart from the others: name -> label.

    Where one is too long, what all names begin with is left out; of a label that still is, words but not numbers are
    cut to their first letters, and where that does not do, its middle is left out.
    """
    parts = {name: name.split(".") for name in names}
    shared = min(shared_parts(list(parts.values())), min(map(len, parts.values()), default=1) - 1)
    bare = {name: ".".join(of[shared:] if len(parts) > 1 else of) for name, of in parts.items()}
    words = [_words_cut(letters) for letters in (4, 2, 1)]
    cuts: list[Callable[[str], str]] = [str, *words, lambda label: shortened(words[-1](label), length)]
    for full in ({name: name for name in names}, bare):
        for cut in cuts if full is bare else cuts[:1]:
            labels = {name: printable(label if len(label) <= length else cut(label)) for name, label in full.items()}
            if max(map(len, labels.values()), default=0) <= length and len(set(labels.values())) == len(labels):
                return labels
    return {name: printable(label) for name, label in bare.items()}


def _words_cut(letters: int) -> Callable[[str], str]:
    def cut(label: str) -> str:
        *words, last = label.split(".")
        return ".".join([*(re.sub(rf"([^\W\d]{{{letters}}})[^\W\d]+", r"\1", word) for word in words), last])

    return cut
