"""What a kernel can be: one table, which codes, counts, legends, colours and pages are read from.

A code is one byte a kernel: the state's place in `STATES` in its low four bits, and `FLAGS`, which may accompany any
state, in its high four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from lightning_deadkernel.observation import Gating

State = Literal["active", "dead", "saturated", "silent", "starved", "frozen", "zero-gradient", "excluded", "unknown"]


@dataclass(frozen=True)
class Word:
    """A state, or a flag, and all that is said of it anywhere."""

    name: str
    meaning: str
    """Completes "a kernel that ...", for legends, the HTML report and the pages."""
    gravity: int
    """The largest is the worst: which word a title speaks of, and a cell that stands for several kernels shows."""
    colour: str = ""
    """Of a cell, a line and a legend; empty for a flag that colours no cell."""
    fault: bool = False
    """Whether it is worth a line in a title."""
    adjective: str = ""
    """In "3 of 16 kernels ..."; the name where empty."""
    needs_activation: bool = False
    """Cannot be told from gradients and weights."""
    bit: int = 0
    """Of a flag: its bit in a code; 0 for a state."""
    logged: tuple[Gating | None, ...] = ()
    """The kinds of activation of the layers whose share of such kernels is a scalar; None: where none is read."""

    @property
    def attribute(self) -> str:
        """The property of `LayerReport` that lists these kernels."""
        return "zero_kernels" if self.name == "zero_kernel" else self.name.replace("-", "_")

    @property
    def text(self) -> str:
        """The name in a sentence."""
        return self.adjective or self.name

    @property
    def heading(self) -> str:
        """The name at the head of a column."""
        return self.attribute.replace("_", " ")


STATE_BITS = 0b0000_1111
DORMANT, RARE, ZERO_KERNEL, FROZEN = 0b0001_0000, 0b0010_0000, 0b0100_0000, 0b1000_0000

_READ: tuple[Gating | None, ...] = ("rectifier", "leaky", "smooth", "bounded")
_ALL = (*_READ, None)

_STATES = (
    Word("active", "fires, has a gradient, changes", 0, "#BAD3DF"),
    Word(
        "dead",
        "never fired behind a rectifier such as ReLU",
        10,
        "#C93F00",
        fault=True,
        needs_activation=True,
        logged=_READ,
    ),
    Word(
        "saturated",
        "stays on a flat end of its activation",
        9,
        "#AC87A8",
        fault=True,
        needs_activation=True,
        logged=("smooth", "bounded"),
    ),
    Word("silent", "never fired, but gradient passes: may come back", 3, "#E5D89C", fault=True, needs_activation=True),
    Word("starved", "fires, but no gradient comes back", 8, "#E29900", fault=True, logged=_READ),
    Word("frozen", "has a gradient, but not one bit changed", 7, "#73B6FF", fault=True),
    Word(
        "zero-gradient",
        "has no gradient, and no activation to tell why",
        6,
        "#0076E3",
        fault=True,
        adjective="without gradient",
        logged=(None,),
    ),
    Word("excluded", "is not watched", 2, "#7C7D67"),
    Word("unknown", "was not seen, or its evidence contradicts itself", 5, "#4B3B6B"),
)
"""Names and places are written into checkpoints and files: new states go to the end."""
_FLAGS = (
    Word("zero_kernel", "its weights, or its norm's scale, are zero or next to it", 0, bit=ZERO_KERNEL, logged=_ALL),
    Word("dormant", "active, but hardly", 4, "#586A70", True, bit=DORMANT, needs_activation=True, logged=_READ),
    Word("rare", "active, but seldom", 1, "#ACAFA2", bit=RARE, needs_activation=True),
    Word("frozen", "not one bit of it changed", 0, bit=FROZEN, logged=_ALL),
)

STATES: tuple[State, ...] = tuple(word.name for word in _STATES)  # type: ignore[misc]
"""Every state of a kernel; its place here is its number in `LayerReport.codes`."""
FLAGS: dict[str, int] = {word.name: word.bit for word in _FLAGS}
"""Flag name -> its bit in `LayerReport.codes`."""
SHOWN: tuple[Word, ...] = (*_STATES, *(word for word in _FLAGS if word.colour))
"""All that a kernel can be shown as: its state, or a flag where it is active in name only."""
_NOT_COUNTED = ("active", "excluded")
COUNTED: tuple[Word, ...] = (
    *(word for word in _STATES if word.name not in _NOT_COUNTED),
    *(word for word in _FLAGS if word.bit != FROZEN),
)
"""All that is counted a layer, in the order of columns."""
ZERO_KERNEL_FLAG, FROZEN_FLAG = _FLAGS[0], _FLAGS[-1]
WORDS: tuple[str, ...] = tuple(word.name for word in SHOWN)
COLOURS: dict[str, str] = {word.name: word.colour for word in SHOWN}
"""Name -> colour. Apart by 13 or more in CIEDE2000 to every eye, with any kind of colour blindness, and from white."""
BY_NAME: dict[str, Word] = {word.name: word for word in SHOWN}


def word_of(code: int) -> str:
    """What a kernel is shown as."""
    state = STATES[code & STATE_BITS] if code & STATE_BITS < len(STATES) else "unknown"
    if state != "active":
        return state
    return "dormant" if code & DORMANT else "rare" if code & RARE else "active"


WORD_OF_CODE = bytes(WORDS.index(word_of(code)) for code in range(256))
"""Code of a kernel -> place of its word in `WORDS`; a table, so that many codes are looked up at once."""


@cache
def _masked(bits: int) -> bytes:
    return bytes(code & bits for code in range(256))


def channels_with(codes: bytes, bits: int, value: int) -> list[int]:
    """Channels whose code has this value under a mask of bits; next to no time where there is none."""
    found = codes.translate(_masked(bits))
    channels: list[int] = (np.frombuffer(found, np.uint8) == value).nonzero()[0].tolist() if value in found else []
    return channels


def worst(words: Sequence[str]) -> str:
    """The worst of several names."""
    return max(words, key=lambda name: BY_NAME[name].gravity)
