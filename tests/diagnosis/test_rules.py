"""Every rule has a page, and is tried on what it is about and on what only looks like it."""

from __future__ import annotations

import gc
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.windows import ALL_OFF, FIRST_OFF, NO_GRADIENT, ZERO, Run, alive, begun, each, layer, start, window
from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.pruning import savings
from lightning_deadkernel.diagnosis.rule import Rule
from lightning_deadkernel.diagnosis.rules import CAUSES, KINDS, RULES
from lightning_deadkernel.observation import Consumer

PARTS = ("What it finds", "Why it matters", "What to do", "Reference")
REFERENCES = [text for name, text in vars(references).items() if name.isupper()]
HELD: dict[str, Any] = {"unchanged": torch.ones(4, dtype=torch.bool)}
STARVING: dict[str, Any] = {"gradient": each(0.0, 1, 1, 1), "weight_gradient": each(0.0, 1, 1, 1)}
NO_ROW: dict[str, Any] = {**STARVING, "activation": None, "gating": None, "fired": None}
TANH: dict[str, Any] = {"activation": "tanh", "gating": "bounded"}
SMALL: dict[str, Any] = {"weak_share": 1.0}


def _norms(*norms: float) -> Run:
    run = Run().next(start())
    for norm in norms:
        run.next(layer(update_ratio_max=0.5), gradient_norm=norm)
    return run


CASES: dict[str, tuple[Callable[[], Run], Callable[[], Run]]] = {
    "dead_channels": (
        lambda: begun().next(layer(**FIRST_OFF)),
        lambda: begun().next(layer(**FIRST_OFF, activation="leaky_relu", gating="leaky")),
    ),
    "saturated_channels": (
        lambda: begun().next(layer(**TANH, saturated_share=torch.full((4,), 0.9))),
        lambda: begun().next(layer(**TANH, saturated_share=torch.full((4,), 0.4))),
    ),
    "no_gradient": (
        lambda: begun().next(layer(**NO_GRADIENT, gating=None), alive()),
        lambda: begun().next(layer(gradient=None, weight_gradient=None, gating=None), alive()),
    ),
    "unwatched_layers": (
        lambda: begun().next(alive(), layer(excluded="not in the graph of the loss", missed="cut off")),
        lambda: begun().next(alive(), layer(excluded="requires_grad=False")),
    ),
    "starved_channels": (
        lambda: begun().next(layer(**STARVING), alive()),
        lambda: begun().next(layer(**FIRST_OFF), alive()),
    ),
    "frozen_weights": (
        lambda: begun().next(layer(**HELD)),
        lambda: begun().next(layer(**HELD, learning_rate=0.0)),
    ),
    "zero_kernels": (
        lambda: Run().next(start(**ZERO)),
        lambda: begun().next(layer(norms=each(0.01, 1, 1, 1))),
    ),
    "dormant_channels": (
        lambda: begun().next(layer(activation_mean=each(0.0, 1, 1, 1))),
        lambda: begun().next(layer(**FIRST_OFF, activation_mean=each(0.0, 1, 1, 1))),
    ),
    "revived_channels": (
        lambda: begun().next(layer(**FIRST_OFF)).next(layer()),
        lambda: begun().next(layer(**FIRST_OFF)).next(layer(fired=None, gradient=None, weight_gradient=None)),
    ),
    "vanishing_gradient": (
        lambda: begun().next(layer(gradient_ratio=1e-8, vanishing_share=1.0, **SMALL), alive()),
        lambda: begun().next(layer(gradient_ratio=1e-5, vanishing_share=0.4, **SMALL), alive()),
    ),
    "weak_gradient": (
        lambda: begun().next(layer(gradient_ratio=1e-5, **SMALL), alive()),
        lambda: begun().next(layer(gradient_ratio=1e-8, vanishing_share=1.0, **SMALL), alive()),
    ),
    "exploding_gradient": (lambda: _norms(1.0, 2.0, 3.0, 500.0), lambda: _norms(1.0, 2.0, 3.0, 199.0)),
    "non_finite_gradient": (
        lambda: begun().next(layer(non_finite_gradients=1), alive()),
        lambda: begun().next(layer(), alive(), skipped_steps=8),
    ),
    "non_finite_weights": (
        lambda: Run().next(start(norms=each(math.nan, 1, 1, 1))),
        lambda: begun().next(layer(norms=each(math.nan, 1, 1, 1))),
    ),
    "update_too_large": (
        lambda: begun().next(layer(update_ratio=0.2)),
        lambda: begun().next(layer(update_ratio_max=0.2)),
    ),
    "update_too_small": (
        lambda: begun().next(layer(update_ratio=1e-8)),
        lambda: begun().next(layer(**ALL_OFF, update_ratio=1e-8), alive()),
    ),
    "lost_updates": (
        lambda: begun().next(layer(lost_updates=0.95, bytes_per_parameter=2)),
        lambda: begun().next(layer(lost_updates=0.95, bytes_per_parameter=2, first_learning_rate=0.01)),
    ),
    "identical_kernels": (
        lambda: Run().next(start(identical=True)),
        lambda: Run().next(start(identical=True, norms=torch.zeros(4), largest=torch.zeros(4))),
    ),
    "dead_rows": (
        lambda: begun().next(layer(**NO_ROW, rows="experts")),
        lambda: begun().next(layer(**NO_ROW)),
    ),
    "sparse_weights": (
        lambda: begun().next(layer(weight_sparsity=0.6)),
        lambda: begun().next(layer(weight_sparsity=0.4)),
    ),
}
"""Kind -> a run in which it is found, and one in which something only looks like it."""


