"""Two files of one network: which kernels are bitwise the same, which faded or came back, how much the rest moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_deadkernel.analysis.state_dict import weights_of, widened
from lightning_deadkernel.functional.kernels import row_norms
from lightning_deadkernel.report.document import Bullets, Name, Paragraph, Section, Table, Text
from lightning_deadkernel.report.text import NOT_OBSERVED, count, percent, ranges

FADED = 0.1
"""A kernel has faded where its norm is at most this share of what it was."""


@dataclass(frozen=True)
class LayerChange:
    """What has become of one layer's kernels; kernels that hold NaN or infinity in either file are in none of these."""

    name: str
    channels: int
    unchanged: list[int]
    """Not zero, and bitwise what they were."""
    faded: list[int]
    """With a norm of at most `FADED` of what it was."""
    back: list[int]
    """Zero before, and not now."""
    zero: list[int]
    """Zero in both."""
    change: float | None
    """Median of ||now - before|| / ||before|| over the kernels that were not zero; None without any."""


def changes(now: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[list[LayerChange], list[tuple[str, str]]]:
    """Each layer that both state dicts have, with the same shape; and of the others, why they cannot be compared."""
    new, old = (
        dict(weights_of({str(name): value for name, value in state.items() if isinstance(value, Tensor)}))
        for state in (now, before)
    )
    found, left_out = [], []
    for name in dict.fromkeys((*new, *old)):
        weight, other = new.get(name), old.get(name)
        if any(isinstance(side, Tensor) and side.dim() < 2 for side in (weight, other)):
            continue
        if not isinstance(weight, Tensor) or not isinstance(other, Tensor):
            there = weight if isinstance(weight, str) else other if isinstance(other, str) else None
            left_out.append((name, there or f"only in the {'later' if name in new else 'earlier'} file"))
        elif weight.shape != other.shape:
            left_out.append((name, f"of shape {list(other.shape)} before, {list(weight.shape)} now"))
        else:
            found.append(_change(name, weight, other))
    return found, left_out


def _change(name: str, weight: Tensor, other: Tensor) -> LayerChange:
    same = (weight == other).flatten(1).all(1)
    rows, earlier = (widened(side).flatten(1).double() for side in (weight, other))
    size, was, moved = row_norms(rows), row_norms(earlier), row_norms(rows - earlier)
    finite = size.isfinite() & was.isfinite()
    there = finite & (was > 0)
    ratios = moved[there] / was[there]

    def where(mask: Tensor) -> list[int]:
        found: list[int] = (mask & finite).nonzero().flatten().tolist()
        return found

    return LayerChange(
        name,
        len(rows),
        unchanged=where(same & (was > 0)),
        faded=where((was > 0) & (size <= FADED * was)),
        back=where((was == 0) & (size > 0)),
        zero=where((was == 0) & (size == 0)),
        change=float(ratios.median()) if ratios.numel() else None,
    )


def since(now: Mapping[str, Any], before: Mapping[str, Any], earlier: str) -> Section:
    """What has changed since an earlier file, in words, a table, and the kernels by their indices."""
    layers, left_out = changes(now, before)
    total = {kind: sum(len(getattr(layer, kind)) for layer in layers) for kind in _KINDS}
    known = sum(layer.channels for layer in layers)
    opening: Text = (
        "Of ",
        f"{count(known, 'kernel')} in {count(len(layers), 'layer')}, since ",
        Name(earlier),
        f": {', '.join(f'{total[kind]:,} {words}' for kind, words in _KINDS.items())}.",
    )
    rows = tuple(
        (
            layer.name,
            f"{layer.channels:,}",
            *(f"{len(getattr(layer, kind)):,}" for kind in _KINDS),
            percent(layer.change) if layer.change is not None else NOT_OBSERVED,
        )
        for layer in layers
    )
    named: list[Text] = [
        (Name(layer.name), f": {'; '.join(f'{kind} {ranges(k)}' for kind in _KINDS if (k := getattr(layer, kind)))}")
        for layer in layers
        if any(0 < len(getattr(layer, kind)) < layer.channels for kind in _KINDS)
    ]
    named += [(Name(name), f" is not compared: {why}") for name, why in left_out]
    headings = ("layer", "kernels", *_KINDS, "median change")
    table = Table(headings, rows, (False, *[True] * (len(headings) - 1)))
    return Section(
        "Since the earlier file",
        (Paragraph(opening), *([table] if rows else []), *([Bullets(tuple(named))] if named else [])),
    )


_KINDS = {
    "unchanged": "bitwise unchanged",
    "faded": f"faded to {percent(FADED)} of their norm or less",
    "back": "zero before and back",
    "zero": "zero in both",
}
