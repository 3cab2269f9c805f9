"""The flat buffer that steps write to, against taking every step into the maxima at once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.floats import DTYPES, SEEDS, mixed, twin
from lightning_deadkernel.evidence.buffers import CHECK, PAGES, PendingChannels, StepBuffer, marks


@twin
@given(
    SEEDS,
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 2 * PAGES + 3),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_pages_hold_what_every_step_would_have_given(seed, sizes, steps, dtype, magnitudes):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    buffer = StepBuffer(sum(sizes), wide, torch.device("cpu"))
    largest, *nonfinite = torch.zeros(3, sum(sizes), dtype=wide)
    known = (nonfinite[0], nonfinite[1]) if magnitudes else None
    expected, count, first = torch.zeros(3, sum(sizes), dtype=wide)
    for step in range(steps):
        values = mixed((sum(sizes),), dtype, seed + step)
        if buffer.append(list(values.split(sizes))):
            buffer.flush(largest, known, step + 1)
        values = values.to(wide).abs() if magnitudes else values.to(wide)
        for place, value in enumerate(values.tolist()):
            if math.isfinite(value):
                expected[place] = max(expected[place], value)
            else:
                count[place] += 1
                first[place] = first[place] or marks(step)
    buffer.flush(largest, known, steps)
    buffer.flush(largest, known, steps)  # nothing is counted twice, and nothing is left
    assert torch.equal(largest, expected)
    if magnitudes:
        assert torch.equal(nonfinite[0], count)
        assert torch.equal(nonfinite[1], first)


def test_gradients_that_are_part_of_a_graph_are_noted_and_left_in_it():
    buffer, largest = StepBuffer(2, torch.float32, torch.device("cpu")), torch.zeros(2)
    gradient = torch.tensor([1.0, -2.0], requires_grad=True) * 1
    buffer.append([gradient])
    buffer.flush(largest, (torch.zeros(2), torch.zeros(2)), 1)
    assert largest.tolist() == [1.0, 2.0]
    assert gradient.requires_grad


@pytest.mark.parametrize("size", [1, 3, 3 * PAGES])
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_a_part_that_has_changed_its_shape_is_an_error(size):
    buffer = StepBuffer(2, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=f"Expected 2 values, but got {size}"):
        buffer.append([torch.zeros(size)])


def test_reads_are_counted_at_powers_of_two_and_then_regularly():
    channels: PendingChannels[str] = PendingChannels()
    channels.clear(["a"])
    counted = [read for read in range(1, 4 * CHECK + 1) if channels.is_count_due()]
    assert counted == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    channels.clear(["a"])
    assert channels.is_count_due()


def test_a_part_is_no_longer_pending_once_nothing_of_it_is_unseen():
    channels: PendingChannels[str] = PendingChannels()
    channels.clear(["a", "b"])
    channels.append({"a": torch.zeros(3, dtype=torch.bool), "b": torch.tensor([False, True, True])})
    channels.poll()
    assert list(channels.parts) == ["b"]
    assert channels.left("b", torch.device("cpu")).tolist() == [1, 2]