def test_every_rule_has_a_case_in_which_it_speaks_and_one_in_which_it_is_silent() -> None:
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("rule", RULES, ids=KINDS)
def test_a_rule_finds_what_it_is_about_and_not_what_looks_like_it(rule: Rule) -> None:
    is_so, looks_so = CASES[rule.kind]
    found = [finding for finding in is_so().findings if finding.kind == rule.kind]
    assert found
    assert {finding.cause_word for finding in found} <= {cause.word for cause in rule.causes}
    assert rule.kind not in {finding.kind for finding in looks_so().findings}


@pytest.mark.parametrize("rule", RULES, ids=KINDS)
def test_a_rule_has_a_page_with_its_four_parts(rule: Rule) -> None:
    summary, *parts = re.split(r"^## ", rule.page.strip(), flags=re.MULTILINE)
    assert summary.strip().endswith(".")
    assert tuple(part.split("\n", 1)[0] for part in parts) == PARTS
    for part in parts:
        assert len(part.split("\n", 1)[1].split()) > 5
    links = re.findall(r"https://\S+", parts[-1])
    assert links
    for link in links:
        assert any(link.startswith("https://cs231n") or link in text for text in REFERENCES)


def test_kinds_and_causes_come_from_the_rules_and_are_told_apart() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert list(KINDS) == sorted(KINDS)
    assert {"decayed", "born dead", "unknown"} <= set(CAUSES)
    words = {cause.word: cause for rule in RULES for cause in rule.causes}
    assert all(words[cause.word] is cause for rule in RULES for cause in rule.causes)
    assert len({rule.title for rule in RULES}) == len(RULES)


def test_every_reference_has_a_link() -> None:
    assert all("https://" in text for text in REFERENCES)


SITUATIONS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "dead": FIRST_OFF,
    "a flat loss": NO_GRADIENT,
    "vanishing": {**SMALL, "vanishing_share": 1.0, "gradient_ratio": 1e-9, "plain_ahead": 20, "optimizer": "SGD"},
    "weak behind sigmoids": {**SMALL, "gradient_ratio": 1e-5, "bounded_ahead": 20, **TANH, "optimizer": "SGD"},
    "weak for no known reason": {**SMALL, "gradient_ratio": 1e-5, "optimizer": "SGD", "norms": torch.ones(4)},
    "starved": STARVING,
    "frozen": HELD,
    "zero": ZERO,
    "NaN": {"gradient": torch.full((4,), math.nan), "non_finite_gradients": 4},
    "reckless": {"update_ratio": 0.5, "update_ratio_max": 0.9},
}


def _calls(layers: int, channels: int, changes: dict[str, Any]) -> Counter[str]:
    """Functions that are called, in Python or C, while a window of a chain of so many layers is judged.

    Args:
        layers: how many.
        channels: of each, a multiple of four.
        changes: to a healthy layer of four channels.
    """
    names = [f"layer{place}" for place in range(layers)]
    changes = {
        of: value.repeat(channels // 4) if isinstance(value, torch.Tensor) else value for of, value in changes.items()
    }
    run = Run().next(*(start(name, channels) for name in names)).next(*(layer(name, channels) for name in names))
    observed = [
        layer(
            name,
            channels,
            **{"depth": layers - place, **changes},
            producers=tuple(names[max(0, place - 1) : place]) or None,
            consumers=tuple(Consumer(after, 4) for after in names[place + 1 : place + 2]) or None,
        )
        for place, name in enumerate(names)
    ]
    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            calls[f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_code.co_name}"] += 1
        elif event == "c_call":
            calls[getattr(arg, "__qualname__", str(arg))] += 1

    gc.disable()  # which calls what it likes
    sys.setprofile(count)
    try:
        run.next(*observed)
        assert run.problems is not None
        savings(window(run.index, *observed), list(run.layers.values()))
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


@pytest.mark.parametrize("situation", SITUATIONS)
def test_no_rule_asks_the_whole_network_anew_for_each_layer(situation: str) -> None:
    few, many = (_calls(layers, 4, SITUATIONS[situation]) for layers in (25, 100))
    grown = {name: (few[name], calls) for name, calls in many.items() if calls > 5 * max(few[name], 20)}
    assert not grown, "calls of a function, in a network of 25 layers and in one of 100"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_layer_of_100_000_outputs_takes_no_more_calls_than_a_narrow_one(situation: str) -> None:
    few, many = (_calls(3, channels, SITUATIONS[situation]) for channels in (400, 100_000))
    grown = {name: (few[name], calls) for name, calls in many.items() if calls > 2 * few[name] + 20}
    assert not grown, "calls of a function, with 400 and with 100,000 channels"
