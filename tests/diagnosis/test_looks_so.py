"""Every cause is told where its premise holds, and not where all but its premise is the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.windows import ALL_OFF, FIRST_OFF, NO_GRADIENT, ZERO, Run, alive, begun, each, layer, off, start
from lightning_deadkernel.diagnosis import causes
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.observation import AdamState, Consumer, Entering, InputSlice, LayerWindow

Told = Callable[[], Run]
MASK = each(True, False, False, False)
DARK: dict[str, Any] = {
    "gradient_rms": 0.0,
    "unchanged": torch.ones(4, dtype=torch.bool),
    "channel_firing_rate": each(0.0, 1, 1, 1),
    **FIRST_OFF,
}
"""What a layer shows whose inputs are all zero: constants, and a gradient at its bias alone."""
FAINT = Entering(0.001, 0.002)
CONSTANT: dict[str, Any] = {"channel_firing_rate": each(0.0, 1, 1, 1)}
ADAMW: dict[str, Any] = {"optimizer": "AdamW", "decoupled_decay": True, "learning_rate": 1e-3, "weight_decay": 1e-2}
ADAM = AdamState(steady=0.2294, beta1=0.9, beta2=0.999, epsilon=1e-8)
BETA1_ZERO = AdamState(steady=1.0, beta1=0.0, beta2=0.999, epsilon=1e-8)
TINY = replace(ADAM, below_epsilon=0.9)
SMALL: dict[str, Any] = {"gradient_ratio": 1e-9, "weak_share": 1.0, "vanishing_share": 1.0}
TANH: dict[str, Any] = {"activation": "tanh", "gating": "bounded"}
FLAT: dict[str, Any] = {**TANH, "saturated_share": torch.ones(4)}
NO_INPUT: dict[str, Any] = {"excluded": "nothing passed through", "missed": "no input"}
CUT: dict[str, Any] = {"excluded": "not in the graph of the loss", "missed": "cut off"}
ODD: dict[str, Any] = {"excluded": "consumed by no convolution or linear op", "missed": "unreadable"}
HEAD: dict[str, Any] = {"gating": None, "depth": 0, "consumers": None}
UNSEEN: dict[str, Any] = dict.fromkeys(("gradient", "weight_gradient", "fired", "channel_firing_rate", "gating"))
NAN = torch.full((4,), math.nan)


def fed(by: dict[str, Any]) -> Run:
    """A wholly dead layer behind one that shows `by`."""
    run = Run().next(start("before"), start()).next(layer("before", **by), layer(**ALL_OFF, producers=("before",)))
    return run.next(layer("before", **by), layer(**ALL_OFF, producers=("before",)))


def read(by: dict[str, Any], before: dict[str, Any] | None = None) -> Run:
    """A layer without gradient that fires, and is read by one that shows `by`."""
    starved: dict[str, Any] = {
        **NO_GRADIENT,
        "consumers": (Consumer("next", 4, (InputSlice(0, 4, 0, 4),)),),
        **(before or {}),
    }
    run = Run().next(start(), start("next"), start("far")).next(layer(), layer("next"), layer("far"))
    return run.next(layer(**starved), layer("next", **by), alive("far"))


def taken(**before: Any) -> Run:
    """A layer whose bias alone has a gradient, and what feeds it."""
    feeds: dict[str, Any] = {"consumers": (Consumer("conv", 4),), **before}
    held: dict[str, Any] = {"gradient_rms": 0.0, "unchanged": torch.ones(4, dtype=torch.bool), "producers": ("before",)}
    run = Run().next(start("before"), start(), start("far"))
    return run.next(layer("before", **feeds), layer(**held), alive("far"))


def shrunk(steps: int, now: float = 1e-5, **settings: Any) -> Run:
    """A kernel that was of norm 1 at first and is next to zero now."""
    run = Run().next(start(norms=torch.ones(4)))
    return run.next(layer(norms=each(now, 1, 1, 1), **FIRST_OFF, **settings), optimizer_steps=steps)


def stopped(rate: float = 0.5, **last: Any) -> Run:
    """A channel that fired in the window before and does not now."""
    firing: dict[str, Any] = {"channel_firing_rate": each(rate, 0.5, 0.5, 0.5)}
    return Run().next(start()).next(layer(**firing, **last)).next(layer(**FIRST_OFF))


def scaled(*scales: float, **changes: Any) -> Run:
    """A channel whose norm's scale goes this way; the last window has it off."""
    run = Run().next(start())
    for scale in scales[:-1]:
        run.next(layer(norm_scale=each(scale, 1, 1, 1), **changes))
    return run.next(layer(norm_scale=each(scales[-1], 1, 1, 1), **changes, **FIRST_OFF))


