"""What can be said of a report in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from lightning_deadkernel.observation import OF_KERNELS
from lightning_deadkernel.report.records import SEVERITIES, Finding, LayerReport, ReportRecord, Savings
from lightning_deadkernel.report.text import NOT_OBSERVED, count, number, percent, size
from lightning_deadkernel.thresholds import Thresholds

_IN_HEADLINE = {"channels", "of", "heads"}
_SHARES = ("share", "share_of_steps", "fraction", "firing_rate", "rate_bound", "sparsity", "weight_zeros", "near_zeros")
"""Endings of the names of what is shown in percent."""


def evidence(finding: Finding, audited: bool = False) -> str:
    """The numbers a finding rests on, and when it was seen: ``"growth 210; seen in window 3 over 120 samples"``."""
    parts = []
    for name, value in finding.evidence.items():
        if finding.channels and name in _IN_HEADLINE:
            continue
        share = isinstance(value, float) and 0 <= value <= 1 and name.endswith(_SHARES)
        parts.append(f"{name.replace('_', ' ')} {percent(float(value)) if share else number(value)}")
    return f"{', '.join(parts)}{'; ' if parts else ''}{_rests_on(finding, audited)}"


def _rests_on(finding: Finding, audited: bool) -> str:
    """When it was seen, and over how much."""
    if audited:
        return "seen in the weights"
    if finding.window == 0:
        return "seen at initialisation"
    over = "" if finding.samples is None else f" over {count(finding.samples, 'sample')}"
    return f"seen in window {finding.window:,}{over}"


def certified(findings: Sequence[Finding]) -> str:
    """What is proven of the channels of some findings, and what was only seen; empty where nothing is."""
    asked = [finding for finding in findings if "certified" in finding.evidence]
    proven = sum(int(finding.evidence["certified"]) for finding in asked)
    total = sum(len(finding.channels) for finding in asked)
    if not proven:
        return ""
    limits = [int(finding.evidence.get("certified_up_to_values_of_a_channel", 0)) for finding in asked]
    what = _no_input(limits)
    which = "It is" if total == 1 else "All of them are" if proven == total else f"{proven:,} of them are"
    which = which if proven > 1 or total == 1 else "1 of them is"
    rest = f"; the other{'s were' if total - proven > 1 else ' was'} not seen to fire" * (proven < total)
    return f"{which} certified: {what} can make {'it' if proven == 1 else 'them'} fire with these weights{rest}"


def _no_input(limits: Iterable[int]) -> str:
    """What cannot make certified channels fire; where norms' own statistics do that, of so many values, 0 elsewhere."""
    values = min(filter(None, limits), default=0)
    if not values:
        return "no input at all"
    return f"no input at all, of up to {values:,} values a channel (in training only, if a batch norm takes these),"


def prospect(finding: Finding) -> str:
    """What becomes of dead kernels if the optimizer goes on as it is; empty where that is not known."""
    evidence = finding.evidence
    if "moved_by" in evidence:
        still = {
            "nothing": "Nothing moves their weights any more",
            "momentum": "Only momentum from gradients before still moves their weights",
        }[str(evidence["moved_by"])] + ": they have no gradient and no weight decay"
        proven = evidence.get("certified") == len(finding.channels)
        by = "by that, or " if evidence["moved_by"] == "momentum" else ""
        return still if proven and not by else f"{still}; they fire again only {by}if what they read changes"
    fades, opened = evidence.get("faded_in_steps"), evidence.get("opened_by_decay")
    if opened:
        first = evidence.get("opened_in_steps_at_the_earliest")
        when = "" if first is None else f", in {number(first)} steps at the earliest"
        return f"Weight decay may bring {number(opened)} of them back{when}"
    parts = [] if fades is None else [f"takes their kernels to next to zero in about {number(fades)} steps"]
    parts += ["brings none of them back"] if opened == 0 else []
    return f"As it is set, weight decay {' and '.join(parts)}" if parts else ""


