"""What is said of a layer's kernels, against slow and obvious twins and against integer arithmetic."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.floats import DTYPES, SEEDS, generator, mixed, twin
from lightning_deadkernel.functional import kernels

MATRICES = st.tuples(st.integers(0, 5), st.integers(0, 40), st.sampled_from(DTYPES), SEEDS)


def test_dormant_scores_average_to_one_over_the_layer():
    scores = kernels.dormant_scores(torch.tensor([0.0, 1.0, 3.0, 4.0]))
    assert scores.tolist() == [0.0, 0.5, 1.5, 2.0]
    assert kernels.dormant_scores(torch.zeros(3)).tolist() == [0.0] * 3
    broken = kernels.dormant_scores(torch.tensor([1.0, math.nan, 3.0]))
    assert broken[[0, 2]].tolist() == [0.5, 1.5]
    assert bool(broken[1].isnan())


def test_gradient_ratios_compare_with_the_largest_finite_one():
    ratios = kernels.gradient_ratios(torch.tensor([2.0, 0.0, 4.0, math.inf, math.nan]))
    assert ratios[:3].tolist() == [0.5, 0.0, 1.0]
    assert ratios[3:].isnan().all()
    assert kernels.gradient_ratios(torch.zeros(2)).tolist() == [0.0, 0.0]
    rms, weights = torch.tensor([8.0, 1.0, 2.0]), torch.tensor([False, True, True])
    assert kernels.gradient_ratios(rms, weights).tolist() == [4.0, 0.5, 1.0]
    assert kernels.gradient_ratios(rms, torch.zeros(3, dtype=torch.bool)).tolist() == [1.0, 0.125, 0.25]
    assert kernels.gradient_ratios(torch.zeros(0)).shape == (0,)
    steps = torch.tensor([[8.0, 1.0, 2.0], [8.0, math.nan, math.inf], [0.0, 0.0, 0.0]])  # each by its own yardstick
    assert kernels.gradient_ratios(steps, weights)[[0, 0, 1, 2], [0, 1, 0, 0]].tolist() == [4.0, 0.5, 1.0, 0.0]


@twin
@given(MATRICES)
def test_row_norms_and_peaks_equal_those_of_numpy(case):
    count, length, dtype, seed = case
    rows = torch.randn(count, length, generator=generator(seed), dtype=torch.float64).to(dtype)
    norms, peaks = kernels.row_norms(rows), kernels.row_max(rows)
    assert norms.dtype == peaks.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for c, row in enumerate(rows.double().numpy()):
        assert float(norms[c]) == pytest.approx(math.sqrt((row**2).sum()), rel=1e-5)
        assert float(peaks[c]) == np.abs(row).max(initial=0.0)


def test_half_precision_norms_neither_overflow_nor_vanish():
    rows = torch.tensor([60000.0, 2.0**-24], dtype=torch.float16)[:, None].expand(2, 10_000)
    assert kernels.row_norms(rows).tolist() == pytest.approx([100 * float(rows[0, 0]), 100 * 2.0**-24], rel=1e-5)


def test_a_peak_is_zero_only_for_a_row_of_zeros():
    rows = torch.tensor([[0.0, -0.0], [0.0, 1e-45], [-1e-45, 0.0], [math.nan, 0.0]])
    peaks = kernels.row_max(rows)
    assert (peaks == 0).tolist() == [True, False, False, False]
    assert bool(peaks[3].isnan())


def slow_checksums(rows: Tensor) -> list[int]:
    width = rows.element_size() * 8
    state, constants = 0, []
    for _ in range(rows.shape[1]):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        constants.append((z ^ (z >> 31)) | 1)
    bits = rows.contiguous().view({16: torch.int16, 32: torch.int32, 64: torch.int64}[width]).tolist()
    if width == 64:
        bits = [[b + (b >> 32) for b in row] for row in bits]
    sums = [sum(b * odd for b, odd in zip(row, constants, strict=True)) % 2**64 for row in bits]
    return [total - 2**64 if total >= 2**63 else total for total in sums]


@twin
@given(MATRICES)
def test_checksums_equal_integer_arithmetic(case):
    count, length, dtype, seed = case
    rows = mixed((count, length), dtype, seed)
    assert kernels.checksums(rows).tolist() == slow_checksums(rows)
    assert kernels.checksums(rows.t().contiguous().t()).tolist() == slow_checksums(rows)


def test_checksums_of_rows_longer_than_a_block_cover_every_entry():
    rows = torch.zeros(2, 300_000)
    before = kernels.checksums(rows)
    for place in (0, 131_071, 131_072, 299_999):
        rows[1, place] = -0.0
        after = kernels.checksums(rows)
        assert (after == before).tolist() == [True, False]
        rows[1, place] = 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_checksums_see_what_a_plain_sum_of_bits_does_not(dtype):
    g = generator(1)
    rows = torch.randn(1, 36, generator=g, dtype=torch.float64).to(dtype)
    before = int(kernels.checksums(rows))
    seen = set()
    for i, j in itertools.combinations(range(36), 2):
        swapped, flipped, moved = rows.clone(), rows.clone(), rows.clone()
        swapped[0, [i, j]] = rows[0, [j, i]]
        flipped[0, [i, j]] *= -1
        bits = moved.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()])
        bits[0, i] += 1
        bits[0, j] -= 1
        seen |= {int(kernels.checksums(changed)) for changed in (swapped, flipped, moved)}
    # 1890 changes, none of which may collide with the row itself and none with another: chance below 1e-9
    assert before not in seen
    assert len(seen) == 3 * 36 * 35 // 2


def test_nothing_global_is_touched():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    kernels._odd_constants.cache_clear()
    weights = torch.nn.Parameter(torch.ones(3, 17))
    outputs = [kernels.checksums(weights), kernels.row_norms(weights), kernels.row_max(weights)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(output.requires_grad for output in outputs)
    assert torch.equal(weights, torch.ones(3, 17))


def test_what_is_made_of_rows_is_the_same_for_matrices_together_and_alone():
    g = generator(3)
    shapes = [(5, 4), (2, 7), (3, 4), (0, 4), (kernels.SMALL // 4 + 1, 4)]
    matrices = [torch.randn(shape, generator=g) for shape in shapes] + [torch.randn(6, 4, generator=g).double()]
    calls = []

    def counted(rows):
        calls.append(rows.shape)
        return kernels.checksums(rows)

    for matrix, found in zip(matrices, kernels.by_rows(counted, matrices), strict=True):
        assert torch.equal(found, kernels.checksums(matrix))
    assert sorted(calls) == sorted([(8, 4), (2, 7), (6, 4), shapes[4]]), "small ones of a width at once"
    assert kernels.by_rows(counted, []) == []
