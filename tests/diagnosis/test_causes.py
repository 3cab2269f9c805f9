"""A cause is a claim with a premise: for each, a case in which it looks so and is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from helpers.stories import WORN, small
from helpers.windows import ALL_OFF, FIRST_OFF, NO_GRADIENT, Run, alive, begun, each, layer, off, start, window
from lightning_deadkernel.diagnosis.pruning import savings
from lightning_deadkernel.observation import Consumer, Entering, InputSlice
from lightning_deadkernel.report.records import Finding

READ: dict[str, Any] = {"consumers": (Consumer("next", 4, (InputSlice(0, 4, 0, 4),)),)}
STARVING: dict[str, Any] = {"gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)}


def shrunken(norm: float, steps: int = 60, **settings: Any) -> Finding:
    """A kernel that has shrunk from norm 1 to `norm` (of ten entries) and is zero beside its layer."""
    run = Run().next(start(norms=torch.ones(4)))
    run.next(layer(norms=each(norm, 1, 1, 1), **FIRST_OFF, **settings), optimizer_steps=steps)
    return run.only("zero_kernels")


# -- decayed ---------------------------------------------------------------------------------------------------------


def test_adamw_at_1e_3_and_decay_of_a_hundredth_cannot_have_emptied_a_kernel_in_60_steps() -> None:
    adamw: dict[str, Any] = {"optimizer": "AdamW", "decoupled_decay": True, "learning_rate": 1e-3, "weight_decay": 1e-2}
    finding = shrunken(1e-5, 60, **adamw)
    assert finding.cause_word == "unknown"
    assert "weight decay (0.01 here, which leaves a factor of 0.999 at least" in finding.cause
    assert shrunken(1e-5, 2_000_000, **adamw).cause_word == "decayed"


def test_decay_through_the_gradient_of_sgd_is_bounded_by_rate_decay_and_momentum() -> None:
    sgd: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 0.1, "weight_decay": 5e-4}
    needed = math.log(1e5) / (0.1 * 5e-4)
    assert shrunken(1e-5, int(0.2 * needed), **sgd).cause_word == "unknown"
    assert shrunken(1e-5, int(0.2 * needed), momentum=0.9, **sgd).cause_word == "decayed"
    assert shrunken(1e-5, int(1.1 * needed), **sgd).cause_word == "decayed"


def test_decay_through_the_gradient_of_adam_is_bounded_by_the_rate_alone() -> None:
    adam: dict[str, Any] = {"optimizer": "Adam", "learning_rate": 1e-3, "weight_decay": 1e-5}
    assert shrunken(1e-5, 60, **adam).cause_word == "unknown"  # ten entries of .32 cannot walk so far
    finding = shrunken(1e-5, 600, **adam)
    assert finding.cause_word == "decayed"
    assert "AdamW in place of weight_decay=1e-05 of Adam" in finding.advice
    assert "conv.weight" in finding.advice


def test_a_scale_that_began_next_to_zero_was_not_worn_down() -> None:
    """The zero-initialised gamma of a residual branch, after a first window in which it hardly moved."""
    run = Run().next(start()).next(layer(norm_scale=each(8e-4, 1, 1, 1)))
    for scale in (6e-4, 7e-4, 5e-5):
        run.next(layer(norm_scale=each(scale, 1, 1, 1), weight_decay=1e-4, optimizer="SGD"))
    assert "decayed" not in {finding.cause_word for finding in run.findings}


# -- scale collapsed, shift driven negative --------------------------------------------------------------------------


def _collapsing(weight_decay: float, rate: float = 1e-3) -> Run:
    run = Run().next(start()).next(layer(norm_scale=torch.ones(4)))
    for scale in (1e-2, 1e-5):
        shift, norm = each(-0.05, 0, 0, 0), each(scale, 1, 1, 1)
        decay: dict[str, Any] = {"weight_decay": weight_decay, "decoupled_decay": True, "optimizer": "AdamW"}
        run.next(layer(norm_scale=norm, shift=shift, learning_rate=rate, **decay, **FIRST_OFF))
    return run


def test_a_scale_that_a_penalty_took_to_zero_is_not_a_shift_driven_negative() -> None:
    finding = _collapsing(0.0).only("dead_channels")
    assert finding.cause_word == "scale collapsed"
    assert "from 1 to 1e-05" in finding.cause
    assert "weight decay, which is 0 here" in finding.cause
    assert "its shift alone does nothing" in finding.advice
    assert _collapsing(0.0).next(layer(norm_scale=each(1e-5, 1, 1, 1), **FIRST_OFF)).only(
        "zero_kernels"
    ).cause_word == ("scale collapsed")


@pytest.mark.parametrize(("optimizer", "rate", "cause"), [("Adam", 0.02, "decayed"), ("SGD", 1e-4, "scale collapsed")])
def test_a_scale_on_its_way_down_is_decayed_where_decay_can_have_taken_it_so_far(
    optimizer: str, rate: float, cause: str
) -> None:
    """Through Adam's gradient each entry moves by about the rate a step; through SGD's by rate x decay of itself."""
    run = Run().next(start()).next(layer(norm_scale=torch.ones(4)))
    decay: dict[str, Any] = {"weight_decay": 0.02, "optimizer": optimizer, "learning_rate": rate}
    for scale in (0.4, 0.03):
        norm = each(scale, 1, 1, 1)
        run.next(layer(norm_scale=norm, shift=each(-0.05, 0, 0, 0), **decay, **FIRST_OFF), optimizer_steps=50)
    finding = run.only("dead_channels")
    assert finding.cause_word == cause
    assert ("ruled out: weight decay 0.02" in finding.cause) == (optimizer == "SGD")


@pytest.mark.parametrize(("first", "cause"), [(2e-4, "zero at initialisation"), (0.5, "scale collapsed")])
def test_a_scale_that_was_next_to_zero_when_first_seen_was_not_taken_there_by_training(
    first: float, cause: str
) -> None:
    run = Run().next(start()).next(layer(norm_scale=torch.full((4,), first)))
    for scale in (3e-4, 3e-4):
        run.next(layer(norm_scale=torch.full((4,), scale)))
    finding = run.only("zero_kernels")
    assert finding.cause_word == cause
    assert ("when first seen, after the first window (0.0002)" in finding.cause) == (first < 1e-3)


def test_a_kernel_that_hardly_moved_is_not_what_decay_took_where_the_scale_is_zero() -> None:
    run = Run().next(start(norms=torch.ones(4))).next(layer(norm_scale=torch.ones(4)))
    for scale in (1e-4, 1e-5):
        decay: dict[str, Any] = {"weight_decay": 1e-6, "optimizer": "SGD", "learning_rate": 1e-3}
        run.next(layer(norms=torch.full((4,), 1 - 1e-7), norm_scale=each(scale, 1, 1, 1), **decay, **FIRST_OFF))
    assert run.only("zero_kernels").cause_word == "scale collapsed"


def test_a_shift_below_the_reach_of_a_scale_that_has_not_moved_is_no_collapse() -> None:
    norm: dict[str, Any] = {"norm_scale": torch.full((4,), 0.05), "shift": each(-1.0, 0, 0, 0)}
    run = Run().next(start()).next(layer(**norm)).next(layer(**norm, **FIRST_OFF))
    assert run.only("dead_channels").cause_word == "shift driven negative"


def test_a_bias_that_is_large_beside_a_kernel_drawn_small_was_not_driven_there() -> None:
    """Of a layer with one input the draw makes kernels of any size; the bias is as large as those of its neighbours."""
    drawn: dict[str, Any] = {"norms": each(0.01, 0.6, 0.5, 0.9), "shift": each(-0.6, 0.7, -0.3, 0.1)}
    run = Run().next(start(**drawn)).next(layer(**drawn, **FIRST_OFF))
    assert (run.only("dead_channels").cause_word, run.only("dead_channels").severity) == ("born dead", "info")


@pytest.mark.parametrize(("shift", "cause"), [(-3.1, "shift driven negative"), (-2.9, "born dead")])
def test_a_bias_far_below_zero_from_the_start_is_no_draw_of_the_weights(shift: float, cause: str) -> None:
    """Usual draws make a bias of at most 1.7 times a kernel's norm: 1 / sqrt(fan_in) beside 1 / sqrt(3), or 0."""
    below: dict[str, Any] = {"shift": torch.full((4,), shift)}
    finding = Run().next(start(**below)).next(layer(**below, **FIRST_OFF)).only("dead_channels")
    assert finding.cause_word == cause
    assert ("the draw of the initial weights" in finding.cause) == (cause == "born dead")
    assert "learning rate" not in finding.advice
    fired = begun(**below).next(layer(**below, **FIRST_OFF)).only("dead_channels")
    assert fired.cause_word == "unknown"  # with such a bias it has fired, so it is not out of reach


