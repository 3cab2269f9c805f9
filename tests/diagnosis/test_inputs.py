"""What enters the network is measured, and is the cause of what is found where it is off scale, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.stories import small
from helpers.tiny_nets import Net, rows
from helpers.windows import ALL_OFF, FIRST_OFF, Run, each, layer, start
from lightning_deadkernel.diagnosis.inputs import is_large, is_next_to_zero, is_off_centre
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.functional import kernels
from lightning_deadkernel.functional.kernels import offset_and_spread
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader
from lightning_deadkernel.observation import Entering
from lightning_deadkernel.report.records import Finding

SGD: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 0.1}
ADAM: dict[str, Any] = {"optimizer": "Adam", "learning_rate": 1e-3}
CONSTANT: dict[str, Any] = {"channel_firing_rate": each(0.0, 1, 1, 1), "shift": torch.ones(4)}
LARGE, SMALL, OFF = Entering(33.0, 78.0), Entering(0.0005, 0.001), Entering(100.0, 2.0)


# -- what is measured ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.integers(-4, 3),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_offset_and_spread_are_those_of_each_feature_by_itself(
    shape: list[int], features: int, dtype: torch.dtype
) -> None:
    features %= len(shape)
    data = (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 3 + 1).to(dtype)
    each_one = [list(map(float, part.flatten())) for part in data.double().unbind(features)]
    means = [sum(one) / len(one) for one in each_one]
    variances = [
        sum((value - mean) ** 2 for value in one) / len(one) for one, mean in zip(each_one, means, strict=True)
    ]
    expected = [(sum(m * m for m in means) / len(means)) ** 0.5, (sum(variances) / len(means)) ** 0.5]
    assert offset_and_spread(data, features).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("features", [1, -1])
def test_of_much_data_a_part_is_enough(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ENOUGH", 100)
    data = torch.randn(40, 5, 6) + 2
    assert torch.equal(offset_and_spread(data, features), offset_and_spread(data[:4], features))


@pytest.mark.parametrize(("samples", "told"), [(1, False), (3, False), (4, True)])
def test_of_a_few_samples_no_spread_is_told(samples: int, told: bool) -> None:
    net = Net(lambda net, x: net.head(F.relu(net.fc(x))), fc=nn.Linear(5, 8), head=nn.Linear(8, 2))
    observer = Observer(net, LayerTable.of(net, None, None))
    observer.before_backward(net.train().training_step([rows(samples, 5)], 0), sampled=True)
    assert set(observer.window.entering) == ({"fc"} if told else set())


def measured(net: Net, x: Tensor) -> dict[str, list[float]]:
    """Offset and spread of what enters each layer that data enters, in one step."""
    reader = GraphReader(LayerTable.of(net, None, None))
    nodes, found, _ = reader.read(net.train().training_step([x], 0).grad_fn)
    return {
        name: offset_and_spread(getattr(nodes[place], f"_saved_{saved}"), features).tolist()
        for name, (place, saved, features) in found.entrances.items()
    }


def test_data_is_measured_where_it_enters_and_activations_are_not() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.fc(F.relu(net.conv(x))))).mean((2, 3)),
        conv=nn.Conv2d(3, 8, 3),
        fc=nn.Conv2d(8, 8, 1),
        head=nn.Conv2d(8, 2, 1),
    )
    x = torch.randn(4, 3, 8, 8) * 5 + torch.tensor([2.0, -3, 1]).view(3, 1, 1)
    means, variances = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    expected = [float(means.square().mean().sqrt()), float(variances.mean().sqrt())]
    assert measured(net, x) == {"conv": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("how", ["linear", "on the right", "needs a gradient", "of three axes"])
def test_features_are_found_whatever_the_form_of_the_product(how: str) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        if how == "on the right":
            return net.head(F.relu(net.fc.weight @ x.T).T)
        if how == "of three axes":
            return net.head(F.relu(net.fc(x.view(2, 4, 5)))).flatten(0, 1)
        return net.head(F.relu(net.fc(x.requires_grad_() if how == "needs a gradient" else x)))

    net = Net(forward, fc=nn.Linear(5, 8, bias=how != "on the right"), head=nn.Linear(8, 2))
    x = torch.zeros(8, 5) + torch.tensor([1.0, 2, 3, 4, 5])
    assert measured(net, x) == {"fc": pytest.approx([11**0.5, 0.0], abs=1e-6)}


@pytest.mark.parametrize("how", ["both", "norm", "embedding"])
def test_what_is_not_data_alone_is_not_measured(how: str) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        if how == "norm":
            return net.head(F.relu(net.fc(net.norm(x))))
        if how == "embedding":
            return net.head(F.relu(net.fc(net.table(torch.arange(8)))))
        return net.head(F.relu(net.fc(F.relu(net.fc(x)))))

    net = Net(forward, fc=nn.Linear(5, 5), norm=nn.BatchNorm1d(5), table=nn.Embedding(8, 5), head=nn.Linear(5, 2))
    assert not measured(net, rows(8, 5))


def test_the_lines_are_where_words_say() -> None:
    assert is_next_to_zero(SMALL)
    assert is_large(LARGE)
    assert is_off_centre(OFF)
    usual = [Entering(0.0, 1.0), Entering(0.13, 0.31), Entering(0.45, 0.25), Entering(2.0, 1.0), Entering(0.0, 9.0)]
    assert not any(holds(data) for data in usual for holds in (is_next_to_zero, is_large, is_off_centre))
    unknown = [Entering(float("nan"), 1.0), Entering(float("inf"), float("nan")), Entering(float("inf"), 1.0)]
    assert not any(holds(data) for data in unknown for holds in (is_next_to_zero, is_large, is_off_centre))


# -- what is said of it ----------------------------------------------------------------------------------------------


def knocked(entering: Entering | None, **settings: Any) -> Finding:
    fired = layer(update_ratio_max=0.8, entering=entering, **settings)
    run = Run().next(start()).next(fired).next(layer(**FIRST_OFF, entering=entering, **settings))
    return run.only("dead_channels")


def test_a_step_was_reckless_for_large_data_under_an_optimizer_whose_steps_grow_with_gradients() -> None:
    finding = knocked(LARGE, **SGD)
    assert finding.cause_word == "off-scale inputs"
    assert "changed the weights by 0.8" in finding.cause
    assert "conv (data, or what is frozen or detached) is large (its rms is 84.7" in finding.cause
    assert finding.advice.startswith("Scale what enters")
    assert finding.evidence["input_rms"] == pytest.approx((33**2 + 78**2) ** 0.5)
    assert knocked(LARGE, **ADAM).cause_word == "knocked out"
    assert knocked(Entering(0.0, 1.0), **SGD).cause_word == "knocked out"
    assert knocked(None, **SGD).cause_word == "knocked out"


@pytest.mark.parametrize(
    ("between", "word"),
    [
        ({}, "off-scale inputs"),
        ({"norm_scale": torch.ones(4)}, "knocked out"),
        ({"shared_statistics": True}, "knocked out"),
    ],
)
def test_what_enters_reaches_later_layers_but_for_a_norm_in_between(between: dict[str, Any], word: str) -> None:
    first = layer("first", entering=LARGE, depth=3, **between, **SGD)
    later: dict[str, Any] = {"producers": ("first",), **SGD}
    run = Run().next(start("first"), start()).next(first, layer(update_ratio_max=0.8, **later))
    run.next(first, layer(**FIRST_OFF, **later))
    assert run.only("dead_channels").cause_word == word


def test_other_inputs_beside_the_data_leave_the_cause_open() -> None:
    first, other = layer("first", entering=LARGE, depth=3, **SGD), layer("other", depth=3, **SGD)
    later: dict[str, Any] = {"producers": ("first", "other"), **SGD}
    run = Run().next(start("first"), start("other"), start()).next(first, other, layer(update_ratio_max=0.8, **later))
    run.next(first, other, layer(**FIRST_OFF, **later))
    assert run.only("dead_channels").cause_word == "knocked out"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (SMALL, "next to zero (its rms is 0.00112, where about 1 is usual), so that biases alone decide"),
        (
            OFF,
            "far from zero and varies little (means of 100, standard deviations of 2, rms over its features), so that",
        ),
    ],
)
def test_kernels_are_born_dead_where_the_data_makes_no_difference(data: Entering, words: str) -> None:
    dead = layer(**FIRST_OFF | CONSTANT, entering=data)
    finding = Run().next(start()).next(dead, batches=20).only("dead_channels")
    assert finding.cause_word == "off-scale inputs"
    assert words in finding.cause
    assert finding.severity == "warning"  # by no chance


def test_a_network_whose_later_layer_is_wholly_dead_is_told_the_data_is_small() -> None:
    first = layer("first", entering=SMALL, **FIRST_OFF | CONSTANT)
    later = layer(**ALL_OFF, producers=("first",))
    run = Run().next(start("first"), start()).next(first, later, batches=20)
    assert {finding.cause_word for finding in run.findings if finding.layer == "first"} == {"off-scale inputs"}


@pytest.mark.parametrize(
    ("data", "rate", "word"),
    [
        (Entering(100.0, 2.0), 0.5, "off-scale inputs"),
        (Entering(100.0, 25.0), 0.5, "born dead"),
        (Entering(100.0, 25.0), 1.0, "off-scale inputs"),
        (Entering(10.0, 5.0), 1.0, "born dead"),
    ],
)
def test_data_off_centre_is_to_blame_by_itself_or_with_what_the_layer_shows(
    data: Entering, rate: float, word: str
) -> None:
    dead = layer(**FIRST_OFF, channel_firing_rate=each(0.0, rate, rate, rate), entering=data)
    assert Run().next(start()).next(dead).only("dead_channels").cause_word == word


@pytest.mark.parametrize(
    ("data", "weak", "word"),
    [
        (SMALL, True, "off-scale inputs"),
        (Entering(0.1, 0.3), True, "depth"),
        (Entering(0.0, 0.05), False, "depth"),  # twenty times as much were not enough
        (None, True, "depth"),
    ],
)
def test_a_gradient_is_small_for_small_data_where_data_of_unit_size_would_mend_it(
    data: Entering | None, weak: bool, word: str
) -> None:
    run = small(weak=weak, plain_ahead=4, entering=data)
    assert run.only("weak_gradient" if weak else "vanishing_gradient").cause_word == word


@pytest.mark.parametrize(
    ("data", "settings", "word"),
    [(SMALL, SGD, "off-scale inputs"), (SMALL, ADAM, "slow updates"), (Entering(0.1, 0.3), SGD, "slow updates")],
)
def test_steps_are_small_for_small_data(data: Entering, settings: dict[str, Any], word: str) -> None:
    slow = layer(update_ratio=1e-7, update_ratio_max=1e-7, entering=data, **settings)
    run = Run().next(start()).next(slow).next(slow)
    assert run.only("update_too_small").cause_word == word


@pytest.mark.parametrize(
    ("data", "settings", "word"), [(LARGE, SGD, "off-scale inputs"), (LARGE, ADAM, "reckless updates")]
)
def test_steps_are_large_for_large_data(data: Entering, settings: dict[str, Any], word: str) -> None:
    fast = layer(update_ratio=0.3, update_ratio_max=0.3, entering=data, **settings)
    run = Run().next(start()).next(fast).next(fast)
    assert run.only("update_too_large").cause_word == word


@pytest.mark.parametrize(
    ("data", "advice", "told"),
    [
        (LARGE, "Scale what enters", "its rms is 84.7"),
        (OFF, "Scale what enters", "its rms is 100"),
        (Entering(0.0, 1.0), "Put a norm", ""),
        (None, "Scale the network's inputs", ""),
    ],
)
def test_to_scale_the_inputs_is_advised_where_they_are_large_or_not_known(
    data: Entering | None, advice: str, told: str
) -> None:
    flat = layer(activation="tanh", gating="bounded", saturated_share=torch.ones(4), entering=data)
    finding = Run().next(start()).next(flat).only("saturated_channels")
    assert finding.advice.startswith(advice)
    assert told in finding.cause
