"""What is said of channels, with every cause, from windows made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from helpers.windows import ALL_OFF, FIRST_OFF, NO_GRADIENT, ZERO, Run, alive, begun, each, layer, off, start
from lightning_deadkernel.observation import Consumer, InputSlice
from lightning_deadkernel.report.records import Finding

# -- dead channels ---------------------------------------------------------------------------------------------------


def _pruned() -> Finding:
    mask: dict[str, Any] = {"masked": each(True, False, False, False)} | ZERO
    return begun(**mask).next(layer(**mask | FIRST_OFF)).only("dead_channels")


def _zero_at_initialisation() -> Finding:
    return Run().next(start(**ZERO)).next(layer(**ZERO | FIRST_OFF)).only("dead_channels")


def _decayed() -> Finding:
    run = begun().next(layer(norms=each(0.05, 1, 1, 1), weight_decay=0.01))
    return run.next(layer(**ZERO | FIRST_OFF, weight_decay=0.01)).only("dead_channels")


def _knocked_out() -> Finding:
    return Run().next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF)).only("dead_channels")


def _shift() -> Finding:
    beta: dict[str, Any] = {"shift": each(-20.0, 0, 0, 0), "norm_scale": torch.ones(4)}
    return begun().next(layer(**beta | FIRST_OFF)).only("dead_channels")


def _bias() -> Finding:
    return begun().next(layer(**{"shift": each(-100.0, 0, 0, 0)} | FIRST_OFF)).only("dead_channels")


def _upstream() -> Finding:
    fed: dict[str, Any] = {"name": "fed", "producers": ("conv",)}
    run = Run().next(start(), start(**fed)).next(layer(), layer(**fed))
    return run.next(layer(**ALL_OFF), layer(**fed | ALL_OFF), alive()).only("dead_channels", "fed")


def _born() -> Finding:
    return Run().next(start()).next(layer(**FIRST_OFF)).only("dead_channels")


def _faded() -> Finding:
    few: dict[str, Any] = {"channel_firing_rate": each(0.004, 0.5, 0.5, 0.5)}
    return begun(**few).next(layer(**FIRST_OFF)).only("dead_channels")


def _unknown(**window: Any) -> Finding:
    return begun().next(layer(**FIRST_OFF), **window).only("dead_channels")


DEAD = [
    (_pruned, "pruned", "info", "mask"),
    (_zero_at_initialisation, "zero at initialisation", "warning", "before the first step"),
    (_decayed, "decayed", "warning", "last gradient was seen in epoch 1 (step 40), and weight decay 0.01"),
    (
        _knocked_out,
        "knocked out",
        "warning",
        "until epoch 0 (step 20), when one optimizer step changed",
    ),
    (_shift, "shift driven negative", "warning", "norm's shift (beta) is -20 against a |gamma| of 1"),
    (_bias, "shift driven negative", "warning", "bias is -100 against a kernel norm of 1"),
    (_upstream, "upstream dead", "error", "feeds this layer is dead (conv)"),
    (_born, "born dead", "info", "has not fired once since training began"),
    (_faded, "faded", "info", "fired on 0.4% of samples and positions in epoch 0 (step 20)"),
    (_unknown, "unknown", "warning", "fired until epoch 0 (step 20) and then stopped (on 50%"),
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
    half = each(0.0, 0, 1, 1)
    two: dict[str, Any] = {"fired": half > 0, "gradient": half, "weight_gradient": half, "shift": each(-20.0, 0, 0, 0)}
    found = Run().next(start()).next(layer(**two)).of("dead_channels")
    assert {(finding.cause_word, finding.channels) for finding in found} == {
        ("shift driven negative", (0,)),
        ("born dead", (1,)),
    }


def test_unknown_names_what_was_ruled_out() -> None:
    assert "; no step that was sampled was reckless, but one between them may have been" in _unknown().cause
    assert "log_every_n_steps=1" in _unknown().advice
    everywhere = _unknown(sampled_steps=20)
    assert "ruled out: a reckless update, " in everywhere.cause
    assert "log_every_n_steps=1" not in everywhere.advice
    unmeasured: dict[str, Any] = {"update_ratio": None, "update_ratio_max": None}
    blind = Run().next(start()).next(layer(**unmeasured)).next(layer(**FIRST_OFF, **unmeasured))
    assert "reckless" not in blind.only("dead_channels").cause
    assert "a zero kernel" in _unknown().cause


@pytest.mark.parametrize(("largest", "cause"), [(2e-3, "unknown"), (0.2, "knocked out")])
@pytest.mark.parametrize(("dead", "severity"), [(1, "info"), (3, "info"), (4, "warning")])
def test_a_kernel_in_twenty_that_stops_is_worth_knowing(dead: int, severity: str, largest: float, cause: str) -> None:
    gone = torch.arange(64) < dead
    gradient = (~gone).float()
    run = Run().next(start(channels=64)).next(layer(channels=64, update_ratio_max=largest))
    run.next(layer(channels=64, fired=~gone, gradient=gradient, weight_gradient=gradient))
    assert (run.only("dead_channels").cause_word, run.only("dead_channels").severity) == (cause, severity)


@pytest.mark.parametrize(
    ("faded", "severities"), [(3, {"born dead": "info"}), (6, {"born dead": "info", "faded": "warning"})]
)
def test_that_chance_took_most_of_a_layer_is_told_once(faded: int, severities: dict[str, str]) -> None:
    """One of ten never fired, and three or six fired on little and then on nothing."""
    gone, born = torch.arange(10) <= faded, torch.arange(10) == 0
    rate, gradient = torch.where(gone, 0.1, 0.5), (~gone).float()
    run = Run().next(start(channels=10)).next(layer(channels=10, fired=~born, channel_firing_rate=rate))
    run.next(layer(channels=10, fired=~gone, gradient=gradient, weight_gradient=gradient))
    said = {finding.cause_word: finding.severity for finding in run.of("dead_channels")}
    assert said == {"born dead": "info", "faded": "info"} | severities


def test_a_layer_wholly_dead_is_an_error_even_if_born_so() -> None:
    finding = Run().next(start()).next(layer(**ALL_OFF), alive()).only("dead_channels")
    assert (finding.severity, finding.cause_word) == ("error", "born dead")


def test_half_a_layer_born_dead_is_a_warning() -> None:
    half = off(0, 1)
    assert Run().next(start()).next(layer(**half)).only("dead_channels").severity == "warning"


def test_born_dead_is_not_said_of_a_run_that_was_watched_from_the_middle() -> None:
    run = Run().next(start(), global_step=500).next(layer(**FIRST_OFF))
    assert run.only("dead_channels").cause_word == "unknown"


def test_two_batches_are_no_evidence_of_a_chance_death() -> None:
    half = off(0, 1, 2)
    run = Run().next(start()).next(layer(**half), batches=2)
    assert run.only("dead_channels").severity == "info"
    assert run.next(layer(**half), batches=2).only("dead_channels").severity == "warning"


def test_sampled_evidence_says_so() -> None:
    finding = begun().next(layer(exact=False, **FIRST_OFF)).only("dead_channels")
    assert finding.evidence["seen_on"] == "sampled steps and gradients"


def test_the_first_steps_of_a_layer_that_began_at_zero_knock_nothing_out() -> None:
    run = Run().next(start(norms=torch.zeros(4), largest=torch.zeros(4)))
    run.next(layer(update_ratio_max=math.inf)).next(layer(**FIRST_OFF))
    assert run.only("dead_channels").cause_word == "unknown"


def test_update_large_draws_the_line_of_knocked_out() -> None:
    run = Run(update_large=0.9).next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF))
    assert run.only("dead_channels").cause_word == "unknown"


# -- zero kernels ----------------------------------------------------------------------------------------------------


def test_a_few_kernels_zero_at_initialisation_are_a_warning_once_they_stay() -> None:
    run = Run().next(start(**ZERO))
    assert run.only("zero_kernels").severity == "info"  # padding and adapters start so: what counts is whether it stays
    few = run.next(layer(**ZERO | FIRST_OFF)).only("zero_kernels")
    assert (few.severity, few.channels, few.cause_word) == ("warning", (0,), "zero at initialisation")
    assert Run().next(start(norms=torch.zeros(4), largest=torch.zeros(4))).only("zero_kernels").severity == "info"


def test_a_layer_of_zeros_that_stays_and_cannot_learn_is_an_error() -> None:
    zeros: dict[str, Any] = {"norms": torch.zeros(4), "largest": torch.zeros(4)}
    run = Run().next(start(**zeros)).next(layer(**zeros | ALL_OFF), alive())
    assert run.only("zero_kernels").severity == "error"


def test_a_zero_kernel_with_a_bias_is_recoverable_and_hands_on_a_constant() -> None:
    bias: dict[str, Any] = ZERO | {"shift": each(0.1, 0, 0, 0)}
    run = Run().next(start(**bias)).next(layer(**bias))
    finding = run.only("zero_kernels")
    assert run.report().states[0] == "active"
    assert (finding.severity, finding.evidence["recoverable"], finding.evidence["constant_output"]) == ("info", 1, 1)


def test_gamma_and_beta_at_zero_are_dead_and_zero_but_with_beta_above_zero_alive() -> None:
    norm: dict[str, Any] = {"norm_scale": each(0.0, 1, 1, 1), "shift": torch.zeros(4)}
    run = Run().next(start(**norm)).next(layer(**norm | FIRST_OFF))
    assert (run.report().dead, run.report().zero_kernels) == ([0], [0])
    first = each(True, False, False, False)
    beta: dict[str, Any] = norm | {
        "shift": each(0.5, 0, 0, 0),
        "weight_gradient": each(0.0, 1, 1, 1),
        "unchanged": first,
    }
    assert Run().next(start(**beta)).next(layer(**beta)).report().states == ["active"] * 4


def test_decay_names_the_weight_decay_and_the_window_in_which_the_gradient_stopped() -> None:
    decay: dict[str, Any] = {"weight_decay": 5e-4, **FIRST_OFF}
    run = begun().next(layer(norms=each(0.2, 1, 1, 1), **decay)).next(layer(norms=each(1e-5, 1, 1, 1), **decay))
    finding = run.only("zero_kernels")
    assert (finding.cause_word, finding.severity) == ("decayed", "warning")
    assert finding.evidence["weight_decay"] == 5e-4
    assert finding.evidence["gradient_stopped_in_window"] == 1
    assert "AdamW" in finding.advice
    assert "norm 1 at the start, 1e-05 now" in finding.cause


def test_decoupled_decay_is_not_answered_with_adamw() -> None:
    decay: dict[str, Any] = {"weight_decay": 5e-2, "decoupled_decay": True, "norms": each(1e-5, 1, 1, 1), **FIRST_OFF}
    finding = begun().next(layer(**decay), optimizer_steps=2000).only("zero_kernels")
    assert finding.cause_word == "decayed"
    assert "AdamW" not in finding.advice


def test_of_an_optimizer_that_is_not_known_it_is_not_said_how_it_decays() -> None:
    decay: dict[str, Any] = {"weight_decay": 300.0, "decoupled_decay": None, "optimizer": "Lion", **FIRST_OFF}
    run = begun().next(layer(norms=each(1e-5, 1, 1, 1), learning_rate=1e-3, **decay), optimizer_steps=60)
    text = f"{run.only('zero_kernels').cause} {run.only('zero_kernels').advice}"
    assert "weight decay 300 has worn the kernel down" in text
    assert "Lower weight_decay=300 of Lion" in text
    assert "gradient (L2)" not in text
    assert "decoupled" not in text


def test_a_decayed_scale_is_told_in_numbers_of_the_scale() -> None:
    run = Run().next(start(norm_scale=torch.ones(4))).next(layer(norm_scale=torch.ones(4)))
    for scale in (5e-4, 1e-4):
        run.next(layer(norm_scale=each(scale, 1, 1, 1), weight_decay=0.01, **FIRST_OFF))
    finding = run.only("zero_kernels")
    assert finding.cause_word == "decayed"
    assert "norm's scale (gamma) down (1 when first seen, 0.0001 now)" in finding.cause


def test_a_scale_that_passes_through_zero_while_it_learns_is_no_finding() -> None:
    run = Run().next(start()).next(layer(norm_scale=each(3e-3, 1, 1, 1)))
    for scale in (8e-4, 6e-4, 2e-3):
        assert run.next(layer(norm_scale=each(scale, 1, 1, 1), weight_decay=1e-4)).of("zero_kernels") == []


def test_a_scale_of_exactly_zero_when_the_norm_is_first_seen_was_zero_at_initialisation() -> None:
    scale = each(0, 1, 1, 1)
    run = Run().next(start()).next(layer(norm_scale=scale)).next(layer(norm_scale=scale))
    assert run.only("zero_kernels").cause_word == "zero at initialisation"


def test_a_kernel_behind_a_scale_of_zero_is_not_frozen_for_its_shift_has_a_gradient() -> None:
    held: dict[str, Any] = {
        "unchanged": torch.full((4,), True),
        "gradient": torch.ones(4),
        "weight_gradient": torch.ones(4),
    }
    run = Run().next(start()).next(layer(norm_scale=each(0, 0, 1, 1), gradient_rms=1e-3, **held))
    assert run.report().frozen == [2, 3]
    assert run.next(layer(gradient_rms=0.0, **held)).report().frozen == []


def test_a_zero_kernel_without_decay_is_unknown_with_what_was_ruled_out() -> None:
    finding = begun().next(layer(**ZERO | FIRST_OFF)).only("zero_kernels")
    assert finding.cause_word == "unknown"
    assert "ruled out: zeros at initialisation, weight decay (0 here), a mask" in finding.cause


def test_a_pruned_kernel_is_no_problem_but_is_told() -> None:
    mask: dict[str, Any] = {
        "masked": each(True, False, False, False),
        "unchanged": each(True, False, False, False),
    } | ZERO
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
    assert not warm.of("zero_kernels")


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
    gelu: dict[str, Any] = FIRST_OFF | {
        "activation": "gelu",
        "gating": "smooth",
        "activation_mean": each(0.0, 0.4, 0.4, 0.4),
    }
    finding = begun().next(layer(**gelu)).only("saturated_channels")
    assert (finding.channels, finding.severity) == ((0,), "warning")
    assert "flat end of gelu" in finding.cause


STARVING: dict[str, Any] = {"gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)}


def test_starved_for_outgoing_zeros() -> None:
    consumers = (Consumer("other", 4, (InputSlice(0, 4, 0, 4),)),)
    run = Run().next(start(), start("other")).next(layer(), alive())
    run.next(layer(**STARVING, consumers=consumers), layer("other", input_largest=each(0.0, 0.5, 0.5, 0.5)))
    finding = run.only("starved_channels")
    assert (finding.cause_word, finding.severity, finding.channels) == ("outgoing zero", "warning", (0,))
    assert "other" in finding.advice


def test_starved_by_a_dead_layer_downstream() -> None:
    reads: dict[str, Any] = {"consumers": (Consumer("next", 4),)}
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
    seldom: dict[str, Any] = {"channel_firing_rate": each(0.001, 0.5, 0.5, 0.5)}
    assert begun().next(layer(**STARVING, **seldom)).only("starved_channels").severity == "info"


def test_a_flat_loss_is_said_once_and_not_of_every_layer() -> None:
    run = Run().next(start(), start("other")).next(layer(**NO_GRADIENT), layer("other", **NO_GRADIENT))
    assert [(finding.kind, finding.layer, finding.cause_word) for finding in run.findings] == [
        ("no_gradient", None, "flat loss")
    ]


@pytest.mark.parametrize(
    ("growth", "holds", "severity"),
    [(None, "argmax", "error"), (3.0, "nothing is left to learn", "warning"), (75.0, "three- to tenfold", "warning")],
)
def test_a_loss_that_had_a_slope_before_is_told_from_one_that_never_had(
    growth: float | None, holds: str, severity: str
) -> None:
    run = Run().next(start(), start("other"))
    if growth is not None:
        run.next(layer(), layer("other"))
    run.next(layer(**NO_GRADIENT), layer("other", **NO_GRADIENT, norms=torch.full((4,), growth or 1.0)))
    finding = run.only("no_gradient", None)
    assert (finding.severity, holds in finding.advice) == (severity, True)
    assert ("does not depend on the weights" in finding.cause) == (growth is None)
    assert ("the kernels of other have 75 times the norm" in finding.cause) == (growth == 75.0)
    assert "detach" not in finding.advice  # these layers are in the graph of the loss


def test_two_layers_of_zeros_have_no_gradient_by_themselves() -> None:
    zero: dict[str, Any] = {"norms": torch.zeros(4), "largest": torch.zeros(4)}
    run = Run().next(start(**zero), start("other", **zero), start("third"))
    run.next(layer(**NO_GRADIENT | zero), layer("other", **NO_GRADIENT | zero), layer("third", **NO_GRADIENT))
    assert {finding.kind for finding in run.findings} == {"zero_kernels"}
    run = Run().next(start(**zero), start("other"))
    run.next(layer(**NO_GRADIENT | zero), layer("other", **NO_GRADIENT))  # of which this says nothing
    assert run.only("no_gradient", None).cause_word == "flat loss"


HELD: dict[str, Any] = {"unchanged": torch.ones(4, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("evidence", "cause", "severity"),
    [
        ({"in_optimizer": False, "learning_rate": None}, "not in the optimizer", "warning"),
        ({"bytes_per_parameter": 2, "learning_rate": 1e-5}, "below resolution", "warning"),
        ({"learning_rate": 1e-8}, "below resolution", "warning"),
        ({"learning_rate": 1e-8, "unchanged": each(True, False, False, False)}, "below resolution", "info"),
        ({"learning_rate": 1e-8, "vanishing_share": 1.0}, "below resolution", "info"),
        ({"learning_rate": 0.1, "update_ratio": 1e-7}, "below resolution", "warning"),
        ({"learning_rate": 0.1}, "unknown", "warning"),
    ],
)
def test_each_cause_of_frozen_weights(evidence: dict[str, Any], cause: str, severity: str) -> None:
    before = {"learning_rate": evidence["learning_rate"] or 0.1} if evidence.get("bytes_per_parameter") is None else {}
    finding = begun(**before).next(layer(**HELD | evidence)).only("frozen_weights")
    assert (finding.cause_word, finding.severity) == (cause, severity)


def test_a_rate_that_has_come_down_to_nothing_is_what_freezes_float32_weights() -> None:
    finding = begun().next(layer(**HELD, learning_rate=1e-8)).only("frozen_weights")
    assert (finding.cause_word, finding.severity) == ("learning rate next to zero", "warning")


def test_a_learning_rate_of_zero_is_no_finding() -> None:
    assert not begun().next(layer(**HELD, learning_rate=0.0, update_ratio=0.0)).findings


def test_dormant_channels_are_worth_knowing_and_dead_ones_are_not_counted_again() -> None:
    quiet: dict[str, Any] = {"activation_mean": each(0.0, 0.0, 2, 2), "channel_firing_rate": each(0.0, 0.005, 0.5, 0.5)}
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
    readable: dict[str, Any] = {"gating": gone.get("gating", "rectifier")}
    run = begun().next(layer(**gone)).next(layer(**gone))
    assert not run.of("revived_channels")
    finding = run.next(layer(**readable)).only("revived_channels")
    assert (finding.severity, finding.channels) == ("info", (0,))
    assert finding.cause == f"recovered: {state} since epoch 1 (step 40), back in epoch 3 (step 80)"
    assert not run.next(layer(**readable)).of("revived_channels")


def test_losing_sight_of_a_dead_channel_is_no_revival() -> None:
    run = begun().next(layer(**FIRST_OFF)).next(layer(fired=None, gradient=None, weight_gradient=None))
    assert not run.of("revived_channels")


def test_a_kernel_in_the_statistics_of_others_is_never_dead_while_one_of_them_fires() -> None:
    norm = {"off_gradient": "a norm", "shared_statistics": True, "fired": each(False, True, True, True)}
    for own, dead, silent, none in ((0.0, [], [], [0]), (1.0, [], [0], [])):
        seen = norm | {"gradient": each(0.0, 1, 1, 1), "weight_gradient": each(own, 1, 1, 1)}
        report = Run().next(start()).next(layer(**seen)).report()
        assert (report.dead, report.silent, report.zero_gradient) == (dead, silent, none)


def test_a_kernel_that_left_zero_beside_a_penalty_had_a_gradient_of_the_loss() -> None:
    seen = {"fired": each(False, False, True, True), "gradient": each(1.0, 1, 1, 1)}
    seen |= {"penalised": True, "penalty_seen": True}
    run = Run().next(start(norms=each(0.0, 1, 1, 1))).next(layer(norms=each(0.1, 1, 1, 1), **seen))
    assert (run.report().dead, run.report().silent) == ([1], [0])
    run.next(layer(norms=each(0.1, 1, 1, 1), **seen))
    assert run.report().dead == [0, 1]


def test_channels_without_an_activation_of_their_own_are_judged_by_their_gradient() -> None:
    half = {"other_gatings": {None: each(True, False, False, False)}}
    seen = {"fired": each(False, False, True, True), "gradient": each(0.0, 0, 1, 1), "weight_gradient": None}
    report = Run().next(start()).next(layer(**half, **seen)).report()
    assert (report.dead, report.zero_gradient) == ([1], [0])


def test_a_channel_that_drifts_off_in_its_first_window_has_come_from_half_of_the_inputs() -> None:
    some: dict[str, Any] = {"channel_firing_rate": each(0.34, 0.5, 0.5, 0.5)}
    young = Run().next(start()).next(layer(**some)).next(layer(**FIRST_OFF)).only("dead_channels")
    assert (young.cause_word, young.severity) == ("faded", "info")
    old = Run().next(start()).next(layer()).next(layer(**some)).next(layer(**FIRST_OFF)).only("dead_channels")
    assert (old.cause_word, old.severity) == ("unknown", "warning")


@pytest.mark.parametrize(("weights", "severity"), [(1, "info"), (9, "warning")])
def test_a_kernel_of_one_weight_that_learns_passes_zero(weights: int, severity: str) -> None:
    some = layer(parameters=4 * (weights + 1), norms=each(1e-5, 1, 1, 1))
    run = Run().next(start()).next(layer()).next(some)
    assert run.only("zero_kernels").severity == severity
    still = layer(parameters=4 * (weights + 1), norms=each(1e-5, 1, 1, 1), unchanged=each(True, False, False, False))
    assert Run().next(start()).next(layer()).next(still).only("zero_kernels").severity == "warning"
