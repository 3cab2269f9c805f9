"""The oracle and the claims themselves, on networks of a few lines whose truth is plain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuzz import claims, shrink
from fuzz.claims import Disagreement, Outcome, disagreements
from fuzz.generate import program, trains
from fuzz.network import kill_op
from fuzz.oracle import Oracle, Truth
from fuzz.programs import Op, Program
from lightning_deadkernel import Report
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.states import STATES

INPUT = Op("v0", "input", (), {"shape": (5,)})
LAYER = Op("v1", "linear", ("v0",), {"width": 4})
HEAD = Op("v9", "linear", ("v8",), {"width": 3})
LOSS = Op("loss", "mse", ("v9",))
RELU = Op("v8", "relu", ("v1",))


def network(*middle: Op, kills: tuple[Op, ...] = ()) -> Program:
    """A linear layer v1 of four channels, what is given, and a linear head that reads v8."""
    made = Program(3, (INPUT, LAYER, *middle, HEAD, LOSS, *kills), batch_size=6)
    assert trains(made)
    return made


def truth_of(made: Program, layer: str = "v1") -> tuple[Oracle, Truth]:
    oracle = Oracle(made)
    return oracle, oracle.truths[layer]


def shut(truth: Truth) -> list[int]:
    found = truth.shut()
    assert found is not None
    return [int(channel) for channel in found.nonzero().flatten()]


def test_a_channel_far_below_a_relu_is_shut_and_may_go() -> None:
    oracle, truth = truth_of(network(RELU, kills=(kill_op("bias_far", "v1", (2,)),)))
    assert shut(truth) == [2]
    assert truth.kernel_gradient[2] == 0
    assert (truth.kernel_gradient[[0, 1, 3]] > 0).all()
    assert oracle.may_go("v1", [0, 1, 2, 3]) == [2]


def test_a_channel_far_below_a_relu_matters_through_the_statistics_of_a_layer_norm() -> None:
    norm = Op("v2", "layer_norm", ("v1",))
    after = Op("v8", "relu", ("v2",))
    oracle, truth = truth_of(network(norm, after, kills=(kill_op("shift_far", "v2", (2,)),)))
    assert shut(truth) == []
    assert truth.kernel_gradient[2] > 0
    assert oracle.may_go("v1", [2]) == []


def test_a_batch_norm_does_not_open_the_path_of_a_channel_far_below_a_relu() -> None:
    norm = Op("v2", "batch_norm", ("v1",))
    after = Op("v8", "relu", ("v2",))
    oracle, truth = truth_of(network(norm, after, kills=(kill_op("shift_far", "v2", (2,)),)))
    assert shut(truth) == [2]
    assert oracle.may_go("v1", [2]) == [2]


def test_a_channel_that_nothing_reads_fires_and_is_not_shut() -> None:
    # the reading weights learn again with their first step: only the first of the batches shows no gradient
    _, truth = truth_of(network(RELU, kills=(kill_op("unread", "v9", (2,)),)))
    assert truth.fires is not None
    assert truth.fires[2] > 0
    assert shut(truth) == []


def test_a_detached_copy_is_no_path() -> None:
    middle = (Op("v2", "relu", ("v1",)), Op("v3", "halt", ("v1",)), Op("v8", "add", ("v2", "v3")))
    oracle, truth = truth_of(network(*middle, kills=(kill_op("bias_far", "v1", (2,)),)))
    assert shut(truth) == [2]
    assert oracle.may_go("v1", [2]) == [2]


def test_what_is_detached_behind_its_rectifier_does_not_open_another() -> None:
    middle = (Op("v2", "relu", ("v1",)), Op("v3", "sigmoid", ("v1",)), Op("v4", "halt", ("v3",)))
    made = network(*middle, Op("v8", "add", ("v2", "v4")), kills=(kill_op("bias_far", "v1", (2,)),))
    assert shut(truth_of(made)[1]) == [2]


def test_a_penalty_is_no_gradient() -> None:
    made = network(RELU, kills=(kill_op("bias_far", "v1", (2,)),))
    _, truth = truth_of(made.having(*made.ops, Op("loss", "penalty", (), {"layer": "v1"})))
    assert truth.kernel_gradient[2] == 0


def test_a_clamp_passes_a_gradient_at_exactly_zero() -> None:
    _, truth = truth_of(network(Op("v8", "clamp_min", ("v1",)), kills=(kill_op("zero_kernel", "v1", (2,)),)))
    assert shut(truth) == []
    assert truth.kernel_gradient[2] > 0


def test_a_path_past_the_rectifier_is_seen() -> None:
    middle = (Op("v2", "relu", ("v1",)), Op("v8", "add", ("v2", "v1")))
    _, truth = truth_of(network(*middle, kills=(kill_op("bias_far", "v1", (2,)),)))
    assert shut(truth) == []
    assert truth.kernel_gradient[2] > 0


def _saying(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every report says this of every channel."""
    fit = claims.fit

    def lie(made: Program, watched: bool) -> Outcome:
        outcome = fit(made, watched)
        if outcome.report is not None:
            outcome.report = replace(outcome.report, layers=tuple(map(said, outcome.report.layers)))
        return outcome

    def said(layer: LayerReport) -> LayerReport:
        return replace(layer, codes=bytes([STATES.index(state)] * layer.channels))  # type: ignore[arg-type]

    monkeypatch.setattr(claims, "fit", lie)


