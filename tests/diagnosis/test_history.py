"""What is kept of the past: enough for the causes, bounded, and back after a checkpoint."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from helpers.windows import Run, each, layer, start, window
from lightning_deadkernel.diagnosis.diagnose import diagnose
from lightning_deadkernel.diagnosis.history import BASELINE_WINDOWS, History
from lightning_deadkernel.diagnosis.layer_past import NEVER
from lightning_deadkernel.observation import AdamState
from lightning_deadkernel.thresholds import Thresholds

ADAM = AdamState(steady=0.25, beta1=0.9, beta2=0.999, epsilon=1e-8)
OFF: dict[str, Any] = {
    "fired": each(False, True, True, True),
    "gradient": each(0.0, 1, 1, 1),
    "weight_gradient": each(0.0, 1, 1, 1),
}


def reload(history: History) -> History:
    file = io.BytesIO()
    torch.save(history.state_dict(), file)
    file.seek(0)
    copy = History()
    copy.load_state_dict(torch.load(file, weights_only=True))
    return copy


def test_the_last_window_that_fired_and_that_had_a_gradient_are_remembered() -> None:
    run = Run().next(start()).next(layer()).next(layer()).next(layer(**OFF)).next(layer(**OFF))
    past = run.history.layers["conv"]
    assert past.last_fired.tolist() == [2, 4, 4, 4]
    assert past.last_gradient.tolist() == [2, 4, 4, 4]
    assert past.since.tolist() == [3, 0, 0, 0]


def test_the_norm_is_remembered_from_initialisation_and_from_when_the_gradient_stopped() -> None:
    run = Run().next(start(norms=each(1.0, 1, 1, 1)))
    run.next(layer(norms=each(0.8, 1, 1, 1))).next(layer(norms=each(0.3, 1, 1, 1), **OFF))
    past = run.history.layers["conv"]
    assert past.first_norm.tolist() == pytest.approx([1, 1, 1, 1])
    assert past.stop_norm.tolist() == pytest.approx([0.8, 1, 1, 1])


def test_the_update_ratio_of_the_window_after_the_last_firing_counts_too() -> None:
    run = Run().next(start()).next(layer(update_ratio_max=0.01))
    run.next(layer(update_ratio_max=0.7, **OFF)).next(layer(update_ratio_max=5.0, **OFF))
    assert run.history.layers["conv"].reckless.tolist() == pytest.approx([0.7, 5, 5, 5])


def test_a_reckless_producer_counts_as_much_as_the_layer_itself() -> None:
    fed: dict[str, Any] = {"name": "fc", "producers": ("conv",)}
    run = Run().next(start(), start(**fed)).next(layer(update_ratio_max=0.9), layer(**fed))
    assert run.history.layers["fc"].reckless.tolist() == pytest.approx([0.9] * 4)


def test_a_step_far_above_its_steady_size_counts_in_the_window_after_the_last_firing_too() -> None:
    large: dict[str, Any] = {"adam": ADAM, "step_over_rate_max": 3.0, "update_ratio_max": 0.05}
    fed: dict[str, Any] = {"name": "fc", "producers": ("conv",)}
    run = Run().next(start(), start(**fed)).next(layer(), layer(**fed))
    run.next(layer(**large, **OFF), layer(**fed, **OFF)).next(layer(**OFF), layer(**fed, **OFF))
    for name in ("conv", "fc"):
        assert run.history.layers[name].slung.tolist() == pytest.approx([3.0 / ADAM.steady, 0, 0, 0])


def test_a_history_from_before_adams_steps_were_measured_is_read() -> None:
    run = Run().next(start()).next(layer())
    state = run.history.state_dict()
    del state["layers"]["conv"]["slung"]
    later = History()
    later.load_state_dict(state)
    assert later.layers["conv"].slung.tolist() == [0.0] * 4


def test_a_penalty_does_not_pass_for_a_gradient_once_the_channel_is_dead() -> None:
    priced = {"penalised": True, "penalty_seen": True}
    run = Run().next(start()).next(layer(**priced)).next(layer(**priced, fired=OFF["fired"]))
    assert run.history.layers["conv"].last_gradient.tolist() == [1, 2, 2, 2]


def test_what_was_not_observed_is_not_remembered_as_seen() -> None:
    past = Run().next(start(norms=None)).history.layers["conv"]
    assert past.last_fired.tolist() == past.last_gradient.tolist() == [NEVER] * 4
    assert past.first_norm.isnan().all()


def test_a_layer_may_appear_late_and_does_not_count_as_seen_at_initialisation() -> None:
    run = Run().next(start()).next(layer()).next(layer(), layer("late"))
    assert (run.history.layers["late"].first_window, run.history.layers["late"].first_step) == (2, 40)


def test_an_excluded_layer_leaves_its_past_untouched() -> None:
    run = Run().next(start()).next(layer()).next(layer(excluded="requires_grad=False"))
    assert run.history.layers["conv"].last_fired.tolist() == [1] * 4


def test_the_state_holds_plain_things_alone_and_reads_back_equal() -> None:
    run = Run().next(start()).next(layer()).next(layer(norm_scale=each(1.0, 0.5, 0, 2), **OFF))

    def plain(value: object) -> bool:
        if type(value) is dict:
            return all(type(key) is str and plain(item) for key, item in value.items())
        if type(value) is list:
            return all(plain(item) for item in value)
        return type(value) in (str, int, bool, float, torch.Tensor)

    state = run.history.state_dict()
    assert plain(state)
    again = reload(run.history).state_dict()
    assert list(again["layers"]) == ["conv"]
    for key, value in state["layers"]["conv"].items():
        other = again["layers"]["conv"][key]
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(value), equal_nan=True, rtol=0, atol=0)
    assert again["gradient_norms"] == state["gradient_norms"] == [1.0, 1.0]


def test_a_resumed_history_gives_the_same_findings_as_an_unbroken_one() -> None:
    run = Run().next(start()).next(layer(update_ratio_max=0.5))
    resumed = reload(run.history)
    run.next(layer(**OFF))
    layers, findings = diagnose(window(2, layer(**OFF)), resumed, Thresholds())
    assert findings == run.findings
    assert findings[0].cause_word == "knocked out"
    assert layers[0].codes == run.report().codes


def test_a_state_is_a_copy_that_later_windows_leave_alone() -> None:
    run = Run().next(start()).next(layer())
    state = run.history.state_dict()
    run.next(layer())
    assert state["layers"]["conv"]["last_fired"].tolist() == [1] * 4


def test_layers_that_changed_shape_are_dropped_and_named_and_those_that_went_are_with_the_next_window() -> None:
    run = Run().next(start("same"), start("wider"), start("gone"))
    assert run.history.restrict({"same": 4, "wider": 8, "new": 3}) == ["wider"]
    assert list(run.history.layers) == ["same", "gone"]
    run.next(layer(name="same"), layer(name="new"))
    assert list(run.history.layers) == ["same", "new"]


def test_a_layer_that_has_another_name_keeps_its_past_under_it() -> None:
    run = Run().next(start("one"), start("two"), start("three")).next(layer(name="one"), layer(name="two"))
    past = run.history.layers["one"]
    run.history.follow({"one": "two", "two": "far"})
    assert list(run.history.layers) == ["two", "far"]
    assert run.history.layers["two"] is past


def test_a_history_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a history of version 1, but got version 7"):
        History().load_state_dict({"version": 7})


def test_a_damaged_history_is_refused_by_the_layer_name() -> None:
    state = Run().next(start()).history.state_dict()
    del state["layers"]["conv"]["since"]
    with pytest.raises(ValueError, match="'conv' to be complete, but these differ: since"):
        History().load_state_dict(state)
    state = Run().next(start()).history.state_dict()
    state["layers"]["conv"]["since"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"one value per channel of layer 'conv', but got lengths \[3, 4\]"):
        History().load_state_dict(state)


def test_memory_is_bounded_by_the_channels_and_not_by_the_windows() -> None:
    resnet50 = [("conv", 26_560)]  # all convolutions of a ResNet-50 have 26 560 channels
    run = Run().next(*(start(name, count) for name, count in resnet50))

    def size() -> int:
        file = io.BytesIO()
        torch.save(run.history.state_dict(), file)
        return file.tell()

    run.next(*(layer(name, count) for name, count in resnet50))
    after_one = size()
    for _ in range(BASELINE_WINDOWS + 4):
        run.next(*(layer(name, count) for name, count in resnet50))
    assert after_one < 2_000_000
    assert size() < after_one + 1_000


def test_a_gradient_is_missing_only_where_all_sources_say_so() -> None:
    nan = float("nan")
    seen = layer(gradient=each(0.0, 1, 0, nan), weight_gradient=each(0.0, 0, 1, 0))
    some, none = seen.gradient_seen
    assert (some.tolist(), none.tolist()) == ([False, True, True, False], [True, False, False, False])
    some, none = layer(gradient=None).gradient_seen
    assert not some.any()
    assert not none.any()


def test_a_report_says_of_each_channel_since_which_window_it_is_what_it_is() -> None:
    history, layers = History(), ()
    for index, observed in enumerate([start(), layer(), layer(**OFF), layer(**OFF), layer()]):
        layers, _ = diagnose(window(index, observed), history, Thresholds())
    assert layers[0].values is not None
    assert layers[0].values.since == [4, 0, 0, 0]
