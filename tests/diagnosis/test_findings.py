"""Findings as a whole: quiet on the healthy, ranked, named in a line, and said once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from helpers.windows import ALL_OFF, FIRST_OFF, ZERO, Run, alive, begun, each, layer, start
from lightning_deadkernel.diagnosis.rules import CAUSES, KINDS
from lightning_deadkernel.observation import Consumer


def _knocked_out() -> Run:
    return Run().next(start()).next(layer(update_ratio_max=0.8)).next(layer(**FIRST_OFF))


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"gating": "leaky", "activation": "leaky_relu", "fired": each(False, True, True, True)},
        {"gating": None, "activation": None, "fired": None, "depth": 0},
        {"norm_scale": torch.ones(4), "shift": torch.zeros(4)},
        {"activation": "tanh", "gating": "bounded", "saturated_share": torch.full((4,), 0.1)},
        {"weight_decay": 0.01, "decoupled_decay": True},
        {"gradient": None, "weight_gradient": None},
    ],
)
def test_a_healthy_layer_stays_without_any_finding(evidence: dict[str, Any]) -> None:
    run = begun(**evidence)
    for _ in range(3):
        assert run.next(layer(**evidence)).findings == ()


def test_the_root_comes_before_what_follows_from_it() -> None:
    off = ALL_OFF | {"shift": torch.full((4,), -99.0)}
    run = Run().next(start("a"), start("b"), start("c"))
    starved = layer("a", gradient=torch.zeros(4), weight_gradient=torch.zeros(4), consumers=(Consumer("b", 4),))
    run.next(starved, layer("b", **off, producers=("a",)), layer("c", **ALL_OFF, producers=("b",)), alive("d"))
    assert [(finding.layer, finding.cause_word) for finding in run.findings if finding.severity == "error"] == [
        ("b", "shift driven negative"),
        ("a", "dead downstream"),
        ("c", "upstream dead"),
    ]


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


def test_a_title_says_how_many_of_how_many_and_why_and_a_headline_where() -> None:
    finding = _knocked_out().only("dead_channels")
    assert finding.title == "1 of 4 kernels is dead (knocked out)"
    assert finding.headline == "conv: 1 of 4 kernels is dead (knocked out)"
    run = begun().next(layer(**FIRST_OFF)).next(layer())
    assert run.only("revived_channels").headline == "conv: 1 of 4 kernels is back to life (recovered)"
    assert Run().next(start(**ZERO)).findings[0].headline == (
        "conv: 1 of 4 kernels is zero, or next to it (zero at initialisation)"
    )
    run = begun().next(layer(gradient_ratio=1e-8, weak_share=1.0, vanishing_share=1.0))
    assert run.only("vanishing_gradient").headline == "conv: the gradient vanishes"
