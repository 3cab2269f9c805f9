"""Kernels that got no gradient at all, and whose activation cannot tell why.

## What it finds

Layers some or all of whose kernels had a gradient of exactly zero in the whole window, and that have no activation from
which one could tell whether they fire. Where no watched layer had any gradient, the loss is flat, and it is told once,
of the network, with whether there was one before. A layer whose bias alone has a gradient is one whose inputs are all
zero, or whose gradient is taken away.

## Why it matters

What gets no gradient does not learn, though it is trained, costs time and memory, and looks healthy in a summary of the
weights.

## What to do

Look at the part of the loss that the layer enters: a weight of zero, a `detach()` or `no_grad()` on the way, a margin
or a mask that leaves nothing, float16 without loss scaling. Single outputs that no target asks for are normal.

## Reference

- PyTorch documentation, Autograd mechanics, https://pytorch.org/docs/stable/notes/autograd.html
- Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import (
    NO_GRADIENT_CAUSES,
    NO_GRADIENT_KINDS,
    dead_inputs,
    gradient_is_taken,
    gradient_taken,
    has_dead_inputs,
    unknown_absence,
)
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.weight_causes import assign
from lightning_deadkernel.observation import OF_KERNELS


@rule(
    "no gradient arrives",
    causes.FLAT_LOSS,
    dead_inputs.kind,
    gradient_taken.kind,
    *NO_GRADIENT_KINDS,
)
def no_gradient(context: WindowContext) -> Iterator[Found]:
    """Channels in the state "zero-gradient", and a flat loss."""
    if context.loss_is_flat:
        # two layers of zeros, one behind the other, have no gradient either, whatever the loss
        if sum(layer.wholly("zero_kernels") for layer in context.watched) < 2:
            cause = _flat_loss(context)
            yield Found(None, "error" if not cause.evidence.get("last_gradient_in_window") else "warning", cause)
        return
    for layer in context.layers:
        of_all = dead_inputs if has_dead_inputs(layer) else gradient_taken if gradient_is_taken(layer) else None
        if of_all is not None:
            everywhere = layer.everywhere(True)
            yield Found(layer, "error", of_all.explain(layer, everywhere), {}, everywhere)
            continue
        if not layer.report.zero_gradient:
            continue
        without = layer.mask(layer.report.zero_gradient)
        whole = bool(without.all())
        if layer.observed.rows not in OF_KERNELS and not whole:
            continue  # single rows of a table, or experts, are a matter of `dead_rows`
        for channels, cause in assign(layer, without, NO_GRADIENT_CAUSES, unknown_absence):
            yield Found(layer, "warning" if whole else "info", cause, layer.since(channels), channels)


BLOWN_UP = 10.0
"""Times their norm at the start from which on the outputs of kernels lie far out."""


def _growth(layer: LayerContext) -> float:
    """Mean norm of its kernels over what it was at the start; 0 where that is not known."""
    first = float(layer.past.first_norm.mean())
    now = 0.0 if layer.observed.norms is None else float(layer.observed.norms.mean())
    return now / first if layer.past.from_start and first > 0 and now > 0 else 0.0


def _flat_loss(context: WindowContext) -> Cause:
    """Whether there was a gradient before tells a loss that has come to rest from one that never had a slope."""
    evidence: Evidence = {"layers": len(context.watched)}
    met = "a margin or a mask that leaves nothing of the loss"
    last = max(int(layer.past.last_gradient.max()) for layer in context.watched if layer.observed.channels)
    text = "no gradient reached any watched layer in this window: "
    if last < 1:
        alone = any(layer.is_output and layer.observed.channels == 1 for layer in context.watched)
        over_one = "a softmax or a cross entropy over a single output, " * alone
        return causes.FLAT_LOSS.because(
            f"{text}the loss does not depend on the weights, or it is on a plateau of exactly zero slope",
            f"Look for something without a slope before the loss (round, sign, argmax, a comparison), {met}, {over_one}"
            "outputs so far apart that a softmax is exactly 0 and 1, or float16 gradients without loss scaling.",
            references.MIXED,
            evidence,
        )
    evidence["last_gradient_in_window"] = last
    text += f"the last one came in {context.history.when(last)}, and since then the loss is on a plateau of"
    text += " exactly zero slope, or cut off"
    growth, largest = max(((_growth(layer), layer) for layer in context.watched), key=itemgetter(0))
    if growth > BLOWN_UP:
        evidence["growth"] = growth
        return causes.FLAT_LOSS.because(
            f"{text}, and the kernels of {largest.name} have {growth:.3g} times the norm that they had at the start:"
            " most likely the outputs lie so far out that nothing comes back",
            f"Start again and lower {largest.rate} three- to tenfold, or warm it up over the first few hundred steps."
            f" Where the loss is as low as it can be ({met}), nothing is left to learn.",
            f"{references.WARMUP}; {references.CS231N}",
            evidence,
        )
    return causes.FLAT_LOSS.because(
        text,
        f"Look at the value of the loss: where it is as low as it can be ({met}), nothing is left to learn from this"
        " data. Else outputs so far apart that a softmax or sigmoid of them is exactly 0 and 1 send nothing back: scale"
        " them down, or lower the learning rate.",
        references.AUTOGRAD_DOCS,
        evidence,
    )
