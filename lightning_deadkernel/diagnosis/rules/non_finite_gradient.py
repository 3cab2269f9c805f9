"""Gradients that are NaN or infinite.

## What it finds

That a gradient was NaN or infinite on some step of the window, with the step on which that began and the layer, as far
as is known: activations are read on sampled steps, and on the CPU on the first step whose loss is not finite. Batches
with such values prove nothing: the states rest on the others. Steps that a gradient scaler skipped for overflow are how
it finds its scale, and are not meant.

## Why it matters

One step with such a gradient makes the weights NaN, and nothing computed with them is a number any more.

## What to do

Where it came before the first step, look at the inputs, the targets, the initial weights and the operations. Else go
back to the last checkpoint with finite weights; lower the learning rate or clip the gradient norm.
`torch.autograd.set_detect_anomaly(True)` names the operation that made the first NaN.

## Reference

- Pascanu et al. 2013, On the difficulty of training Recurrent Neural Networks, https://arxiv.org/abs/1211.5063
- Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, Evidence
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.observation import NonFinite
from lightning_deadkernel.report.records import Severity


@rule("gradients are NaN or infinite", causes.OVERFLOW)
def non_finite_gradient(context: WindowContext) -> Iterator[Found]:
    """Where it began, where that is known; else the layers with non-finite gradients, or the network where all have."""
    began = context.history.non_finite
    layers = [layer for layer in context.watched if layer.is_lost or layer.observed.non_finite_gradients]
    together = began is not None or 1 < len(layers) == len(context.watched)
    for group in [layers] if together else [[layer] for layer in layers]:
        lost = any(layer.holds_nan for layer in group)
        evidence: Evidence = {"entries": sum(layer.observed.non_finite_gradients for layer in group)}
        if together:
            evidence["layers"] = len(group)
        where = None if together else group[0]
        if began is not None:
            in_layer = began.place in ("data", "activation", "backward")
            where, evidence["step"] = context.by_name.get(began.layer) if in_layer else None, began.step
        severity: Severity = "error" if any(layer.is_lost for layer in group) else "warning"
        yield Found(where, severity, _overflow(context, lost, began), evidence)


PLACES = {
    "data": "what enters {layer} was, which no layer in the graph of that step had made",
    "activation": "the activation of {layer} was the first in forward order",
    "loss": "the loss was, while all activations that could be read were finite, that of {layer} the last of them: most"
    " likely it came of what follows there (a number too large, log of 0, 0/0, a softmax all of whose entries are"
    " masked)",
    "unread loss": "the loss was; where it began is not known, as no activation was read on that step",
    "backward": "the gradients of {layer} and of layers before it were, while those nearer to the loss were finite: it"
    " came of the backward pass right behind {layer} (the root or the norm of 0)",
    "unknown": "the gradients of all layers were, of which {layer} is the first in forward order; where it began is not"
    " known, as activations are read on sampled steps",
}


def _overflow(context: WindowContext, lost: bool, began: NonFinite | None) -> Cause:
    line = context.thresholds.update_large
    ratios = [layer.observed.update_ratio_max or 0.0 for layer in context.watched]
    largest = began.largest_update if began else max(filter(math.isfinite, ratios), default=0.0)
    text = "the gradient held NaN or infinity"
    if began is not None:
        text = f"the first values that were NaN or infinite came at step {began.step:,}: "
        text += PLACES[began.place].format(layer=began.layer)
    reader = None if began is None else context.by_name.get(began.layer)
    if began is not None and began.place == "data":
        then = " Then go back to the last checkpoint with finite weights." if lost else ""
        return causes.OVERFLOW.because(
            text + ("; the weights hold it too: nothing they compute is a number any more" if lost else ""),
            f"Look at the data of that step as it enters {began.layer}: a missing value, a division by a standard"
            f" deviation of zero, a log of zero.{then}",
            references.MIXED,
        )
    inputs = began is not None and began.place == "activation" and reader is not None and not reader.observed.producers
    return causes.OVERFLOW.because(
        text
        + (f"; a step before had changed weights by {largest:.2g} of their norm" if largest > line else "")
        + ("; the weights hold it too: nothing they compute is a number any more" if lost else ""),
        ("Look for NaN or huge values in the inputs of that step, which the layer reads. " if inputs else "")
        + (
            "No step had been taken before it, so that no learning rate did it: look at the inputs, the targets, the"
            " initial weights and the operations;"
            if began is not None and began.step <= 1
            else "Go back to the last checkpoint with finite weights and lower the learning rate or clip the gradient"
            " norm;"
        )
        + " torch.autograd.set_detect_anomaly(True) names the operation that made the first NaN.",
        f"{references.CLIPPING}; {references.MIXED}",
    )