def twice(*layers: LayerWindow, **window: Any) -> Run:
    """The same two windows after initialisation."""
    run = Run().next(*(start(one.name) for one in layers))
    return run.next(*layers, **window).next(*layers, **window)


def growing(norms: tuple[float, ...], **changes: Any) -> Run:
    run = Run().next(start())
    for norm in norms:
        run.next(layer(**changes), gradient_norm=norm)
    return run


def deep(count: int, **changes: Any) -> Run:
    """A chain of layers, the first of which has a small gradient."""
    names = [f"layer{place}" for place in range(count)]
    chain = [layer(name, depth=count - 1 - place, **changes) for place, name in enumerate(names)]
    chain[0] = layer(names[0], depth=count - 1, **{**changes, **SMALL})
    return Run().next(*map(start, names)).next(*map(layer, names)).next(*chain)


LOOKS_SO: dict[str, tuple[Any, ...]] = {
    "pruned": (
        "zero_kernels",
        lambda: begun().next(layer(**ZERO, masked=MASK)),
        lambda: begun().next(layer(**ZERO, masked=MASK.roll(1))),  # another kernel is masked
    ),
    "upstream dead": ("dead_channels", lambda: fed(ALL_OFF), lambda: fed(off(0, 1, 2))),
    "off-scale inputs": (
        "dead_channels",
        lambda: begun().next(layer(**FIRST_OFF | CONSTANT, shift=torch.ones(4), entering=FAINT)),
        lambda: begun().next(layer(**FIRST_OFF | CONSTANT, shift=torch.ones(4), entering=Entering(0.1, 0.3))),
        lambda: begun().next(layer(**FIRST_OFF, shift=torch.ones(4), entering=FAINT)),  # tells inputs apart
        lambda: begun().next(layer(**FIRST_OFF | CONSTANT, shift=None, entering=FAINT)),  # no bias that decides
    ),
    "dead inputs": (
        "no_gradient",
        lambda: begun().next(layer(**DARK)),
        lambda: begun().next(layer(**DARK | {"underflow_share": 0.9, "producers": ("before",)})),
        lambda: begun().next(layer(**DARK | {"gradient": torch.full((4,), 1e-24)})),  # whose squares are zero
    ),
    "zero at initialisation": (
        "zero_kernels",
        lambda: Run().next(start(**ZERO)).next(layer(**ZERO, **FIRST_OFF)),
        lambda: Run().next(start()).next(layer(**ZERO, **FIRST_OFF)),
    ),
    "decayed": ("zero_kernels", lambda: shrunk(2_000_000, **ADAMW), lambda: shrunk(60, **ADAMW)),
    "scale collapsed": (
        "dead_channels",
        lambda: scaled(1.0, 1e-2, 1e-5, shift=each(-0.05, 0, 0, 0)),
        lambda: scaled(0.05, 0.05, 0.05, shift=each(-1.0, 0, 0, 0)),  # it was as small from the start
    ),
    "knocked out": ("dead_channels", lambda: stopped(update_ratio_max=0.8), lambda: stopped(update_ratio_max=0.08)),
    "shift driven negative": (
        "dead_channels",
        lambda: stopped().next(layer(**FIRST_OFF, shift=each(-20.0, 0, 0, 0))),
        lambda: stopped().next(layer(**FIRST_OFF, shift=each(-2.0, 0, 0, 0))),
    ),
    "born dead": (
        "dead_channels",
        lambda: Run().next(start()).next(layer(**FIRST_OFF)),
        lambda: Run().next(start(), global_step=500).next(layer(**FIRST_OFF)),  # the run had begun before
    ),
    "faded": ("dead_channels", lambda: stopped(rate=0.02), lambda: stopped(rate=0.6)),
    "dead downstream": ("starved_channels", lambda: read(ALL_OFF), lambda: read(off(0))),
    "no gradient downstream": (
        "starved_channels",
        lambda: read({**HEAD, **NO_GRADIENT}),
        lambda: read({**HEAD, "gradient": each(0.0, 0, 0, 1), "weight_gradient": each(0.0, 0, 0, 1)}),
    ),
    "saturated downstream": (
        "starved_channels",
        lambda: read({**FLAT, **NO_GRADIENT}),
        lambda: read(FLAT | {"saturated_share": each(1.0, 1, 1, 0.2)}),
    ),
    "outgoing zero": (
        "starved_channels",
        lambda: read({"input_largest": torch.zeros(4)}),
        lambda: read({"input_largest": torch.full((4,), 1e-3)}),
    ),
    "gradient taken away": (
        "no_gradient",
        lambda: taken(),
        lambda: taken(consumers=(Consumer("conv", 4), Consumer("far", 4))),  # its gradient may come from the other
        lambda: taken(fired=torch.zeros(4, dtype=torch.bool)),
        lambda: taken(gradient=torch.full((4,), 1e-42)),  # it fires on other samples than have one
    ),
    "shrunken weights": (
        "update_too_large",
        lambda: begun().next(layer(update_ratio=0.5, norms=torch.full((4,), 0.01))),
        lambda: begun().next(layer(update_ratio=0.5)),
    ),
    "zeroed in between": (
        "starved_channels",
        lambda: read({"gradient_rms": 0.0, "producers": ("conv",), "gating": None}),
        lambda: read({"gradient_rms": 0.0, "producers": ("conv",)}),  # behind a rectifier, shut wherever they fire
        lambda: read(  # that may be on other samples than those on which these fire
            {"gradient_rms": 0.0, "producers": ("conv",), "gating": None},
            {"channel_firing_rate": torch.full((4,), 0.05)},
        ),
        lambda: read(  # others of its channels get a gradient
            {"gradient_rms": 0.0, "producers": ("conv",), "gating": None},
            {"gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)},
        ),
    ),
    "learning rate next to zero": (
        "frozen_weights",
        lambda: begun().next(layer(unchanged=torch.ones(4, dtype=torch.bool), learning_rate=1e-12)),
        lambda: begun(learning_rate=1e-12).next(layer(unchanged=torch.ones(4, dtype=torch.bool), learning_rate=1e-12)),
    ),
    "clipped": (
        "update_too_small",
        lambda: twice(layer(update_ratio=1e-8, optimizer="SGD"), gradient_clip=1e-6),
        lambda: twice(layer(update_ratio=1e-8, optimizer="Adam"), gradient_clip=1e-6),  # divides by what is left
        lambda: twice(layer(update_ratio=1e-8, optimizer="SGD"), gradient_clip=1.0),
    ),
    "another summand": (
        "starved_channels",
        lambda: read({}, {"consumers": None, "joined": "summed", "together": ("far",)}),
        lambda: read(NO_GRADIENT, {"consumers": None, "joined": "summed", "together": ("next",)}),  # none comes back
    ),
    "ignored by the loss": (
        "no_gradient",
        lambda: begun().next(layer(**HEAD, **NO_GRADIENT), alive()),
        lambda: begun().next(layer(**HEAD | {"depth": 1}, **NO_GRADIENT), alive()),  # something else reads it
        lambda: begun().next(layer(**HEAD, **NO_GRADIENT, joined="compared"), alive()),  # it may be never taken
    ),
    "cut off": (
        "unwatched_layers",
        lambda: begun().next(alive(), layer(parameters=40, **CUT)),
        lambda: begun().next(alive(), layer(parameters=40, excluded="requires_grad=False")),
    ),
    "no input": (
        "unwatched_layers",
        lambda: begun().next(alive(), layer(parameters=40, **NO_INPUT)),
        lambda: begun().next(alive(), layer(parameters=40, excluded="not used in this window")),
    ),
    "backward not seen": (
        "unwatched_layers",
        lambda: begun().next(layer(**UNSEEN), gradient_norm=None),
        lambda: begun().next(layer(gradient=NAN, weight_gradient=NAN, non_finite_gradients=4)),
    ),
    "unreadable": (
        "unwatched_layers",
        lambda: begun().next(layer(parameters=4), layer("lstm", parameters=400, **ODD)),
        lambda: begun().next(layer(parameters=4), layer("lstm", parameters=400, excluded="by `exclude`")),
    ),
    "flat loss": (
        "no_gradient",
        lambda: begun().next(layer(**NO_GRADIENT), layer("b", **NO_GRADIENT)),
        lambda: begun().next(layer(**NO_GRADIENT, gating=None), layer("b", **off(0, 1, 2))),
        lambda: begun().next(layer(**NO_GRADIENT), layer("b", **ALL_OFF, depth=0)),  # the outputs are dead
    ),
    "underflow": (
        "starved_channels",
        lambda: read({}, {"underflow_share": 0.99, "bytes_per_parameter": 2}),
        lambda: read({}, {"underflow_share": 0.3, "bytes_per_parameter": 2}),  # dead inputs make as many zeros
    ),
    "not in the optimizer": (
        "frozen_weights",
        lambda: begun().next(layer(unchanged=torch.ones(4, dtype=torch.bool), in_optimizer=False)),
        lambda: begun().next(layer(unchanged=torch.ones(4, dtype=torch.bool))),
    ),
    "below resolution": (
        "frozen_weights",
        lambda: begun(learning_rate=1e-7).next(layer(unchanged=torch.ones(4, dtype=torch.bool), learning_rate=1e-7)),
        lambda: begun().next(layer(unchanged=torch.ones(4, dtype=torch.bool), learning_rate=0.1)),
    ),
    "saturated": (
        "saturated_channels",
        lambda: begun().next(layer(**FLAT)),
        lambda: begun().next(layer(**NO_GRADIENT | FIRST_OFF, activation="gelu", gating="smooth")),  # far from flat
    ),
    "depth": (
        "vanishing_gradient",
        lambda: deep(8, **TANH, saturated_share=torch.zeros(4), bounded_ahead=5),
        lambda: deep(8, **TANH, saturated_share=torch.zeros(4), bounded_ahead=1),  # skips pass by all but one of them
    ),
    "constant initialisation": (
        "identical_kernels",
        lambda: Run().next(start(identical=True)),
        lambda: Run().next(start(identical=True, norms=torch.zeros(4), largest=torch.zeros(4))),
    ),
    "slingshot": (
        "dead_channels",
        lambda: stopped(adam=ADAM, step_over_rate_max=4.0, update_ratio_max=0.05),
        lambda: stopped(adam=ADAM, step_over_rate_max=1.0, update_ratio_max=0.05),  # the first step, as large as lr
        lambda: stopped(adam=ADAM, step_over_rate_max=4.0, update_ratio_max=0.5),  # large at any rate: it is the rate
        lambda: stopped(adam=ADAM, step_over_rate_max=4.0, update_ratio_max=0.005),  # too small to do any harm
        lambda: stopped(adam=BETA1_ZERO, step_over_rate_max=2.9, update_ratio_max=0.02),  # steps vary as gradients do
        lambda: stopped(step_over_rate_max=4.0, update_ratio_max=0.05),  # under SGD
    ),
    "epsilon dominates": (
        "update_too_small",
        lambda: twice(layer(update_ratio=1e-8, step_over_rate=1e-5, adam=TINY)),
        lambda: twice(layer(update_ratio=1e-8, step_over_rate=1e-5, adam=ADAM)),  # most weights have had no gradient
        lambda: twice(layer(update_ratio=1e-8, step_over_rate=0.2, adam=TINY)),  # steps are of the rate's size
    ),
    "reckless updates": (
        "exploding_gradient",
        lambda: growing((1.0, 2.0, 3.0, 500.0), update_ratio_max=0.5),
        lambda: growing((1.0, 2.0, 3.0, 500.0), update_ratio_max=0.05),  # the end of a plateau
    ),
    "slow updates": (
        "update_too_small",
        lambda: twice(layer(update_ratio=1e-8)),
        lambda: begun(update_ratio=1e-8).next(layer(update_ratio=1e-8, learning_rate=1e-4)),  # annealed
    ),
    "learning rate zero": (
        "update_too_small",
        lambda: twice(layer(learning_rate=0.0)),
        lambda: begun().next(layer(learning_rate=0.0)),  # one window of it may be a warm-up, or the schedule's end
    ),
    "no step": (
        "update_too_small",
        lambda: twice(layer(), optimizer_steps=0),
        lambda: twice(layer(norms=torch.full((4,), 1.01)), optimizer_steps=0),  # stepped by an optimizer of its own
        lambda: twice(layer(), alive()),
    ),
    "overflow": (
        "non_finite_gradient",
        lambda: begun().next(layer(non_finite_gradients=2)),
        lambda: begun().next(layer(gradient=torch.full((4,), 1e30))),
    ),
    "dead channels": (
        "sparse_weights",
        lambda: begun().next(layer(**FIRST_OFF, weight_sparsity=0.6)),
        lambda: begun().next(layer(weight_sparsity=0.6)),
    ),
    "heavy tails": (
        "sparse_weights",
        lambda: begun().next(layer(weight_near_zeros=0.5, input_largest=torch.full((4,), 0.3))),
        lambda: begun().next(layer(weight_near_zeros=0.5, input_largest=each(0.0, 0, 0.3, 0.3))),  # inputs always off
    ),
    "low activity": (
        "dormant_channels",
        lambda: begun().next(layer(activation_mean=each(0.005, 1, 1, 1))),
        lambda: begun().next(layer(activation_mean=each(0.05, 1, 1, 1))),
    ),
    "never selected": (
        "dead_rows",
        lambda: begun().next(layer(**UNSEEN | {"gradient": each(0.0, 1, 1, 1)}, rows="codes")),
        lambda: begun().next(layer(**UNSEEN | {"gradient": each(0.0, 1, 1, 1)}, rows="table")),  # a word of no batch
    ),
    "not in the data": (
        "dead_rows",
        lambda: begun().next(layer(**UNSEEN | {"gradient": each(0.0, 1, 1, 1)}, rows="table")),
        lambda: begun().next(layer(**UNSEEN | {"gradient": each(0.0, 1, 1, 1)}, rows="table", masked=MASK)),  # padding
    ),
    "recovered": (
        "revived_channels",
        lambda: begun().next(layer(**FIRST_OFF)).next(layer()),
        lambda: begun().next(layer(**FIRST_OFF)).next(layer(**UNSEEN)),  # not seen is not back
    ),
}
"""Cause -> the kind that states it, a run in which it is at work, and some in which it only seems to be."""
STATED = {cause.word for rule in RULES for cause in rule.causes}


def told(run: Run, kind: str) -> set[str]:
    return {finding.cause_word for finding in run.findings if finding.kind == kind}


def test_every_cause_has_a_case_in_which_it_looks_so_and_is_not() -> None:
    assert set(LOOKS_SO) == STATED - {causes.UNKNOWN.word}
    assert {kind.word for kind in vars(causes).values() if isinstance(kind, causes.CauseKind)} == STATED


@pytest.mark.parametrize("word", list(LOOKS_SO))
def test_a_cause_is_told_where_it_is_at_work_and_not_where_it_only_looks_so(word: str) -> None:
    kind, is_so, *looks_so = LOOKS_SO[word]
    assert word in told(is_so(), kind)
    for seems in looks_so:
        assert word not in told(seems(), kind)
