"""What a trial consists of: arms, their runs, and what they show, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from lightning_deadkernel.report.records import ReportRecord

Site: TypeAlias = "tuple[str, int | None]"
"""A kernel, by its layer's name and channel; or with None a whole layer."""
Role = Literal["control", "placebo", "change", "together", "seed"]


@dataclass(frozen=True)
class Arm:
    """One way to train the run again."""

    name: str
    role: Role
    """*control*: unchanged; *placebo*: from the same initial weights, by other random numbers (the order of the data);
    *change*: one thing is changed; *together*: several changes are; *seed*: another seed from the start."""
    changes: tuple[str, ...] = ()
    """What is changed, as one adds it to the command: ``"--model.weight_decay=0"``."""
    parts: tuple[str, ...] = ()
    """Of several changes together: the arms that have them alone."""


@dataclass(frozen=True)
class Job:
    """One training that a trial asks for."""

    arm: Arm
    order: int
    """0: the random numbers of the run itself; others: other ones."""


@dataclass(frozen=True)
class Run:
    """One training that came to its end."""

    job: Job
    report: ReportRecord
    """Of its last window."""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the model logged, at the end."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """All settings of the command by their dotted names."""

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two runs if every number of every layer is, to the last bit."""
        return hashlib.sha256(repr(self.report.layers).encode()).hexdigest()


@dataclass(frozen=True)
class Failed:
    """One training that did not."""

    job: Job
    error: str
    """Why, in a line."""


@dataclass(frozen=True)
class RunOutcome:
    """What one run of an arm came to."""

    order: int
    """0: by the random numbers of the run itself; others: by other ones."""
    free: int
    """How many of the named kernels do not show the finding."""
    found: dict[str, list[int]]
    """Layer -> its channels that show it, named or not, in the layers of the named; of whole layers an empty list."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """That it took."""
    same_as_control: bool
    """Every number of its report is that of the control."""
    metrics: dict[str, float]
    """What the model logged, at the end."""
    problems: list[str]
    """The titles of the problems that its report has."""


Verdict = Literal[
    "sufficient", "helps", "too few to tell", "no difference from chance", "changed nothing", "failed", "not run", ""
]


@dataclass(frozen=True)
class ArmOutcome:
    """What one arm showed."""

    name: str
    """A few words: ``"no weight decay"``."""
    role: Role
    """What it is for."""
    changes: list[str]
    """What was changed, as one adds it to the command."""
    verdict: Verdict
    """*sufficient*: with it alone every named kernel is free of the finding in every run, and fewer kernels show it
    than by chance; *helps*: fewer than by chance; *too few to tell*: the named are free, but of so few kernels and runs
    that could have been chance; *no difference from chance*; *changed nothing*: it ended as the control, to the last
    bit; *failed*; *not run*. Empty for control, placebo and other seeds, which are what others are held against."""
    runs: list[RunOutcome]
    """By their order; those that failed are not among them."""
    p_value: float | None = None
    """Of Fisher's exact test: how often as few kernels or fewer would show the finding if the change did nothing;
    adjusted for the number of changes that were tried (Holm)."""
    error: str = ""
    """Why a run failed, in a line."""
    missing: int = 0
    """Runs that were meant to be and were not made."""


@dataclass(frozen=True)
class Overlap:
    """Whether the same kernels show the finding under another seed."""

    runs: int
    """Runs under other seeds."""
    found: list[int]
    """In each, how many kernels of the layers of the named show it."""
    shared: int
    """How many of those do so in the control too, over all these runs."""
    expected: float
    """What chance would give: the mean of hypergeometric draws of as many kernels."""
    p_value: float
    """How often such draws would share as many or more."""


@dataclass(frozen=True)
class Untried:
    """A suspect for which nothing could be changed."""

    name: str
    """Of the change."""
    why: str
    """Which setting was looked for, and not found."""


@dataclass(frozen=True)
class TrialRecord:
    """What training again showed of a finding."""

    title: str
    """What was found, in a line: ``"conv1: 3 of 16 kernels are dead (decayed)"``."""
    kind: str
    """Of the finding, e.g. ``"dead_channels"``."""
    causes: list[str]
    """That the report names, a word each."""
    named: dict[str, list[int]]
    """Layer -> the channels that are asked about; an empty list: the layer as a whole."""
    kernels: int
    """Kernels of the layers of the named, any of which could show it; of a finding about whole layers, layers."""
    reproduced: int | None
    """How many of the named show the finding again in the control; None where the control was not made."""
    bit_for_bit: bool
    """Training the run again gave the same to the last bit."""
    arms: list[ArmOutcome]
    """The control first, then the placebo, then changes, the smallest first."""
    seeds: Overlap | None
    """Whether the same kernels show it under another seed; None where no such run was made."""
    untried: list[Untried]
    """Suspects that could not be tried."""
    conclusion: list[str]
    """What follows, in sentences; the first is the answer."""
    stopped: str = ""
    """Why not all was run; empty where it was."""
    notes: list[str] = field(default_factory=list)
    """What else to know of how it was made."""