@pytest.mark.parametrize(("decay", "cause"), [(0.0, "knocked out"), (1e-1, "unknown")])
def test_a_step_that_is_large_by_decay_alone_knocks_nothing_out(decay: float, cause: str) -> None:
    """At lr 0.05 and momentum 0.9 a decay of 0.1 takes a twentieth of the weights at each step, and turns no kernel."""
    sgd: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": decay}
    run = Run().next(start()).next(layer(update_ratio_max=0.12, **sgd))
    assert run.next(layer(**FIRST_OFF, **sgd)).only("dead_channels").cause_word == cause


@pytest.mark.parametrize(
    ("first", "named"), [(3.0, "(up to 3 of SGD)"), (0.2, "(lr=0.2 of SGD)"), (0.1, "(lr=0.2 of SGD)")]
)
def test_the_rate_that_knocked_kernels_out_is_the_one_there_was(first: float, named: str) -> None:
    sgd: dict[str, Any] = {"optimizer": "SGD", "update_ratio_max": 0.8}
    run = Run().next(start()).next(layer(learning_rate=first, **sgd))
    advice = run.next(layer(learning_rate=0.2, **FIRST_OFF, **sgd)).only("dead_channels").advice
    assert f"Lower the learning rate {named}" in advice


def test_kernels_that_a_mask_holds_at_zero_are_none_of_those_that_healthy_networks_have_dead() -> None:
    masked: dict[str, Any] = {"masked": each(True, True, False, False)}
    run = Run().next(start(**masked)).next(layer(**masked, **off(0, 1, 2)))
    (born,) = [finding for finding in run.of("dead_channels") if finding.cause_word == "born dead"]
    assert born.advice.startswith("25% of the layer dead is within")


