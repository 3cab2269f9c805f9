"""Kernels whose inputs lie on the flat end of their activation.

## What it finds

Kernels behind a sigmoid, tanh or another bounded activation most of whose inputs lie on a flat end (beyond ±5, or at
the bound), and kernels behind a smooth activation (GELU, SiLU) that never fired and got no gradient.

## Why it matters

On a flat end the slope is next to zero, so no gradient passes: the kernel, and all that feeds it alone, stands still.

## What to do

Put a norm before the activation, scale the initial weights down (Xavier initialisation), or lower the learning rate
that drove it there. An output that has made up its mind is meant to saturate.

## Reference

- Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks,
  https://proceedings.mlr.press/v9/glorot10a.html
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import SATURATED
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.report.records import Severity

NEARLY_ALL = 0.9


@rule("{of} saturated", causes=(SATURATED,))
def saturated_channels(context: WindowContext) -> Iterator[Found]:
    """Channels in the state "saturated"."""
    for layer in context.layers:
        observed = layer.observed
        channels = layer.mask(layer.report.saturated)
        if not bool(channels.any()):
            continue
        share = None if observed.saturated_share is None else float(observed.saturated_share[channels].mean())
        stopped = int((layer.without_gradient & channels).sum())
        text = (
            f"{share:.0%} of their inputs lie on the flat end of {observed.activation}"
            if share is not None
            else f"they never fired and lie on the flat end of {observed.activation}"
        )
        cause = SATURATED.because(
            f"{text}, where the slope is next to zero"
            + (f"; {stopped} of them have no gradient at all" if stopped else ""),
            "Put a norm before the activation, scale the initial weights down (Xavier initialisation) or lower the"
            " learning rate.",
            references.GLOROT,
            ({} if share is None else {"saturated_share": share}) | {"without_gradient": stopped},
        )
        stuck = stopped == int(channels.sum()) or (share is not None and share >= NEARLY_ALL)
        severity: Severity = "error" if bool(channels.all()) and stuck else "warning"
        if observed.depth == 0 and not stopped:  # an output that has made up its mind is meant to saturate
            severity = "info"
        yield Found(layer, severity, cause, layer.since(channels), channels)
