"""All rules in their order, and how their findings are ranked, named in a line, and said once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lightning_deadkernel.diagnosis import channel_rules, layer_rules
from lightning_deadkernel.diagnosis.context import View
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.observation import Window
from lightning_deadkernel.report.records import SEVERITIES, Finding, LayerReport
from lightning_deadkernel.thresholds import Thresholds

KINDS = (
    "dead_channels",
    "saturated_channels",
    "starved_channels",
    "frozen_weights",
    "zero_kernels",
    "dormant_channels",
    "vanishing_gradient",
    "weak_gradient",
    "exploding_gradient",
    "non_finite_gradient",
    "identical_kernels",
    "sparse_weights",
    "update_too_small",
    "update_too_large",
    "revived_channels",
)
"""Every `Finding.kind`."""

WEIGHT_RULES: tuple[Callable[[View], Iterator[Finding]], ...] = (
    channel_rules.zero_kernels,
    layer_rules.identical_kernels,
)
"""All that can be said at initialisation, before anything fired or had a gradient."""

CONSEQUENCES = ("upstream dead", "dead downstream", "outgoing zero")
"""Causes that lie in other layers: what is found there is to be read first."""

RULES = (
    channel_rules.dead_channels,
    channel_rules.saturated_channels,
    channel_rules.starved_channels,
    channel_rules.frozen_weights,
    *WEIGHT_RULES,
    channel_rules.dormant_channels,
    channel_rules.revived_channels,
    layer_rules.small_gradient,
    layer_rules.non_finite_gradient,
    layer_rules.update_too_large,
    layer_rules.update_too_small,
    layer_rules.sparse_weights,
)


def find(
    window: Window, layers: Sequence[LayerReport], history: History, thresholds: Thresholds
) -> tuple[Finding, ...]:
    """All findings of a window that the history has taken in.

    Errors come first, within a severity the roots before what follows from them, and then in forward order.
    """
    observed = {layer.name: layer for layer in window.layers}
    reports = {report.name: report for report in layers}
    found = list(layer_rules.network_findings(window, history, thresholds))
    for layer in window.layers:
        past = history.get(layer.name)
        if layer.excluded is not None or past is None:
            continue
        view = View(layer, reports[layer.name], past, window, observed, reports, thresholds)
        for rule in RULES if window.index > 0 else WEIGHT_RULES:
            found.extend(rule(view))
    return tuple(sorted(found, key=_rank))


def _rank(finding: Finding) -> tuple[int, bool]:
    return -SEVERITIES.index(finding.severity), finding.cause_word in CONSEQUENCES


NOUNS = {
    "dead_channels": "dead",
    "saturated_channels": "saturated",
    "starved_channels": "starved of gradient",
    "frozen_weights": "frozen",
    "zero_kernels": "zero",
    "dormant_channels": "dormant",
    "revived_channels": "revived",
}


def headline(finding: Finding) -> str:
    """The finding in a line: ``"conv2: 6 of 16 kernels dead (decayed) since window 3"``."""
    where = finding.layer or "network"
    if finding.kind in NOUNS and finding.channels:
        count, of = len(finding.channels), finding.evidence.get("of", len(finding.channels))
        told = f"{count} of {of} kernels {NOUNS[finding.kind]} ({finding.cause_word})"
        since = finding.evidence.get("since_window")
        if finding.kind == "revived_channels":
            return f"{where}: {told} in window {finding.window}"
        when = f"since window {since or finding.window}" if finding.window else "at initialisation"
        return f"{where}: {told} {when}"
    told = finding.kind.replace("_", " ")
    return f"{where}: {told} ({finding.cause_word}) in window {finding.window}"


def new_findings(findings: Sequence[Finding], said: set[tuple[str, str | None]]) -> tuple[Finding, ...]:
    """The findings above info whose kind and layer have not been said before, one for each kind and layer.

    Args:
        findings: of this window, the gravest first.
        said: (kind, layer) of what was said in windows before; the new ones are added.
    """
    new = []
    for finding in findings:
        key = (finding.kind, finding.layer)
        if finding.severity != "info" and key not in said:
            said.add(key)
            new.append(finding)
    return tuple(new)
