"""What follows from a trial, in sentences that claim no more than was shown."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_deadkernel.analysis.trial.records import Arm, ArmOutcome, Overlap
from lightning_deadkernel.analysis.trial.statistics import SIGNIFICANT
from lightning_deadkernel.analysis.trial.target import Target
from lightning_deadkernel.analysis.trial.verdict import Evidence
from lightning_deadkernel.report.text import count, number

SHOWN = 60
"""Letters of what was changed that a sentence has room for; what is longer is in the list of changes."""


def conclude(evidence: Evidence, arms: Sequence[ArmOutcome], seeds: Overlap | None) -> list[str]:
    """The answer first, then what it rests on."""
    words = _Words(evidence.target)
    sentences = [
        _answer(evidence, arms, words),
        _helping(arms, words),
        _reproduction(evidence, words),
        _chance(evidence, words),
        _other_seeds(seeds, words),
        _unclear(evidence, arms, words),
        _not_run(arms),
    ]
    return [sentence for sentence in sentences if sentence]


class _Words:
    """How to speak of what a trial asks about."""

    def __init__(self, target: Target) -> None:
        self.named, self.kernels = len(target.named), target.kernels
        self.noun = "layer" if target.whole else "kernel"
        self._is, self.are, self._not = (
            ("is dead", "are dead", "is not dead")
            if target.kind == "dead_channels"
            else ("shows it", "show it", "does not show it")
        )

    def of_named(self, some: str, one: bool = False) -> str:
        """``"3 of 5 named kernels are dead"``."""
        if self.named == 1:
            return f"the named {self.noun} {self._not if some == '0' else self._is}"
        return f"{some} of {self.named:,} named {self.noun}s {self._is if one else self.are}"

    @property
    def all_named(self) -> str:
        """``"all 5 named kernels are dead"``."""
        return self.of_named("1") if self.named == 1 else f"all {self.named:,} named {self.noun}s {self.are}"

    @property
    def no_named(self) -> str:
        """``"none of 5 named kernels is dead"``."""
        return self.of_named("0") if self.named == 1 else self.of_named("none", one=True)

    def of_all(self, some: str, runs: int = 1) -> str:
        """``"3 of 48 kernels"``."""
        return f"{some} of {count(self.kernels * runs, self.noun)}"


# -- the answer -------------------------------------------------------------------------------------------------------


def _answer(evidence: Evidence, arms: Sequence[ArmOutcome], words: _Words) -> str:
    changes = [arm for arm in arms if arm.role == "change"]
    sufficient = [arm for arm in changes if arm.verdict == "sufficient"]
    if sufficient:
        return _sufficient(evidence, sufficient, words)
    outcomes = {arm.name: arm for arm in arms}
    together = [arm for arm in evidence.arms if arm.role == "together"]
    joint = [arm for arm in together if outcomes[arm.name].verdict == "sufficient"]
    if joint:
        return _jointly(evidence, max(joint, key=lambda arm: len(arm.parts)), outcomes, words)
    if not any(arm.runs for arm in changes):
        return f"No change was {'trained to its end' if changes else 'tried'}, so nothing follows of what did it."
    if evidence.is_all_chance:
        return f"Chance alone does it: with nothing but other random numbers {words.no_named} {_in(evidence.chance)}."
    if any(arm.verdict == "helps" for arm in changes):
        return "No change was shown to suffice."
    if any(arm.verdict == "too few to tell" for arm in changes):
        return f"Nothing was shown: of so few {words.noun}s and runs no change can be told from chance."
    tried = count(sum(bool(arm.runs) for arm in changes), "change")
    also = ", nor do all of them together" if together else ""
    return f"Nothing that was tried helps: {tried}, of which none does more than chance{also}."


def _sufficient(evidence: Evidence, arms: Sequence[ArmOutcome], words: _Words) -> str:
    first = arms[0]
    shown = (
        f"{_by(first)}: with that alone changed {words.no_named} {_in(first.runs)}{_against(evidence, first, words)}"
    )
    if len(arms) == 1:
        return (
            f"{_begin(first.name)} suffices{shown}. So in this run what it takes away was necessary; of other runs"
            " that was not shown."
        )
    return (
        f"Each of {len(arms)} changes suffices by itself: {', '.join(arm.name for arm in arms)}. So in this run each"
        " thing that they take away was necessary, and none of them alone is the cause. The smallest change is"
        f" {first.name}{shown}."
    )


def _by(arm: ArmOutcome) -> str:
    text = " ".join(arm.changes)
    return f" ({text})" if 0 < len(text) <= SHOWN else ""


def _against(evidence: Evidence, arm: ArmOutcome, words: _Words) -> str:
    here, by_chance = evidence.counts(arm.name), evidence.counts()
    if arm.p_value is None or by_chance is None or here is None:
        return ""
    chance = f"against {words.of_all(f'{by_chance.found:,}', by_chance.runs)} by chance (p = {number(arm.p_value)})"
    if words.kernels == words.named:
        return f", {chance}"
    return f", and {words.of_all(f'{here.found:,}', here.runs)} in all, {chance}"


def _jointly(evidence: Evidence, full: Arm, outcomes: dict[str, ArmOutcome], words: _Words) -> str:
    alone = {arm.parts or (arm.name,): outcomes[arm.name] for arm in evidence.arms if arm is not full}
    without = {part: alone.get(tuple(other for other in full.parts if other != part)) for part in full.parts}
    known = {part: outcome.verdict for part, outcome in without.items() if outcome is not None and outcome.runs}
    needed = [part for part, verdict in known.items() if verdict != "sufficient"]
    spare = [part for part, verdict in known.items() if verdict == "sufficient"]
    outcome = outcomes[full.name]
    text = (
        f"No change suffices alone, but together they do ({', '.join(full.parts)}): {words.no_named}"
        f" {_in(outcome.runs)}{_against(evidence, outcome, words)}. More than one cause is enough, so none is named"
        " alone."
    )
    if needed:
        text += f" {_begin(_and(needed))} {'is' if len(needed) == 1 else 'are'} needed among them."
    if spare:
        text += f" Without {_and(spare, 'or')} the others still suffice."
    return text


def _helping(arms: Sequence[ArmOutcome], words: _Words) -> str:
    shown = []
    for arm in arms:
        if arm.verdict == "helps":
            free = sum(run.free for run in arm.runs)
            shown.append(
                f"{arm.name} ({free:,} of {words.named * len(arm.runs):,} free of it, p = {number(arm.p_value)})"
            )
    return f"More than chance, but not shown to be enough: {', '.join(shown)}." if shown else ""


# -- what it rests on -------------------------------------------------------------------------------------------------


def _reproduction(evidence: Evidence, words: _Words) -> str:
    shown = evidence.reproduced
    if shown is None:
        return "The run was not repeated unchanged, so whether it comes out the same again is not known."
    if shown < words.named:
        return (
            f"The run does not repeat: unchanged, {words.of_named(f'{shown:,}')} again. So no change is said to"
            " suffice, only whether it does more than chance."
        )
    if evidence.bit_for_bit:
        but = "" if evidence.as_reported else ", though not to that of the report (other threads, machine or versions)"
        return f"Unchanged, the run repeats to the last bit{but}: {words.all_named} again."
    return (
        f"Unchanged, {words.all_named} again, but not to the last bit: some of the run's arithmetic or random numbers"
        " are not fixed."
    )


def _chance(evidence: Evidence, words: _Words) -> str:
    runs = evidence.chance
    if not runs:
        return "What chance alone does was not run, so no change could be held against it."
    if any(run.fingerprint == evidence.reference.fingerprint for run in runs):
        return (
            "Other random numbers after the start change nothing: the data come in the same order, and nothing else is"
            " drawn. What chance does was not measured."
        )
    found = evidence.found(runs)
    named = _and([f"{len(evidence.target.named & sites):,}" for sites in found])
    all_ = _and([f"{len(sites):,}" for sites in found])
    return (
        "By chance, from the same initial weights with the data in another order,"
        f" {words.of_named(named)}{f', and {words.of_all(all_)} in all' * (words.kernels > words.named)}."
    )


def _other_seeds(seeds: Overlap | None, words: _Words) -> str:
    if seeds is None:
        return ""
    found = _and([f"{some:,}" for some in seeds.found])
    text = f"With {count(seeds.runs, 'other seed')} {words.of_all(found)} {words.are}"
    if not any(seeds.found):
        return f"{text}."
    more = "more of" if seeds.p_value < SIGNIFICANT else "no more of"
    return (
        f"{text}, {more} them the same ones than by chance: {seeds.shared:,} where {number(seeds.expected)} is expected"
        f" (p = {number(seeds.p_value)}). With other weights an index is no more than a place."
    )


def _unclear(evidence: Evidence, arms: Sequence[ArmOutcome], words: _Words) -> str:
    nothing = [arm.name for arm in arms if arm.verdict == "changed nothing"]
    few = [arm.name for arm in arms if arm.verdict == "too few to tell"]
    sentences = []
    if nothing:
        sentences.append(f"{_begin(_and(nothing))} changed nothing: training ended as it did before, to the last bit.")
    if few:
        seeds = evidence.seeds_to_tell()
        how = f"--seeds {seeds} can, if they come out alike" if seeds else "more --seeds may"
        sentences.append(f"Under {_and(few)} {words.no_named}, but that cannot be told from chance yet: {how}.")
    return " ".join(sentences)


def _not_run(arms: Sequence[ArmOutcome]) -> str:
    missing = [f"{arm.name} ({count(arm.missing, 'run')})" for arm in arms if arm.missing]
    return f"Not run: {', '.join(missing)}." if missing else ""


def _in(runs: Sequence[object]) -> str:
    return "in the one run" if len(runs) == 1 else f"in any of {len(runs)} runs"


def _and(names: Sequence[str], word: str = "and") -> str:
    return f"{', '.join(names[:-1])} {word} {names[-1]}" if len(names) > 1 else "".join(names)


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]
