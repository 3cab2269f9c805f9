"""Kernels that fire while no gradient comes back to them.

## What it finds

Kernels that are alive and whose gradient was exactly zero in the whole window, on every step that was looked at.

## Why it matters

They compute something that nothing downstream listens to, so they cannot learn. The fault lies behind them: a dead or
saturated layer, zero weights that read them, a term of the loss that has no weight.

## What to do

Look at what reads the layer, which the finding names. The layer itself is sound and learns again as soon as a gradient
comes back.

## Reference

- PyTorch documentation, Autograd mechanics, https://pytorch.org/docs/stable/notes/autograd.html
- Lu et al. 2019, Dying ReLU and Initialization: Theory and Numerical Examples, https://arxiv.org/abs/1903.06733
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from lightning_deadkernel.diagnosis import causes
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import NO_GRADIENT_CAUSES, NO_GRADIENT_KINDS, unknown_absence
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.weight_causes import assign
from lightning_deadkernel.report.records import Severity

SELDOM = 0.1
"""Share of inputs. Beside a layer half of which is dead, channels that fire on 1.5 % of inputs were seen to be starved:
what is left of that layer fires on 6 % of inputs."""


@rule(
    "{of} starved: alive, but no gradient comes back",
    *NO_GRADIENT_KINDS,
)
def starved_channels(context: WindowContext) -> Iterator[Found]:
    """Channels in the state "starved", grouped by cause; a flat loss starves all, and is a finding of its own."""
    if context.loss_is_flat:
        return
    for layer, starved in context.having("starved"):
        for channels, cause in assign(layer, starved, NO_GRADIENT_CAUSES, unknown_absence):
            severity: Severity = "warning"
            if bool(starved.all()):
                severity = "error"
            elif cause.kind is causes.UNKNOWN and (
                bool((~channels | _fires_seldom(layer)).all()) or _is_read_seldom(layer)
            ):
                severity = "info"
            yield Found(layer, severity, cause, layer.since(channels), channels)


def _fires_seldom(layer: LayerContext) -> Tensor:
    """(C,) bool: it fires on so few inputs that what reads it may well be off on all of these."""
    rate = layer.observed.channel_firing_rate
    return layer.everywhere(False) if rate is None else rate < SELDOM


def _is_read_seldom(layer: LayerContext) -> bool:
    """Whether each layer that reads it fires on so few inputs."""
    by_name = layer.network.by_name
    readers = [by_name.get(consumer.layer) for consumer in layer.observed.consumers or ()]
    return bool(readers) and all(reader is not None and bool(_fires_seldom(reader).all()) for reader in readers)
