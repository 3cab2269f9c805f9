"""Kernels that never fired behind a rectifier, and got no gradient.

## What it finds

Kernels whose output was zero or below on every sample of the window, where all that follows is a rectifier (ReLU and
its kin), and whose own gradient was zero as well. It rests on all samples of the window, not on one batch; with *n*
samples and no firing, the true firing rate is below 3/n with 95 % confidence. Some are *certified*: what stands before
the layer and the weights of now prove that no input at all can make them fire ([how](../proof.md#certificates)).

## Why it matters

A dead kernel adds nothing to the output, and no gradient can bring it back: it is capacity that is paid for and not
used. A whole dead layer cuts the network off.

## What to do

The finding names the likely cause and what helps against it. Mostly: lower the learning rate or warm it up, scale the
data where it is far from unit size, put a norm before the activation, use He initialisation, or use LeakyReLU or GELU.
A few dead kernels are normal in deep networks without norms, and can be pruned without changing the output, or drawn
anew (`lightning_deadkernel.revive`).

## Reference

- Lu et al. 2019, Dying ReLU and Initialization: Theory and Numerical Examples, https://arxiv.org/abs/1903.06733
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis import causes
from lightning_deadkernel.diagnosis.causes import CauseKind, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.death_causes import CAUSES, CHANCE_SHARE, proven, unknown
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.weight_causes import (
    assign,
    pruned,
)
from lightning_deadkernel.report.records import Severity

FEW_BATCHES = 5
"""One batch is no evidence: in a healthy layer of 1024 units 9 % were silent in one batch of 32, 0 % over ten."""
FEW = 0.05
"""In healthy U-Nets and autoencoders without norms up to so much of a layer fired on 31 to 55 % of inputs in one window
and on none in the next, by no step that was reckless, and by the first steps of Adagrad in others."""
AS_OUTPUT = (
    "These are outputs of the network: take away the rectifier after the last layer, or see whether any target asks for"
    " a value above zero there."
)
SURE = 3.0
"""Of n samples on none of which a channel fired: its rate is below 3/n with 95 % confidence (the rule of three)."""


@rule("{of} dead", *dict.fromkeys(cause.kind for cause in CAUSES), causes.UNKNOWN, with_model=True)
def dead_channels(context: WindowContext) -> Iterator[Found]:
    """Channels in the state "dead", grouped by cause."""
    for layer, dead in context.having("dead"):
        audited = context.window.audited
        groups = assign(layer, dead, (pruned,) if audited else CAUSES, proven if audited else unknown)
        chance = sum(float(channels.float().mean()) for channels, cause in groups if cause.kind.by_chance)
        most = max((int(channels.sum()) for channels, cause in groups if cause.kind.by_chance), default=0)
        for channels, cause in groups:
            severity = _severity(layer, bool(dead.all()), channels, cause.kind, chance)
            if cause.kind.by_chance and int(channels.sum()) < most:  # that chance took so many is told once
                severity = "info"
            if layer.is_output and not cause.kind.on_purpose:
                cause = replace(cause, advice=AS_OUTPUT)
            yield Found(layer, severity, cause, _evidence(layer, channels), channels, _looked_at(layer))


def _severity(layer: LayerContext, whole: bool, channels: Tensor, cause: CauseKind, chance: float) -> Severity:
    if cause.on_purpose:
        return "info"
    if whole:
        return "error"
    if layer.window.audited:
        return "warning"
    young = bool((layer.past.since[channels] == layer.window.index).all())
    if (cause.by_chance or cause is causes.UNKNOWN) and young and layer.window.batches < FEW_BATCHES:
        return "info"
    few = cause in (causes.UNKNOWN, causes.KNOCKED_OUT) and float(channels.float().mean()) < FEW
    return "info" if (cause.by_chance or few) and chance < CHANCE_SHARE else "warning"


def _evidence(layer: LayerContext, channels: Tensor) -> Evidence:
    evidence: Evidence = {} if layer.window.audited else layer.since(channels)
    certified = layer.mask(layer.report.certified_dead) & channels
    if layer.observed.certified_dead is not None:
        evidence["certified"] = int(certified.sum())
    if bool(certified.any()) and layer.observed.certified_batch is not None:
        evidence["certified_up_to_values_of_a_channel"] = layer.observed.certified_batch
    evidence |= _prospect(layer, channels)
    if torch.equal(certified, channels):
        return evidence
    samples, positions = _looked_at(layer), layer.observed.passed_positions
    if samples:
        evidence["highest_possible_firing_rate"] = SURE / samples
    elif positions:  # samples cannot be told from them
        evidence |= {"positions": positions, "highest_possible_per_position_firing_rate": SURE / positions}
    if not layer.observed.exact:
        evidence["seen_on"] = "sampled steps and gradients"
    return evidence


def _prospect(layer: LayerContext, channels: Tensor) -> Evidence:
    """What becomes of them if the optimizer goes on as it is."""
    known = layer.observed.prospect
    if known is None or not bool(layer.mask(known.channels)[channels].all()):
        return {}
    if not known.moves:
        return {"moved_by": "momentum" if known.coasts else "nothing"}
    evidence: Evidence = {"faded_in_steps": known.fades_in} if known.fades_in else {}
    if known.returning is not None:
        returning = int((layer.mask(known.returning) & channels).sum())
        evidence["opened_by_decay"] = returning
        if returning and known.earliest is not None:
            evidence["opened_in_steps_at_the_earliest"] = known.earliest
    return evidence


def _looked_at(layer: LayerContext) -> int | None:
    """Samples that passed through the layer in finite batches; None where only positions are known."""
    passed, window = layer.observed.passed_samples, layer.window
    if passed is None:
        return layer.samples if layer.observed.passed_positions is None else None
    finite = window.batches - window.non_finite_batches
    return passed * finite // window.batches if window.batches else passed
