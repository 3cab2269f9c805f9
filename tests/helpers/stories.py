"""Short runs, told window by window, in which each rule says each of its sentences: what happened -> the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from helpers.windows import ALL_OFF, FIRST_OFF, NO_GRADIENT, ZERO, Run, alive, begun, each, layer, off, start, window
from lightning_deadkernel.diagnosis.diagnose import first_sight
from lightning_deadkernel.observation import AdamState, Consumer, Entering, InputSlice, NonFinite, Prospect
from lightning_deadkernel.report.sentences import evidence

HELD: dict[str, Any] = {"unchanged": torch.ones(4, dtype=torch.bool)}
STARVING: dict[str, Any] = {"gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)}
NO_ROW: dict[str, Any] = {**STARVING, "activation": None, "gating": None, "fired": None}
HEAD: dict[str, Any] = {"norms": each(0, 0, 1, 1.0), "largest": each(0, 0, 1, 1.0), "heads": 2}
SIGMOID: dict[str, Any] = {"activation": "sigmoid", "gating": "bounded"}
SGD: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 0.1}
ADAM = AdamState(steady=0.2294, beta1=0.9, beta2=0.999, epsilon=1e-8)
SLUNG: dict[str, Any] = {
    "optimizer": "Adam",
    "adam": ADAM,
    "step_over_rate_max": 4.0,
    "update_ratio_max": 0.05,
}
BELOW_EPSILON: dict[str, Any] = {
    "adam": replace(ADAM, below_epsilon=0.9),
    "step_over_rate": 1e-5,
    "update_ratio": 1e-8,
}
SMALL: dict[str, Any] = {
    "gradient_ratio": 1e-8,
    "weak_share": 1.0,
    "vanishing_share": 1.0,
    "update_ratio": 1e-11,
    **SGD,
}
PIXELS: dict[str, Any] = {"entering": Entering(33.0, 78.0), **SGD}
FAINT: dict[str, Any] = {"entering": Entering(0.0019, 0.0013), **SGD}
CONSTANT: dict[str, Any] = {"channel_firing_rate": each(0.0, 1, 1, 1), "shift": torch.ones(4)}
FEEDS: dict[str, Any] = {"consumers": (Consumer("next", 4, (InputSlice(0, 4, 0, 4),)),)}


def two_windows(
    first: dict[str, Any], second: dict[str, Any], *others: Any, begin: dict[str, Any] | None = None
) -> Run:
    run = Run().next(start(**(begin or {})), *(start(other.name) for other in others))
    return run.next(layer(**first), *others).next(layer(**second), *others)


def starved(of_next: dict[str, Any], **changes: Any) -> Run:
    """A layer without a gradient, and what reads it."""
    run = Run().next(start(), start("next"), start("far")).next(layer(), layer("next"), alive("far"))
    return run.next(layer(**NO_GRADIENT, **FEEDS | changes), layer("next", **of_next), alive("far"))


def small(near: dict[str, Any] | None = None, weak: bool = False, **changes: Any) -> Run:
    """A layer whose gradient is small, beside one whose gradient is not."""
    ratio = {"gradient_ratio": 1e-5, "vanishing_share": 0.0} if weak else {}
    run = Run().next(start(**changes), start("next"))
    for _ in range(2):
        run.next(layer(**{**SMALL, **ratio, **changes}), layer("next", **{"depth": 1, **(near or {})}))
    return run


WORN: dict[str, Any] = {"norms": torch.full((4,), 1e-4), "weight_decay": 2.5, **SGD}
"""A layer that decay has taken next to zero beside what it was, all kernels alike."""


def worn(norm: float, *, entries: int = 10, steps: int = 2, **settings: Any) -> Run:
    """A kernel without a gradient that becomes smaller."""
    kernel: dict[str, Any] = {"parameters": 4 * entries, "weight_decay": 0.01, **settings}
    run = Run().next(start(**kernel)).next(layer(**kernel))
    for step in range(1, steps + 1):
        now = norm ** (step / steps)
        run.next(layer(**kernel, norms=each(now, 1, 1, 1), largest=each(now / 2, 1, 1, 1), **FIRST_OFF))
    return run


def collapsed(weight_decay: float, **settings: Any) -> Run:
    run = Run().next(start(norm_scale=torch.ones(4))).next(layer(norm_scale=torch.ones(4), **settings))
    for scale in (1e-2, 1e-5):
        run.next(layer(norm_scale=each(scale, 1, 1, 1), weight_decay=weight_decay, **settings, **FIRST_OFF))
    return run


def growing(*norms: float, largest: float = 0.5, **last: Any) -> Run:
    run = Run().next(start())
    for norm in norms[:-1]:
        run.next(layer(), gradient_norm=norm)
    return run.next(layer(update_ratio_max=largest, **last), gradient_norm=norms[-1])


RESTING: dict[str, Any] = {"unchanged": torch.ones(4, dtype=torch.bool), "learning_rate": None}


def resting(*layers: Any) -> Run:
    """The same two windows after initialisation."""
    return Run().next(*(start(one.name) for one in layers)).next(*layers).next(*layers)


def not_finite(place: Any, step: int = 33, **changes: Any) -> Run:
    """All gradients are NaN or infinite from one step on."""
    nan = layer(non_finite_gradients=7, **changes)
    return begun().next(nan, first_non_finite=NonFinite(step, "conv", place), non_finite_batches=7)


def summed(joined: str = "summed", **changes: Any) -> Run:
    """A layer whose output is added to another's."""
    values: dict[str, Any] = {"joined": joined, "together": ("far",), "consumers": None, **changes}
    return two_windows({}, NO_GRADIENT | values, alive("far"))