@pytest.mark.parametrize(("norm", "cause"), [(0.02, "shrunken weights"), (0.5, "knocked out")])
def test_a_step_that_is_large_beside_shrunken_weights_is_told_as_that(norm: float, cause: str) -> None:
    """Usual steps, and weights that decay through the gradient of Adam has taken to a fiftieth."""
    adam: dict[str, Any] = {"optimizer": "Adam", "learning_rate": 0.01, "weight_decay": 1.0}
    run = Run().next(start(**adam)).next(layer(norms=torch.full((4,), norm), update_ratio_max=0.3, **adam))
    finding = run.next(layer(norms=torch.full((4,), norm), **FIRST_OFF, **adam)).only("dead_channels")
    assert finding.cause_word == cause
    assert ("AdamW in place of weight_decay=1 of Adam" in finding.advice) == (norm < 0.1)


def test_a_bias_beside_a_kernel_that_has_shrunk_was_not_far_below_zero_from_the_start() -> None:
    bias: dict[str, Any] = {"shift": torch.full((4,), -0.12)}
    finding = Run().next(start(**bias)).next(layer(norms=torch.full((4,), 1e-3), **bias, **FIRST_OFF))
    assert finding.only("dead_channels").cause_word == "born dead"


def test_what_is_known_is_told_before_what_is_unknown() -> None:
    run = Run().next(start(), start("dead"), start("out")).next(layer(), layer("dead", depth=1), layer("out", depth=0))
    shut: dict[str, Any] = ALL_OFF | {"shift": torch.full((4,), -99.0)}
    run.next(layer(**NO_GRADIENT, consumers=None), layer("dead", depth=1, **shut), layer("out", depth=0))
    assert [finding.layer for finding in run.findings] == ["dead", "conv"]
    assert [finding.cause_word for finding in run.findings] == ["shift driven negative", "unknown"]
    assert "dead, nearer to the loss, is wholly dead" in run.only("starved_channels").cause


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_parameter_group_without_a_learning_rate_is_worth_knowing(rate: float) -> None:
    run = Run().next(start(), start("head")).next(layer(learning_rate=rate), layer("head"))
    run.next(layer(learning_rate=rate), layer("head"))
    assert [finding.severity for finding in run.of("update_too_small")] == ["info"] * (rate == 0.0)
    assert run.of("update_too_small", "head") == run.of("update_too_small", None) == []


@pytest.mark.parametrize(("decay", "cause"), [(1.2, "decayed"), (0.8, "reckless updates")])
def test_steps_most_of_which_is_decay_are_not_the_learning_rates(decay: float, cause: str) -> None:
    large: dict[str, Any] = {"update_ratio": 0.2, "optimizer": "SGD", "learning_rate": 0.1, "weight_decay": decay}
    finding = begun(**large).next(layer(**large)).only("update_too_large")
    assert (finding.cause_word, finding.severity) == (cause, "warning")
    assert ("Lower weight_decay" in finding.advice) == (cause == "decayed")


# -- what reads the layer --------------------------------------------------------------------------------------------


def starved(of_next: dict[str, Any], **changes: Any) -> Finding:
    run = Run().next(start(), start("next"), start("far")).next(layer(), layer("next"), layer("far"))
    run.next(layer(**STARVING | READ | changes), layer("next", **of_next), alive("far"))
    return run.only("starved_channels")


def test_weights_that_are_not_zero_are_not_said_to_be() -> None:
    assert starved({"input_largest": each(0.0, 0.5, 0.5, 0.5)}).cause_word == "outgoing zero"
    finding = starved({"input_largest": each(0.1, 0.5, 0.5, 0.5)})
    assert finding.cause_word == "unknown"
    assert "its weights for these channels are zero" in finding.cause
    zero_first = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1])
    side_by_side: dict[str, Any] = {"consumers": (Consumer("next", 8, (InputSlice(0, 4, 0, 4, inner=2),)),)}
    assert starved({"input_largest": zero_first}, **side_by_side).cause_word == "outgoing zero"
    assert starved({"input_largest": zero_first.flip(0)}, **side_by_side).cause_word == "unknown"
    channels_last: dict[str, Any] = {"consumers": (Consumer("next", 8, (InputSlice(0, 4, 0, 4, outer=2),)),)}
    assert starved({"input_largest": zero_first}, **channels_last).cause_word == "unknown"  # 0 and 4 are the first's
    assert starved({"input_largest": each(0.0, 1, 1, 1, 0, 1, 1, 1)}, **channels_last).cause_word == "outgoing zero"


def test_where_it_is_not_known_at_which_inputs_channels_are_read_no_weights_for_them_are_ruled_out() -> None:
    finding = starved({"input_largest": each(0.0, 0.5, 0.5, 0.5)}, consumers=(Consumer("next", 4),))
    assert finding.cause_word == "unknown"
    assert "that all its weights are zero" in finding.cause
    assert "for these channels" not in finding.cause


def test_a_head_whose_loss_has_no_weight_is_to_blame_for_itself_and_for_what_feeds_it() -> None:
    head: dict[str, Any] = {"gating": None, "depth": 0, "consumers": None, **NO_GRADIENT}
    run = Run().next(start(), start("head"), start("other")).next(layer(), layer("head"), alive())
    run.next(layer(**NO_GRADIENT, consumers=(Consumer("head", 4),)), layer("head", **head), alive())
    assert run.only("no_gradient", "head").cause_word == "ignored by the loss"
    assert run.only("starved_channels").cause_word == "no gradient downstream"
    assert "zero" not in run.only("starved_channels").cause.split(":")[0]


