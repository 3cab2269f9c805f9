"""Layers' names where there is little room, and stages of layers where there are too many for a name each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

from lightning_deadkernel.report.text import shortened

LENGTH = 24
_NUMBERED = re.compile(r"(.*?)(\d+)")


def labels_of(names: Sequence[str], length: int = LENGTH) -> dict[str, str]:
    """Each name in at most `length` letters as far as that leaves it apart from the others: name -> label.

    Where one is too long, what all names begin with is left out; of a label that still is, words but not numbers are
    cut to their first letters, and where that does not do, its middle is left out.
    """
    parts = {name: name.split(".") for name in names}
    shared = min(_shared(list(parts.values())), min(map(len, parts.values()), default=1) - 1)
    bare = {name: ".".join(of[shared:] if len(parts) > 1 else of) for name, of in parts.items()}
    words = [_words_cut(letters) for letters in (4, 2, 1)]
    cuts: list[Callable[[str], str]] = [str, *words, lambda label: shortened(words[-1](label), length)]
    for full in ({name: name for name in names}, bare):
        for cut in cuts if full is bare else cuts[:1]:
            labels = {name: label if len(label) <= length else cut(label) for name, label in full.items()}
            if max(map(len, labels.values()), default=0) <= length and len(set(labels.values())) == len(labels):
                return labels
    return bare


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many first parts all have in common."""
    columns = list(zip(*parts, strict=False))
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _begins(name: str, depth: int) -> list[str]:
    return name.split(".")[:depth]


def _words_cut(letters: int) -> Callable[[str], str]:
    def cut(label: str) -> str:
        *words, last = label.split(".")
        return ".".join([*(re.sub(rf"([^\W\d]{{{letters}}})[^\W\d]+", r"\1", word) for word in words), last])

    return cut


def stages_of(names: Sequence[str], most: int) -> list[list[str]]:
    """Names in order, in at most `most` groups: by what they begin with, and evenly where that tells too little."""
    if len(names) <= most:
        return [[name] for name in names]
    groups = [list(names)]
    for depth in range(1, max(name.count(".") for name in names) + 2):
        finer = [list(group) for _, group in groupby(names, partial(_begins, depth=depth))]
        if len(finer) > most:
            break
        groups = finer
    if len(groups) > most / 3:
        return groups
    size = math.ceil(len(names) / (most - len(groups)))
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def stage_label(names: Sequence[str]) -> str:
    """What stands for a stage: ``"layer3.0-5"``, ``"stages.2.block.20-27.conv"``, ``"conv1 to layer1.2.conv2"``."""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    lead = _shared(parts)
    if any(len(of) == lead for of in parts):
        return f"{names[0]} to {names[-1]}"
    first, last = (_NUMBERED.fullmatch(of[lead]) for of in (parts[0], parts[-1]))
    if first and last and first[1] == last[1]:
        tails = {tuple(of[lead + 1 :]) for of in parts}
        return ".".join([*parts[0][:lead], f"{first[0]}-{last[2]}", *(tails.pop() if len(tails) == 1 else ())])
    return ".".join(parts[0][:lead]) or f"{names[0]} to {names[-1]}"
