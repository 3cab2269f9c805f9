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
    """The root is another finding, mostly of another layer, which is to be read first."""
    family: str = ""
    """The word of the cause that stands for it where causes are grouped; its own where empty."""

    @property
    def group(self) -> str:
        """What findings of one problem have in common."""
        return self.family or self.word

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
SCALE_COLLAPSED = CauseKind("scale collapsed")
KNOCKED_OUT = CauseKind("knocked out", family="reckless updates")
SLINGSHOT = CauseKind("slingshot")
SHIFT_NEGATIVE = CauseKind("shift driven negative")
BORN_DEAD = CauseKind("born dead", by_chance=True)
FADED = CauseKind("faded", by_chance=True)
DEAD_DOWNSTREAM = CauseKind("dead downstream", elsewhere=True)
NO_GRADIENT_DOWNSTREAM = CauseKind("no gradient downstream", elsewhere=True)
SATURATED_DOWNSTREAM = CauseKind("saturated downstream", elsewhere=True)
GRADIENT_TAKEN = CauseKind("gradient taken away")
ZEROED_BETWEEN = CauseKind("zeroed in between")
OUTGOING_ZERO = CauseKind("outgoing zero", elsewhere=True)
IGNORED_BY_LOSS = CauseKind("ignored by the loss")
OTHER_SUMMAND = CauseKind("another summand")
CUT_OFF = CauseKind("cut off")
NO_INPUT = CauseKind("no input")
BACKWARD_NOT_SEEN = CauseKind("backward not seen")
UNREADABLE = CauseKind("unreadable")
FLAT_LOSS = CauseKind("flat loss")
UNDERFLOW = CauseKind("underflow")
NOT_IN_OPTIMIZER = CauseKind("not in the optimizer")
BELOW_RESOLUTION = CauseKind("below resolution")
SATURATED = CauseKind("saturated")
DEPTH = CauseKind("depth")
CONSTANT_INITIALISATION = CauseKind("constant initialisation")
RECKLESS_UPDATES = CauseKind("reckless updates")
EPSILON_DOMINATES = CauseKind("epsilon dominates")
SHRUNKEN_WEIGHTS = CauseKind("shrunken weights")
SLOW_UPDATES = CauseKind("slow updates")
NO_STEP = CauseKind("no step")
NO_RATE = CauseKind("learning rate zero")
RATE_SPENT = CauseKind("learning rate next to zero")
CLIPPED = CauseKind("clipped")
OVERFLOW = CauseKind("overflow")
DEAD_CHANNELS = CauseKind("dead channels", elsewhere=True)
OFF_SCALE_INPUTS = CauseKind("off-scale inputs")
DEAD_INPUTS = CauseKind("dead inputs")
HEAVY_TAILS = CauseKind("heavy tails")
LOW_ACTIVITY = CauseKind("low activity")
NEVER_SELECTED = CauseKind("never selected")
NOT_IN_THE_DATA = CauseKind("not in the data", by_chance=True)
RECOVERED = CauseKind("recovered")
UNKNOWN = CauseKind("unknown")