def test_a_channel_whose_depthwise_reader_is_dead_is_told_from_its_neighbours() -> None:
    depthwise: dict[str, Any] = {"groups": 4, **off(0)}
    assert starved(depthwise).cause_word == "dead downstream"
    assert starved({**off(0)}).cause_word == "unknown"  # a full convolution: other kernels read the channel as well
    assert starved({"groups": 4, **off(1)}).cause_word == "unknown"


def test_what_a_saturated_critic_starves_is_told_as_that() -> None:
    flat: dict[str, Any] = {"gating": "bounded", "activation": "tanh", "saturated_share": torch.ones(4)}
    assert starved({**flat, **NO_GRADIENT}).cause_word == "saturated downstream"
    half = flat | {"saturated_share": each(1, 1, 0.2, 1)}
    assert starved(half).cause_word == "unknown"
    small: dict[str, Any] = {"gradient_ratio": 1e-9, "weak_share": 1.0, "vanishing_share": 1.0, "depth": 3}
    run = Run().next(start(), start("next"), start("far")).next(layer(), layer("next"), alive("far"))
    run.next(layer(**small, consumers=(Consumer("next", 4),)), layer("next", **flat, depth=1), alive("far"))
    finding = run.only("vanishing_gradient")
    assert (finding.cause_word, finding.evidence["consumers"]) == ("saturated downstream", "next")


# -- saturated -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "mean", "cause"),
    [("gelu", 0.0, "saturated"), ("gelu", 0.15, "unknown"), ("elu", 0.99, "saturated"), ("elu", 0.4, "unknown")],
)
def test_saturated_takes_outputs_where_the_activation_is_flat(activation: str, mean: float, cause: str) -> None:
    flat = {"elu": 1.0, "celu": 1.0, "selu": 1.7581}.get(activation, 0.0)
    smooth: dict[str, Any] = {"activation": activation, "gating": "smooth", "flat_output": flat}
    smooth["activation_mean"] = each(mean, 1, 1, 1)
    assert begun().next(layer(**FIRST_OFF | smooth)).only("saturated_channels").cause_word == cause


def test_a_softplus_that_works_in_its_tail_is_no_fault() -> None:
    tail: dict[str, Any] = {"activation": "softplus", "gating": "smooth", "saturated_share": torch.full((4,), 0.95)}
    assert not begun().next(layer(**tail)).findings
    gone = tail | NO_GRADIENT | {"saturated_share": torch.ones(4)}
    assert begun().next(layer(**gone), alive()).only("saturated_channels").cause_word == "saturated"


# -- vanishing that matters ------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"gradient_ratio": 1e-9, "weak_share": 1.0, "vanishing_share": 1.0}


def test_a_small_gradient_beside_healthy_updates_of_a_normalising_optimizer_is_worth_knowing_alone() -> None:
    def severity(**changes: Any) -> str:
        return begun().next(layer(**SMALL | changes), alive()).only("vanishing_gradient").severity

    assert severity(optimizer="AdamW", update_ratio=1e-3) == "info"
    assert severity(optimizer="AdamW", update_ratio=1e-7) == "error"
    assert severity(optimizer="SGD", update_ratio=1e-12) == "error"


def test_a_weak_gradient_under_a_normalising_optimizer_is_left_to_the_updates() -> None:
    weak: dict[str, Any] = {"gradient_ratio": 1e-5, "weak_share": 1.0, "optimizer": "Adam"}
    assert begun().next(layer(**weak), alive()).only("weak_gradient").severity == "info"
    slow = begun(update_ratio=1e-8).next(layer(**weak, update_ratio=1e-8), alive())
    assert slow.only("update_too_small").severity == "warning"


def test_an_output_to_which_the_loss_sends_little_is_told_from_one_whose_inputs_are_small() -> None:
    def cause(at_shift: float, name: str = "faint") -> str:
        output: dict[str, Any] = {"gating": None, "depth": 0, "consumers": None, "optimizer": "SGD"}
        before = layer("before", **SMALL, depth=1, consumers=(Consumer("faint", 4),), optimizer="SGD")
        faint = layer("faint", **SMALL | output, gradient=torch.full((4,), at_shift))
        run = Run().next(start("before"), start("faint"), start("other"))
        run.next(layer("before"), layer("faint", **output), layer("other", **output))
        return run.next(before, faint, layer("other", **output)).only("vanishing_gradient", name).cause_word

    assert (cause(1e-9), cause(1e-9, "before")) == ("ignored by the loss", "no gradient downstream")
    assert (cause(1e-2), cause(1e-2, "before")) == ("unknown", "unknown")


def test_equal_rows_of_a_parameter_that_is_no_linear_layer_are_worth_knowing_until_they_stay() -> None:
    for kind in ("MambaMixer", "LinearVariational"):
        run = Run().next(start(kind=kind, identical=True))
        assert run.only("identical_kernels").severity == "info"
        assert run.next(layer(kind=kind, identical=True)).only("identical_kernels").severity == "error"


def test_a_weight_that_had_no_gradient_on_steps_on_which_nothing_had_one_is_not_fed_zeros() -> None:
    """Weights are looked at on some steps and shifts on all: where the loss has become flat within the window, a shift
    had a gradient before."""
    dark: dict[str, Any] = {"gradient_rms": 0.0, "weight_gradient": None, "channel_firing_rate": each(1.0, 1, 0, 0)}
    run = Run().next(start(), start("next")).next(layer(), layer("next", depth=1))
    run.next(layer(**dark), layer("next", depth=1, gradient_rms=0.0))
    assert run.of("no_gradient") == []
    run.next(layer(**dark), layer("next", depth=1))
    assert run.only("no_gradient").cause_word == "dead inputs"


