"""Evidence made by hand, with the states, flags and savings that must come of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.windows import Run, each, layer, start, window
from lightning_deadkernel.diagnosis.classify import activity, classify
from lightning_deadkernel.diagnosis.diagnose import diagnose
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.pruning import savings
from lightning_deadkernel.observation import Consumer, LayerWindow
from lightning_deadkernel.report.states import STATE_BITS, STATES
from lightning_deadkernel.thresholds import Thresholds

NONE: dict[str, Any] = {"gradient": torch.zeros(1), "weight_gradient": torch.zeros(1)}
SOME: dict[str, Any] = {"gradient": torch.ones(1), "weight_gradient": torch.ones(1)}
HALF: dict[str, Any] = {"channel_firing_rate": each(0.5)}
OFF: dict[str, Any] = {"fired": each(False), "channel_firing_rate": torch.zeros(1), "activation_mean": torch.zeros(1)}
UNREAD: dict[str, Any] = {"gradient": None, "weight_gradient": None}
BY_NORM: dict[str, Any] = {"gradient": each(0.0), "norm_scale": torch.ones(1)}
LEAKY: dict[str, Any] = {"activation": "leaky_relu", "gating": "leaky"}
SMOOTH: dict[str, Any] = {"activation": "gelu", "gating": "smooth"}
TANH: dict[str, Any] = {"activation": "tanh", "gating": "bounded", "saturated_share": torch.zeros(1)}
BLIND: dict[str, Any] = {"activation": "unknown", "gating": None, "fired": None, "channel_firing_rate": None,
                         "activation_mean": None}  # fmt: skip
HELD: dict[str, Any] = {"unchanged": each(True)}

TABLE: list[tuple[str, dict[str, Any], str]] = [
    ("fires and learns", {}, "active"),
    ("never fires behind a gate, no gradient", OFF | NONE, "dead"),
    ("never fires behind a gate, a penalty in the loss gives a gradient", OFF | SOME | {"penalty_seen": True}, "dead"),
    ("the same where no penalty is in what was looked at", OFF | SOME | {"penalised": True}, "unknown"),
    ("never fires behind a gate, gradients not looked at", OFF | UNREAD, "unknown"),
    ("never fires behind a gate, and has a gradient: one of the two is wrong", OFF | SOME, "unknown"),
    ("the same, though only its shift has one", OFF | SOME | {"weight_gradient": each(0.0)}, "unknown"),
    ("the same, but only the kernel has one, by a norm", OFF | SOME | BY_NORM, "silent"),
    ("the same by a clamp, which passes a gradient at exactly zero", OFF | SOME | {"largest": each(0.0)}, "silent"),
    ("never fires behind a gate, NaN gradients", OFF | {"gradient": each(math.nan)}, "unknown"),
    ("never fires behind a gate, zero kernel", OFF | NONE | {"largest": each(0.0), "norms": each(0.0)}, "dead"),
    ("not seen to fire on sampled steps, no gradient", OFF | NONE | {"exact": False}, "dead"),
    ("not seen to fire on sampled steps, but has a gradient", OFF | SOME | {"exact": False}, "active"),
    ("the same with a penalty, which may be all of it", OFF | SOME | {"exact": False, "penalty_seen": True}, "unknown"),
    ("never fires behind a smooth activation, no gradient", OFF | NONE | SMOOTH, "saturated"),
    ("never fires behind a bounded activation, no gradient", OFF | NONE | TANH, "saturated"),
    ("tanh stuck at +1: it fires, and has no gradient", NONE | TANH | {"saturated_share": each(1.0)}, "saturated"),
    ("tanh stuck, with a trace of gradient", SOME | TANH | {"saturated_share": each(0.9)}, "saturated"),
    ("tanh with half of its inputs on a flat end", SOME | TANH | {"saturated_share": each(0.5)}, "active"),
    ("relu6 stuck at 6: no gradient passes", NONE | {"saturated_share": each(1.0)}, "saturated"),
    ("relu6 often at a bound, but nothing listens", NONE | HALF | {"saturated_share": each(0.4)}, "starved"),
    ("relu6 at its bound whenever it fires", NONE | HALF | {"saturated_share": each(0.5)}, "saturated"),
    ("relu6 often at a bound, and learns", {"saturated_share": each(1.0)}, "active"),
    ("never fires behind a leaky activation, gradient passes", OFF | SOME | LEAKY, "silent"),
    ("never fires behind a smooth activation, gradient passes", OFF | SOME | SMOOTH, "silent"),
    ("never fires behind a leaky activation, nothing listens", OFF | NONE | LEAKY, "starved"),
    ("fires, no gradient", NONE, "starved"),
    ("fires, the shift has a gradient and the kernel none", {"weight_gradient": each(0.0)}, "active"),
    ("fires, the kernel has a gradient and the shift none", {"gradient": each(0.0)}, "active"),
    ("fires, gradients were not looked at", {"gradient": None, "weight_gradient": None}, "unknown"),
    ("fires, has a gradient, not one bit changed", HELD, "frozen"),
    ("the same, out of the optimizer", HELD | {"in_optimizer": False, "learning_rate": None}, "frozen"),
    ("the same while the schedule has the learning rate at zero", HELD | {"learning_rate": 0.0}, "active"),
    ("the same with the learning rate unknown", HELD | {"learning_rate": None}, "active"),
    ("the same, held by a mask", HELD | {"masked": each(True)}, "active"),
    ("unchanged since only its shift has a gradient", HELD | {"weight_gradient": each(0.0)}, "active"),
    ("unchanged since its norm's scale is zero", HELD | {"weight_gradient": None, "norm_scale": each(0.0)}, "active"),
    ("no activation readable, no gradient", BLIND | NONE, "zero-gradient"),
    ("no activation readable, gradient", BLIND | SOME, "active"),
    ("no activation readable, gradients not looked at", BLIND | {"gradient": None, "weight_gradient": None}, "unknown"),
    ("an activation that was not read once, no gradient", NONE | {"fired": None}, "zero-gradient"),
    ("requires no gradient", OFF | NONE | {"excluded": "requires_grad=False"}, "excluded"),
    ("a NaN is no zero gradient", {"gradient": each(math.nan), "weight_gradient": each(0.0)}, "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "evidence", "state"), TABLE, ids=[row[0] for row in TABLE])
def test_each_row_of_the_table_gives_its_state(what: str, evidence: dict[str, Any], state: str) -> None:
    run = Run().next(start(channels=1)).next(layer(channels=1, **evidence))
    assert run.report().states == [state], what


def test_every_state_is_in_the_table() -> None:
    assert {state for _, _, state in TABLE} == set(STATES)


def test_at_initialisation_only_the_weights_speak() -> None:
    run = Run().next(start(largest=each(0.0, 1, 1, 1), norms=each(0.0, 1, 1, 1)))
    assert run.report().states == ["active"] * 4
    assert run.report().zero_kernels == [0]
    assert run.report().evidence == "weight"


def test_a_window_without_an_optimizer_step_freezes_nothing() -> None:
    held = layer(unchanged=torch.ones(4, dtype=torch.bool))
    run = Run().next(start())
    assert run.next(held, optimizer_steps=0).report().frozen == []
    assert run.next(held, skipped_steps=8).report().frozen == []
    assert run.next(held).report().frozen == [0, 1, 2, 3]


def test_frozen_is_also_told_of_a_layer_without_activation_and_of_a_silent_one() -> None:
    held: dict[str, Any] = {"channels": 1, "unchanged": each(True)}
    run = Run().next(start(channels=1), start("out", channels=1))
    run.next(layer(**held, **OFF, **LEAKY), layer("out", **{**BLIND, **held}))
    assert (run.report().states, run.report().frozen) == (["silent"], [0])
    assert (run.report("out").states, run.report("out").frozen) == (["active"], [0])


@pytest.mark.parametrize(
    ("evidence", "word"),
    [
        ({}, "activation"),
        ({"exact": False}, "sampled activation"),
        ({"gating": None}, "gradient"),
        ({"gating": None, "gradient": None}, "weight"),
    ],
)
def test_a_layer_says_what_its_states_rest_on(evidence: dict[str, Any], word: str) -> None:
    assert Run().next(start()).next(layer(**evidence)).report().evidence == word


# -- NaN neither revives nor kills -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nan",
    [
        {"gradient": each(math.nan), "non_finite_gradients": 1},
        {"gradient": each(math.nan), "norms": each(math.nan)},
    ],
)
def test_nan_neither_kills_nor_revives(nan: dict[str, Any]) -> None:
    touched = layer(channels=1, **{**OFF, **NONE, **nan})
    for before in ({}, OFF | NONE):
        run = Run().next(start(channels=1)).next(layer(channels=1, **before)).next(touched)
        assert run.report().states == ["unknown"]
        assert (
            run.report().note == "what 1 of 1 kernels are is unknown: values were NaN or infinite, which proves nothing"
        )
        assert not run.of("revived_channels")
        assert not run.of("dead_channels")


def test_what_was_nan_on_some_batches_only_is_what_the_others_show() -> None:
    for nan in ({"non_finite_gradients": 1}, {"norms": each(math.nan)}, {"activation_mean": each(math.nan)}):
        for shown, state in (({}, "active"), (OFF | NONE, "dead")):
            assert Run().next(start(channels=1)).next(layer(channels=1, **{**shown, **nan})).report().states == [state]


def test_a_channel_that_was_seen_to_fire_is_not_dead_whatever_else_was_nan() -> None:
    run = Run().next(start(channels=1)).next(layer(channels=1, **OFF, **NONE))
    assert run.next(layer(channels=1, non_finite_gradients=1)).report().states == ["active"]


# -- flags and their thresholds --------------------------------------------------------------------------------------


def test_dormant_is_the_redo_score_at_or_below_the_line() -> None:
    means: dict[str, Any] = {"activation_mean": each(0.02, 0.025, 0.03, 3.925)}  # their mean is 1
    run = Run().next(start())
    assert run.next(layer(**means)).report().dormant == [0, 1]
    assert Run(dormant=0.001).next(start()).next(layer(**means)).report().dormant == []


def test_one_nan_leaves_the_scores_of_the_other_channels_as_they_are() -> None:
    run = Run().next(start()).next(layer(activation_mean=each(math.nan, 0.001, 1, 1)))
    assert run.report().dormant == [1]
    values = run.report().values
    assert values is not None
    assert values.dormant_score is not None
    assert math.isnan(values.dormant_score[0])
    assert values.dormant_score[2] == pytest.approx(3 / 2.001)


def test_a_layer_of_zeros_is_dormant_throughout() -> None:
    assert Run().next(start()).next(layer(activation_mean=torch.zeros(4))).report().dormant == [0, 1, 2, 3]


@pytest.mark.parametrize("evidence", [{"depth": 0}, {"gating": None}, {"activation_mean": None}])
def test_the_last_layer_and_unreadable_ones_are_never_dormant(evidence: dict[str, Any]) -> None:
    means: dict[str, Any] = {"activation_mean": each(0.0, 1, 1, 1)} | evidence
    assert Run().next(start()).next(layer(**means)).report().dormant == []


def test_rare_fires_on_fewer_than_its_share_and_is_not_dead() -> None:
    rates: dict[str, Any] = {"channel_firing_rate": each(0.009, 0.01, 0.0, 0.0), "fired": each(True, True, True, False)}
    run = Run().next(start()).next(layer(**rates, gradient=each(1.0, 1, 1, 0), weight_gradient=each(1.0, 1, 1, 0)))
    assert run.report().rare == [0, 2]
    assert run.report().dead == [3]
    assert Run(rare=0.001).next(start()).next(layer(**rates)).report().rare == [2]


@pytest.mark.parametrize(
    ("weights", "zero"),
    [
        ({"largest": each(0.0, 1, 1, 1)}, [0]),
        ({"norms": each(0.0009, 0.0011, 1.0, 1.0)}, [0]),
        ({"norm_scale": each(0.0009, 0.0011, 1.0, 1.0)}, [0]),
        ({"norms": torch.zeros(4), "largest": torch.zeros(4)}, [0, 1, 2, 3]),
        ({"norms": each(0.0, math.nan, 1.0, 1.0)}, [0]),
    ],
)
def test_a_zero_kernel_is_zero_small_beside_its_layer_or_scaled_to_zero(
    weights: dict[str, Any], zero: list[int]
) -> None:
    assert Run().next(start(**weights)).report().zero_kernels == zero


def test_the_lines_of_zero_kernels_can_be_moved() -> None:
    weights: dict[str, Any] = {"norms": each(0.05, 1.0, 1, 1), "norm_scale": each(1.0, 0.05, 1, 1)}
    assert Run().next(start(**weights)).report().zero_kernels == []
    assert Run(zero_kernel=0.1).next(start(**weights)).report().zero_kernels == [0]
    assert Run(norm_scale=0.1).next(start(**weights)).report().zero_kernels == [1]


def test_kernels_are_not_zero_because_one_beside_them_blew_up() -> None:
    run = Run().next(start()).next(layer(norms=each(1.0, 0.9, 0.01, 1e5)))
    assert run.report().zero_kernels == [2]


def test_saturated_share_is_a_line_that_can_be_moved() -> None:
    tanh: dict[str, Any] = {"channels": 1, **TANH, "saturated_share": each(0.4)}
    assert Run().next(start(channels=1)).next(layer(**tanh)).report().saturated == []
    assert Run(saturated_share=0.3).next(start(channels=1)).next(layer(**tanh)).report().saturated == [0]


# -- always ----------------------------------------------------------------------------------------------------------


def _layers() -> st.SearchStrategy[LayerWindow]:
    channels = 3
    flags = st.lists(st.booleans(), min_size=channels, max_size=channels).map(torch.tensor)
    numbers = st.lists(
        st.sampled_from([0.0, 1e-30, 1e-3, 0.6, 1.0, math.nan, math.inf]), min_size=channels, max_size=channels
    ).map(torch.tensor)

    def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.none() | values

    return st.builds(
        LayerWindow,
        name=st.just("conv"),
        kind=st.just("Conv2d"),
        channels=st.just(channels),
        depth=st.integers(0, 2),
        excluded=st.sampled_from([None, None, None, "unused"]),
        gating=st.sampled_from([None, "rectifier", "leaky", "smooth", "bounded"]),
        exact=st.booleans(),
        fired=maybe(flags),
        channel_firing_rate=maybe(numbers),
        activation_mean=maybe(numbers),
        saturated_share=maybe(numbers),
        gradient=maybe(numbers),
        weight_gradient=maybe(numbers),
        penalised=st.booleans(),
        norms=maybe(numbers),
        largest=maybe(numbers),
        norm_scale=maybe(numbers),
        shift=maybe(numbers),
        masked=maybe(flags),
        unchanged=maybe(flags),
        non_finite_gradients=st.sampled_from([0, 0, 5]),
        in_optimizer=st.booleans(),
        learning_rate=st.sampled_from([None, 0.0, 0.1]),
        weight_decay=st.sampled_from([0.0, 1e-2]),
        update_ratio=st.sampled_from([None, 0.0, 1e-9, 1e-3, 3.0, math.inf, math.nan]),
        update_ratio_max=st.sampled_from([None, 1e-3, 3.0, math.inf, math.nan]),
        weight_sparsity=st.sampled_from([None, 0.9]),
        identical=st.booleans(),
    )


@settings(max_examples=150)
@given(st.lists(_layers(), min_size=1, max_size=3))
def test_whatever_is_observed_each_channel_has_one_state_and_nothing_is_claimed_unseen(seen: list[LayerWindow]) -> None:
    run = Run().next(start(channels=3))
    for observed in seen:
        before = run.history.layers["conv"].codes & STATE_BITS
        report = run.next(observed).report()
        assert len(report.codes) == 3
        parts = [report.dead, report.saturated, report.silent, report.starved, report.zero_gradient]
        assert len(set().union(*parts)) == sum(map(len, parts))
        for channel, state in enumerate(report.states):
            if state != STATES[int(before[channel])] and observed.excluded is None:
                if state == "dead":
                    assert observed.gating == "rectifier"
                    assert observed.fired is not None
                    assert not observed.fired[channel]
                if state in ("starved", "zero-gradient"):
                    assert observed.gradient is not None
                    assert observed.gradient[channel] == 0
                if state == "silent":
                    seen_at = [g[channel] for g in (observed.gradient, observed.weight_gradient) if g is not None]
                    assert any(g > 0 for g in seen_at)
            assert (state == "excluded") == (observed.excluded is not None)
        for finding in run.findings:
            assert finding.channels == tuple(sorted(set(finding.channels)))
            assert all(0 <= channel < 3 for channel in finding.channels)
            assert all(value == value and value not in (math.inf, -math.inf) for value in finding.evidence.values())


def test_classify_changes_nothing_it_was_given() -> None:
    observed, history = layer(fired=torch.zeros(4, dtype=torch.bool)), History()
    before = {name: value.clone() for name, value in vars(observed).items() if isinstance(value, torch.Tensor)}
    classify(observed, window(1, observed), history, Thresholds(), activity(observed))
    assert list(history.layers) == []
    for name, value in before.items():
        torch.testing.assert_close(getattr(observed, name), value)


def test_excluded_layers_keep_their_reason_and_give_no_values_or_findings() -> None:
    layers, findings = diagnose(window(1, layer(excluded="unused in the loss")), History(), Thresholds())
    assert (layers[0].excluded, layers[0].values, findings) == ("unused in the loss", None, ())


# -- savings ---------------------------------------------------------------------------------------------------------

GONE: dict[str, Any] = {
    "fired": each(False, True, True, True),
    "gradient": each(0.0, 1, 1, 1),
    "weight_gradient": each(0.0, 1, 1, 1),
}


def _savings(*layers: LayerWindow) -> Any:
    run = Run().next(*(start(each_.name, each_.channels) for each_ in layers)).next(*layers)
    return savings(window(1, *layers), tuple(run.layers.values()))


def test_a_dead_channel_saves_its_kernel_and_the_slices_that_read_it() -> None:
    first = layer("a", parameters=40, consumers=(Consumer("b", 36),), **GONE)
    second = layer("b", parameters=148, producers=("a",), bytes_per_parameter=2)
    saved = _savings(first, second)
    assert (saved.channels, saved.parameters, saved.bytes) == (1, 10 + 36, 10 * 4 + 36 * 2)
    assert saved.unknown_consumers == ()


def test_what_a_dead_producer_and_a_dead_consumer_share_is_counted_once() -> None:
    first = layer("a", parameters=40, consumers=(Consumer("b", 36),), **GONE)
    second = layer("b", parameters=148, producers=("a",), **GONE)  # 4 kernels of 4 * 9 weights and a bias
    saved = _savings(first, second)
    assert (saved.channels, saved.parameters) == (2, 10 + 37 + 36 - 9)


def test_a_whole_dead_pair_saves_no_more_than_there_is() -> None:
    off: dict[str, Any] = {
        "fired": torch.zeros(4, dtype=torch.bool),
        "gradient": torch.zeros(4),
        "weight_gradient": torch.zeros(4),
    }
    first = layer("a", parameters=40, consumers=(Consumer("b", 36),), **off)
    saved = _savings(first, layer("b", parameters=148, producers=("a",), **off))
    assert saved.parameters == 40 + 148


def test_consumers_the_graph_does_not_show_are_named() -> None:
    saved = _savings(layer("a", parameters=40, consumers=None, **GONE))
    assert (saved.parameters, saved.unknown_consumers) == (10, ("a",))
    stranger = layer("b", parameters=148, producers=None)  # something else is added to what it reads
    saved = _savings(layer("a", parameters=40, consumers=(Consumer("b", 36),), **GONE), stranger)
    assert (saved.parameters, saved.unknown_consumers) == (10, ("a",))


def test_a_slice_that_reads_a_sum_goes_only_with_all_of_the_sum() -> None:
    read: dict[str, Any] = {"consumers": (Consumer("c", 36),), "parameters": 40}
    reader = layer("c", parameters=148, producers=("a", "b"))
    alone = _savings(layer("a", **read, **GONE), layer("b", **read), reader)
    assert alone.parameters == 10
    both = _savings(layer("a", **read, **GONE), layer("b", **read, **GONE), reader)
    assert both.parameters == 10 + 10 + 36


def test_slices_side_by_side_go_each_with_its_own() -> None:
    read: dict[str, Any] = {"consumers": (Consumer("c", 36),), "parameters": 40}
    reader = layer("c", parameters=292, producers=("a", "b"))  # 4 kernels of 8 * 9 weights and a bias
    assert _savings(layer("a", **read, **GONE), layer("b", **read), reader).parameters == 10 + 36


@pytest.mark.parametrize(
    ("evidence", "count"),
    [
        ({"largest": each(0.0, 1, 1, 1), "shift": each(0.1, 0, 0, 0)}, 0),  # a constant goes on
        ({"largest": each(0.0, 1, 1, 1)}, 0),  # it may yet learn
        ({"largest": each(0.0, 1, 1, 1), "gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)}, 1),
        ({"norm_scale": each(0.0, 1, 1, 1), "gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)}, 1),
        ({"excluded": "frozen", **GONE}, 0),
    ],
)
def test_a_zero_kernel_goes_only_if_what_leaves_it_is_zero_and_stays_so(evidence: dict[str, Any], count: int) -> None:
    assert _savings(layer("a", gating=None, **evidence)).channels == count
