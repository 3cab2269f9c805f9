"""Findings to problems: what has one root is told once, root first, with what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_deadkernel.diagnosis.causes import NO_GRADIENT_DOWNSTREAM, UNKNOWN
from lightning_deadkernel.diagnosis.rule import titled
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.report.records import SEVERITIES, Finding, Problem
from lightning_deadkernel.report.sentences import certified, listed, prospect
from lightning_deadkernel.report.text import count

SHOWN = 3
_RULES = {rule.kind: rule for rule in RULES}
_CAUSES = {cause.word: cause for rule in RULES for cause in rule.causes}


def find_problems(findings: Sequence[Finding], when: Callable[[int], str]) -> tuple[Problem, ...]:
    """The problems behind the findings that are more than worth knowing, the worst first.

    Findings belong together if their causes do, whatever their layer. A finding whose root is another one (what reads
    the layer is dead, say) is listed under it, however many layers lie between.

    Args:
        findings: of one window, the worst first.
        when: the end of a window, by its index, in the words of the run's clock.
    """
    serious = [place for place, finding in enumerate(findings) if finding.severity != "info"]
    roots: dict[int, list[int]] = {}
    """Place of the finding that stands for a root -> places of all that belong to it."""
    by_group: dict[tuple[str, str], int] = {}
    for place in serious:
        root = _root_of(findings, place, serious)
        first = by_group.setdefault(_group(findings[root]), root)
        roots.setdefault(first, []).append(place)
    problems = [_problem(findings, places, when) for places in roots.values()]
    return tuple(sorted(problems, key=_rank))


def _rank(problem: Problem) -> tuple[int, int]:
    return -SEVERITIES.index(problem.severity), problem.places[0]


def _is_consequence(finding: Finding) -> bool:
    return _CAUSES.get(finding.cause_word, UNKNOWN).elsewhere


def _group(finding: Finding) -> tuple[str, str]:
    """What the findings of one problem have in common: their cause, or their kind where that is unknown."""
    kind = _CAUSES.get(finding.cause_word, UNKNOWN)
    return ("", kind.group) if kind is not UNKNOWN and not kind.elsewhere else (finding.kind, kind.group)


def _root_of(findings: Sequence[Finding], place: int, serious: Sequence[int]) -> int:
    """The place of the finding that this one follows from; its own where there is none."""
    seen = {place}
    while _is_consequence(findings[place]):
        named = _named(findings[place])
        there = [other for other in serious if findings[other].layer in named and other not in seen]
        if not there:
            break
        # of what is found there, a root of its own is what to follow; but that some kernels are dead does not explain
        # that the others have no gradient
        of_others = findings[place].cause_word == NO_GRADIENT_DOWNSTREAM.word
        place = min(
            there,
            key=lambda at: (of_others and findings[at].kind == "dead_channels", _is_consequence(findings[at]), at),
        )
        seen.add(place)
    return place


def _named(finding: Finding) -> set[str | None]:
    """The layers in which the root of a consequence lies; its own where none is named."""
    names = str(finding.evidence.get("producers") or finding.evidence.get("consumers") or "")
    return set(names.split(", ")) if names else {finding.layer}


def _problem(findings: Sequence[Finding], places: list[int], when: Callable[[int], str]) -> Problem:
    places = sorted(places, key=lambda place: (_is_consequence(findings[place]), place))
    of_roots = [findings[place] for place in places if not _is_consequence(findings[place])]
    of_roots = of_roots or [findings[places[0]]]
    alike = [finding for finding in of_roots if finding.kind == of_roots[0].kind]
    first = min(alike, key=lambda finding: int(finding.evidence.get("since_window", 0)))
    title = _title(alike)
    return Problem(
        title=title,
        severity=max((findings[place].severity for place in places), key=SEVERITIES.index),
        story=_story(title, first, of_roots, [findings[place] for place in places], when),
        cause=first.cause,
        advice=first.advice,
        reference=first.reference,
        places=tuple(places),
        findings=tuple(findings[place] for place in places),
    )


def _title(alike: Sequence[Finding]) -> str:
    """Findings of one kind and cause in a line."""
    layers = list(dict.fromkeys(finding.layer for finding in alike))
    if len(alike) == 1:
        return alike[0].headline
    count = sum(len(finding.channels) for finding in alike)
    total = sum(
        int(finding.evidence.get("of", 0)) for finding in {finding.layer: finding for finding in alike}.values()
    )
    rule = _RULES.get(alike[0].kind)
    template, noun = (alike[0].title, "kernel") if rule is None else (rule.title, rule.noun)
    where = f" in {len(layers):,} layers" if len(layers) > 1 else ""
    text = template.format(of=f"{count:,} of {total:,} {noun}s{where} are") + where * ("{of}" not in template)
    heads = {str(finding.evidence.get("heads", "")) for finding in alike}
    text = titled(text, heads.pop() if len(heads) == 1 else "", alike[0].cause_word)
    return text if where else f"{layers[0] or 'the network'}: {text}"


def _story(
    title: str, first: Finding, roots: Sequence[Finding], all_: Sequence[Finding], when: Callable[[int], str]
) -> str:
    """What, since when, and what to do, in a sentence or two each."""
    explanation = first.cause.split(": ", 1)[-1]
    since = sorted({int(finding.evidence["since_window"]) for finding in roots if "since_window" in finding.evidence})
    sentences = [f"{title}: {_whose(first, roots, since)}{explanation}"]
    if len(since) > 1:
        sentences.append(f"The first since {when(since[0])}, the last since {when(since[-1])}")
    elif since:
        sentences.append(f"Since {when(since[0])}")
    if certainty := certified(roots):
        sentences.append(certainty)
    futures = {prospect(finding) for finding in roots}  # one for all, or none
    sentences += futures - {""} if len(futures) == 1 else ()
    named = {finding.layer for finding in roots}
    others = [layer for layer in dict.fromkeys(finding.layer for finding in all_) if layer and layer not in named]
    if others:
        names = listed(others, SHOWN)
        sentences.append(f"It also holds up {names}")
    return " ".join(f"{sentence.rstrip('.')}." for sentence in [*sentences, first.advice])


def _whose(first: Finding, roots: Sequence[Finding], since: Sequence[int]) -> str:
    """Of several findings, by whose numbers and times they are explained; empty where these are true of all."""
    if len({finding.cause for finding in roots if finding.kind == first.kind}) == 1:
        return ""
    where = f"in {first.layer or 'the network'}"
    rule = _RULES.get(first.kind)
    some = f" ({count(len(first.channels), rule.noun)})" if first.channels and rule is not None else ""
    return f"{'first ' if len(since) > 1 else ''}{where}{some}: "


def new_problems(problems: Sequence[Problem], known: set[tuple[str, str | None]]) -> tuple[Problem, ...]:
    """The problems of which nothing was reported before.

    Args:
        problems: of this window.
        known: (kind, layer) of the findings that were reported in windows before.
    """
    return tuple(
        problem
        for problem in problems
        if not any((finding.kind, finding.layer) in known for finding in problem.findings)
    )