def test_a_flat_loss_is_not_ruled_out_where_no_layer_has_a_gradient() -> None:
    shut: dict[str, Any] = {"activation": "sigmoid", "gating": "bounded", "saturated_share": torch.ones(4), "depth": 0}
    for other, ruled_out in ((NO_GRADIENT, False), ({}, True)):
        run = Run().next(start(), start("other"), start("out")).next(layer(), layer("other"), layer("out", depth=0))
        out = layer("out", **shut, **NO_GRADIENT, consumers=None)
        run.next(layer(**NO_GRADIENT, consumers=None), layer("other", **other, consumers=None), out)
        assert ("ruled out: a flat loss" in run.only("starved_channels").cause) == ruled_out


@pytest.mark.parametrize(("dead", "cause"), [((0, 1), "dead downstream"), ((0,), "unknown")])
def test_what_half_dead_kernels_read_and_the_others_do_not_is_theirs(dead: tuple[int, ...], cause: str) -> None:
    assert starved({**off(*dead), "input_largest": torch.full((4,), 0.5)}).cause_word == cause


def test_a_flat_loss_says_whether_a_gradient_ever_came() -> None:
    never = Run().next(start()).next(layer(**NO_GRADIENT)).only("no_gradient", None)
    assert "the loss does not depend on the weights" in never.cause
    once = begun().next(layer(**NO_GRADIENT)).only("no_gradient", None)
    assert "the last one came in epoch 0 (step 20)" in once.cause
    assert "detach" not in once.advice


@pytest.mark.parametrize("came", [False, True])
def test_a_head_beside_no_other_layer_is_ignored_by_the_loss_and_it_is_said_since_when(came: bool) -> None:
    head: dict[str, Any] = {"gating": None, "depth": 0, "consumers": None, "joined": "summed"}
    run = begun(**head) if came else Run().next(start())
    finding = run.next(layer(**head, **NO_GRADIENT), alive()).only("no_gradient")
    assert finding.cause_word == "ignored by the loss"
    assert ("the last gradient came in epoch 0 (step 20)" in finding.cause) == came
    assert ("is met by now, nothing is wrong" in finding.advice) == came


@pytest.mark.parametrize(("optimizer", "ruled_out"), [("Adam", True), ("SGD", False)])
def test_that_single_steps_are_too_small_is_ruled_out_where_all_are_alike(optimizer: str, ruled_out: bool) -> None:
    lost: dict[str, Any] = {"lost_updates": 0.95, "update_ratio": 1e-2, "optimizer": optimizer}
    finding = begun(optimizer=optimizer).next(layer(**lost)).only("lost_updates")
    assert ("ruled out: steps below the weights' resolution" in finding.cause) == ruled_out


@pytest.mark.parametrize(
    ("activation", "shift", "told"),
    [("sigmoid", -9.0, True), ("tanh", 9.0, True), ("sigmoid", 7.9, False), ("gelu", -9.0, True), ("gelu", -7.9, False),
     ("relu6", 9.1, True), ("relu6", 8.9, False)],
)  # fmt: skip
def test_a_bias_that_alone_puts_an_activation_on_its_flat_end_is_named(
    activation: str, shift: float, told: bool
) -> None:
    """Flat beyond 5, ReLU6 beyond 6; inputs of unit size reach three times the norm of a kernel, which is 1."""
    shut: dict[str, Any] = {"activation": activation, "gating": "bounded", "saturated_share": torch.ones(4)}
    if activation == "gelu":
        shut |= {"gating": "smooth", "saturated_share": None, "activation_mean": torch.zeros(4)}
        shut |= {**ALL_OFF, "depth": 1}
    if activation == "relu6":
        shut |= {"gating": "rectifier", "channel_firing_rate": torch.ones(4), **NO_GRADIENT}
    run = begun().next(layer(**shut, shift=torch.full((4,), shift)), alive())
    finding = run.only("saturated_channels")
    assert (f"the bias of {shift:g} alone" in finding.cause) == told
    assert ("Set the bias" in finding.advice) == told


def test_a_gradient_at_the_shift_does_not_tell_how_large_steps_of_the_weights_are() -> None:
    """Inputs next to zero: the bias has a gradient of 0.25, the weights one of 1e-13, and steps of them round away."""
    tiny: dict[str, Any] = {"weight_gradient": None, "gradient": torch.full((4,), 0.25), "gradient_rms": 1e-13}
    held: dict[str, Any] = {"unchanged": torch.ones(4, dtype=torch.bool), "optimizer": "SGD", "update_ratio": None}
    assert begun().next(layer(**tiny, **held)).only("frozen_weights").cause_word == "below resolution"
    assert begun().next(layer(**tiny | {"gradient_rms": 1e-2}, **held)).only("frozen_weights").cause_word == "unknown"


@pytest.mark.parametrize(
    ("activation", "share", "severity"),
    [("hardtanh", 0.6, "info"), ("hardtanh", 0.95, "error"), ("tanh", 0.6, "warning")],
)
def test_at_a_hard_bound_on_some_samples_is_no_fault(activation: str, share: float, severity: str) -> None:
    """tanh is flat beyond 5, where inputs of unit size hardly come; hardtanh beyond 1, with a slope of 1 up to it."""
    flat: dict[str, Any] = {"activation": activation, "gating": "bounded", "saturated_share": torch.full((4,), share)}
    assert begun().next(layer(**flat)).only("saturated_channels").severity == severity


