"""Stages of layers, where there are too many for a place each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import groupby

_NUMBERED = re.compile(r"(.*?)(\d+)")


def shared_parts(parts: Sequence[Sequence[str]]) -> int:
    """How many first parts all have in common."""
    columns = list(zip(*parts, strict=False))
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _begins(name: str, depth: int) -> list[str]:
    return name.split(".")[:depth]


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
    lead = shared_parts(parts)
    if any(len(of) == lead for of in parts):
        return f"{names[0]} to {names[-1]}"
    first, last = (_NUMBERED.fullmatch(of[lead]) for of in (parts[0], parts[-1]))
    if first and last and first[1] == last[1]:
        tails = {tuple(of[lead + 1 :]) for of in parts}
        return ".".join([*parts[0][:lead], f"{first[0]}-{last[2]}", *(tails.pop() if len(tails) == 1 else ())])
    return ".".join(parts[0][:lead]) or f"{names[0]} to {names[-1]}"
