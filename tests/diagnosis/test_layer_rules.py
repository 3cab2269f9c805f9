"""What is said of whole layers and of the network, from windows made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from helpers.windows import ALL_OFF, FIRST_OFF, Run, alive, begun, layer, off, start

# -- gradients -------------------------------------------------------------------------------------------------------


def small(ratio: float, weak: float, vanishing: float = 0.0, **changes: Any) -> dict[str, Any]:
    """Under plain SGD, whose steps are as small as the gradient."""
    step = ratio * 1e-3
    return {"gradient_ratio": ratio, "weak_share": weak, "vanishing_share": vanishing, "update_ratio": step, **changes}


def test_vanishing_in_one_layer_of_many_is_a_warning_and_in_many_an_error() -> None:
    run = begun().next(layer(**small(1e-8, 1.0, 1.0)), alive("b"), alive("c"))
    assert run.only("vanishing_gradient").severity == "warning"
    assert not run.of("weak_gradient")
    names = ("conv", "b", "c")
    run = begun().next(*(layer(name, **small(1e-8, 1.0, 1.0)) for name in names), alive("d"), alive("e"), alive("f"),
                       alive("g"), largest_gradient_at="g.bias")  # fmt: skip
    finding = run.only("vanishing_gradient")
    assert (finding.severity, finding.evidence["largest_gradient_at"]) == ("error", "g.bias")


@pytest.mark.parametrize("kind", ["RNN", "Linear"])
def test_of_a_recurrence_the_shortest_path_rules_out_no_chain(kind: str) -> None:
    cause = begun().next(layer(**small(1e-8, 1.0, 1.0), kind=kind, bounded_ahead=1), alive()).only("vanishing_gradient")
    assert ("once for each later step" in cause.cause) == (kind == "RNN")
    assert ("ruled out: a chain" in cause.cause) == (kind != "RNN")


def test_weights_are_not_said_to_resolve_steps_of_a_gradient_that_their_bias_alone_has() -> None:
    still: dict[str, Any] = {"unchanged": torch.ones(4, dtype=torch.bool), "optimizer": "SGD", "update_ratio": 0.0}
    causes = [begun().next(layer(**still, gradient_rms=rms)).only("frozen_weights").cause_word for rms in (1e-3, 1e-24)]
    assert causes == ["unknown", "below resolution"]


def test_a_weak_gradient_is_a_warning_where_its_steps_are_small_too() -> None:
    assert begun().next(layer(**small(5e-4, 1.0)), alive()).only("weak_gradient").severity == "warning"
    healthy = layer(**small(5e-5, 1.0, update_ratio=1e-4))
    assert begun().next(healthy, alive()).only("weak_gradient").severity == "info"


def test_a_weak_gradient_whose_steps_were_not_measured_is_a_warning_with_a_margin() -> None:
    for ratio, severity in ((5e-4, "info"), (5e-5, "warning")):
        weak = layer(**small(ratio, 1.0, update_ratio=None))
        assert begun().next(weak, alive()).only("weak_gradient").severity == severity


def test_where_all_steps_are_small_the_learning_rate_is_to_blame_and_not_the_gradient() -> None:
    slow: dict[str, Any] = {"optimizer": "AdamW", "learning_rate": 1e-7, "update_ratio": 1e-7}
    run = begun().next(layer(**small(5e-5, 1.0, **slow)), layer("b", **slow))
    assert run.only("weak_gradient").severity == "info"


@pytest.mark.parametrize(
    ("decay", "severity"),
    [
        ({"optimizer": "SGD", "learning_rate": 0.1, "weight_decay": 1e-2}, "error"),
        ({"optimizer": "SGD", "learning_rate": 0.01, "weight_decay": 1e-2, "momentum": 0.9}, "error"),
        ({"optimizer": "AdamW", "learning_rate": 0.1, "weight_decay": 1e-2, "decoupled_decay": True}, "error"),
        ({"optimizer": "AdamW", "learning_rate": 0.01, "weight_decay": 1e-2, "decoupled_decay": True}, "info"),
        ({"optimizer": "Adam", "learning_rate": 1e-3, "weight_decay": 1e-2, "gradient_rms": 1e-6}, "error"),
        ({"optimizer": "Adam", "learning_rate": 1e-3, "weight_decay": 1e-2, "gradient_rms": 1e-2}, "info"),
    ],
)
def test_steps_that_weight_decay_makes_are_no_sign_that_a_layer_learns(decay: dict[str, Any], severity: str) -> None:
    """A step of 1e-3 of the weights is lr * wd / (1 - momentum) to the letter in the first three."""
    run = begun().next(layer(**small(1e-8, 1.0, 1.0, **{"update_ratio": 1e-3, **decay})), alive())
    assert run.only("vanishing_gradient").severity == severity


def test_it_takes_the_share_of_steps_to_call_a_gradient_weak() -> None:
    weak = small(5e-5, 0.4, update_ratio=None)
    assert not begun().next(layer(**weak)).findings
    run = Run(share_of_steps=0.3).next(start()).next(layer(**weak))
    assert run.only("weak_gradient").evidence["share_of_steps"] == 0.4


def test_windows_of_few_sampled_steps_wait_until_there_are_eight_of_them() -> None:
    run = Run().next(start())
    kinds = []
    for _ in range(4):
        run.next(layer(**small(1e-8, 1.0, 1.0)), alive(), sampled_steps=3)
        kinds.append((len(run.of("vanishing_gradient")), run.history.waits_for_steps()))
    assert kinds == [(0, 3), (0, 6), (1, None), (1, None)]
    # one more window, of healthy steps: 3 of the last 9, then 6, all of them counted alike
    state = run.history.state_dict()
    run.history.load_state_dict(state)
    run.next(layer(**small(0.5, 0.0, 0.0)), alive(), sampled_steps=3)
    assert run.only("vanishing_gradient").evidence["share_of_steps"] == pytest.approx(2 / 3)
    run.next(layer(**small(0.5, 0.0, 0.0)), alive(), sampled_steps=3)
    assert not run.of("vanishing_gradient")
    del state["layers"]["conv"]["recent"]
    run.history.load_state_dict(state)  # of a release that did not keep it
    assert run.history.layers["conv"].recent == []


def test_a_rate_over_few_of_many_steps_is_not_kept_for_later() -> None:
    dying = {"channel_firing_rate": torch.full((4,), 0.2)}
    for sampled, faded in ((2, False), (8, True)):
        run = Run().next(start()).next(layer(**dying), sampled_steps=sampled)
        run.next(layer(**FIRST_OFF))
        assert run.only("dead_channels").cause.startswith("faded") == faded


def test_small_gradients_are_blamed_on_flat_ends_depth_or_neither() -> None:
    vanishing = small(1e-9, 1.0, 1.0, depth=12)
    sigmoid: dict[str, Any] = {"activation": "sigmoid", "gating": "bounded", "bounded_ahead": 6}
    flat: dict[str, Any] = sigmoid | {"saturated_share": torch.full((4,), 0.9)}

    def cause(first: dict[str, Any], second: dict[str, Any], **network: Any) -> str:
        run = begun().next(layer(**vanishing | first), layer("b", **second), **network)
        return run.only("vanishing_gradient").cause_word

    assert cause(flat, flat) == "saturated"
    assert cause(sigmoid, sigmoid) == "depth"  # in the middle of a sigmoid the slope is at most 0.25
    assert cause({"plain_ahead": 12}, {}) == "depth"
    assert cause({"plain_ahead": 2}, {}) == "unknown"  # norms and skips are looked for on its own paths to the loss
    assert cause({"bounded_ahead": 2}, sigmoid) == "unknown"  # of gates beside its way nothing follows


def test_a_small_gradient_held_in_float16_is_blamed_on_underflow_when_most_of_it_is_zero() -> None:
    weak = small(5e-5, 1.0)
    assert begun().next(layer(**weak, underflow_share=0.4), alive()).only("weak_gradient").cause_word == "unknown"
    run = begun().next(layer(**weak, underflow_share=0.93), alive())
    finding = run.only("weak_gradient")
    assert (finding.cause_word, finding.evidence["underflow_share"]) == ("underflow", 0.93)
    assert run.report().note == "93% of its float16 gradient entries were exactly zero"


def test_a_small_gradient_behind_a_scale_that_begins_at_zero_and_moves_is_worth_knowing_alone() -> None:
    weak = small(5e-5, 1.0)
    run = Run().next(start())
    for scale in (0.001, 0.02):
        finding = run.next(layer(**weak, norm_scale=torch.full((4,), scale)), alive()).only("weak_gradient")
        assert (finding.severity, finding.cause_word) == ("info", "zero at initialisation")
    stuck = run.next(layer(**weak, norm_scale=torch.full((4,), 0.02)), alive()).only("weak_gradient")
    assert (stuck.severity, stuck.cause_word) == ("warning", "unknown")


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
    some = begun().next(layer(non_finite_gradients=7), layer("other", non_finite_gradients=5))
    assert [(f.layer, f.severity) for f in some.findings] == [(None, "warning")]


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


def test_slow_updates_of_a_weak_gradient_are_not_an_alarm_of_their_own() -> None:
    slow: dict[str, Any] = {"update_ratio": 1e-8, "gradient_ratio": 1e-5, "weak_share": 1.0}
    run = begun(**slow).next(layer(**slow), alive())
    assert run.only("update_too_small").severity == "info"
    assert "weak too (1.0e-05 of the largest)" in run.only("update_too_small").cause
    assert run.only("weak_gradient").severity == "warning"


def test_slow_updates_that_the_schedule_asks_for_are_no_finding() -> None:
    slow: dict[str, Any] = {"update_ratio": 1e-8}
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
    warm_up = Run().next(start(identical=True)).next(layer(identical=True, learning_rate=0.0))
    assert warm_up.only("identical_kernels").severity == "warning"
    zeros: dict[str, Any] = {"norms": torch.zeros(4), "largest": torch.zeros(4)}
    assert not Run().next(start(identical=True, **zeros)).of("identical_kernels")


@pytest.mark.parametrize(
    ("lines", "weights"),
    [
        ({}, {"weight_sparsity": 0.6}),
        ({}, {"weight_near_zeros": 0.2}),
        ({}, {"gini": 0.8}),
        ({"zero_share": 0.1}, {"weight_sparsity": 0.2}),
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
    assert begun().next(layer(weight_sparsity=0.9, masked=mask)).only("sparse_weights").cause_word == "pruned"
    dead: dict[str, Any] = off(0, 1, 2) | {"weight_sparsity": 0.75}
    finding = begun().next(layer(**dead)).only("sparse_weights")
    assert (finding.cause_word, finding.severity) == ("dead channels", "warning")
    assert "3 of 4 kernels are dead or zero" in finding.cause
