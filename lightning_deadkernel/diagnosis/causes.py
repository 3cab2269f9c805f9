"""Every cause there is, in one table: the word for it, whether anyone is to blame for it, and how it is stated.

A cause is a claim: whoever states one has tested its premise on evidence and history. Where no premise holds, the cause
is `UNKNOWN` and says what was ruled out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Evidence = dict[str, float | int | str]


@dataclass(frozen=True)
class CauseKind:
    """A cause in general; what severity it deserves follows from its attributes."""

    word: str
    """What `Finding.cause` begins with."""
    on_purpose: bool = False
    """Someone asked for it: never more than worth knowing."""
    by_chance: bool = False
    """The draw of the initial weights or ordinary drift does it to a few channels of any healthy network."""
    elsewhere: bool = False
    """The root lies in another layer, whose own finding is to be read first."""

    def because(
        self, explanation: str, advice: str, reference: str, evidence: Mapping[str, float | int | str] | None = None
    ) -> Cause:
        """This cause at work in one place."""
        return Cause(self, explanation, advice, reference, dict(evidence or {}))


@dataclass(frozen=True)
class Cause:
    """A cause at work in one place, with what to do about it."""

    kind: CauseKind
    explanation: str
    advice: str
    reference: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """`Finding.cause`."""
        return f"{self.kind.word}: {self.explanation}"


PRUNED = CauseKind("pruned", on_purpose=True)
UPSTREAM_DEAD = CauseKind("upstream dead", elsewhere=True)
ZERO_AT_INITIALISATION = CauseKind("zero at initialisation")
DECAYED = CauseKind("decayed")
KNOCKED_OUT = CauseKind("knocked out")
SHIFT_NEGATIVE = CauseKind("shift driven negative")
BORN_DEAD = CauseKind("born dead", by_chance=True)
FADED = CauseKind("faded", by_chance=True)
DEAD_DOWNSTREAM = CauseKind("dead downstream", elsewhere=True)
OUTGOING_ZERO = CauseKind("outgoing zero", elsewhere=True)
FLAT_LOSS = CauseKind("flat loss")
UNDERFLOW = CauseKind("underflow")
NOT_IN_OPTIMIZER = CauseKind("not in the optimizer")
BELOW_RESOLUTION = CauseKind("below resolution")
SATURATED = CauseKind("saturated")
DEPTH = CauseKind("depth")
CONSTANT_INITIALISATION = CauseKind("constant initialisation")
RECKLESS_UPDATES = CauseKind("reckless updates")
SLOW_UPDATES = CauseKind("slow updates")
OVERFLOW = CauseKind("overflow")
DEAD_CHANNELS = CauseKind("dead channels")
HEAVY_TAILS = CauseKind("heavy tails")
LOW_ACTIVITY = CauseKind("low activity")
RECOVERED = CauseKind("recovered")
UNKNOWN = CauseKind("unknown")
