"""Several runs side by side: do the *same* kernels die, more than chance would have it, and which findings stay?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from lightning_deadkernel.analysis.trial.statistics import SIGNIFICANT
from lightning_deadkernel.report.document import Block, Bullets, Document, Name, Paragraph, Section, Table
from lightning_deadkernel.report.markdown import to_markdown
from lightning_deadkernel.report.records import Finding, LayerReport, ReportRecord
from lightning_deadkernel.report.sentences import by_severity
from lightning_deadkernel.report.text import NOT_OBSERVED, count, number

DRAWS = 2000
"""Random draws behind a p-value: its smallest value is 1 / (DRAWS + 1)."""

_READING = (
    "Jaccard: dead in both runs over dead in either, mean over the pairs of runs (1: the same kernels, 0: none). "
    "By chance: its mean if each run's dead kernels were drawn at random. p: how often such draws share as many. "
    "An index names the same kernel in two runs only if both started from the same weights."
)


@dataclass(frozen=True)
class LayerOverlap:
    """The dead channels of one layer in several runs."""

    name: str
    channels: int
    dead: tuple[int, ...]
    """Number of dead channels in each run."""
    always: tuple[int, ...]
    """Channels dead in every run."""
    ever: tuple[int, ...]
    """Channels dead in at least one run."""
    jaccard: float | None
    """Mean over the pairs of runs of |A & B| / |A | B|; None where no pair has a dead channel."""
    chance: float | None
    """What `jaccard` would be on average if each run's dead channels were drawn at random, see `expected_jaccard`; None
    where no two runs have dead channels."""
    p_value: float | None
    """Share of such random draws that overlap at least as much; None where no two runs have dead channels."""


@dataclass(frozen=True)
class FindingPresence:
    """One finding, by its kind and layer, over the runs."""

    kind: str
    layer: str | None
    severities: tuple[str | None, ...]
    """In each run; None where the run does not have it."""

    @property
    def change(self) -> str:
        """``"stayed"`` if all runs have it, ``"came"`` or ``"went"`` if it changed once, else ``"comes and goes"``."""
        present = [severity is not None for severity in self.severities]
        if all(present):
            return "stayed"
        changes = sum(before != after for before, after in pairwise(present))
        return "comes and goes" if changes > 1 else "came" if present[-1] else "went"


@dataclass(frozen=True)
class Comparison:
    """What several reports have in common."""

    runs: tuple[str, ...]
    layers: tuple[LayerOverlap, ...]
    """Layers that every run watched with the same number of channels, in the first run's order."""
    findings: tuple[FindingPresence, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    """Layers that cannot be compared, and why."""
    p_value: float | None = None
    """Like `LayerOverlap.p_value`, over all layers together."""

    def verdict(self) -> str:
        """The answer in one line."""
        compared = [layer for layer in self.layers if layer.jaccard is not None]
        if not self.layers:
            return "Nothing can be compared: no layer was read by its activations, at the same width, in all runs."
        if not compared:
            return "No kernel is dead in any of these runs, as far as they can be compared."
        if self.p_value is None:
            return "Only one run has dead kernels: there is nothing to overlap with."
        always = sum(len(layer.always) for layer in compared)
        ever = sum(len(layer.ever) for layer in compared)
        same = self.p_value < SIGNIFICANT
        answer = (
            "The same kernels die more often than chance would have it" if same else "No more overlap than by chance"
        )
        return (
            f"{answer}: {always:,} of {count(ever, 'kernel')} that died in any run died in every run "
            f"(p = {number(self.p_value)})."
        )

    def document(self) -> Document:
        """The answer, the dead kernels of each layer, and the findings of each run."""
        left_out = tuple((Name(layer), f": {why}") for layer, why in self.left_out)
        sections: tuple[tuple[str, Block | None], ...] = (
            ("Dead kernels", self._layer_table() if any(layer.ever for layer in self.layers) else None),
            ("Findings", self._finding_table() if self.findings else None),
            ("Not compared", Bullets(left_out) if left_out else None),
        )
        return Document(
            title=f"Dead kernels compared: {', '.join(self.runs)}",
            verdict=self.verdict(),
            blocks=(
                *([Paragraph(_READING)] if self.p_value is not None else []),
                *(Section(title, (block,)) for title, block in sections if block is not None),
            ),
        )

    def to_markdown(self) -> str:
        """The comparison as Markdown, the answer first."""
        return to_markdown(self.document())

    def _layer_table(self) -> Table:
        """One row per layer that has a dead channel in some run."""
        rows = [
            (
                layer.name,
                f"{layer.channels:,}",
                number(layer.jaccard),
                number(layer.chance),
                number(layer.p_value),
                f"{len(layer.always):,}",
                *(f"{n:,}" for n in layer.dead),
            )
            for layer in self.layers
            if layer.ever
        ]
        headings = ("layer", "kernels", "Jaccard", "by chance", "p", "dead in all", *(f"in {run}" for run in self.runs))
        return Table(headings, tuple(rows), (False, *[True] * (len(headings) - 1)))

    def _finding_table(self) -> Table:
        """One row per finding, with its severity in each run."""
        rows = [
            (found.layer or "the network", found.kind, *(s or NOT_OBSERVED for s in found.severities), found.change)
            for found in self.findings
        ]
        headings = ("layer", "finding", *self.runs, "over the runs")
        return Table(headings, tuple(rows), tuple([False] * len(headings)))


def compare(reports: Sequence[ReportRecord], names: Sequence[str] | None = None) -> Comparison:
    """Compare the dead channels and the findings of several runs, in the order given.

    Args:
        reports: at least two.
        names: what to call them; "run 1", "run 2", ... if None.

    Raises:
        ValueError: for fewer than two reports, or names that are not one per report and all different.
    """
    if len(reports) < 2:
        raise ValueError(f"Expected at least two reports to compare, but got {len(reports)}.")
    names = [f"run {place}" for place in range(1, len(reports) + 1)] if names is None else names
    if len(names) != len(reports) or len(set(names)) != len(names):
        raise ValueError(f"Expected one different name for each of {len(reports)} reports, but got {list(names)!r}.")
    by_name = [{layer.name: layer for layer in report.layers} for report in reports]
    layers, left_out = [], []
    everywhere = list(dict.fromkeys(name for known in by_name for name in known))
    random = np.random.default_rng(0)
    observed, drawn = 0, np.zeros(DRAWS, dtype=np.int64)
    for name in everywhere:
        why = _incomparable([known.get(name) for known in by_name], names)
        if why is not None:
            left_out.append((name, why))
            continue
        sets = [frozenset(known[name].dead) for known in by_name]
        overlap, draws = _overlap(name, by_name[0][name].channels, sets, random)
        layers.append(overlap)
        if draws is not None:
            observed += _shared(sets)
            drawn += draws
    p_value = _p_value(observed, drawn) if any(layer.p_value is not None for layer in layers) else None
    return Comparison(tuple(names), tuple(layers), _presence(reports), tuple(left_out), p_value)


def jaccard(first: frozenset[int], second: frozenset[int]) -> float | None:
    """\\|A & B\\| / \\|A \\| B\\|; None if both are empty."""
    union = len(first | second)
    return len(first & second) / union if union else None


def expected_jaccard(channels: int, first: int, second: int) -> float | None:
    """Mean Jaccard index of two independent uniformly random subsets of these sizes; None if both are empty.

    The overlap K of two such subsets is hypergeometric, so this is the exact sum over k of
    P(K = k) * k / (first + second - k), with P(K = k) = C(first, k) C(channels - first, second - k) /
    C(channels, second). https://en.wikipedia.org/wiki/Hypergeometric_distribution
    """
    if not first + second:
        return None
    total = _log_choose(channels, second)
    return math.fsum(
        math.exp(_log_choose(first, k) + _log_choose(channels - first, second - k) - total) * k / (first + second - k)
        for k in range(max(1, first + second - channels), min(first, second) + 1)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _overlap(
    name: str, channels: int, sets: Sequence[frozenset[int]], random: np.random.Generator
) -> tuple[LayerOverlap, npt.NDArray[np.int64] | None]:
    """The layer's overlap, and the shared channels of random draws `(DRAWS,)` where there is something to share."""
    pairs = list(combinations(sets, 2))
    # Pairs without any dead channel have no Jaccard index; all others do, and a chance value with it.
    indices = [value for value in (jaccard(a, b) for a, b in pairs) if value is not None]
    chances = [value for value in (expected_jaccard(channels, len(a), len(b)) for a, b in pairs) if value is not None]
    draws = _draw_shared(channels, [len(dead) for dead in sets if dead], random) if sum(map(bool, sets)) > 1 else None
    overlap = LayerOverlap(
        name=name,
        channels=channels,
        dead=tuple(len(dead) for dead in sets),
        always=tuple(sorted(frozenset.intersection(*sets))),
        ever=tuple(sorted(frozenset.union(*sets))),
        jaccard=sum(indices) / len(indices) if indices else None,
        # where only one run has dead kernels nothing can overlap, by chance or not
        chance=sum(chances) / len(chances) if draws is not None else None,
        p_value=None if draws is None else _p_value(_shared(sets), draws),
    )
    return overlap, draws


def _shared(sets: Sequence[frozenset[int]]) -> int:
    """Channels that two runs share, summed over the pairs of runs."""
    return sum(len(a & b) for a, b in combinations(sets, 2))


def _draw_shared(channels: int, sizes: Sequence[int], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """What `_shared` gives for independent random subsets of these sizes, `(DRAWS,)`.

    Which channels are drawn does not matter, only in how many runs each was. So channels are kept as counts by that
    number, and a further run draws from each count in turn: a multivariate hypergeometric draw, one count at a time.
    """
    counts = np.zeros((len(sizes) + 1, DRAWS), dtype=np.int64)  # counts[j]: channels in exactly j runs so far
    counts[0] = channels
    for size in sizes:
        wanted, others = np.full(DRAWS, size), np.full(DRAWS, channels)
        taken = np.empty_like(counts)
        for times, available in enumerate(counts):
            others = others - available
            taken[times] = random.hypergeometric(available, others, wanted)
            wanted = wanted - taken[times]
        counts -= taken
        counts[1:] += taken[:-1]
    pairs = np.array([math.comb(times, 2) for times in range(len(counts))])
    shared: npt.NDArray[np.int64] = pairs @ counts
    return shared


def _p_value(observed: int, drawn: npt.NDArray[np.int64]) -> float:
    """Never zero: the observation counts as a draw (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585)."""
    return (1 + int((drawn >= observed).sum())) / (1 + len(drawn))


def _incomparable(layers: Sequence[LayerReport | None], runs: Sequence[str]) -> str | None:
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(layers):
        return f"not in {', '.join(run for run, layer in zip(runs, layers, strict=True) if layer is None)}"
    unwatched = [run for run, layer in zip(runs, known, strict=True) if layer.excluded is not None]
    if unwatched:
        return f"not watched in {', '.join(unwatched)}"
    blind = [run for run, layer in zip(runs, known, strict=True) if layer.evidence in ("gradient", "weight")]
    if blind:
        return f"read without activations in {', '.join(blind)}, so dead kernels cannot be told there"
    widths = {layer.channels for layer in known}
    return None if len(widths) == 1 else f"of different widths: {', '.join(str(layer.channels) for layer in known)}"


def _presence(reports: Sequence[ReportRecord]) -> tuple[FindingPresence, ...]:
    worst: list[dict[tuple[str, str | None], Finding]] = []
    for report in reports:
        found: dict[tuple[str, str | None], Finding] = {}
        for finding in by_severity(report.findings):
            found.setdefault((finding.kind, finding.layer), finding)
        worst.append(found)
    keys = list(dict.fromkeys(key for found in worst for key in found))
    return tuple(
        FindingPresence(
            kind, layer, tuple(found[kind, layer].severity if (kind, layer) in found else None for found in worst)
        )
        for kind, layer in keys
    )