def late() -> Run:
    """A layer that is seen before its first step, in mid-training."""
    run, new = begun(), start("late")
    first_sight(window(1, new), run.history, run.thresholds)
    return run.next(layer(), layer("late", **FIRST_OFF))


def faint() -> Run:
    """Two outputs, to one of which the loss sends next to nothing, and a layer before that."""
    output: dict[str, Any] = {"gating": None, "depth": 0, "consumers": None, **SGD}
    before: dict[str, Any] = {"depth": 1, "consumers": (Consumer("faint", 4),), **SGD}
    run = Run().next(start("before"), start("faint"), start("other"))
    for _ in range(2):
        run.next(
            layer("before", **before | SMALL),
            layer("faint", **output | SMALL, gradient=torch.full((4,), 1e-9)),
            layer("other", **output),
        )
    return run


def dead_with(prospect: Prospect) -> Run:
    """Two kernels that a reckless update has knocked out, and what becomes of them."""
    return two_windows({"update_ratio_max": 0.8, **SGD}, off(0, 1) | SGD | {"prospect": prospect})


def file(**changes: Any) -> Run:
    """The weights in a file."""
    return Run().next(start(**changes), audited=True)


STORIES: dict[str, Callable[[], Run]] = {
    # dead
    "a mask holds a kernel at zero": lambda: two_windows(
        {}, {"masked": each(True, False, False, False)} | ZERO | FIRST_OFF
    ),
    "a kernel is zero from the start": lambda: two_windows(ZERO | FIRST_OFF, ZERO | FIRST_OFF, begin=ZERO),
    "an update was reckless": lambda: two_windows({"update_ratio_max": 0.8, **SGD}, FIRST_OFF | SGD),
    "gradients outgrew Adam's running mean of squares": lambda: two_windows(SLUNG, FIRST_OFF | SLUNG),
    "the shift of a norm is far below zero": lambda: two_windows(
        {}, {"shift": each(-20.0, 0, 0, 0), "norm_scale": torch.ones(4)} | FIRST_OFF
    ),
    "a bias is far below zero": lambda: two_windows({}, {"shift": each(-100.0, 0, 0, 0)} | FIRST_OFF),
    "a bias is below zero from the start": lambda: (
        Run().next(start()).next(layer(**{"shift": each(-5.0, 0, 0, 0)} | FIRST_OFF))
    ),
    "what feeds a layer is dead": lambda: (
        Run()
        .next(start(), start("fed"), start("far"))
        .next(layer(), layer("fed", producers=("conv",)), alive("far"))
        .next(layer(**ALL_OFF), layer("fed", producers=("conv",), **ALL_OFF), alive("far"))
    ),
    "a kernel never fired": lambda: Run().next(start()).next(layer(**FIRST_OFF)),
    "many kernels never fired": lambda: Run().next(start()).next(layer(**off(0, 1, 2))),
    "a kernel fired on little, and then on nothing": lambda: two_windows(
        {"channel_firing_rate": each(0.004, 0.5, 0.5, 0.5)}, FIRST_OFF
    ),
    "most kernels fired on little, and then on nothing": lambda: two_windows(
        {"channel_firing_rate": torch.full((4,), 0.004)}, off(0, 1, 2)
    ),
    "kernels stopped for no reason that is known": lambda: two_windows(
        {}, FIRST_OFF | {"producers": ("far",)}, alive("far")
    ),
    "a zero kernel that no decay explains stopped": lambda: two_windows({}, ZERO | FIRST_OFF),
    "a run was joined late": lambda: Run().next(layer(**FIRST_OFF), global_step=500).next(layer(**FIRST_OFF)),
    "no input can make kernels fire": lambda: two_windows(
        {"update_ratio_max": 0.8, **SGD}, off(0, 1) | SGD | {"certified_dead": each(True, True, False, False)}
    ),
    "no batch can make most of a layer fire": lambda: two_windows(
        {}, off(0, 1, 2) | {"certified_dead": each(True, True, False, False), "certified_batch": 6272}
    ),
    "weights that read a dead kernel have faded": lambda: two_windows(
        {},
        FIRST_OFF | {"consumers": (Consumer("other", 4, (InputSlice(0, 4, 0, 4),)),)},
        layer("other", input_largest=each(1e-30, 0.5, 0.5, 0.5)),
    ),
    "weights in a file have faded on an input": lambda: file(input_largest=each(1e-30, 0.5, 0.5, 0.5)),
    "nothing moves dead kernels": lambda: dead_with(Prospect((0, 1), False, False, None, (), None)),
    "momentum moves dead kernels": lambda: dead_with(Prospect((0, 1), False, True, None, (), None)),
    "decay ends dead kernels": lambda: dead_with(Prospect((0, 1), True, False, 4600, (), None)),
    "decay may bring a dead kernel back": lambda: dead_with(Prospect((0, 1), True, False, 4600, (1,), 300)),
    "decay brings no dead kernel back": lambda: dead_with(Prospect((0, 1), True, False, None, (), None)),
    "a file and its model prove a kernel dead": lambda: file(
        activation="relu", certified_dead=each(True, False, False, False)
    ),
    "an output is dead behind a rectifier": lambda: two_windows(
        {"depth": 0, "consumers": ()}, {"depth": 0, "consumers": (), **FIRST_OFF}
    ),
    "activations were seen on sampled steps": lambda: two_windows({"exact": False}, {"exact": False} | FIRST_OFF),
    "decay has worn down all that reads a layer": lambda: small(WORN, weak=True, **FEEDS),
    # inputs off scale
    "data is so small that biases decide which kernels fire": lambda: two_windows({}, FIRST_OFF | CONSTANT | FAINT),
    "data is the same but for little": lambda: two_windows({}, FIRST_OFF | {"entering": Entering(100.0, 1.6)}),
    "kernels are knocked out where data is large": lambda: two_windows(
        {"update_ratio_max": 0.8, **PIXELS}, FIRST_OFF | PIXELS
    ),
    "steps are large where data is": lambda: two_windows(*[{"update_ratio": 0.3, **PIXELS}] * 2),
    "steps are small where data is": lambda: two_windows(*[{"update_ratio": 1e-7, **FAINT}] * 2),
    "a gradient is small where data is": lambda: small(weak=True, entering=FAINT["entering"]),
    "a sigmoid lies on its flat end where data is large": lambda: two_windows(
        {}, SIGMOID | {"saturated_share": torch.ones(4), "entering": Entering(33.0, 78.0)}
    ),
    # saturated
    "a sigmoid lies on its flat end": lambda: two_windows(
        {}, SIGMOID | STARVING | {"saturated_share": torch.full((4,), 0.95)}
    ),
    "a sigmoid lies on its flat end and nothing comes back": lambda: two_windows(
        {}, SIGMOID | {"saturated_share": torch.ones(4)} | NO_GRADIENT, alive()
    ),
    "a bias puts a sigmoid on its flat end": lambda: two_windows(
        {}, SIGMOID | {"saturated_share": torch.ones(4), "shift": torch.full((4,), -120.0)} | NO_GRADIENT, alive()
    ),
    "an ELU lies on its flat end": lambda: two_windows(
        {},
        {"activation": "elu", "gating": "smooth", "flat_output": 1.0, "activation_mean": each(0.99, 1, 1, 1)}
        | FIRST_OFF,
    ),
    "a ReLU6 lies at its bound whenever it fires": lambda: two_windows(
        {}, NO_GRADIENT | {"activation": "relu6", "saturated_share": torch.full((4,), 0.5)}, alive()
    ),
    # starved
    "all that reads a layer is dead": lambda: starved(ALL_OFF),
    "float16 does not hold the gradient": lambda: starved({}, underflow_share=0.93),
    "the weights that read a layer are zero": lambda: starved({"norms": torch.zeros(4), "largest": torch.zeros(4)}),
    "all that reads a layer is saturated": lambda: starved(SIGMOID | {"saturated_share": torch.ones(4)} | NO_GRADIENT),
    "what reads a layer has no gradient": lambda: starved(NO_GRADIENT | {"depth": 0, "consumers": ()}),
    "what lies between a layer and its reader is zero": lambda: starved(
        {"gradient_rms": 0.0, "producers": ("conv",), "gating": None}
    ),
    "most of what reads a layer is dead": lambda: starved(off(0, 1) | {"input_largest": torch.full((4,), 0.5)}),
    "nothing explains why a layer has no gradient": lambda: starved({"input_largest": torch.full((4,), 0.5)}),
    "nothing explains it, and at which inputs the layer is read is not known": lambda: starved(
        {}, consumers=(Consumer("next", 4),)
    ),
    "the graph does not show what reads a layer": lambda: starved({}, consumers=None),
    # frozen, lost
    "no optimizer holds a weight": lambda: two_windows(
        {}, HELD | {"in_optimizer": False, "learning_rate": None}, alive()
    ),
    "no optimizer holds any weight": lambda: two_windows({}, HELD | {"in_optimizer": False, "learning_rate": None}),
    "a weight is new since the optimizer was made": lambda: (
        Run().next(alive()).next(alive()).next(layer(**HELD, in_optimizer=False, learning_rate=None), alive())
    ),
    "the loss asks nothing of some outputs": lambda: starved(
        {"input_largest": torch.full((4,), 0.5), "depth": 0, "consumers": (), "gating": None}
    ),
    "steps are below what bfloat16 resolves": lambda: two_windows(
        {}, HELD | SGD | {"bytes_per_parameter": 2, "update_ratio": 0.5}
    ),
    "gradients are below Adam's epsilon": lambda: two_windows(BELOW_EPSILON, HELD | BELOW_EPSILON),
    "steps round away in float32": lambda: two_windows({}, HELD | {"update_ratio": 1e-7}),
    "the learning rate is too small for float32": lambda: two_windows({}, HELD | {"learning_rate": 1e-8}),
    "a hook takes the gradient of a weight away": lambda: (
        Run()
        .next(start("before"), start(), start("far"))
        .next(
            layer("before", consumers=(Consumer("conv", 4),)),
            layer(gradient_rms=0.0, unchanged=torch.ones(4, dtype=torch.bool), producers=("before",)),
            alive("far"),
        )
    ),
    "a penalty has shrunk the weights": lambda: two_windows(
        {"update_ratio": 0.5}, {"update_ratio": 0.5, "norms": torch.full((4,), 0.01), "penalised": True}
    ),
    "weight decay has shrunk the weights": lambda: two_windows(
        {"update_ratio": 0.5, "weight_decay": 0.5} | SGD | {"learning_rate": 0.5},
        {"update_ratio": 0.5, "norms": torch.full((4,), 0.01), "weight_decay": 0.5} | SGD | {"learning_rate": 0.5},
    ),
    "something has shrunk the weights": lambda: two_windows(
        {"update_ratio": 0.5}, {"update_ratio": 0.5, "norms": torch.full((4,), 0.01)}
    ),
    "the schedule has left nothing of the learning rate": lambda: two_windows({}, HELD | {"learning_rate": 1e-12}),
    "clipping has left nothing of the step": lambda: begun(update_ratio=1e-8, **SGD).next(
        layer(update_ratio=1e-8, **SGD), gradient_clip=1e-6
    ),
    "something holds the weights": lambda: two_windows({}, HELD),
    "most updates of a layer are lost": lambda: two_windows(
        {}, {"lost_updates": 0.95, "bytes_per_parameter": 2, "update_ratio": 1e-4, **SGD}
    ),
    "most updates are undone": lambda: two_windows(
        {}, {"lost_updates": 0.95, "update_ratio": 1e-2, "optimizer": "Adam"}
    ),
    "most updates of SGD are undone, or too small": lambda: two_windows(
        {}, {"lost_updates": 0.95, "update_ratio": 1e-2, **SGD}
    ),
    "decay makes most of each step": lambda: two_windows(
        {"update_ratio": 0.2}, {"update_ratio": 0.2, "weight_decay": 1.5, **SGD}
    ),
    "an update was large beside shrunken weights": lambda: two_windows(
        {"norms": torch.full((4,), 0.02), "update_ratio_max": 0.3, "weight_decay": 1.0, "optimizer": "Adam"},
        FIRST_OFF | {"norms": torch.full((4,), 0.02), "weight_decay": 1.0, "optimizer": "Adam"},
    ),
    "a dead layer may lie before the loss": lambda: two_windows(
        {}, {**NO_GRADIENT, "consumers": None}, alive(), layer("dead", depth=1, **ALL_OFF)
    ),
    "a parameter group rests": lambda: two_windows({"learning_rate": 0.0}, {"learning_rate": 0.0}, alive()),
    "a schedule has lowered the rate since": lambda: two_windows(
        {"update_ratio_max": 0.8, "optimizer": "SGD", "learning_rate": 3.0}, FIRST_OFF | SGD
    ),
    "a norm's scale is next to zero since it was first seen": lambda: two_windows(
        {"norm_scale": torch.full((4,), 1e-4)}, {"norm_scale": torch.full((4,), 2e-4)}
    ).next(layer(norm_scale=torch.full((4,), 2e-4))),
    "the loss of a single output is flat": lambda: (
        Run()
        .next(start(channels=1))
        .next(layer(channels=1, gradient=torch.zeros(1), weight_gradient=torch.zeros(1), depth=0))
    ),
    "outputs behind a rectifier are off": lambda: starved(
        {"input_largest": torch.full((4,), 0.5), "depth": 0, "consumers": ()}
    ),
    "all layers move too little": lambda: two_windows(*[{"update_ratio": 1e-8, "learning_rate": 1e-6}] * 2),
    "the loss has become flat": lambda: two_windows({}, NO_GRADIENT),
    "most updates of gains and shifts are lost": lambda: begun().next(
        layer(bytes_per_parameter=2), lost_elsewhere={"norm.weight": 0.95, "norm.bias": 0.9}
    ),
    # small gradients
    "sigmoids in a row": lambda: small(SIGMOID, bounded_ahead=12, depth=12, **SIGMOID),
    "sigmoids in a row, most on their flat ends": lambda: small(
        {"saturated_share": torch.ones(4) * each(1, 1, 0.2, 1), **SIGMOID},
        bounded_ahead=12,
        depth=12,
        saturated_share=each(1, 1, 0.2, 1),
        **SIGMOID,
    ),
    "many recurrent layers": lambda: small(
        bounded_ahead=12, depth=12, rows="gate", activation=None, gating=None, fired=None
    ),
    "a recurrence": lambda: small(kind="RNN", activation="tanh", gating="bounded", bounded_ahead=1),
    "a recurrence with gates": lambda: small(bounded_ahead=1, rows="gate", activation=None, gating=None, fired=None),
    "many layers without a norm": lambda: small({"norms": torch.full((4,), 0.3)}, plain_ahead=9, depth=9),
    "a weak gradient that nothing explains": lambda: small(weak=True, **SGD),
    "a small gradient in float16": lambda: small(underflow_share=0.93),
    "a critic is saturated": lambda: small({"saturated_share": torch.ones(4), **SIGMOID}, depth=3, **FEEDS),
    "a layer is saturated and its gradient is small": lambda: small(saturated_share=torch.ones(4), **SIGMOID),
    "a residual branch begins shut": lambda: (
        Run()
        .next(start(), start("next"))
        .next(layer(**SMALL, norm_scale=torch.full((4,), 0.001)), layer("next"))
        .next(layer(**SMALL, norm_scale=torch.full((4,), 0.02)), layer("next"))
    ),
    # zero
    "weights that were not watched from the start are zero": lambda: (
        Run().next(layer(**ZERO | off(0)), global_step=500).next(layer(**ZERO | off(0)))
    ),
    "decay leaves more than there is": lambda: two_windows(
        {"weight_decay": 1e-4, "decoupled_decay": True}, {"weight_decay": 1e-4, "decoupled_decay": True} | ZERO
    ),
    "the scale of a norm is zero from the start": lambda: two_windows(
        {"norm_scale": each(0.0, 1, 1, 1)} | FIRST_OFF,
        {"norm_scale": each(0.0, 1, 1, 1)} | FIRST_OFF,
        begin={"norm_scale": each(0.0, 1, 1, 1)},
    ),
    "an output is zero": lambda: two_windows(
        {"depth": 0, "consumers": ()}, {"depth": 0, "consumers": ()} | ZERO | FIRST_OFF
    ),
    "Adam's decay wears a kernel down": lambda: worn(1e-4, optimizer="Adam", learning_rate=0.1),
    "another optimizer's decay wears a kernel down": lambda: worn(1e-4, optimizer="RMSprop", learning_rate=0.1),
    "the decay of an optimizer of no known name wears a kernel down": lambda: worn(1e-4, learning_rate=0.1),
    "AdamW's decay wears a kernel down": lambda: worn(
        1e-4, optimizer="AdamW", learning_rate=0.1, weight_decay=5.0, decoupled_decay=True
    ),
    "decay wears a kernel down that has a gradient": lambda: two_windows(
        {"weight_decay": 0.01, "optimizer": "Adam", "learning_rate": 0.1},
        {"weight_decay": 0.01, "optimizer": "Adam", "learning_rate": 0.1} | ZERO,
    ),
    "decay wears a kernel down that never had a gradient": lambda: (
        Run()
        .next(start(weight_decay=0.01))
        .next(layer(**FIRST_OFF, weight_decay=0.01, optimizer="Adam"))
        .next(layer(**FIRST_OFF | ZERO, weight_decay=0.01, optimizer="Adam"))
    ),
    "a penalty takes the scale of a norm": lambda: collapsed(0.0),
    "a penalty takes the scale of a norm beside a decay": lambda: collapsed(
        1e-6, decoupled_decay=True, learning_rate=1e-3
    ),
    "kernels in a file are zero": lambda: file(**ZERO),
    "kernels in a file are zero, or the scale after them": lambda: file(norm_scale=each(0.0, 1, 1, 1)),
    # the rest
    "a few kernels hardly fire": lambda: two_windows({}, {"activation_mean": each(0.001, 1, 1, 1)}),
    "some kernels hardly fire, and seldom": lambda: two_windows(
        {}, {"activation_mean": each(0.001, 1, 1, 1), "channel_firing_rate": each(0.002, 0.5, 0.5, 0.5)}
    ),
    "kernels come back": lambda: begun().next(layer(**FIRST_OFF)).next(layer()),
    "a gradient explodes": lambda: growing(1.0, 2.0, 3.0, 500.0),
    "a gradient grows": lambda: growing(1.0, 2.0, 3.0, 500.0, largest=1e-3),
    "all kernels are equal at the start": lambda: Run().next(start(identical=True)),
    "all kernels stay equal": lambda: two_windows({"identical": True}, {"identical": True}, begin={"identical": True}),
    "nothing has a gradient": lambda: Run().next(start()).next(layer(**NO_GRADIENT)),
    "a layer that is read by its gradient has none": lambda: two_windows(
        {"gating": None}, {"gating": None, "activation": None, "fired": None, **NO_GRADIENT}, alive()
    ),
    "a head without a weight in the loss": lambda: two_windows(
        {}, {"depth": 0, "consumers": (), "gating": None, "fired": None, **NO_GRADIENT}, alive()
    ),
    "a gradient is NaN": lambda: growing(1.0, 1.0, largest=0.3, non_finite_gradients=7),
    "NaN came with the data": lambda: not_finite("data", norms=torch.full((4,), math.nan)),
    "NaN began in an activation": lambda: not_finite("activation", producers=()),
    "NaN began before the first step": lambda: not_finite("loss", step=1),
    "NaN began in the loss": lambda: not_finite("loss"),
    "NaN began in the backward pass": lambda: not_finite("backward"),
    "NaN began somewhere": lambda: not_finite("unknown"),
    "NaN began with a loss that was looked at late": lambda: not_finite("unread loss"),
    "a layer saw NaN alone": lambda: two_windows(
        {}, dict.fromkeys(("gradient", "weight_gradient"), torch.full((4,), math.nan)), alive()
    ),
    "one of two summands has no gradient": lambda: summed(),
    "the larger of two is taken, and it is never this one": lambda: summed("compared"),
    "one of two summands has no gradient, and the other is not known": lambda: summed(together=()),
    "an output lies on its flat end": lambda: two_windows(
        {}, SIGMOID | {"saturated_share": torch.ones(4), "depth": 0, "consumers": ()} | NO_GRADIENT, alive()
    ),
    "weights are NaN": lambda: two_windows(
        {}, {"non_finite_gradients": 7, "norms": torch.full((4,), math.nan)}, alive()
    ),
    "weights are NaN without a gradient": lambda: two_windows({}, {"norms": torch.full((4,), math.nan)}, alive()),
    "weights are NaN from the start": lambda: Run().next(start(norms=each(math.nan, 1, 1, 1))),
    "weights in a file are NaN": lambda: file(norms=each(math.nan, 1, 1, 1)),
    "updates are large": lambda: two_windows({}, {"update_ratio": 0.3, **SGD}),
    "updates stay large": lambda: two_windows({"update_ratio": 0.3, **SGD}, {"update_ratio": 0.3, **SGD}),
    "updates are small": lambda: two_windows({"update_ratio": 1e-8}, {"update_ratio": 1e-8, **SGD}, alive()),
    "updates are small as the gradient is": lambda: two_windows(
        {}, {"update_ratio": 1e-8, "gradient_ratio": 1e-5, "weak_share": 1.0}, alive()
    ),
    "half of the weights are zero by a mask": lambda: two_windows(
        {}, {"weight_sparsity": 0.6, "masked": each(True, True, True, False), **ZERO}
    ),
    "dead channels take their weights with them": lambda: two_windows({}, {"weight_sparsity": 0.6, **ALL_OFF}, alive()),
    "many weights are near zero": lambda: two_windows({}, {"weight_near_zeros": 0.6}),
    "inputs are always off": lambda: two_windows(
        {}, {"weight_near_zeros": 0.6, "input_largest": torch.tensor([1e-6] * 6 + [1.0] * 4)}
    ),
    "inputs are dead kernels of the layer before": lambda: two_windows(
        {},
        {"weight_near_zeros": 0.6, "input_largest": torch.tensor([1e-6] * 3 + [1.0]), "producers": ("before",)},
        layer("before", **FIRST_OFF),
    ),
    "zero kernels are dormant": lambda: two_windows(
        {}, {"activation_mean": each(0.005, 1, 1, 1), "norms": each(1e-5, 1, 1, 1), "largest": each(1e-5, 1, 1, 1)}
    ),
    "an output is saturated": lambda: two_windows(
        {}, {**SIGMOID, "saturated_share": torch.ones(4), "depth": 0, "consumers": None}
    ),
    "a bias shuts an output": lambda: two_windows(
        {},
        {**SIGMOID, "saturated_share": torch.ones(4), "depth": 0, "consumers": None, "shift": torch.full((4,), 90.0)},
    ),
    "a saturated critic may read what has no gradient": lambda: two_windows(
        {},
        {**NO_GRADIENT, "gating": None, "consumers": None},
        layer("critic", **SIGMOID, saturated_share=torch.ones(4)),
    ),
    "the loss sends next to nothing to one of two outputs": lambda: faint(),
    "many weights are near zero beside a dead channel": lambda: two_windows(
        {}, {"weight_near_zeros": 0.6, **FIRST_OFF}
    ),
    "a dead channel takes many weights with it": lambda: two_windows({}, {"weight_near_zeros": 0.3, **FIRST_OFF}),
    "experts get no token": lambda: begun().next(layer(**NO_ROW, rows="experts")),
    "codes are not used": lambda: begun().next(layer(**NO_ROW, rows="codes")),
    "a head of attention is zero": lambda: two_windows(HEAD, HEAD, begin=HEAD),
    "words are not in the data": lambda: begun().next(layer(**NO_ROW, rows="table")),
    "a copy of the network is not trained": lambda: begun().next(
        alive(), layer(excluded="not in the graph of the loss", missed="cut off", parameters=4000, in_optimizer=False)
    ),
    "a backbone is cut off": lambda: begun().next(
        alive(), layer(excluded="not in the graph of the loss", missed="cut off", parameters=4000)
    ),
    "an expert is given no sample": lambda: begun().next(
        alive(), layer(excluded="nothing passed through", missed="no input", parameters=4000)
    ),
    "one of two optimizers never steps": lambda: resting(layer(**RESTING), alive()),
    "a head never had a gradient": lambda: (
        Run().next(start()).next(layer(**NO_GRADIENT, depth=0, consumers=None, gating=None), alive())
    ),
    "some kernels of a layer have no gradient, and no activation is read": lambda: begun().next(
        layer(**FIRST_OFF | {"gating": None, "consumers": None}), alive()
    ),
    "a loss has come to rest": lambda: begun().next(layer(**NO_GRADIENT)),
    "a loss has come to rest as weights have blown up": lambda: begun().next(
        layer(**NO_GRADIENT, norms=torch.full((4,), 75.0))
    ),
    "a loss has no slope": lambda: Run().next(start()).next(layer(**NO_GRADIENT)),
    "a layer cannot be read": lambda: begun().next(
        alive(), layer(excluded="it is sharded", missed="unreadable", parameters=4000)
    ),
    "a weight belongs to no module": lambda: begun().next(layer(), strangers=1),
    "weights belong to no module": lambda: begun().next(layer(), strangers=3),
    "all that enters a layer is zero": lambda: begun().next(
        layer(gradient_rms=0.0, weight_gradient=None, channel_firing_rate=each(1.0, 1, 0, 0)), layer("other", depth=1)
    ),
    "a backward pass that Lightning does not see": lambda: begun().next(
        layer(gradient=None, weight_gradient=None, fired=None, gating=None)
    ),
    "the schedule has ended": lambda: two_windows({"learning_rate": 0.0}, {"learning_rate": 0.0}),
    "no optimizer steps": lambda: (
        Run()
        .next(start())
        .next(layer(), optimizer_steps=0, sampled_steps=0)
        .next(layer(), optimizer_steps=0, sampled_steps=0)
    ),
    "two layers fired until an update was reckless": lambda: (
        Run()
        .next(start(), start("next"))
        .next(layer(update_ratio_max=0.8), layer("next", update_ratio_max=0.8))
        .next(layer(**FIRST_OFF), layer("next", **FIRST_OFF))
    ),
    "an update was reckless for one layer, and a window later for another": lambda: (
        Run()
        .next(start(), start("next"))
        .next(layer(update_ratio_max=0.8), layer("next", update_ratio_max=0.8))
        .next(layer(**FIRST_OFF), layer("next", update_ratio_max=0.8))
        .next(layer(**FIRST_OFF), layer("next", **FIRST_OFF))
    ),
    "a kernel fired on less than sampled steps see, and then on nothing": lambda: two_windows(
        {"channel_firing_rate": each(0.0, 0.5, 0.5, 0.5)}, FIRST_OFF
    ),
    "a layer came in mid-training, and a kernel of it never fired": lambda: late(),
    "many weights of a file are near zero": lambda: file(weight_near_zeros=0.6),
    "values were NaN": lambda: two_windows({}, {"non_finite_gradients": 1} | FIRST_OFF, alive()),
    "no gradient was looked at": lambda: two_windows(
        {}, {"gradient": None, "weight_gradient": None, "fired": each(False, True, True, True)}
    ),
    "what never fires has a gradient": lambda: two_windows({}, {"fired": each(False, True, True, True)}),
}


def told(run: Run) -> list[str]:
    """What is said of the last window, in lines of text."""
    lines = [f"{finding.severity}: {finding.headline}" for finding in run.findings]
    for finding in run.findings:
        lines += [f"cause: {finding.cause}", f"advice: {finding.advice}", f"evidence: {evidence(finding, run.audited)}"]
    lines += [f"story: {problem.story}" for problem in run.problems]
    return lines + [f"note: {report.note}" for report in run.layers.values() if report.note]
