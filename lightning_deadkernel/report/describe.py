"""From a report to the document that says it: in full for files and pages, in brief for the end of a training.

Past 300 lines because a report is described here and nowhere else: each block is a short function, in the page's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from lightning_deadkernel.errors import printable
from lightning_deadkernel.observation import STATISTICS
from lightning_deadkernel.report import sentences
from lightning_deadkernel.report.document import (
    Block,
    Bullets,
    Document,
    KernelMap,
    LegendEntry,
    Name,
    Paragraph,
    Pictures,
    Section,
    Statement,
    Statements,
    Strip,
    Table,
    Text,
)
from lightning_deadkernel.report.records import SEVERITIES, Finding, LayerReport, Problem, ReportRecord
from lightning_deadkernel.report.states import (
    COUNTED,
    SHOWN,
    STATE_BITS,
    WORD_OF_CODE,
    ZERO_KERNEL_FLAG,
    Word,
)
from lightning_deadkernel.report.text import NOT_OBSERVED, count, number, percent, ranges

PROGRAM = "lightning-deadkernel"
MOST_ROWS = 20
"""Layers in the brief table; the rest is counted and is in the full document."""
MOST_PROBLEMS = 6
"""Problems at the end of a training: the first with its story, the others by their titles."""
MOST_CELLS = 50_000
"""Kernels up to which a page has a cell for each, which takes up to 14 letters."""
MOST_MEASURED = 20_000
"""Kernels up to which a page tells what was measured of each: some 30 letters a kernel."""


def describe(
    report: ReportRecord,
    pictures: Mapping[str, bytes] | None = None,
    each_kernel: bool = True,
    narrow: bool = False,
) -> Document:
    """All that the report says: verdict, findings, kernels, layers, and what was not watched.

    Args:
        report: what to describe.
        pictures: title -> PNG, in the order in which to show them.
        each_kernel: whether to tell what was measured of each single one, which pages show under the pointer.
        narrow: the table of layers has those with something to say, and few columns.
    """
    audited = report.audited is not None
    layers = _brief_table(report) if narrow else layer_table(report.watched, audited=audited)
    others = _section("Remarks" if report.problems else "Findings", _statements(_others(report)))
    blocks: list[Block | None] = [
        Paragraph(sentences.watched_and_not(report)),
        Paragraph(about) if (about := sentences.about(report)) else None,
        _section("Problems", _statements([_problem(report, problem) for problem in report.problems])),
        *([] if report.problems else [others]),
        _section("Pictures", _pictures(pictures or {})),
        # an audit knows no states: which kernels are zero, its findings say
        _section("Every kernel", None if audited else _kernel_map(report, each_kernel)),
        _section("Layers", layers, _bullets(_notes_on_layers(report))),
        *([others] if report.problems else []),
        _section("What pruning would save", *_savings(report)),
        _section("Not watched", _bullets(_not_watched(report))),
        _section("Notes", _bullets(report.notes)),
        _section("Run", _bullets(_run(report))),
    ]
    return Document(
        title=f"Dead kernels: {sentences.moment(report)}",
        verdict=sentences.verdict(report),
        blocks=tuple(block for block in blocks if block is not None),
    )


def describe_briefly(report: ReportRecord) -> Document:
    """What one wants to see when a training ends: the layers with something to say, and the first problem."""
    findings = sentences.by_severity(report.findings)
    of_most = max(findings, key=lambda one: (SEVERITIES.index(one.severity), len(one.channels)), default=None)
    stated = report.problems[0].findings if report.problems else (of_most,)
    further = [finding for finding in findings if finding not in stated]
    rest = f"Further: {sentences.tally(further)}, in the report." if further else ""
    if of_most is not None and of_most.severity == "info":
        rest += f"{' ' * bool(rest)}None of it is a problem by itself."
    healthy = not findings and bool(report.watched)
    opening = sentences.verdict(report) if not findings else sentences.watched_and_not(report)
    first = [_statement(report, of_most)] if of_most is not None else []
    first = [_problem(report, report.problems[0], full=False)] if report.problems else first
    blocks = [
        Paragraph(opening, "good" if healthy else "plain"),
        _brief_table(report),
        _statements(first),
        _bullets([f"{problem.severity}: {problem.title}" for problem in report.problems[1:MOST_PROBLEMS]]),
        Paragraph(rest) if rest else None,
        _left_out(report),
        *_savings(report),
    ]
    return Document(
        title=f"{PROGRAM}: {sentences.moment(report)}",
        verdict="",
        blocks=tuple(block for block in blocks if block is not None),
    )


def _section(title: str, *blocks: Block | None) -> Section | None:
    """A section of what there is; None where there is nothing."""
    there = tuple(block for block in blocks if block is not None)
    return Section(title, there) if there else None


def _pictures(pictures: Mapping[str, bytes]) -> Pictures | None:
    """Pictures under their names in words."""
    named = tuple(
        (title.replace("_", " ").capitalize() if title.isidentifier() else title, png)
        for title, png in pictures.items()
    )
    return Pictures(named) if named else None


def _bullets(items: Sequence[Text]) -> Bullets | None:
    return Bullets(tuple(items)) if items else None


# -- findings ----------------------------------------------------------------------------------------------------------


def _statements(items: Sequence[Statement]) -> Statements | None:
    return Statements(tuple(items)) if items else None


def _others(report: ReportRecord) -> list[Statement]:
    """The findings that are no part of a problem."""
    stated = {place for problem in report.problems for place in problem.places}
    rest = [finding for place, finding in enumerate(report.findings) if place not in stated]
    return [_statement(report, finding) for finding in sentences.by_severity(rest)]


def _problem(report: ReportRecord, problem: Problem, full: bool = True) -> Statement:
    """A problem with its findings; where it has but one, or not in `full`, with the evidence of its root alone."""
    root = _statement(report, problem.findings[0])
    several = full and len(problem.findings) > 1
    story = problem.story.removeprefix(f"{problem.title}: ")
    facts = [("Story", story[:1].upper() + story[1:])]
    layers = list(dict.fromkeys(finding.layer for finding in problem.findings if finding.layer is not None))
    if len(layers) > 1:
        facts.append(("Layers", sentences.listed(layers)))
    if len(problem.findings) == 1:
        facts += [(label, text) for label, text in root.facts if label in ("Channels", "Evidence")]
    if problem.reference:
        facts.append(("Reference", problem.reference))
    where = problem.findings[0].layer
    shown = printable(where or "")
    title: Text = (
        (Name(shown), problem.title[len(shown) :])
        if shown and problem.title.startswith(f"{shown}: ")
        else problem.title
    )
    parts = tuple(_statement(report, finding) for finding in problem.findings) if several else ()
    return Statement(problem.severity, problem.findings[0].kind, title, tuple(facts), parts)


def _statement(report: ReportRecord, finding: Finding) -> Statement:
    where: str | Name = "the network" if finding.layer is None else Name(finding.layer)
    facts = (
        ("Channels", ranges(finding.channels)),
        ("Evidence", sentences.evidence(finding, audited=report.audited is not None)),
        ("Cause", finding.cause),
        ("Advice", finding.advice),
        ("Reference", finding.reference),
    )
    title = (where, f": {finding.title}")
    return Statement(finding.severity, finding.kind, title, tuple((label, text) for label, text in facts if text))


def _savings(report: ReportRecord) -> Iterator[Paragraph]:
    if report.savings is not None and report.savings.channels:
        yield Paragraph(sentences.savings(report.savings))


# -- layers ------------------------------------------------------------------------------------------------------------


def layer_table(
    layers: Sequence[LayerReport], brief: bool = False, rest: str = "", audited: bool = False
) -> Table | None:
    """Layers, with those columns only that have something to say about one of them; None without layers.

    Args:
        layers: one a row.
        brief: counts and ratios only.
        rest: what was left out.
        audited: nothing was trained, and without the model's code no layer has a kind and no kernel a state.
    """
    if not layers:
        return None
    columns = [("layer", [layer.name for layer in layers], False)]
    if not brief:
        of_file = audited and not any(layer.activation for layer in layers)
        columns.append(("shape" if of_file else "kind", [layer.kind for layer in layers], False))
    if not brief and any(layer.activation for layer in layers):
        columns.append(("activation", [layer.activation or NOT_OBSERVED for layer in layers], False))
    if not brief and len({layer.evidence for layer in layers}) > 1:
        columns.append(("evidence", [layer.evidence for layer in layers], False))
    columns.append(("kernels", [f"{layer.channels:,}" for layer in layers], True))
    for word in COUNTED:
        counts = [len(getattr(layer, word.attribute)) for layer in layers]
        if any(counts) and not (audited and word.name == "unknown"):
            cells = [_counted(n, layer, word) for n, layer in zip(counts, layers, strict=True)]
            columns.append((word.heading, cells, True))
        if not brief and word.name == "dead" and any(layer.certified_dead for layer in layers):
            proven = [f"{len(layer.certified_dead):,}" if layer.dead else NOT_OBSERVED for layer in layers]
            columns.append(("certified", proven, True))
    for shown in STATISTICS:
        values = [getattr(layer, shown.name) for layer in layers]
        if shown.shown in (("brief",) if brief else ("brief", "full")) and any(
            value is not None and value == value for value in values
        ):
            columns.append((shown.title, [_FORMS[shown.form](value) for value in values], True))
    headings, columns_of_text, right = zip(*columns, strict=True)
    return Table(headings, tuple(zip(*columns_of_text, strict=True)), right, rest)


_FORMS: dict[str, Callable[[float | None], str]] = {"number": number, "share": percent}


def _counted(number_of: int, layer: LayerReport, word: Word) -> str:
    """A count, or a dash where the layer's evidence cannot tell."""
    blind = layer.evidence in ("gradient", "weight") and word.needs_activation
    return NOT_OBSERVED if blind and not number_of else f"{number_of:,}"


