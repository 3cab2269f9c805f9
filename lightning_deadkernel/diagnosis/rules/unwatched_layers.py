"""Weights that are trained, or meant to be, and of which nothing can be said.

## What it finds

Layers that are trained by someone's wish and cannot be watched: they are not in the graph of the loss (never used, or
cut off by `detach()` or `no_grad()`), what comes to them is empty, no op that is known consumes their weight, or
reading them failed. Weights that reach the loss but belong to no module: a layer in a plain Python list, a bare tensor.
And kernels of which nothing was seen at all, as the backward pass did not go through Lightning.

## Why it matters

A report that finds nothing where nothing was seen is no good news. What is cut off does not train at all; what is in no
module is neither saved in a checkpoint nor moved to the GPU.

## What to do

Use the layer in the forward pass, remove the `detach()`, register layers in an `nn.ModuleList`; or set
`requires_grad=False` or the monitor's `exclude`, if it is so on purpose. Call `self.manual_backward(loss)` in place of
`loss.backward()`.

## Reference

- PyTorch documentation, Autograd mechanics, https://pytorch.org/docs/stable/notes/autograd.html
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import CauseKind
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.observation import LayerWindow
from lightning_deadkernel.report.records import Severity
from lightning_deadkernel.report.text import count

MUCH, MOST = 0.1, 0.5
"""Shares of all weights from which on it is more than worth knowing that the loss does not reach them, or that they
cannot be read: tables of positions and the like are in many a healthy network."""
SHOWN = 4


@rule(
    "not everything that is trained can be watched",
    causes.CUT_OFF,
    causes.NO_INPUT,
    causes.UNREADABLE,
    causes.BACKWARD_NOT_SEEN,
)
def unwatched_layers(context: WindowContext) -> Iterator[Found]:
    """Excluded layers that nobody excluded, by whether the loss reaches them, weights in no module, and no backward."""
    window = context.window
    unseen = [la for la in context.watched if la.observed.gradient is None and la.observed.fired is None]
    if unseen and window.batches:
        kernels = sum(layer.observed.channels for layer in unseen)
        cause = causes.BACKWARD_NOT_SEEN.because(
            f"of {count(kernels, 'kernel')} in {count(len(unseen), 'layer')} neither an activation nor a gradient was"
            f" seen in {window.batches:,} batches: the backward pass did not go through Lightning, whose hooks show it",
            "With manual optimization call self.manual_backward(loss) in place of loss.backward(); then the monitor"
            " sees what each kernel does.",
            references.MANUAL_DOCS,
            {"layers": len(unseen), "kernels": kernels},
        )
        yield Found(None, "warning", cause)
    total = sum(layer.parameters for layer in window.layers)
    for kind, much in ((causes.CUT_OFF, MUCH), (causes.NO_INPUT, MUCH), (causes.UNREADABLE, MOST)):
        layers = [layer for layer in window.layers if layer.missed == kind.word]
        strangers = window.strangers if kind is causes.UNREADABLE else 0
        if layers or strangers:
            share = sum(layer.parameters for layer in layers) / max(1, total)
            # what no optimizer holds nobody trains: an average of weights, the target network of an agent
            meant = [layer.parameters for layer in layers if layer.in_optimizer or kind is causes.UNREADABLE]
            if kind is causes.NO_INPUT and all(_has_learned(context, layer) for layer in layers):
                meant = []
            severity: Severity = "warning" if sum(meant) >= much * total > 0 or strangers else "info"
            yield _found(kind, layers, strangers, share, severity)


def _has_learned(context: WindowContext, layer: LayerWindow) -> bool:
    past = context.history.layers.get(layer.name)
    return past is not None and bool((past.last_gradient > 0).any())


def _found(kind: CauseKind, layers: list[LayerWindow], strangers: int, share: float, severity: Severity) -> Found:
    names = ", ".join(layer.name for layer in layers[:SHOWN]) + (", ..." if len(layers) > SHOWN else "")
    reasons = "; ".join(dict.fromkeys(str(layer.excluded) for layer in layers))
    parts = [f"{count(len(layers), 'layer')} with {share:.0%} of the weights ({names}): {reasons}"] if layers else []
    if strangers:
        many = strangers > 1
        reach = "s reach the loss, belong" if many else " reaches the loss, belongs"
        them, they = ("them", "they") if many else ("it", "it")
        parts.append(
            f"{strangers:,} weight{reach} to no module and {'are' if many else 'is'} not watched: self.parameters()"
            f" does not hold {them}, so that {they} {'are' if many else 'is'} neither saved nor moved to a device, and"
            f" trained only where an optimizer was given {them}"
        )
    advice = []
    if kind is causes.CUT_OFF and not any(layer.in_optimizer for layer in layers):
        advice.append("No optimizer holds them either, as is so of copies (an average of weights, a target network):")
        advice.append("nothing to fix; set requires_grad=False, which says so.")
    elif kind is causes.CUT_OFF:
        advice.append("Look for a detach() or no_grad() after these layers, or a branch of the forward pass that is")
        advice.append("never taken; set requires_grad=False if it is so on purpose.")
    elif kind is causes.NO_INPUT:
        advice.append("Look at what selects their inputs: a list of edges, a mask or a router that leaves")
        advice.append("nothing.")
    elif layers:
        advice.append("Judge these layers by other means; where they are no kernels, leave them out by `exclude`.")
    if strangers:
        advice.append("Make layers once, in __init__ and not in forward(), and register them in an nn.ModuleList, and")
        advice.append("bare weights as nn.Parameter of a module.")
    evidence = {"layers": len(layers), "share_of_weights": share, "in_no_module": strangers}
    cause = kind.because("; ".join(parts), " ".join(advice), references.AUTOGRAD_DOCS, evidence)
    return Found(None, severity, cause)
