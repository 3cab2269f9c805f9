"""Kernels that were gone in the window before and are back.

## What it finds

Kernels that were dead and fire again, and kernels that were saturated or without a gradient and have one again.

## Why it matters

It is good news, and it tells that "dead" is a statement about a window. Kernels that come and go point to steps that
are too large.

## What to do

Nothing. If many come and go, lower the learning rate.

## Reference

- Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning, https://arxiv.org/abs/2302.12902
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.report.states import STATE_BITS, STATES, State


@rule("{of} back to life", causes.RECOVERED)
def revived_channels(context: WindowContext) -> Iterator[Found]:
    """Channels that were dead, saturated or without gradient, and are active or frozen."""
    for layer in context.layers:
        past, fired = layer.past, layer.observed.fired
        if layer.is_first_window or not bool((past.since == context.window.index).any()):  # no state has changed
            continue
        fires = fired if fired is not None else layer.everywhere(False)
        were_off = _in_state(past.before, "dead") & fires
        were_without = _in_state(past.before, "saturated", "starved", "zero-gradient") & layer.with_gradient
        channels = (were_off | were_without) & _in_state(past.codes, "active", "frozen")
        if not bool(channels.any()):
            continue
        since = past.before_since[channels]
        states = sorted({STATES[int(number)] for number in (past.before & STATE_BITS)[channels]})
        now = context.when(torch.tensor(context.window.index))
        cause = causes.RECOVERED.because(
            f"{' or '.join(states)} since {layer.when(since)}, back in {now}",
            "Nothing to fix"
            + (
                "; channels that come and go point to a learning rate at the high end."
                if bool((were_off & channels).any())
                else "."
            ),
            references.REDO,
            {"since_window": int(since.min()), "back_in_window": context.window.index},
        )
        yield Found(layer, "info", cause, channels=channels)


def _in_state(codes: Tensor, *states: State) -> Tensor:
    return torch.isin(codes & STATE_BITS, torch.tensor([STATES.index(state) for state in states], dtype=torch.uint8))