def _brief_table(report: ReportRecord) -> Table | None:
    """The layers that have something to say in forward order, of too many the worst."""
    severities = {finding.layer: finding.severity for finding in reversed(sentences.by_severity(report.findings))}
    speaking = [
        layer
        for layer in report.watched
        if layer.name in severities or (report.audited is None and any(c & STATE_BITS for c in layer.codes))
    ]

    def rank(layer: LayerReport) -> tuple[int, float]:
        severity = severities.get(layer.name)
        return 1 if severity is None else -SEVERITIES.index(severity), -len(layer.dead) / max(1, layer.channels)

    worst = sorted(speaking, key=rank)[:MOST_ROWS]
    kept = {layer.name for layer in worst}
    left_out = len(speaking) - len(worst)
    rest = f"... and {count(left_out, 'layer')} more with something to say, in the report." if left_out else ""
    shown = [layer for layer in speaking if layer.name in kept]
    return layer_table(shown, brief=True, rest=rest, audited=report.audited is not None)


def _notes_on_layers(report: ReportRecord) -> list[Text]:
    return [(Name(layer.name), f": {layer.note}") for layer in report.watched if layer.note]


def _left_out(report: ReportRecord) -> Paragraph | None:
    """In a line: which layers are not watched, and why."""
    groups = [
        f"{sentences.listed([layer.name for layer in layers])} ({why})" for why, layers in sentences.not_watched(report)
    ]
    return Paragraph(f"Not watched: {'; '.join(groups)}.") if groups else None


