"""One colour per state, in every picture and in the HTML report."""

from __future__ import annotations

from lightning_deadkernel.report.report import DORMANT, RARE, STATE_BITS, STATES

STATE_COLOURS = {
    "active": "#DCE6EC",
    "dead": "#D55E00",
    "saturated": "#CC79A7",
    "silent": "#F0E442",
    "starved": "#E69F00",
    "frozen": "#56B4E9",
    "zero-gradient": "#0072B2",
    "excluded": "#999999",
}
"""Okabe & Ito's palette, told apart by people with any kind of colour blindness (https://jfly.uni-koeln.de/color/).
What is well is pale, so that what is not stands out."""

FLAG_COLOURS = {"dormant": "#7D8B94", "rare": "#AFC3CF"}
"""Shades of the active colour for active channels that hardly are."""

GOOD, LINE, FAINT, BAND = "#009E73", "#0072B2", "#56B4E9", "#E69F00"
"""Colours of lines and bands that stand for no state."""

COLOURS = {**STATE_COLOURS, **FLAG_COLOURS}
"""Word -> colour, of everything that a channel can be shown as."""
WORDS = tuple(COLOURS)


def word_of(code: int) -> str:
    """What a channel is shown as: its state, or a flag where it is active in name only."""
    state = STATES[code & STATE_BITS]
    if state != "active":
        return state
    return "dormant" if code & DORMANT else "rare" if code & RARE else "active"


WORD_OF_CODE = bytes(
    WORDS.index(word_of(code)) if code & STATE_BITS < len(STATES) else WORDS.index("excluded") for code in range(256)
)
"""Code of a channel -> place of its word in `WORDS`; a table, so that many codes are looked up at once."""
