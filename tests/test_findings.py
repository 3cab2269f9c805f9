"""Every kind of finding with every cause, from windows made by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from windows import Run, each, layer, start

from lightning_deadkernel.causes import CAUSES
from lightning_deadkernel.findings import KINDS, headline, new_findings
from lightning_deadkernel.report import Finding
from lightning_deadkernel.window import Consumer

ALL_OFF: dict[str, Any] = {
    "fired": torch.zeros(4, dtype=torch.bool),
    "gradient": torch.zeros(4),
    "weight_gradient": torch.zeros(4),
    "firing_rate": torch.zeros(4),
    "activation_mean": torch.zeros(4),
}
FIRST_OFF: dict[str, Any] = {
    "fired": each(False, True, True, True),
    "gradient": each(0.0, 1, 1, 1),
    "weight_gradient": each(0.0, 1, 1, 1),
}
NO_GRADIENT: dict[str, Any] = {"gradient": torch.zeros(4), "weight_gradient": torch.zeros(4)}
ZERO: dict[str, Any] = {"norms": each(0.0, 1, 1, 1), "largest": each(0.0, 1, 1, 1)}


def begun(**changes: Any) -> Run:
    return Run().next(start(**changes)).next(layer(**changes))


def alive(name: str = "other") -> Any:
    return layer(name)


# -- dead channels ---------------------------------------------------------------------------------------------------


def _pruned() -> Finding:
    mask = {"masked": each(True, False, False, False)} | ZERO
    return begun(**mask).next(layer(**mask | FIRST_OFF)).only("dead_channels")


def _zero_at_initialisation() -> Finding:
    return Run().next(start(**ZERO)).next(layer(**ZERO | FIRST_OFF)).only("dead_channels")


def _decayed() -> Finding:
    run = begun().next(layer(norms=each(0.05, 1, 1, 1), weight_decay=0.01))
    return run.next(layer(**ZERO | FIRST_OFF, weight_decay=0.01)).only("dead_channels")


def _knocked_out() -> Finding:
    return Run().next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF)).only("dead_channels")


def _shift() -> Finding:
    beta = {"shift": each(-20.0, 0, 0, 0), "norm_scale": torch.ones(4)}
    return begun().next(layer(**beta | FIRST_OFF)).only("dead_channels")


def _bias() -> Finding:
    return begun().next(layer(**{"shift": each(-100.0, 0, 0, 0)} | FIRST_OFF)).only("dead_channels")


def _upstream() -> Finding:
    fed = {"name": "fed", "producers": ("conv",)}
    run = Run().next(start(), start(**fed)).next(layer(), layer(**fed))
    return run.next(layer(**ALL_OFF), layer(**fed | ALL_OFF), alive()).only("dead_channels", "fed")


def _born() -> Finding:
    return Run().next(start()).next(layer(**FIRST_OFF)).only("dead_channels")


def _faded() -> Finding:
    few = {"firing_rate": each(0.004, 0.5, 0.5, 0.5)}
    return begun(**few).next(layer(**FIRST_OFF)).only("dead_channels")


def _unknown() -> Finding:
    return begun().next(layer(**FIRST_OFF)).only("dead_channels")


DEAD = [
    (_pruned, "pruned", "info", "mask"),
    (_zero_at_initialisation, "zero at initialisation", "warning", "before the first step"),
    (_decayed, "decayed", "warning", "last gradient was seen in window 2, and weight decay 0.01"),
    (_knocked_out, "knocked out", "warning", "fired until window 1, when one optimizer step changed the weights by 0.8"),
    (_shift, "shift driven negative", "warning", "norm's shift (beta) is -20 against a |gamma| of 1"),
    (_bias, "shift driven negative", "warning", "bias is -100 against a kernel norm of 1"),
    (_upstream, "upstream dead", "error", "feeds this layer is dead (conv)"),
    (_born, "born dead", "info", "has not fired once since training began"),
    (_faded, "faded", "info", "fired on 0.4 % of samples and positions in window 1"),
    (_unknown, "unknown", "warning", "fired until window 1 and then stopped (on 50 %"),
]


@pytest.mark.parametrize(("scene", "cause", "severity", "words"), DEAD, ids=[row[0].__name__ for row in DEAD])
def test_each_cause_of_death_is_told_from_its_history(scene: Any, cause: str, severity: str, words: str) -> None:
    finding = scene()
    assert (finding.cause_word, finding.severity) == (cause, severity)
    assert words in finding.cause
    if cause != "upstream dead":
        assert finding.channels == (0,)


def test_a_finding_carries_its_numbers_window_and_samples() -> None:
    finding = _knocked_out()
    assert (finding.window, finding.samples) == (2, 600)
    assert finding.evidence == {
        "channels": 1,
        "of": 4,
        "since_window": 2,
        "highest_possible_firing_rate": pytest.approx(3 / 600),
        "last_fired_in_window": 1,
        "update_ratio_max": pytest.approx(0.8),
    }


def test_channels_of_one_layer_that_died_for_different_reasons_are_told_apart() -> None:
    two = {"fired": each(False, False, True, True), "gradient": each(0.0, 0, 1, 1),
           "weight_gradient": each(0.0, 0, 1, 1), "shift": each(-20.0, 0, 0, 0), "norm_scale": torch.ones(4)}  # fmt: skip
    found = Run().next(start()).next(layer(**two)).of("dead_channels")
    assert {(finding.cause_word, finding.channels) for finding in found} == {
        ("shift driven negative", (0,)),
        ("born dead", (1,)),
    }


def test_unknown_names_what_was_ruled_out() -> None:
    assert "no reckless update was sampled" in _unknown().cause
    assert "the kernel is not zero" in _unknown().cause


def test_a_layer_wholly_dead_is_an_error_even_if_born_so() -> None:
    finding = Run().next(start()).next(layer(**ALL_OFF), alive()).only("dead_channels")
    assert (finding.severity, finding.cause_word) == ("error", "born dead")


def test_half_a_layer_born_dead_is_a_warning() -> None:
    half = {"fired": each(False, False, True, True)}
    assert Run().next(start()).next(layer(**half)).only("dead_channels").severity == "warning"


def test_born_dead_is_not_said_of_a_run_that_was_watched_from_the_middle() -> None:
    run = Run().next(start(), global_step=500).next(layer(**FIRST_OFF))
    assert run.only("dead_channels").cause_word == "unknown"


def test_two_batches_are_no_evidence_of_a_chance_death() -> None:
    half = {"fired": each(False, False, False, True)}
    run = Run().next(start()).next(layer(**half), batches=2)
    assert run.only("dead_channels").severity == "info"
    assert run.next(layer(**half), batches=2).only("dead_channels").severity == "warning"


def test_sampled_evidence_says_so() -> None:
    finding = begun().next(layer(exact=False, **FIRST_OFF)).only("dead_channels")
    assert finding.evidence["seen_on"] == "sampled steps and gradients"


def test_update_large_draws_the_line_of_knocked_out() -> None:
    run = Run(update_large=0.9).next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF))
    assert run.only("dead_channels").cause_word == "unknown"


# -- zero kernels ----------------------------------------------------------------------------------------------------


def test_a_few_kernels_zero_at_initialisation_are_a_warning_and_a_layer_of_zeros_is_not() -> None:
    few = Run().next(start(**ZERO)).only("zero_kernels")
    assert (few.severity, few.channels, few.cause_word) == ("warning", (0,), "zero at initialisation")
    assert Run().next(start(norms=torch.zeros(4), largest=torch.zeros(4))).only("zero_kernels").severity == "info"


def test_a_layer_of_zeros_that_stays_and_cannot_learn_is_an_error() -> None:
    zeros = {"norms": torch.zeros(4), "largest": torch.zeros(4)}
    run = Run().next(start(**zeros)).next(layer(**zeros | ALL_OFF), alive())
    assert run.only("zero_kernels").severity == "error"


def test_a_zero_kernel_with_a_bias_is_recoverable_and_hands_on_a_constant() -> None:
    bias = ZERO | {"shift": each(0.1, 0, 0, 0)}
    run = Run().next(start(**bias)).next(layer(**bias))
    finding = run.only("zero_kernels")
    assert run.report().states[0] == "active"
    assert (finding.severity, finding.evidence["recoverable"], finding.evidence["constant_output"]) == ("info", 1, 1)


def test_gamma_and_beta_at_zero_are_dead_and_zero_but_with_beta_above_zero_alive() -> None:
    norm = {"norm_scale": each(0.0, 1, 1, 1), "shift": torch.zeros(4)}
    run = Run().next(start(**norm)).next(layer(**norm | FIRST_OFF))
    assert (run.report().dead, run.report().zero_kernels) == ([0], [0])
    beta = norm | {"shift": each(0.5, 0, 0, 0), "weight_gradient": each(0.0, 1, 1, 1), "unchanged": each(True, False, False, False)}
    assert Run().next(start(**beta)).next(layer(**beta)).report().states == ["active"] * 4


def test_decay_names_the_weight_decay_and_the_window_in_which_the_gradient_stopped() -> None:
    decay = {"weight_decay": 5e-4, **FIRST_OFF}
    run = begun().next(layer(norms=each(0.2, 1, 1, 1), **decay)).next(layer(norms=each(1e-5, 1, 1, 1), **decay))
    finding = run.only("zero_kernels")
    assert (finding.cause_word, finding.severity) == ("decayed", "warning")
    assert finding.evidence["weight_decay"] == 5e-4
    assert finding.evidence["gradient_stopped_in_window"] == 1
    assert "AdamW" in finding.advice
    assert "norm 1 at the start, 1e-05 now" in finding.cause


def test_decoupled_decay_is_not_answered_with_adamw() -> None:
    decay = {"weight_decay": 5e-2, "decoupled_decay": True, "norms": each(1e-5, 1, 1, 1), **FIRST_OFF}
    finding = begun().next(layer(**decay)).only("zero_kernels")
    assert finding.cause_word == "decayed"
    assert "AdamW" not in finding.advice


def test_a_decayed_scale_is_told_in_numbers_of_the_scale() -> None:
    run = Run().next(start(norm_scale=torch.ones(4))).next(layer(norm_scale=torch.ones(4)))
    finding = run.next(layer(norm_scale=each(1e-4, 1, 1, 1), weight_decay=0.01, **FIRST_OFF)).only("zero_kernels")
    assert finding.cause_word == "decayed"
    assert "norm's scale (gamma) down (1 at the start, 0.0001 now)" in finding.cause


def test_a_zero_kernel_without_decay_is_unknown_with_what_was_ruled_out() -> None:
    finding = begun().next(layer(**ZERO | FIRST_OFF)).only("zero_kernels")
    assert finding.cause_word == "unknown"
    assert "it was not zero at initialisation, its parameter group has weight decay 0" in finding.cause


def test_a_pruned_kernel_is_no_problem_but_is_told() -> None:
    mask = {"masked": each(True, False, False, False), "unchanged": each(True, False, False, False)} | ZERO
    run = begun().next(layer(**mask))
    assert (run.only("zero_kernels").cause_word, run.only("zero_kernels").severity) == ("pruned", "info")
    assert not run.of("frozen_weights")


def test_a_scale_initialised_to_zero_is_a_finding_only_if_it_stays() -> None:
    def gamma(value: float) -> dict[str, Any]:
        return {"norm_scale": torch.full((4,), value), "weight_gradient": torch.zeros(4)}

    fresh = Run().next(start(norm_scale=torch.zeros(4)))
    assert not fresh.findings
    assert not fresh.next(layer(**gamma(0.0))).of("zero_kernels")
    assert fresh.next(layer(**gamma(0.0))).only("zero_kernels").cause_word == "zero at initialisation"
    slow = Run().next(start(norm_scale=torch.zeros(4))).next(layer(**gamma(1e-5))).next(layer(**gamma(2e-5)))
    assert not slow.of("zero_kernels")
    warm = Run().next(start(norm_scale=torch.zeros(4)))
    for _ in range(3):
        warm.next(layer(**gamma(0.0), learning_rate=0.0))
    assert not warm.findings


# -- saturated, starved, frozen, dormant, revived ---------------------------------------------------------------------


def tanh(share: float, **changes: Any) -> dict[str, Any]:
    return {"activation": "tanh", "gating": "bounded", "saturated_share": torch.full((4,), share), **changes}


def test_a_tanh_layer_driven_to_its_ends_is_an_error() -> None:
    finding = begun().next(layer(**tanh(1.0) | NO_GRADIENT), alive()).only("saturated_channels")
    assert (finding.severity, finding.cause_word, finding.channels) == ("error", "saturated", (0, 1, 2, 3))
    assert finding.evidence["saturated_share"] == 1.0
    assert finding.evidence["without_gradient"] == 4


def test_partial_saturation_is_a_warning_and_at_the_output_no_more_than_worth_knowing() -> None:
    assert begun().next(layer(**tanh(0.6))).only("saturated_channels").severity == "warning"
    assert begun().next(layer(**tanh(0.6), depth=0)).only("saturated_channels").severity == "info"


def test_a_smooth_activation_far_out_is_told_without_a_share() -> None:
    gelu = FIRST_OFF | {"activation": "gelu", "gating": "smooth"}
    finding = begun().next(layer(**gelu)).only("saturated_channels")
    assert (finding.channels, finding.severity) == ((0,), "warning")
    assert "flat end of gelu" in finding.cause


STARVING: dict[str, Any] = {"gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)}


def test_starved_for_outgoing_zeros_by_elimination() -> None:
    run = begun().next(layer(**STARVING, consumers=(Consumer("other", 4),)), alive())
    finding = run.only("starved_channels")
    assert (finding.cause_word, finding.severity, finding.channels) == ("outgoing zero", "warning", (0,))
    assert "other" in finding.advice


def test_starved_by_a_dead_layer_downstream() -> None:
    reads = {"consumers": (Consumer("next", 4),)}
    run = Run().next(start(), start("next")).next(layer(), layer("next"))
    run.next(layer(**NO_GRADIENT, **reads), layer("next", **ALL_OFF), alive())
    finding = run.only("starved_channels")
    assert (finding.cause_word, finding.severity) == ("dead downstream", "error")
    assert "(next)" in finding.cause


def test_starved_by_float16_underflow() -> None:
    finding = begun().next(layer(**STARVING, underflow_share=0.97)).only("starved_channels")
    assert (finding.cause_word, "loss scaling" in finding.advice) == ("underflow", True)


def test_starved_for_reasons_the_graph_does_not_show() -> None:
    assert begun().next(layer(**STARVING, consumers=None)).only("starved_channels").cause_word == "unknown"


def test_channels_that_hardly_ever_fire_are_starved_without_alarm() -> None:
    seldom = {"firing_rate": each(0.001, 0.5, 0.5, 0.5)}
    assert begun().next(layer(**STARVING, **seldom)).only("starved_channels").severity == "info"


def test_a_flat_loss_is_said_once_and_not_of_every_layer() -> None:
    run = Run().next(start(), start("other")).next(layer(**NO_GRADIENT), layer("other", **NO_GRADIENT))
    assert [(finding.kind, finding.layer, finding.cause_word) for finding in run.findings] == [
        ("starved_channels", None, "flat loss")
    ]


HELD: dict[str, Any] = {"unchanged": torch.ones(4, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("evidence", "cause", "severity"),
    [
        ({"in_optimizer": False, "learning_rate": None}, "not in the optimizer", "warning"),
        ({"bytes_per_parameter": 2, "learning_rate": 1e-5}, "below resolution", "warning"),
        ({"learning_rate": 1e-8}, "below resolution", "warning"),
        ({"learning_rate": 1e-8, "unchanged": each(True, False, False, False)}, "below resolution", "info"),
        ({"learning_rate": 0.1}, "unknown", "warning"),
    ],
)
def test_each_cause_of_frozen_weights(evidence: dict[str, Any], cause: str, severity: str) -> None:
    finding = begun().next(layer(**HELD | evidence)).only("frozen_weights")
    assert (finding.cause_word, finding.severity) == (cause, severity)


def test_a_learning_rate_of_zero_is_no_finding() -> None:
    assert not begun().next(layer(**HELD, learning_rate=0.0, update_ratio=0.0)).findings


def test_dormant_channels_are_worth_knowing_and_dead_ones_are_not_counted_again() -> None:
    quiet = {"activation_mean": each(0.0, 0.0, 2, 2), "firing_rate": each(0.0, 0.005, 0.5, 0.5)}
    finding = begun().next(layer(**FIRST_OFF | quiet)).only("dormant_channels")
    assert (finding.severity, finding.channels, finding.evidence["rare"]) == ("info", (1,), 1)


@pytest.mark.parametrize(
    ("gone", "state"),
    [
        (FIRST_OFF, "dead"),
        (STARVING, "starved"),
        (STARVING | {"gating": None}, "zero-gradient"),
        (FIRST_OFF | {"gating": "smooth"}, "saturated"),
    ],
)
def test_a_channel_that_comes_back_is_reported_with_both_windows(gone: dict[str, Any], state: str) -> None:
    readable = {"gating": gone.get("gating", "gate")}
    run = begun().next(layer(**gone)).next(layer(**gone))
    assert not run.of("revived_channels")
    finding = run.next(layer(**readable)).only("revived_channels")
    assert (finding.severity, finding.channels) == ("info", (0,))
    assert finding.cause == f"recovered: {state} since window 2, back in window 4"
    assert not run.next(layer(**readable)).of("revived_channels")


def test_losing_sight_of_a_dead_channel_is_no_revival() -> None:
    run = begun().next(layer(**FIRST_OFF)).next(layer(fired=None, gradient=None, weight_gradient=None))
    assert not run.of("revived_channels")


# -- gradients -------------------------------------------------------------------------------------------------------


def small(ratio: float, weak: float, vanishing: float = 0.0, **changes: Any) -> dict[str, Any]:
    return {"gradient_ratio": ratio, "weak_share": weak, "vanishing_share": vanishing, **changes}


def test_vanishing_in_one_layer_of_many_is_a_warning_and_in_many_an_error() -> None:
    run = begun().next(layer(**small(1e-8, 1.0, 1.0)), alive("b"), alive("c"))
    assert run.only("vanishing_gradient").severity == "warning"
    assert not run.of("weak_gradient")
    names = ("conv", "b", "c")
    run = begun().next(*(layer(name, **small(1e-8, 1.0, 1.0)) for name in names), alive("d"), alive("e"), alive("f"),
                       alive("g"), largest_gradient_at="g.bias")  # fmt: skip
    finding = run.only("vanishing_gradient")
    assert (finding.severity, finding.evidence["largest_gradient_at"]) == ("error", "g.bias")


def test_a_weak_gradient_is_a_warning_with_a_margin() -> None:
    assert begun().next(layer(**small(5e-4, 1.0)), alive()).only("weak_gradient").severity == "info"
    assert begun().next(layer(**small(5e-5, 1.0)), alive()).only("weak_gradient").severity == "warning"


def test_it_takes_the_share_of_steps_to_call_a_gradient_weak() -> None:
    assert not begun().next(layer(**small(5e-5, 0.4))).findings
    run = Run(share_of_steps=0.3).next(start()).next(layer(**small(5e-5, 0.4)))
    assert run.only("weak_gradient").evidence["share_of_steps"] == 0.4


def test_small_gradients_are_blamed_on_sigmoids_depth_or_neither() -> None:
    vanishing = small(1e-9, 1.0, 1.0, depth=12)
    sigmoid = {"activation": "sigmoid", "gating": "bounded"}
    assert begun().next(layer(**vanishing | sigmoid), layer("b", **sigmoid)).only("vanishing_gradient").cause_word == (
        "saturated"
    )
    assert begun().next(layer(**vanishing), alive("b")).only("vanishing_gradient").cause_word == "depth"
    normed = layer("b", norm_scale=torch.ones(4))
    assert begun().next(layer(**vanishing), normed).only("vanishing_gradient").cause_word == "unknown"


def test_exploding_is_growth_over_the_networks_own_baseline() -> None:
    run = Run().next(start())
    for norm in (1.0, 2.0, 3.0):
        run.next(layer(), gradient_norm=norm)
    assert not run.next(layer(update_ratio_max=0.5), gradient_norm=199.0).of("exploding_gradient", None)
    finding = run.next(layer(update_ratio_max=0.5), gradient_norm=500.0).only("exploding_gradient", None)
    assert (finding.severity, finding.cause_word) == ("warning", "reckless updates")
    assert finding.evidence["growth"] == pytest.approx(500 / 2.5)


def test_a_gradient_that_grows_without_harm_is_worth_knowing_only() -> None:
    run = Run(exploding_growth=10).next(start()).next(layer(), gradient_norm=1.0).next(layer(), gradient_norm=11.0)
    assert (run.only("exploding_gradient", None).severity, run.only("exploding_gradient", None).cause_word) == (
        "info",
        "unknown",
    )


def test_the_same_gradients_times_any_loss_scale_give_the_same_findings() -> None:
    def told(scale: float) -> list[tuple[str, str]]:
        run = Run().next(start())
        run.next(layer(), gradient_norm=scale).next(layer(), gradient_norm=500 * scale)
        return [(finding.kind, finding.severity) for finding in run.findings]

    assert told(1e-4) == told(1.0) == told(1e4) == [("exploding_gradient", "info")]


def test_nan_in_one_layer_is_told_of_that_layer_and_nan_everywhere_once() -> None:
    one = begun().next(layer(non_finite_gradients=7), alive())
    finding = one.only("non_finite_gradient")
    assert (finding.severity, finding.cause_word, finding.evidence["entries"]) == ("warning", "overflow", 7)
    nan = torch.full((4,), math.nan)
    both = begun().next(layer(non_finite_gradients=7, norms=nan), layer("other", non_finite_gradients=5))
    assert [(f.kind, f.layer, f.severity) for f in both.findings] == [("non_finite_gradient", None, "error")]
    assert both.findings[0].evidence == {"entries": 12, "layers": 2}


def test_gradients_that_are_nan_on_most_steps_are_an_error() -> None:
    run = begun().next(layer(non_finite_gradients=7, gradient_rms=math.nan), alive())
    assert run.only("non_finite_gradient").severity == "error"


# -- updates and weights ---------------------------------------------------------------------------------------------


def test_a_reckless_update_ratio_is_a_warning_once_it_lasts() -> None:
    run = Run().next(start()).next(layer(update_ratio=0.5, update_ratio_max=0.9))
    assert run.only("update_too_large").severity == "info"
    finding = run.next(layer(update_ratio=0.4)).only("update_too_large")
    assert (finding.severity, finding.cause_word) == ("warning", "reckless updates")


def test_a_slow_update_is_a_warning_once_it_lasts() -> None:
    run = Run().next(start()).next(layer(update_ratio=1e-8))
    assert run.only("update_too_small").severity == "info"
    finding = run.next(layer(update_ratio=1e-8)).only("update_too_small")
    assert (finding.severity, finding.cause_word) == ("warning", "slow updates")
    assert finding.evidence == {"update_ratio": 1e-8, "learning_rate": 0.1}
    assert not Run(update_small=1e-9).next(start()).next(layer(update_ratio=1e-8)).findings


def test_slow_updates_that_the_schedule_asks_for_are_no_finding() -> None:
    slow = {"update_ratio": 1e-8}
    annealed = begun().next(layer(**slow, learning_rate=1e-4))
    assert not annealed.findings
    warm_up = Run().next(start()).next(layer(**slow, learning_rate=1e-7)).next(layer(**slow, learning_rate=2e-7))
    assert not warm_up.findings


def test_a_layer_without_gradient_is_not_blamed_for_slow_updates() -> None:
    run = begun().next(layer(**ALL_OFF, update_ratio=1e-9), alive())
    assert not run.of("update_too_small")


def test_identical_kernels_are_a_warning_at_first_and_an_error_once_steps_did_not_part_them() -> None:
    run = Run().next(start(identical=True))
    assert (run.only("identical_kernels").severity, run.findings[0].window) == ("warning", 0)
    finding = run.next(layer(identical=True)).only("identical_kernels")
    assert (finding.severity, finding.cause_word) == ("error", "constant initialisation")
    zeros = {"norms": torch.zeros(4), "largest": torch.zeros(4)}
    assert not Run().next(start(identical=True, **zeros)).of("identical_kernels")


@pytest.mark.parametrize(
    ("lines", "weights"),
    [
        ({}, {"weight_zeros": 0.6}),
        ({}, {"weight_near_zeros": 0.2}),
        ({}, {"gini": 0.8}),
        ({"zero_share": 0.1}, {"weight_zeros": 0.2}),
        ({"near_zero_share": 0.01}, {"weight_near_zeros": 0.02}),
        ({"gini": 0.5}, {"gini": 0.6}),
    ],
)
def test_sparse_weights_in_a_layer_that_lives_are_normal(lines: dict[str, float], weights: dict[str, Any]) -> None:
    finding = Run(**lines).next(start()).next(layer(**weights)).only("sparse_weights")
    assert (finding.severity, finding.cause_word) == ("info", "heavy tails")
    assert "a Gaussian has 0.8%" in finding.cause
    assert not Run(zero_share=0.9, near_zero_share=0.9, gini=0.9).next(start()).next(layer(**weights)).findings


def test_sparse_weights_by_a_mask_or_by_dead_channels_say_so() -> None:
    mask = torch.zeros(4, dtype=torch.bool)
    assert begun().next(layer(weight_zeros=0.9, masked=mask)).only("sparse_weights").cause_word == "pruned"
    dead = {"fired": each(False, False, False, True), "weight_zeros": 0.75}
    finding = begun().next(layer(**dead)).only("sparse_weights")
    assert (finding.cause_word, finding.severity) == ("dead channels", "warning")
    assert "3 of 4 channels are dead or zero" in finding.cause


# -- as a whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"gating": "leaky", "activation": "leaky_relu", "fired": each(False, True, True, True)},
        {"gating": None, "activation": None, "fired": None, "depth": 0},
        {"norm_scale": torch.ones(4), "shift": torch.zeros(4), "gradient_source": "shift"},
        {"activation": "tanh", "gating": "bounded", "saturated_share": torch.full((4,), 0.1)},
        {"weight_decay": 0.01, "decoupled_decay": True},
        {"gradient": None, "weight_gradient": None},
    ],
)
def test_a_healthy_layer_stays_without_any_finding(evidence: dict[str, Any]) -> None:
    run = begun(**evidence)
    for _ in range(3):
        assert run.next(layer(**evidence)).findings == ()


def test_findings_come_worst_first_and_read_back_from_json() -> None:
    off = layer("b", **ALL_OFF, activation="relu")
    run = Run().next(start(), start("b")).next(layer(**FIRST_OFF, gini=0.9, shift=each(-99.0, 0, 0, 0)), off)
    severities = [finding.severity for finding in run.findings]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert {"error", "warning", "info"} == set(severities)
    for finding in run.findings:
        assert finding.kind in KINDS
        assert finding.cause_word in CAUSES
        assert finding.advice.endswith(".")
        assert finding.reference
        assert json.loads(json.dumps(finding.evidence, allow_nan=False)) == finding.evidence


def test_a_headline_names_layer_numbers_cause_and_window() -> None:
    assert headline(_knocked_out()) == "conv: 1 of 4 kernels dead (knocked out) since window 2"
    run = begun().next(layer(**FIRST_OFF)).next(layer())
    assert headline(run.only("revived_channels")) == "conv: 1 of 4 kernels revived (recovered) in window 3"
    assert headline(Run().next(start(**ZERO)).findings[0]) == (
        "conv: 1 of 4 kernels zero (zero at initialisation) at initialisation"
    )
    run = begun().next(layer(**small(1e-8, 1.0, 1.0)))
    assert headline(run.only("vanishing_gradient")) == "conv: vanishing gradient (unknown) in window 2"


def test_each_kind_and_layer_is_said_once_and_infos_are_not() -> None:
    said: set[tuple[str, str | None]] = set()
    run = Run().next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF))
    assert [finding.kind for finding in new_findings(run.findings, said)] == ["dead_channels"]
    run.next(layer(**FIRST_OFF, gini=0.9))
    assert len(run.findings) == 2
    assert new_findings(run.findings, said) == ()
    assert said == {("dead_channels", "conv")}
