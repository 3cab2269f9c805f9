"""Names where there is little room: short, and apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_deadkernel.figures.names import labels_of
from lightning_deadkernel.report.stages import stage_label, stages_of


def test_names_that_fit_are_left_alone() -> None:
    assert labels_of(["net.conv1", "net.fc"]) == {"net.conv1": "net.conv1", "net.fc": "net.fc"}


def test_what_all_names_begin_with_is_left_out_where_one_is_too_long() -> None:
    names = [f"model.mask.encoder.stages.{i}.block.{i}.conv" for i in range(3)]
    assert list(labels_of(names).values()) == ["0.block.0.conv", "1.block.1.conv", "2.block.2.conv"]


def test_words_are_cut_before_numbers() -> None:
    names = ["encoder.transformer.3.attention.projection", "head", "encoder.transformer.4.attention.projection"]
    labels = labels_of(names)
    assert labels["head"] == "head"
    assert labels[names[0]] != labels[names[2]]
    assert "3" in labels[names[0]]
    assert max(map(len, labels.values())) <= 24


@given(
    st.lists(st.from_regex(r"[a-z]{1,9}(\.[a-z0-9_]{1,9}){0,6}", fullmatch=True), min_size=1, max_size=30, unique=True)
)
def test_labels_always_stay_apart(names: list[str]) -> None:
    labels = labels_of(names)
    assert list(labels) == names
    assert len(set(labels.values())) == len(names)


@given(st.integers(1, 400), st.integers(4, 90))
def test_stages_hold_every_name_once_in_order_and_are_no_more_than_asked(number: int, most: int) -> None:
    names = [f"stages.{i // 17}.block.{i % 17}.conv" for i in range(number)]
    stages = stages_of(names, most)
    assert [name for stage in stages for name in stage] == names
    assert len(stages) <= most


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["conv1"], "conv1"),
        ([f"stages.2.block.{i}.conv" for i in range(20, 28)], "stages.2.block.20-27.conv"),
        (["layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1"], "layer3.0-1"),
        (["h.0.attn.c_attn", "h.0.mlp.c_fc"], "h.0"),
        (["block_0.fc", "block_1.fc"], "block_0-1.fc"),
        (["conv1", "head"], "conv1 to head"),
    ],
)
def test_a_stage_is_called_by_what_its_layers_share(names: list[str], label: str) -> None:
    assert stage_label(names) == label
