"""What a trial asks about: the kernels of one kind of finding, and where else that finding shows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from lightning_deadkernel.analysis.trial.records import Site
from lightning_deadkernel.report.records import Finding, ReportRecord
from lightning_deadkernel.report.sentences import by_severity

NETWORK = "the network"


class TargetError(ValueError):
    """What was asked about is not in the report; the message says what is."""


@dataclass(frozen=True)
class Target:
    """Named kernels, or named layers, of one kind of finding."""

    title: str
    kind: str
    causes: tuple[str, ...]
    """A word each, in the findings' order."""
    named: frozenset[Site]
    sizes: dict[str, int]
    """The layers of the named in forward order -> their channels; of a finding about whole layers 1."""
    whole: bool
    """The finding is about whole layers."""

    @property
    def kernels(self) -> int:
        """How many could show it."""
        return sum(self.sizes.values())

    def by_layer(self, sites: Collection[Site]) -> dict[str, list[int]]:
        """Layer -> its channels, ascending; of a whole layer an empty list."""
        return {
            name: sorted(channel for layer, channel in sites if layer == name and channel is not None)
            for name in self.sizes
            if any(layer == name for layer, _ in sites)
        }

    def found(self, report: ReportRecord) -> frozenset[Site]:
        """Who shows it in a run that has the same layers.

        Raises:
            TargetError: if a layer is gone, is not watched, or has another number of channels.
        """
        watched = {layer.name: layer.channels for layer in report.watched}
        for name, channels in {} if self.whole else self.sizes.items():
            if watched.get(name) != channels:
                there = f"{watched[name]:,} kernels" if name in watched else "no watched layer of that name"
                raise TargetError(f"kernels cannot be matched: {name} has {channels:,}, and here are {there}")
        sites = _sites(finding for finding in report.findings if finding.kind == self.kind)
        return frozenset(site for site in sites if site[0] in self.sizes and (site[1] is None) == self.whole)


def _sites(findings: Iterable[Finding]) -> set[Site]:
    return {(finding.layer or NETWORK, channel) for finding in findings for channel in (finding.channels or (None,))}


def choose_target(report: ReportRecord, finding: int | None = None, layer: str | None = None) -> Target:
    """The named kernels of a problem, the first if none is asked for, or of the worst findings of a layer.

    Args:
        report: of the run that is asked about.
        finding: place of the problem, from 1; after the problems come the findings that are no part of one, as the
            report has them.
        layer: whose findings; those of the worst one's kind are taken.

    Raises:
        TargetError: if there is no such finding, or none at all.
    """
    findings = _asked_about(report, finding, layer)
    first = findings[0]
    alike = [other for other in findings if other.kind == first.kind and bool(other.channels) == bool(first.channels)]
    whole = not first.channels
    names = {other.layer or NETWORK for other in alike}
    channels = {one.name: one.channels for one in report.watched}
    sizes = {name: 1 if whole else channels[name] for name in (*channels, NETWORK) if name in names}
    causes = tuple(dict.fromkeys(other.cause_word for other in alike))
    title = alike[0].headline if len(alike) == 1 else _title(report, alike)
    return Target(title, first.kind, causes, frozenset(_sites(alike)), sizes, whole)


def _asked_about(report: ReportRecord, finding: int | None, layer: str | None) -> Sequence[Finding]:
    if not report.findings:
        raise TargetError("nothing was found in the run, so there is nothing to explain")
    ordered = by_severity(report.findings)
    if layer is not None:
        there = [one for one in ordered if one.layer == layer]
        if not there:
            names = ", ".join(dict.fromkeys(one.layer or NETWORK for one in ordered))
            raise TargetError(f"nothing was found in {layer!r}; something was in {names}")
        return there
    if finding is None:
        return report.problems[0].findings if report.problems else ordered
    told = {place for problem in report.problems for place in problem.places}
    rest = by_severity([one for place, one in enumerate(report.findings) if place not in told])
    groups = [*((one.title, one.findings) for one in report.problems), *((one.headline, (one,)) for one in rest)]
    if not 1 <= finding <= len(groups):
        listed = "; ".join(f"{place}: {title}" for place, (title, _) in enumerate(groups, start=1))
        raise TargetError(f"expected a finding from 1 to {len(groups)}, but got {finding}. They are {listed}")
    return groups[finding - 1][1]


def _title(report: ReportRecord, alike: Sequence[Finding]) -> str:
    """That of the problem that they make up, or of the first of them with how many there are."""
    for problem in report.problems:
        if tuple(one for one in problem.findings if one.kind == alike[0].kind) == tuple(alike):
            return problem.title
    return f"{alike[0].headline}, and {len(alike) - 1:,} more such finding{'s' * (len(alike) > 2)}"