def listed(names: Sequence[str], limit: int = 8) -> str:
    """``"conv1, conv2 and 3 more"``."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Worst first, otherwise as they come."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


def tally(findings: Sequence[Finding]) -> str:
    """``"1 error, 2 warnings, 1 info"``."""
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(
        f"{counts[severity]} {severity}{'s' if counts[severity] > 1 and severity != 'info' else ''}"
        for severity in reversed(SEVERITIES)
        if counts[severity]
    )


def _of(some: int, total: int, noun: str) -> str:
    return count(some, noun) if some == total else f"{some:,} of {count(total, noun)}"


def watched(report: ReportRecord) -> str:
    """How much was looked at: ``"26 of 34 kernels in 4 of 5 layers (90% of the weights) watched over 60 samples"``."""
    kernels = sum(layer.channels for layer in report.layers if layer.rows in OF_KERNELS)
    layers = len(report.layers)
    what = f"{_of(report.channels, kernels, 'kernel')} in {_of(len(report.watched), layers, 'layer')}"
    weights, seen = (sum(layer.parameters for layer in part) for part in (report.layers, report.watched))
    what += f" ({percent(seen / weights)} of the weights)" if seen < weights else ""
    unknown = sum(len(layer.unknown) for layer in report.watched)
    if report.audited is not None:
        return f"{what} looked at by their weights alone"
    what += f" ({unknown:,} of them unknown)" if unknown else ""
    if report.window == 0:
        return f"{what} looked at before the first step"
    finite = report.batches - report.non_finite_batches
    only = f", of which {finite:,} of {report.batches:,} batches were finite" if report.non_finite_batches else ""
    if report.samples is None:
        return f"{what} watched over {report.batches:,} batch{'es' * (report.batches != 1)} of unknown size{only}"
    return f"{what} watched over {count(report.samples, 'sample')}{only}"


def moment(report: ReportRecord) -> str:
    """What the report speaks about: ``"window 3 (epoch 2, global step 469)"``."""
    if report.audited is not None:
        modelled = any(layer.activation for layer in report.layers)
        done = " and its model; nothing was trained" if modelled else "; nothing was run"
        return f"the weights in {report.audited}{done}"
    if report.window == 0:
        return "window 0, the state at initialisation, before the first optimizer step"
    return f"window {report.window:,} ({epochs(report)}, global step {report.global_step:,})"


def about(report: ReportRecord) -> str:
    """Whose training it is, in a line: ``"Net by AdamW (lr 0.001), 32-true, torch 2.13.0, 2026-11-26 07:03"``."""
    run = report.run
    if run is None:
        return ""
    rates = [(one.name, one.settings.get("lr")) for one in run.optimizers]
    by = ", ".join(name + (f" (lr {number(lr)})" if lr is not None else "") for name, lr in rates)
    versions = [f"{package} {run.versions[package]}" for package in ("torch", "lightning") if package in run.versions]
    ranks = f" on {count(run.ranks, 'rank')}" if run.ranks > 1 else ""
    ended = (run.ended or run.started)[:16].replace("T", " ")
    parts = [run.model + (f" trained by {by}" if by else ""), run.precision + ranks, *versions, ended]
    return ", ".join(part for part in parts if part)


def epochs(report: ReportRecord) -> str:
    """Which epochs the window lies in: ``"epoch 2"``, ``"epochs 3 to 9"``."""
    if report.first_epoch is None:
        return f"epoch {report.epoch:,}"
    return f"epochs {report.first_epoch:,} to {report.epoch:,}"


def verdict(report: ReportRecord) -> str:
    """The whole report in one line: the first problem, or that there is none."""
    if not report.watched:
        return "Nothing could be watched, so nothing can be said."
    findings = by_severity(report.findings)
    if not findings:
        return f"Nothing found: {watched(report)}."
    worst = findings[0]
    if worst.severity == "info":
        return f"Nothing wrong: {watched(report)}. {count(len(findings), 'remark')}, none of them a problem by itself."
    if report.problems:
        first = report.problems[0]
        remarks = len(findings) - sum(len(problem.findings) for problem in report.problems)
        tail = f" In all: {count(len(report.problems), 'problem')}" if len(report.problems) > 1 or remarks else ""
        tail += f" and {count(remarks, 'remark')}." if remarks else "." if tail else ""
        title = first.title if first.findings[0].layer is not None else first.title[0].upper() + first.title[1:]
        return f"{title}.{tail}"
    same = [f for f in findings if (f.kind, f.layer) == (worst.kind, worst.layer) and f is not worst]
    others = {f.layer for f in findings if (f.kind, f.severity) == (worst.kind, worst.severity)} - {worst.layer}
    rest = f" In all: {tally(findings)}." if len(findings) > 1 else ""
    more = sum(len(finding.channels) for finding in same)
    also = f", and {more:,} more for other reasons" if more else ""
    also += f", as in {count(len(others), 'other layer')}" if others and worst.layer is not None else ""
    line = f"{worst.headline}{also}.{rest}"
    return line[0].upper() + line[1:] if worst.layer is None else line


def watched_and_not(report: ReportRecord) -> str:
    """What is watched and what is not, in one line."""
    parts = [f"{watched(report)[0].upper()}{watched(report)[1:]}"]
    weaker = Counter(layer.evidence for layer in report.watched if layer.evidence != "activation")
    if report.audited is None and report.window:
        words = {
            "sampled activation": "by their activations on sampled steps only",
            "gradient": "by gradients only (no activation to read), so none of those kernels is called dead",
            "weight": "by their weights only",
        }
        every = "the layer" if len(report.watched) == 1 else "all of these layers"
        for kind, n in weaker.items():
            parts.append(f"{f'{n:,} of these layers' if n < len(report.watched) else every} {words[kind]}")
    certified_dead = sum(len(layer.certified_dead) for layer in report.watched)
    if certified_dead:
        dead = sum(len(layer.dead) for layer in report.watched)
        parts.append(
            f"{certified_dead:,} of {count(dead, 'dead kernel')} certified:"
            f" {_no_input(layer.certified_batch or 0 for layer in report.watched)} can make them fire"
        )
    for state, meaning in (
        ("zero_gradient", "without any gradient"),
        ("silent", "silent (never fired, but a gradient passes and may revive them)"),
    ):
        some = sum(len(getattr(layer, state)) for layer in report.watched)
        if some:
            parts.append(f"{count(some, 'kernel')} {meaning}")
    if report.audited is not None:
        parts.append("whether kernels fire, only training can tell")
    not_watched = len(report.layers) - len(report.watched)
    parts.append(f"{count(not_watched, 'layer')} not watched" if not_watched else "no layer left out")
    return "; ".join(parts) + "."


def of_samples(samples: int | None, rate: float) -> str:
    """On how many of the samples that were looked at a channel fired: ``"41 of 6,000 samples"``."""
    if samples is None or rate != rate:
        return NOT_OBSERVED
    return f"{round(rate * samples):,} of {count(samples, 'sample')}"


def savings(saved: Savings) -> str:
    """What pruning would save, in a sentence."""
    text = (
        f"Removing {count(saved.channels, 'dead or zero kernel')} would save {count(saved.parameters, 'parameter')} "
        f"({size(saved.bytes)})"
    )
    if saved.unknown_consumers:
        text += f", and more where the graph does not show what reads them: {listed(saved.unknown_consumers)}"
    return text + "."


def not_watched(report: ReportRecord) -> list[tuple[str, list[LayerReport]]]:
    """Reason -> the layers excluded for it, in order of appearance."""
    groups: dict[str, list[LayerReport]] = {}
    for layer in report.layers:
        if layer.excluded is not None:
            groups.setdefault(layer.excluded, []).append(layer)
    return list(groups.items())


def own_thresholds(thresholds: Thresholds) -> str:
    """The lines that were drawn elsewhere than usual: ``"dormant 0.1 (usually 0.025)"``; empty where none was."""
    usual, own = asdict(Thresholds()), asdict(thresholds)
    return ", ".join(
        f"{name} {number(own[name])} (usually {number(usual[name])})" for name in own if own[name] != usual[name]
    )
