"""How a report speaks: its sentences and numbers, shared by Markdown, console and HTML. Plain text, nothing escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from lightning_deadkernel.observation import STATISTICS
from lightning_deadkernel.report.records import SEVERITIES, Finding, LayerReport, ReportRecord, Savings
from lightning_deadkernel.report.states import COUNTED, Word

NOT_OBSERVED = "-"
_LEAST_NAME = 12
_IN_HEADLINE = {"channels", "of"}
_SHARES = ("share", "share_of_steps", "fraction", "firing_rate", "rate_bound", "sparsity", "weight_zeros", "near_zeros")
"""Endings of the names of what is shown in percent."""


def ranges(channels: Sequence[int], limit: int = 8) -> str:
    """Ascending channel indices as ranges: ``"0-3, 7, 9-12"``; beyond `limit` of them, the rest is counted."""
    runs = []
    for _, group in groupby(enumerate(channels), lambda pair: pair[1] - pair[0]):
        run = [channel for _, channel in group]
        runs.append(run)
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:limit]]
    rest = sum(len(run) for run in runs[limit:])
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def count(number: int, noun: str) -> str:
    """``"1 layer"``, ``"12,000 samples"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def number(value: float | int | str | None) -> str:
    """A number for people: three significant digits, thousands apart, a dash for what was not observed."""
    if value is None:
        return NOT_OBSERVED
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value != value:
        return NOT_OBSERVED
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share as a percentage, never rounded to nothing or to all of it."""
    if share is None or share != share:
        return NOT_OBSERVED
    if 0 < share < 1e-4:
        return "<0.01%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.2g}%" if share < 0.01 else f"{100 * share:.3g}%"


def evidence(finding: Finding) -> str:
    """The numbers a finding rests on: ``"gradient ratio 2.1e-09, sampled steps 5"``."""
    parts = []
    for name, value in finding.evidence.items():
        if finding.channels and name in _IN_HEADLINE:
            continue
        share = isinstance(value, float) and 0 <= value <= 1 and name.endswith(_SHARES)
        parts.append(f"{name.replace('_', ' ')} {percent(float(value)) if share else number(value)}")
    return ", ".join(parts)


def rests_on(finding: Finding) -> str:
    """When it was seen, and over how much."""
    if finding.window == 0:
        return "seen at initialisation"
    over = "" if finding.samples is None else f" over {count(finding.samples, 'sample')}"
    return f"seen in window {finding.window:,}{over}"


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


def watched(report: ReportRecord) -> str:
    """How much was looked at: ``"26 kernels in 4 layers watched over 1,437 samples"``."""
    what = f"{count(report.channels, 'kernel')} in {count(len(report.watched), 'layer')}"
    if report.audited is not None:
        return f"{what} looked at by their weights alone"
    if report.window == 0:
        return f"{what} looked at before the first step"
    if report.samples is None:
        return f"{what} watched over {report.batches:,} batch{'es' * (report.batches != 1)} of untold size"
    return f"{what} watched over {count(report.samples, 'sample')}"


def moment(report: ReportRecord) -> str:
    """What the report speaks about: ``"window 3 (epoch 2, global step 469)"``."""
    if report.audited is not None:
        return f"the weights in {report.audited}; nothing was run"
    if report.window == 0:
        return "window 0, the state at initialisation, before the first optimizer step"
    return f"window {report.window:,} (epoch {report.epoch:,}, global step {report.global_step:,})"


def verdict(report: ReportRecord) -> str:
    """The whole report in one line: the worst finding, or that there is none."""
    if not report.watched:
        return "Nothing could be watched, so nothing can be said."
    findings = by_severity(report.findings)
    if not findings:
        return f"Nothing found: {watched(report)}."
    worst = findings[0]
    if worst.severity == "info":
        return f"Nothing wrong: {watched(report)}. {count(len(findings), 'remark')}, none of them a problem by itself."
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
            "gradient": "by gradients only (no activation to read), so none of their kernels is called dead",
            "weight": "by their weights only",
        }
        parts += [f"{n:,} of these layers {words[kind]}" for kind, n in weaker.items()]
    for state, meaning in (
        ("zero_gradient", "without any gradient"),
        ("silent", "silent (never fired, but a gradient passes and may revive them)"),
    ):
        some = sum(len(getattr(layer, state)) for layer in report.watched)
        if some:
            parts.append(f"{count(some, 'kernel')} {meaning}")
    not_watched = len(report.layers) - len(report.watched)
    parts.append(f"{count(not_watched, 'layer')} not watched" if not_watched else "no layer left out")
    return "; ".join(parts) + "."


def savings(saved: Savings) -> str:
    """What pruning would save, in a sentence."""
    size = float(saved.bytes)
    unit = next(u for i, u in enumerate(("bytes", "kB", "MB", "GB")) if size < 1000 ** (i + 1) or u == "GB")
    size /= 1000 ** ("bytes", "kB", "MB", "GB").index(unit)
    text = (
        f"Removing {count(saved.channels, 'dead or zero kernel')} would save {count(saved.parameters, 'parameter')} "
        f"({number(size) if unit != 'bytes' else f'{saved.bytes}'} {unit})"
    )
    if saved.unknown_consumers:
        text += f", and more where the graph does not show what reads them: {', '.join(saved.unknown_consumers)}"
    return text + "."


def not_watched(report: ReportRecord) -> list[tuple[str, list[LayerReport]]]:
    """Reason -> the layers excluded for it, in order of appearance."""
    groups: dict[str, list[LayerReport]] = {}
    for layer in report.layers:
        if layer.excluded is not None:
            groups.setdefault(layer.excluded, []).append(layer)
    return list(groups.items())


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column holds names, numbers stand right."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]
    """Which columns stand right."""

    def fitted(self, width: int, gap: int) -> tuple[Table, int]:
        """At most `width` wide with `gap` between columns: names are cut first, then columns from the right.

        Returns:
            The table, and how many columns were left out.
        """
        widths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]
        kept = len(widths)
        least = min(widths[0], _LEAST_NAME)
        while kept > 1 and least + sum(gap + w for w in widths[1:kept]) > width:
            kept -= 1
        room = min(widths[0], width - sum(gap + w for w in widths[1:kept]))
        rows = tuple((shortened(row[0], room), *row[1:kept]) for row in self.rows)
        return Table(self.headings[:kept], rows, self.right[:kept]), len(widths) - kept


def shortened(name: str, width: int) -> str:
    """A name cut in its middle, since both its ends tell layers apart."""
    if len(name) <= width:
        return name
    head = (width - 2) // 2
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}" if width > 4 else name[:width]


_FORMS: dict[str, Callable[[float | None], str]] = {"number": number, "share": percent}


def layer_table(layers: Sequence[LayerReport], brief: bool = False) -> Table:
    """Layers, with those columns only that have something to say about one of them; `brief`: counts and ratios only."""
    columns = [("layer", [layer.name for layer in layers], False)]
    if not brief:
        columns.append(("kind", [layer.kind for layer in layers], False))
    if not brief and any(layer.activation for layer in layers):
        columns.append(("activation", [layer.activation or NOT_OBSERVED for layer in layers], False))
    if not brief and len({layer.evidence for layer in layers}) > 1:
        columns.append(("evidence", [layer.evidence for layer in layers], False))
    columns.append(("kernels", [f"{layer.channels:,}" for layer in layers], True))
    for word in COUNTED:
        counts = [len(getattr(layer, word.attribute)) for layer in layers]
        if any(counts):
            cells = [_counted(n, layer, word) for n, layer in zip(counts, layers, strict=True)]
            columns.append((word.heading, cells, True))
    for shown in STATISTICS:
        values = [getattr(layer, shown.name) for layer in layers]
        if shown.shown in (("brief",) if brief else ("brief", "full")) and any(
            value is not None and value == value for value in values
        ):
            columns.append((shown.title, [_FORMS[shown.form](value) for value in values], True))
    headings, columns_of_text, right = zip(*columns, strict=True)
    return Table(headings, tuple(zip(*columns_of_text, strict=True)), right)


def _counted(number_of: int, layer: LayerReport, word: Word) -> str:
    """A count, or a dash where the layer's evidence cannot tell."""
    blind = layer.evidence in ("gradient", "weight") and word.needs_activation
    return NOT_OBSERVED if blind and not number_of else f"{number_of:,}"