def _kinds(found: list[Disagreement], layer: str = "v1") -> set[str]:
    return {disagreement.kind for disagreement in found if disagreement.layer == layer}


@pytest.mark.parametrize(
    ("state", "kinds"),
    [
        (
            "dead",
            {
                "dead with a gradient at the kernel",
                "dead with a gradient at the output",
                "dead though it fires",
                "dead though it matters",
                "revival",
            },
        ),
        (
            "active",
            {"active without a gradient", "active though it never fired", "shut by rectifiers, called active"},
        ),
        ("starved", {"called starved with a gradient", "shut by rectifiers, called starved"}),
    ],
)
def test_a_report_that_lies_is_found_out(state: str, kinds: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(RELU, kills=(kill_op("bias_far", "v1", (2,)),))
    assert not disagreements(made)
    _saying(state, monkeypatch)
    assert _kinds(disagreements(made)) == kinds


def test_savings_that_are_too_large_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made, fit = network(RELU, kills=(kill_op("bias_far", "v1", (2,)),)), claims.fit

    def lie(program: Program, watched: bool) -> Outcome:
        outcome = fit(program, watched)
        report: Any = outcome.report
        if isinstance(report, Report):
            assert report.savings is not None
            outcome.report = replace(report, savings=replace(report.savings, channels=2))
        return outcome

    monkeypatch.setattr(claims, "fit", lie)
    assert [found.kind for found in disagreements(made)] == ["savings"]


def test_a_training_that_is_touched_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = claims.fit

    def touch(program: Program, watched: bool) -> Outcome:
        outcome = fit(program, watched)
        if watched:
            with torch.no_grad():
                next(outcome.net.parameters()).mul_(1.000001)
            outcome.random_states = torch.zeros_like(outcome.random_states)
        return outcome

    monkeypatch.setattr(claims, "fit", touch)
    assert [found.kind for found in disagreements(network(RELU))] == ["training differs"] * 2


def test_a_failing_network_shrinks_to_the_line_that_makes_it_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(made: Program) -> list[Disagreement]:
        return [Disagreement("has a tanh", "", "")] if any(op.name == "tanh" for op in made.ops) else []

    monkeypatch.setattr(shrink, "disagreements", fails)
    middle = (
        Op("v2", "batch_norm", ("v1",)),
        Op("v3", "tanh", ("v2",)),
        Op("v4", "relu", ("v3",)),
        Op("v8", "add", ("v4", "v2")),
    )
    small = shrink.shrunk(network(*middle, kills=(kill_op("bias_far", "v1", (1, 2)),)), "has a tanh")
    assert [op.name for op in small.ops] == ["input", "linear", "tanh", "mse"]
    assert str(small).splitlines()[2:4] == ["    v1 = linear(v0, width=4)", "    v3 = tanh(v1)"]


def test_a_seed_makes_the_same_network_each_time() -> None:
    assert str(program(7)) == str(program(7))
    assert str(program(7)) != str(program(8))