def test_an_output_that_stops_to_fire_is_what_the_loss_asks_for_or_cannot_get() -> None:
    output: dict[str, Any] = {"depth": 0, "consumers": ()}
    finding = begun(**output).next(layer(**output, **FIRST_OFF)).only("dead_channels")
    assert finding.cause_word == "faded"
    assert "drift" not in finding.cause
    assert "whether any target asks for a value above zero" in finding.advice


def test_an_output_behind_a_rectifier_is_named_where_what_it_reads_is_starved() -> None:
    read: dict[str, Any] = {"input_largest": torch.full((4,), 0.5)}
    assert "rectifier" not in starved(read).advice
    output: dict[str, Any] = {"depth": 0, "consumers": (), **read}
    assert "Take away the rectifier after next" in starved(output).advice
    assert "the loss asks nothing of next" in starved({**output, "gating": None}).advice


@pytest.mark.parametrize("some", [False, True])
def test_where_others_of_the_layer_have_a_gradient_no_detach_is_looked_for(some: bool) -> None:
    gradient = each(0.0, 0.0, some, some)
    hidden: dict[str, Any] = {"gradient": gradient, "weight_gradient": gradient, "gating": None, "consumers": None}
    finding = begun().next(layer(**hidden), alive()).only("no_gradient")
    assert ("detach()" in finding.advice) == (not some)
    assert ("no target asks for" in finding.advice) == some


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_flat_loss_over_a_single_output_may_be_a_softmax_over_it(outputs: int) -> None:
    none: dict[str, Any] = {"gradient": torch.zeros(outputs), "weight_gradient": torch.zeros(outputs), "gating": None}
    out: dict[str, Any] = {"name": "out", "channels": outputs, "depth": 0, "consumers": ()}
    run = Run().next(start(), start(**out)).next(layer(**NO_GRADIENT), layer(**out, **none))
    advice = run.only("no_gradient", None).advice
    assert ("softmax or a cross entropy over a single output" in advice) == (outputs == 1)


@pytest.mark.parametrize(("norm", "cause"), [(1e-3, "unknown"), (0.02, "knocked out")])
def test_first_steps_from_next_to_nothing_knock_nothing_out(norm: float, cause: str) -> None:
    run = Run().next(start(norms=torch.full((4,), norm))).next(layer(update_ratio_max=30.0))
    assert run.next(layer(**FIRST_OFF)).only("dead_channels").cause_word == cause


def test_where_all_layers_move_too_little_the_rate_of_all_is_to_be_raised() -> None:
    slow: dict[str, Any] = {"update_ratio": 1e-8, "learning_rate": 1e-6, "optimizer": "SGD"}
    for other, advice in ((slow, "all layers move as little"), ({}, "for conv, or check")):
        run = Run().next(start(), start("b")).next(layer(**slow), layer("b", **other))
        run.next(layer(**slow), layer("b", **other))
        assert advice in run.only("update_too_small").advice


def test_what_no_optimizer_holds_is_told_by_when_it_came_and_what_else_one_holds() -> None:
    """Made anew in forward(), forgotten beside others, or an optimizer of a copy."""
    lost: dict[str, Any] = {"in_optimizer": False, "unchanged": torch.ones(4, dtype=torch.bool), "learning_rate": None}
    forgotten = begun().next(layer(**lost), alive()).only("frozen_weights")
    assert "Pass the parameter to the optimizer" in forgotten.advice
    assert "a copy" not in forgotten.cause
    assert "it may hold a copy" in begun().next(layer(**lost)).only("frozen_weights").cause
    anew = Run().next(alive()).next(alive()).next(layer(**lost), alive()).only("frozen_weights")
    assert "the weight is a new one since step 40" in anew.cause
    assert "not in forward()" in anew.advice


# -- sparse, identical -----------------------------------------------------------------------------------------------


def test_near_zero_weights_of_inputs_that_are_always_off_are_not_heavy_tails() -> None:
    sparse: dict[str, Any] = {"weight_near_zeros": 0.5}
    columns = torch.tensor([0.0, 1e-5, 0.4, 0.3])
    finding = begun().next(layer(**sparse, input_largest=columns)).only("sparse_weights")
    assert (finding.cause_word, finding.severity) == ("dead inputs", "info")
    read: dict[str, Any] = {"input_largest": columns, "producers": ("before",)}
    for before, cause in (
        (FIRST_OFF, "dead inputs"),
        ({}, "heavy tails"),
    ):  # live kernels that are not read are no dead
        run = Run().next(start("before"), start()).next(layer("before"), layer(**read))
        run.next(layer("before", **before), layer(**sparse, **read))
        assert run.only("sparse_weights").cause_word == cause
    spread = begun().next(layer(**sparse, input_largest=torch.full((4,), 0.3)))
    assert spread.only("sparse_weights").cause_word == "heavy tails"


# -- NaN proves nothing ----------------------------------------------------------------------------------------------


def test_a_network_that_has_become_nan_has_one_finding_and_no_other_made_of_it() -> None:
    nan = torch.full((4,), math.nan)
    lost: dict[str, Any] = {
        "non_finite_gradients": 4,
        "norms": nan,
        "largest": nan,
        "gradient": nan,
        "gradient_rms": None,
    }
    lost |= {"weight_gradient": nan, "activation_mean": nan, "update_ratio": math.nan, "update_ratio_max": 0.9}
    run = Run().next(start(), start("b")).next(layer(), layer("b"), gradient_norm=1.0)
    fired = {"fired": torch.zeros(4, dtype=torch.bool)}
    run.next(layer(**lost | fired), layer("b", **lost), gradient_norm=1e9)
    (finding,) = run.findings
    assert (finding.kind, finding.layer, finding.severity) == ("non_finite_gradient", None, "error")
    assert "changed weights by 0.9 of their norm" in finding.cause
    assert {state for name in ("conv", "b") for state in run.report(name).states} == {"unknown"}


