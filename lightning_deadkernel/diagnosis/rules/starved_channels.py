"""Kernels that fire while no gradient comes back to them.

## What it finds

Kernels that are alive and whose gradient was exactly zero in the whole window, on every step that was looked at.

## Why it matters

They compute something that nothing downstream listens to, so they cannot learn. The fault lies behind them: a dead
layer, zero weights that read them, a loss that does not depend on them.

## What to do

Look at what reads the layer, which the finding names. The layer itself is sound and learns again as soon as a gradient
comes back.

## Reference

- CS231n course notes, Neural Networks Part 3, https://cs231n.github.io/neural-networks-3/
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import (
    DEAD_DOWNSTREAM,
    FLAT_LOSS,
    OUTGOING_ZERO,
    UNDERFLOW,
    UNKNOWN,
    Cause,
)
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import underflow
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.report.records import Severity


@rule(
    "{of} starved: alive, but no gradient comes back",
    causes=(DEAD_DOWNSTREAM, UNDERFLOW, OUTGOING_ZERO, FLAT_LOSS, UNKNOWN),
)
def starved_channels(context: WindowContext) -> Iterator[Found]:
    """Channels in the state "starved"; a flat loss starves all and is told once."""
    if context.loss_is_flat:
        yield Found(None, "warning", _flat_loss(context))
        return
    for layer in context.layers:
        channels = layer.mask(layer.report.starved)
        if bool(channels.any()):
            rare = layer.mask(layer.report.rare)
            severity: Severity = (
                "error" if bool(channels.all()) else "info" if bool((rare | ~channels).all()) else "warning"
            )
            yield Found(layer, severity, _why(layer), layer.since(channels), channels)


def _flat_loss(context: WindowContext) -> Cause:
    return FLAT_LOSS.because(
        "no gradient reached any watched layer in this window: the loss does not depend on the weights, or it lies on a"
        " plateau of exactly zero slope",
        "Look for a detach() or no_grad() before the loss, a loss that a margin has clamped to zero, or float16"
        " gradients without loss scaling.",
        references.MIXED,
        {"layers": len(context.layers)},
    )


def _why(layer: LayerContext) -> Cause:
    consumers = [consumer.layer for consumer in layer.observed.consumers or ()]
    names = ", ".join(consumers)
    if consumers and all(layer.wholly_dead(name) for name in consumers):
        return DEAD_DOWNSTREAM.because(
            f"every channel of what reads this layer is dead ({names}), so no gradient comes back",
            f"Revive {names}; this layer is sound and learns again as soon as something listens.",
            references.LU,
            {"consumers": names},
        )
    cause = underflow(layer.observed)
    if cause is not None:
        return cause
    if consumers and all(layer.wholly_zero(name) for name in consumers):
        return OUTGOING_ZERO.because(
            f"fires, yet its gradient is exactly zero: every kernel of what reads it is zero, or the norm's scale"
            f" (gamma) after it is ({names})",
            f"See to the zero kernels of {names} first; this layer is sound and learns again as soon as they let a"
            " gradient through.",
            references.MEHTA,
            {"consumers": names},
        )
    if consumers:
        return OUTGOING_ZERO.because(
            f"fires, and {names} is not dead, yet its gradient is exactly zero: the weights that read it are zero, or"
            " what reads it is off whenever it fires",
            f"Look at the input slices of {names} for these channels: give them small random values, or release what"
            " holds them at zero.",
            references.CS231N,
            {"consumers": names},
        )
    return UNKNOWN.because(
        "the channels fire, yet their gradient is exactly zero; the graph does not show what reads them; ruled out: a"
        " flat loss, since other layers have gradients",
        "Look for a detach(), a zero loss weight or zero outgoing weights between this layer and the loss.",
        references.CS231N,
    )
