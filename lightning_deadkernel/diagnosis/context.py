"""What a rule looks at, what it may blame, and how it says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.history import LayerPast
from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.records import Finding, LayerReport, Severity
from lightning_deadkernel.thresholds import Thresholds

Evidence = dict[str, float | int | str]


@dataclass(frozen=True)
class Cause:
    """A likely cause, with what to do about it."""

    word: str
    explanation: str
    advice: str
    reference: str
    evidence: Mapping[str, float | int | str]

    @property
    def text(self) -> str:
        """`Finding.cause`."""
        return f"{self.word}: {self.explanation}"


@dataclass(frozen=True)
class View:
    """One layer with all that a rule may look at."""

    layer: LayerWindow
    report: LayerReport
    past: LayerPast
    window: Window
    layers: Mapping[str, LayerWindow]
    reports: Mapping[str, LayerReport]
    thresholds: Thresholds

    def mask(self, channels: Sequence[int]) -> Tensor:
        """(C,) bool: True at the given channels."""
        where = torch.zeros(self.layer.channels, dtype=torch.bool)
        if channels:
            where[list(channels)] = True
        return where

    def wholly_dead(self, name: str) -> bool:
        """Whether every channel of that layer is dead."""
        report = self.reports.get(name)
        return report is not None and report.channels > 0 and len(report.dead) == report.channels


def span(values: Tensor, form: str = ".3g") -> str:
    """One value, or the least and the largest of them, for a sentence."""
    low, high = float(values.min()), float(values.max())
    first, last = format(low, form), format(high, form)
    return first if first == last else f"{first} to {last}"


def windows(values: Tensor) -> str:
    """``"window 3"`` or ``"windows 2 to 5"``."""
    low, high = int(values.min()), int(values.max())
    return f"window {low}" if low == high else f"windows {low} to {high}"


def _plain(evidence: Evidence) -> Evidence:
    """NaN (not observed) left out, infinity in words: both are no JSON."""
    numbers = {name: value for name, value in evidence.items() if not (isinstance(value, float) and math.isnan(value))}
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in numbers.items()}


def finding(
    view: View, kind: str, severity: Severity, cause: Cause, evidence: Evidence, channels: Tensor | None = None
) -> Finding:
    """Say it of the view's layer; `channels` (C,) bool are those concerned, None for the layer as a whole."""
    indices = () if channels is None else tuple(int(c) for c in channels.nonzero().flatten())
    counted: Evidence = {} if channels is None else {"channels": len(indices), "of": view.layer.channels}
    return Finding(
        kind=kind,
        severity=severity,
        layer=view.layer.name,
        channels=indices,
        evidence=_plain({**counted, **evidence, **cause.evidence}),
        cause=cause.text,
        advice=cause.advice,
        reference=cause.reference,
        window=view.window.index,
        samples=view.window.samples,
    )