def test_gradients_that_are_nan_are_no_flat_loss() -> None:
    nan = torch.full((4,), math.nan)
    run = begun().next(layer(gradient=nan, weight_gradient=nan, non_finite_gradients=4))
    assert "no_gradient" not in {finding.kind for finding in run.findings}


# -- not watched -----------------------------------------------------------------------------------------------------


def test_a_backbone_that_is_cut_off_is_a_warning_and_an_unused_corner_worth_knowing() -> None:
    cut: dict[str, Any] = {"excluded": "not in the graph of the loss", "missed": "cut off"}
    run = begun().next(layer(parameters=40), layer("backbone", parameters=40, **cut))
    finding = run.only("unwatched_layers", None)
    assert (finding.severity, finding.cause_word, finding.evidence["share_of_weights"]) == ("warning", "cut off", 0.5)
    assert "backbone" in finding.cause
    assert (
        begun()
        .next(layer("a", parameters=960), layer("b", parameters=40, **cut))
        .only("unwatched_layers", None)
        .severity
        == "info"
    )
    odd: dict[str, Any] = {"excluded": "consumed by no convolution or linear op", "missed": "unreadable"}
    assert begun().next(alive(), layer("b", parameters=4, **odd)).only("unwatched_layers", None).severity == "info"
    most = begun().next(layer(parameters=40), layer("lstm", parameters=400, **odd))
    assert most.only("unwatched_layers", None).severity == "warning"
    assert begun().next(alive(), strangers=3).only("unwatched_layers", None).severity == "warning"


def test_an_output_that_is_dead_behind_a_rectifier_is_not_offered_for_pruning() -> None:
    output = layer("out", depth=0, consumers=None, **ALL_OFF)
    run = Run().next(start("out")).next(output)
    assert run.report("out").dead == [0, 1, 2, 3]
    assert savings(window(1, output), tuple(run.layers.values())).channels == 0


# -- advice for this user --------------------------------------------------------------------------------------------


def test_advice_names_the_rate_and_the_optimizer_at_hand() -> None:
    run = Run().next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF, optimizer="SGD"))
    assert run.only("dead_channels").advice.startswith("Lower the learning rate (lr=0.1 of SGD) three- to tenfold")
    unknown = Run().next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF))
    assert unknown.only("dead_channels").advice.startswith("Lower the learning rate three- to tenfold")


def test_an_output_unit_is_not_advised_as_a_hidden_one() -> None:
    output: dict[str, Any] = {"depth": 0, "consumers": None}
    run = Run().next(start("out"), start()).next(layer("out", **output | FIRST_OFF), alive("conv"))
    assert "These are outputs of the network" in run.only("dead_channels", "out").advice
    hidden = Run().next(start()).next(layer(**FIRST_OFF))
    assert "outputs of the network" not in hidden.only("dead_channels").advice


def test_whether_it_is_normal_is_answered_by_the_share_that_healthy_networks_have() -> None:
    few = Run().next(start()).next(layer(**off(0))).only("dead_channels")
    assert "25% of the layer dead is within what healthy deep networks without norms have" in few.advice
    on = (torch.arange(100) >= 47).float()
    rather = Run().next(start(channels=100))
    rather.next(layer(channels=100, fired=on > 0, gradient=on, weight_gradient=on))
    assert "47% of the layer dead is a little above what healthy" in rather.only("dead_channels").advice
    most = Run().next(start()).next(layer(**off(0, 1, 2))).only("dead_channels")
    assert "75% of the layer dead is more than healthy networks have" in most.advice


def test_a_saturated_output_is_told_to_give_the_loss_its_logits() -> None:
    flat: dict[str, Any] = {"activation": "sigmoid", "gating": "bounded", "saturated_share": torch.ones(4)}
    output = begun().next(layer(**flat, depth=0, consumers=None)).only("saturated_channels")
    assert (output.severity, "binary_cross_entropy_with_logits" in output.advice) == ("info", True)
    assert "put a norm" in begun().next(layer(**flat)).only("saturated_channels").advice


def test_what_reads_the_data_is_told_to_have_its_inputs_scaled() -> None:
    flat: dict[str, Any] = {"activation": "tanh", "gating": "bounded", "saturated_share": torch.ones(4)}
    assert "Scale the network's inputs" in begun().next(layer(**flat)).only("saturated_channels").advice
    inner = begun().next(layer(**flat, producers=("before",))).only("saturated_channels")
    assert "Scale the network's inputs" not in inner.advice


def test_a_fading_that_is_more_than_drift_is_asked_for_a_penalty_on_activations() -> None:
    def faded(*channels: int) -> Finding:
        rate = torch.full((4,), 0.5)
        rate[list(channels)] = 0.0
        run = Run().next(start()).next(layer(channel_firing_rate=rate)).next(layer(**off(*channels)))
        return run.only("dead_channels")

    assert "ordinary drift" in faded(0).cause
    assert "too few samples for the sampled steps to see" in faded(0).cause  # and not "fired on 0 %"
    assert "L1 of a sparse autoencoder" in faded(0, 1, 2).advice


