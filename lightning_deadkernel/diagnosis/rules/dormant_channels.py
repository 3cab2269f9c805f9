"""Kernels that are alive and add next to nothing.

## What it finds

Active kernels whose mean absolute activation is at or below 2.5 % of their layer's mean (the ReDo score). Dead and
saturated ones are not counted again; the last layer is left out.

## Why it matters

A few are normal. Where their share grows during training, the network loses the ability to learn new things, which
hurts most in reinforcement and continual learning.

## What to do

Nothing while they are few. Where the share grows from window to window, re-initialise these kernels (ReDo) or lower the
learning rate.

## Reference

- Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning, https://arxiv.org/abs/2302.12902
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.report.states import STATE_BITS, STATES


@rule("{of} dormant", causes.LOW_ACTIVITY)
def dormant_channels(context: WindowContext) -> Iterator[Found]:
    """Active channels flagged as dormant."""
    lines = context.thresholds
    for layer, flagged in context.having("dormant"):
        channels = flagged & ((layer.past.codes & STATE_BITS) == STATES.index("active"))
        if not bool(channels.any()):
            continue
        rare = int(layer.mask(layer.report.rare)[channels].sum())
        zero = int(layer.mask(layer.report.zero_kernels)[channels].sum())
        kernels = "is a zero kernel" if zero == 1 else "are zero kernels"
        cause = causes.LOW_ACTIVITY.because(
            f"they fire, but at or below {lines.dormant:g} of the layer's mean activation"
            + (f"; {rare} of them on fewer than {lines.rare:.0%} of samples and positions" if rare else "")
            + (f"; {zero} of them {kernels}, or next to it, which is why" if zero else ""),
            "Normal in small numbers. Where the share grows from window to window, re-initialise these channels (ReDo)"
            " or lower the learning rate.",
            references.REDO,
            {"rare": rare},
        )
        yield Found(layer, "info", cause, channels=channels)
