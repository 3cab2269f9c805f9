"""Kernels that got no gradient at all, and whose activation cannot tell why.

## What it finds

Layers some or all of whose kernels had a gradient of exactly zero in the whole window, and that have no activation from
which one could tell whether they fire. Where no watched layer had any gradient, the loss is flat, and it is told once,
of the network. A layer whose bias alone has a gradient is one whose inputs are all zero,
or whose gradient is taken away.

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

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.context import WindowContext
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
        yield Found(None, "error", _flat_loss(context))
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


def _flat_loss(context: WindowContext) -> Cause:
    before = max(int(layer.past.last_gradient.max()) for layer in context.watched if layer.observed.channels)
    came = before > 0
    return causes.FLAT_LOSS.because(
        "no gradient reached any watched layer in this window: "
        + (
            f"the last one came in {context.history.when(before)}, and since then the loss is on a plateau of exactly"
            " zero slope, or cut off"
            if came
            else "the loss does not depend on the weights, or it is on a plateau of exactly zero slope"
        ),
        (
            "Look at the value of the loss: where it is as low as it can be (margins that are all met, probabilities of"
            " exactly 1 from huge logits), nothing is left to learn from this data. Else look for "
            if came
            else "Look for a detach() or no_grad() before the loss, something without a slope (round, sign, a"
            " comparison), "
        )
        + "a margin or a mask that leaves nothing of the loss, or float16 gradients without loss scaling.",
        references.MIXED,
        {"layers": len(context.watched), **({"last_gradient_in_window": before} if came else {})},
    )