# -- what a fault elsewhere does to a layer, or chance ----------------------------------------------------------------


@pytest.mark.parametrize(("rate", "severity"), [(0.02, "info"), (0.6, "warning")])
def test_a_channel_that_fires_seldom_may_be_starved_by_chance(rate: float, severity: str) -> None:
    finding = starved({}, channel_firing_rate=each(rate, 0.5, 0.5, 0.5))
    assert (finding.cause_word, finding.severity) == ("unknown", severity)


@pytest.mark.parametrize(("still", "severity"), [(1, "info"), (4, "warning")])
def test_a_few_kernels_that_stand_still_may_have_had_no_inputs(still: int, severity: str) -> None:
    unchanged = torch.arange(4) < still
    assert begun().next(layer(unchanged=unchanged)).only("frozen_weights").severity == severity


def test_slow_steps_of_a_layer_that_is_shut_follow_from_that() -> None:
    slow: dict[str, Any] = {"update_ratio": 1e-8}
    shut: dict[str, Any] = {"norm_scale": torch.full((4,), 1e-5)}
    open_: dict[str, Any] = {"norm_scale": torch.ones(4)}
    for scale, severity in ((shut, "info"), (open_, "warning")):
        run = Run().next(start(), start("next")).next(layer(**scale), layer("next", **slow, producers=("conv",)))
        run.next(layer(**scale), layer("next", **slow, producers=("conv",)))
        assert run.only("update_too_small", "next").severity == severity


def test_a_whole_layer_that_decay_has_worn_down_is_told_as_that_and_only_where_decay_can_have_done_it() -> None:
    # a small decay leaves nearly all within so few steps, and half of a norm is no end
    for changes, is_worn in (({}, True), ({"weight_decay": 0.01}, False), ({"norms": torch.full((4,), 0.5)}, False)):
        run = small(WORN | changes, weak=True, **READ)
        assert (run.only("weak_gradient").cause_word == "decayed") == is_worn
    for decay, is_worn in ((2.5, True), (0.01, False)):
        worn = WORN | {"weight_decay": decay}
        run = Run().next(start()).next(layer(**worn)).next(layer(**worn, **FIRST_OFF))
        assert (run.only("dead_channels").cause_word == "decayed") == is_worn


def test_what_one_kernel_that_faded_is_like_says_nothing_of_those_that_were_knocked_out() -> None:
    from_16 = {"channels": 16, "channel_firing_rate": torch.full((16,), 1e-3)}
    run = Run().next(start(channels=16)).next(layer(**from_16)).next(layer(**from_16))
    off = torch.zeros(16, dtype=torch.bool)
    one = off.clone()
    one[0] = True
    knocked = {"channels": 16, "fired": one, "gradient": one.float(), "weight_gradient": one.float()}
    for largest_step in (0.8, 2e-3):
        run.next(layer(**knocked, channel_firing_rate=1e-3 * one.float(), update_ratio_max=largest_step))
    run.next(layer(channels=16, fired=off, gradient=off.float(), weight_gradient=off.float()))
    faded = next(finding for finding in run.of("dead_channels") if finding.cause_word == "faded")
    assert faded.channels == (0,)
    assert "ordinary drift" in faded.cause
    assert "L1 of a sparse autoencoder" not in faded.advice


@pytest.mark.parametrize(
    ("learning_rate", "advice"), [(0.5, "Lower weight_decay=0.5"), (1e-6, "Look for what shrinks")]
)
def test_decay_is_to_blame_for_shrunken_weights_only_where_it_can_have_done_it(
    learning_rate: float, advice: str
) -> None:
    decays: dict[str, Any] = {"optimizer": "SGD", "weight_decay": 0.5, "learning_rate": learning_rate}
    run = begun(update_ratio=0.5, **decays).next(layer(update_ratio=0.5, norms=torch.full((4,), 0.01), **decays))
    assert run.only("update_too_large").advice.startswith(advice)


def test_what_a_mask_holds_at_zero_is_not_said_to_go_where_something_is_made_of_it() -> None:
    masked = each(True, False, False, False)
    held: dict[str, Any] = {
        "norms": each(0.0, 1, 1, 1),
        "largest": each(0.0, 1, 1, 1),
        "gradient": each(0.0, 1, 1, 1),
        "weight_gradient": None,
        "masked": masked,
        "consumers": (Consumer("next", 4),),
    }

    def goes(**changes: Any) -> int:
        shown = layer(**held | changes)
        run = begun().next(shown)
        saved = savings(window(2, shown), [run.report()])
        return 0 if saved is None else saved.channels

    assert goes(stays_zero=False) == 0
    assert goes() == 1


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ({"shift": torch.zeros(4)}, True),
        ({"shift": None}, False),
        ({"shift": None, "entering": Entering(0.0, 1.0)}, True),
        ({"shift": None, "entering": Entering(0.0, 0.0)}, False),
        ({"shift": None, "producers": ("other",)}, True),
    ],
)
def test_an_output_whose_inputs_may_all_be_zero_is_not_said_to_be_ignored(shown: dict[str, Any], told: bool) -> None:
    head: dict[str, Any] = {"depth": 0, "consumers": None, "gating": None, "activation": None, **NO_GRADIENT, **shown}
    run = Run().next(start("other"), start()).next(alive(), layer(**head)).next(alive(), layer(**head))
    assert (run.only("no_gradient").cause_word == "ignored by the loss") == told
