"""Float-bit histograms against counting between edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.floats import DTYPES, SEEDS, generator, mixed, tiny, twin
from lightning_deadkernel.functional import histograms


@twin
@given(st.integers(0, 300), st.sampled_from(DTYPES), SEEDS)
def test_bit_histogram_and_buckets_equal_counting_between_edges(count, dtype, seed):
    g = generator(seed)
    scale = 10.0 ** torch.randint(-6, 6, (count,), generator=g)
    x = mixed((count,), dtype, seed) * scale.to(dtype)
    counts = histograms.bit_histogram(x)
    assert counts.shape == (1024,)
    assert int(counts.sum()) == count
    values = x.float().double().numpy()
    low, limits, buckets, left_out = histograms.to_edges(counts)
    assert left_out == int((~np.isfinite(values)).sum())
    assert sum(buckets) == count - left_out
    edges = [low, *limits]
    assert edges[: len(limits) + 1] == sorted(edges)
    for left, right, bucket in zip(edges, limits, buckets, strict=False):
        if left < 0 < right:
            inside = (left < values) & (values < right)
        else:
            inside = (left <= values) & (values < right) if left > 0 else (left < values) & (values <= right)
        assert bucket == int(inside.sum())
    if buckets:
        assert buckets[0]
        assert buckets[-1]


def test_edges_are_half_octaves_with_one_bin_for_zeros_and_denormals():
    edges = histograms.histogram_edges()
    assert len(edges) == 1018
    assert list(edges) == sorted(set(edges))
    assert list(edges) == [-edge for edge in reversed(edges)]
    assert edges[508:510] == (-(2.0**-126), 2.0**-126)
    assert {2.0**-3, 1.5 * 2.0**-3, 1.0, 1.5} <= set(edges)
    assert edges[-1] == 2.0**128


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_both_signs_and_denormals_share_a_bin(dtype):
    x = torch.tensor([0.0, -0.0, 1.0], dtype=dtype)
    if dtype != torch.float16:  # float16's denormals are normal numbers of float32
        x = torch.cat([x, torch.tensor([tiny(dtype), -tiny(dtype)], dtype=dtype)])
    low, limits, counts, _ = histograms.to_edges(histograms.bit_histogram(x))
    assert (low, limits[0], counts[0]) == (-(2.0**-126), 2.0**-126, len(x) - 1)
    assert (limits[-1], counts[-1]) == (1.5, 1)


def test_float64_narrows_to_infinity_and_to_zero():
    low, _, counts, left_out = histograms.to_edges(
        histograms.bit_histogram(torch.tensor([1e300, 1e-300], dtype=torch.float64))
    )
    assert (low, counts, left_out) == (-(2.0**-126), [1], 1)


@twin
@given(SEEDS, st.integers(1, 400))
def test_quantiles_are_right_within_their_half_octave(seed, count):
    values = torch.randn(count, generator=generator(seed))
    q = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    found = histograms.histogram_quantiles(histograms.bit_histogram(values), q)
    exact = np.quantile(values.numpy(), q, method="inverted_cdf")
    assert found == sorted(found)
    for approximate, value in zip(found, exact, strict=True):
        assert abs(approximate - value) <= 0.5 * abs(value)
    assert all(
        math.isnan(value) for value in histograms.histogram_quantiles(torch.zeros(1024, dtype=torch.int64), [0.5])
    )


def test_histograms_of_several_tensors_are_those_of_each():
    sizes = [3, 0, histograms.FEW, histograms.FEW + 1, 1, *[2] * (2 * histograms.TOGETHER)]
    parts = [mixed((size, 2), torch.float32, seed)[:, 0] for seed, size in enumerate(sizes)]
    parts[4] = torch.tensor(math.nan).bfloat16()
    for part, counts in zip(parts, histograms.bit_histograms(parts), strict=True):
        assert torch.equal(counts, histograms.bit_histogram(part))
    assert histograms.bit_histograms([]) == []
