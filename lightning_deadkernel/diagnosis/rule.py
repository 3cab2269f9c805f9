"""What a rule is: a check over a window that yields what it found, with the page that explains it.

Each module of `diagnosis.rules` holds one rule of its own name, and its docstring is the rule's page in the docs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.causes import UNKNOWN, Cause, CauseKind, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.report.records import Finding, Severity
from lightning_deadkernel.report.text import ranges


@dataclass(frozen=True)
class Found:
    """What a rule has found, in one layer or, with `layer=None`, in the whole network."""

    layer: LayerContext | None
    severity: Severity
    """*info* is worth knowing and normal, *warning* is capacity or speed lost, *error* makes training useless."""
    cause: Cause
    evidence: Evidence = field(default_factory=dict)
    channels: Tensor | None = None
    """(C,) bool: the channels concerned; None: the layer as a whole."""
    samples: int | None = None
    """That it rests on; None: those of the window."""


Check = Callable[[WindowContext], Iterator[Found]]


@dataclass(frozen=True)
class Rule:
    """One kind of finding."""

    kind: str
    title: str
    """What it says; `{of}` becomes "3 of 16 kernels are"."""
    noun: str
    """What it counts."""
    causes: tuple[CauseKind, ...]
    """All causes that it may state."""
    check: Check
    at_initialisation: bool
    """Whether it can be told from the weights alone, before the first step."""
    in_files: bool
    """Whether it can be told from the weights alone, however they came to be."""
    with_model: bool
    """Whether it can be told from a file and the model's code."""
    page: str
    """Markdown: what it finds, why it matters, what to do, reference."""

    def findings(self, context: WindowContext) -> Iterator[tuple[Found, Finding]]:
        """What there is to say of this kind, with what it was made from."""
        trained = context.window.index > 0
        if self.in_files or self.with_model if context.window.audited else trained or self.at_initialisation:
            for found in self.check(context):
                yield found, self._finding(found, context)

    def _finding(self, found: Found, context: WindowContext) -> Finding:
        indices = () if found.channels is None else tuple(found.channels.nonzero().flatten().tolist())
        counted: Evidence = {}
        if found.layer is not None and found.channels is not None:
            counted = {"channels": len(indices), "of": found.layer.observed.channels}
            if heads := whole_heads(found.channels, found.layer.observed.heads):
                counted["heads"] = heads
        return Finding(
            kind=self.kind,
            severity=found.severity,
            layer=None if found.layer is None else found.layer.name,
            channels=indices,
            evidence=_plain({**counted, **found.evidence, **found.cause.evidence}),
            cause=found.cause.text,
            advice=found.cause.advice,
            reference=found.cause.reference,
            window=context.window.index,
            samples=found.samples or (context.window.samples if found.layer is None else found.layer.samples),
            title=self._title(found, indices, str(counted.get("heads", ""))),
        )

    def _title(self, found: Found, channels: Sequence[int], heads: str) -> str:
        total = found.layer.observed.channels if found.layer is not None else 0
        verb = "is" if len(channels) == 1 else "are"
        text = self.title.format(of=f"{len(channels):,} of {total:,} {self.noun}{'s' * (total != 1)} {verb}")
        return titled(text, heads, found.cause.kind.word)


def titled(text: str, heads: str, word: str) -> str:
    """What was found, with the heads that it is about and the cause's word in brackets, where there is one to say."""
    said = (heads, "" if word == UNKNOWN.word or word in text else word)
    return f"{text} ({'; '.join(filter(None, said))})" if any(said) else text


def whole_heads(channels: Tensor, heads: int | None) -> str:
    """``"heads 2, 5 of 8"``: those that channels, (C,) bool, are; empty where one of them is in part, or all are."""
    if heads is None:
        return ""
    by_head = channels.view(heads, -1)
    whole = by_head.all(1)
    if bool(whole.all()) or not torch.equal(whole, by_head.any(1)):
        return ""
    return f"head{'s' * (int(whole.sum()) > 1)} {ranges(whole.nonzero().flatten().tolist())} of {heads}"


def rule(
    title: str,
    *causes: CauseKind,
    noun: str = "kernel",
    at_initialisation: bool = False,
    in_files: bool = False,
    with_model: bool = False,
) -> Callable[[Check], Rule]:
    """Make a check the rule of its own name, with its module's docstring as page; for the arguments see `Rule`."""

    def made(check: Check) -> Rule:
        page = sys.modules[check.__module__].__doc__ or ""
        return Rule(check.__name__, title, noun, causes, check, at_initialisation, in_files, with_model, page)

    return made


def _plain(evidence: Evidence) -> Evidence:
    """NaN (not observed) left out, infinity in words: neither is JSON."""
    numbers = {name: value for name, value in evidence.items() if not (isinstance(value, float) and math.isnan(value))}
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in numbers.items()}