def _not_watched(report: ReportRecord) -> list[Text]:
    items: list[Text] = []
    for why, layers in sentences.not_watched(report):
        names: list[str | Name] = [part for layer in layers for part in (Name(layer.name), ", ")]
        items.append((*names[:-1], f": {why}"))
    return items


# -- kernels -----------------------------------------------------------------------------------------------------------


def _kernel_map(report: ReportRecord, each_kernel: bool) -> KernelMap | None:
    layers = [layer for layer in report.watched if layer.channels]
    if not layers:
        return None
    per = math.ceil(sum(layer.channels for layer in layers) / MOST_CELLS)
    words = [_worst_of_each(layer.codes.translate(WORD_OF_CODE), per) for layer in layers]
    shown = [place for place in range(len(SHOWN)) if any(place in cells for cells in words)]
    place_in_legend = bytes(shown.index(word) if word in shown else 0 for word in range(256))
    return KernelMap(
        legend=tuple(LegendEntry(SHOWN[word].name, SHOWN[word].meaning, SHOWN[word].colour) for word in shown),
        mark=ZERO_KERNEL_FLAG.meaning if any(layer.zero_kernels for layer in layers) else "",
        strips=tuple(
            Strip(
                name=layer.name,
                cells=cells.translate(place_in_legend),
                marks=tuple(dict.fromkeys(channel // per for channel in layer.zero_kernels)),
                text=kernels_in_words(layer),
                measures=_measures(layer) if each_kernel and report.channels <= MOST_MEASURED else (),
            )
            for layer, cells in zip(layers, words, strict=True)
        ),
        per_cell=per,
    )


_BY_GRAVITY = sorted(range(len(SHOWN)), key=lambda place: SHOWN[place].gravity)
_TO_GRAVITY = bytes(_BY_GRAVITY.index(place) if place in _BY_GRAVITY else 0 for place in range(256))


def _worst_of_each(words: bytes, per: int) -> bytes:
    """Places in `SHOWN`, of each `per` of them the worst."""
    if per == 1:
        return words
    graver = words.translate(_TO_GRAVITY)
    return bytes(_BY_GRAVITY[max(graver[start : start + per])] for start in range(0, len(graver), per))


def _measures(layer: LayerReport) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What is known of each single kernel."""
    values = layer.values
    if values is None:
        return ()
    known: tuple[tuple[str, Sequence[float] | None, Callable[[float], str]], ...] = (
        ("since window", values.since, str),
        ("fires", values.firing_rate, percent),
        ("fires on", values.sample_rate, partial(sentences.of_samples, layer.rated_samples)),
        ("norm", values.norms, number),
        ("gradient", values.gradient, number),
    )
    certified, dead = set(layer.certified_dead), set(layer.dead)
    proof = [("yes" if c in certified else "no") if c in dead else NOT_OBSERVED for c in range(layer.channels)]
    return (
        *((title, tuple(map(form, numbers))) for title, numbers, form in known if numbers),
        *([("certified", tuple(proof))] if certified else []),
    )


def kernels_in_words(layer: LayerReport) -> str:
    """``"16 kernels: 2 dead (3, 11), 1 rare (7)"``; ``"16 kernels, all active"`` where there is nothing to say."""
    groups = [(word.heading, getattr(layer, word.attribute)) for word in COUNTED]
    proof = f"; certified: {ranges(layer.certified_dead)}" if layer.certified_dead else ""
    said = [f"{len(where):,} {word} ({ranges(where)}{proof * (word == 'dead')})" for word, where in groups if where]
    return f"{count(layer.channels, 'kernel')}{': ' + ', '.join(said) if said else ', all active'}"


# -- the run -----------------------------------------------------------------------------------------------------------


def _run(report: ReportRecord) -> list[Text]:
    """Whose training it is, and which lines were drawn elsewhere than usual."""
    items = []
    run = report.run
    if run is not None:
        optimizers = [
            f"{optimizer.name} ({', '.join(f'{name} {number(value)}' for name, value in optimizer.settings.items())}"
            f"{f'; {optimizer.groups} parameter groups' if optimizer.groups > 1 else ''})"
            for optimizer in run.optimizers
        ]
        items = [
            f"Model: {run.model}",
            *(f"Optimizer: {optimizer}" for optimizer in optimizers),
            f"Precision {run.precision} on {count(run.ranks, 'rank')}",
            *([] if run.gradient_clip is None else [f"Gradients clipped to a norm of {run.gradient_clip:g}"]),
            f"Begun {run.started}" + (f", ended {run.ended}" if run.ended else ""),
            ", ".join(f"{package} {version}" for package, version in run.versions.items()),
        ]
    moved = sentences.own_thresholds(report.thresholds)
    return [item for item in (*items, f"Thresholds: {moved}" if moved else "") if item]
