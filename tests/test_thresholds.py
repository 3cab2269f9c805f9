"""The lines the diagnosis draws: valid, named, and usable from yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest

from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.thresholds import INTERVALS, Thresholds


def test_defaults_are_those_of_the_sources() -> None:
    lines = Thresholds()
    assert (lines.dormant, lines.zero_kernel, lines.norm_scale) == (0.025, 1e-3, 1e-3)
    assert (lines.weak_gradient, lines.vanishing_gradient) == (1e-3, 1e-6)
    assert (lines.update_small, lines.update_large) == (1e-6, 1e-1)


def test_thresholds_cannot_be_changed_after_validation() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Thresholds().dormant = 0.5  # type: ignore[misc]


def test_every_threshold_has_a_rule_and_a_line_of_documentation() -> None:
    names = {field.name for field in dataclasses.fields(Thresholds)}
    assert names == set(INTERVALS)
    assert all(f"        {name}: " in (Thresholds.__doc__ or "") for name in names)


@pytest.mark.parametrize("name", sorted(INTERVALS))
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_value_outside_of_its_interval_is_refused_by_name_rule_and_value(name: str, value: float) -> None:
    with pytest.raises(ValueError) as error:
        Thresholds(**{name: value})
    assert str(error.value) == f"Expected `thresholds.{name}` to be a float in {INTERVALS[name]}, but got {value!r}."


def test_the_message_reads_as_documented() -> None:
    with pytest.raises(ValueError, match=r"^Expected `thresholds.dormant` to be a float in \[0, 1\), but got 2.0\.$"):
        Thresholds(dormant=2.0)


@pytest.mark.parametrize("value", ["0.1", None, True])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"thresholds\.rare"):
        Thresholds(rare=value)  # type: ignore[arg-type]


def test_ends_that_belong_to_an_interval_are_taken() -> None:
    assert Thresholds(dormant=0, share_of_steps=1.0).dormant == 0


@pytest.mark.parametrize(("low", "high"), [("vanishing_gradient", "weak_gradient"), ("update_small", "update_large")])
def test_a_pair_in_the_wrong_order_is_refused(low: str, high: str) -> None:
    with pytest.raises(ValueError, match=f"`thresholds.{low}` to be below `thresholds.{high}`, but got 0.2 and 0.1"):
        Thresholds(**{low: 0.2, high: 0.1})


def test_thresholds_nest_in_yaml_and_show_in_help() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--thresholds", type=Thresholds, default=Thresholds())
    parsed = parser.parse_object({"thresholds": {"dormant": 0.1, "vanishing_gradient": 1e-8}})
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    assert instantiate(parsed).thresholds == Thresholds(dormant=0.1, vanishing_gradient=1e-8)

    told = jsonargparse.ArgumentParser()
    told.add_class_arguments(Thresholds, "thresholds")
    assert "--thresholds.gini" in told.format_help()
    assert "Sokar et al. 2023" in " ".join(told.format_help().split())


@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_a_mapping_of_some_names_gives_thresholds_as_yaml_does(kind: Callable[[dict[str, float]], Any]) -> None:
    monitor = DeadKernelMonitor(thresholds=kind({"dormant": 0.1, "gini": 0.8}))
    assert monitor.thresholds == Thresholds(dormant=0.1, gini=0.8)
    with pytest.raises(TypeError, match="`thresholds` has no 'dorment'; near names: dormant"):
        DeadKernelMonitor(thresholds=kind({"dorment": 0.1}))
    with pytest.raises(ValueError, match=r"`thresholds.dormant` to be a float in \[0, 1\), but got 7"):
        DeadKernelMonitor(thresholds=kind({"dormant": 7}))
