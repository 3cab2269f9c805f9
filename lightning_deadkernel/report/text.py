"""Numbers and names in words for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, islice

NOT_OBSERVED = "-"


def ranges(channels: Sequence[int], limit: int = 8) -> str:
    """Ascending channel indices as ranges: ``"0-3, 7, 9-12"``; beyond `limit` of them, the rest is counted."""
    shown, told = [], 0
    for _, group in islice(groupby(enumerate(channels), lambda pair: pair[1] - pair[0]), limit):
        run = [channel for _, channel in group]
        shown.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
        told += len(run)
    rest = len(channels) - told
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def count(number: int, noun: str) -> str:
    """``"1 layer"``, ``"12,000 samples"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def number(value: float | int | str | None) -> str:
    """A number for people: three significant digits, thousands apart, a dash for what was not observed."""
    if value is None:
        return NOT_OBSERVED
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value != value:
        return NOT_OBSERVED
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share as a percentage, never rounded to nothing or to all of it."""
    if share is None or share != share:
        return NOT_OBSERVED
    if 0 < share < 1e-4:
        return "<0.01%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.2g}%" if share < 0.01 else f"{100 * share:.3g}%"


def size(of_bytes: int) -> str:
    """``"9.26 kB"``."""
    if of_bytes < 1000:
        return f"{of_bytes} bytes"
    power = min(len(f"{of_bytes}") - 1, 11) // 3
    return f"{number(of_bytes / 1000**power)} {('kB', 'MB', 'GB')[power - 1]}"


def shortened(name: str, width: int) -> str:
    """A name cut in its middle, since both its ends tell layers apart."""
    if len(name) <= width:
        return name
    head = (width - 2) // 2
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}" if width > 4 else name[:width]
