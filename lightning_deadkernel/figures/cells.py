"""Channels as coloured cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_deadkernel.report.states import COLOURS, WORD_OF_CODE, WORDS

Array = np.ndarray[Any, Any]

EMPTY = len(WORDS)
"""Place of the paper's colour, after all words."""


def colour_table() -> Array:
    """(words + 1, 3) uint8 colours by a word's place; the last is the paper's."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(COLOURS[word]) for word in WORDS] + [(1, 1, 1)])
    return np.asarray((colours * 255).round(), np.uint8)


def places_of(codes: bytes) -> Array:
    """(C,) uint8 places in `WORDS` of what each channel is shown as."""
    return np.frombuffer(codes.translate(WORD_OF_CODE), np.uint8)
