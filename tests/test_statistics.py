"""Every statistic against a slow and obvious twin, and against answers known in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_deadkernel import statistics as stats
from lightning_deadkernel.statistics import ChannelAxis

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0]
SEEDS = st.integers(0, 2**31)
twin = settings(max_examples=60, deadline=None, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(dtype: torch.dtype) -> float:
    """Smallest denormal."""
    return {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149, torch.float64: 5e-324}[dtype]


def mixed(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Gaussian values, a third of them replaced by zeros of both signs, infinities, NaNs and denormals."""
    g = generator(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    special = torch.tensor([*SPECIAL, tiny(dtype), -tiny(dtype)], dtype=dtype)
    drawn = special[torch.randint(len(special), shape, generator=g)]
    # per channel of dimension 1 or not at all, so that channels without any positive value are common
    negative = torch.where(torch.rand(shape, generator=g) < 0.5, -x.abs(), -0.0)
    x = torch.where(torch.rand((1, *shape[1:2], *[1] * (len(shape) - 2)), generator=g) < 0.4, negative.to(dtype), x)
    return torch.where(torch.rand(shape, generator=g) < 0.03, drawn, x)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "cropped":
        wide = torch.full([n + 1 for n in x.shape], math.nan, dtype=x.dtype)
        cropped = wide[tuple(slice(n) for n in x.shape)]
        return cropped.copy_(x)
    if layout == "expanded":
        return x[:1].expand(x.shape) if len(x) else x
    return x


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, ChannelAxis]:
    """An activation in any layout, and where its channels run."""
    dtype = draw(st.sampled_from(DTYPES))
    dims = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    if draw(st.booleans()):
        dims[0] *= 8  # enough samples for the form that reduces over them first
    axis = draw(st.integers(-len(dims), len(dims) - 1))
    size = draw(st.integers(1, 5))
    outer, inner = draw(st.sampled_from([(1, 1), (1, 1), (3, 1), (1, 4), (2, 3)]))
    dims[axis] = outer * size * inner
    if draw(st.integers(0, 9)) == 0 and len(dims) > 1:
        dims[(axis + 1) % len(dims)] = 0
    x = mixed(tuple(dims), dtype, draw(SEEDS))
    layouts = ["contiguous", "channels_last", "transposed", "strided", "cropped", "expanded"]
    layout = draw(st.sampled_from(layouts))
    if layout == "expanded" and axis % len(dims) == 0:
        layout = "contiguous"
    return lay_out(x, layout), ChannelAxis(axis, size, outer, inner)


def by_channel(x: Tensor, at: ChannelAxis) -> list[np.ndarray]:
    """All entries of each channel, picked one index at a time."""
    last = x.movedim(at.axis, -1)
    picked = []
    for c in range(at.size):
        indices = [(o * at.size + c) * at.inner + i for o in range(at.outer) for i in range(at.inner)]
        picked.append(np.concatenate([last[..., j].reshape(-1).double().numpy() for j in indices]))
    return picked


# -- firing ---------------------------------------------------------------------------------------------------------


@twin
@given(activations())
def test_peak_bits_tell_what_fired_as_comparing_every_entry_does(case):
    x, at = case
    bits = stats.peak_bits(x, at)
    fired = stats.is_fired(bits, x.dtype)
    non_finite = stats.is_non_finite(bits, x.dtype)
    assert bits.shape == (at.size,)
    assert bits.element_size() == x.element_size()
    for c, values in enumerate(by_channel(x, at)):
        has_nan = bool(np.isnan(values).any())  # torch's NaN constant is positive, so it is always seen
        assert bool(non_finite[c]) == has_nan
        assert bool(fired[c]) == (not has_nan and bool((values > 0).any()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_strictly_positive_values_count_as_fired(dtype):
    values = [0.0, -0.0, -1.0, -math.inf, -tiny(dtype), math.nan, tiny(dtype), 1.0, math.inf]
    bits = stats.peak_bits(torch.tensor([values], dtype=dtype), ChannelAxis(1, len(values)))
    assert stats.is_fired(bits, dtype).tolist() == [False] * 6 + [True] * 3
    assert stats.is_non_finite(bits, dtype).tolist() == [False] * 5 + [True] + [False] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_negative_nan_never_fires_and_hides_no_positive_value(dtype):
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    negative_nan = torch.tensor(-1, dtype=signed).view(dtype)
    batch = torch.stack([torch.full((4,), -2.0, dtype=dtype), torch.tensor([3.0, -0.0, -math.inf, 0.0], dtype=dtype)])
    batch[0, :] = negative_nan
    bits = stats.peak_bits(batch, ChannelAxis(1, 4))
    assert stats.is_fired(bits, dtype).tolist() == [True, False, False, False]
    assert stats.is_non_finite(bits, dtype).tolist() == [False, True, True, False]


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)])
def test_an_empty_batch_is_no_evidence(shape):
    at = ChannelAxis(1, 3)
    x = torch.empty(shape)
    bits = stats.peak_bits(x, at)
    assert bits.tolist() == [-(2**31)] * 3
    assert not stats.is_fired(bits, x.dtype).any()
    assert not stats.is_non_finite(bits, x.dtype).any()
    assert [part.tolist() for part in stats.firing(x, at)] == [[0] * 3] * 3
    assert stats.beyond(x, at, -1, 1).tolist() == [0] * 3


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("samples", [1, 5, 64])
def test_few_channels_last_read_every_row(channels, samples):
    x = -torch.rand(samples, channels, 7, 5, generator=generator(0)).contiguous(memory_format=torch.channels_last)
    for sample, channel in itertools.product({0, samples // 2, samples - 1}, range(channels)):
        x[sample, channel, 6, 4] = 0.5
        fired = stats.is_fired(stats.peak_bits(x, ChannelAxis(1, channels)), x.dtype)
        assert fired.tolist() == [c == channel for c in range(channels)]
        x[sample, channel, 6, 4] = -0.5


def test_dtypes_and_axes_that_cannot_be_read_are_named():
    with pytest.raises(TypeError, match=r"torch\.int64"):
        stats.peak_bits(torch.zeros(2, 3, dtype=torch.int64), ChannelAxis(1, 3))
    with pytest.raises(ValueError, match="1 \\* 4 \\* 1 entries along dimension 1"):
        stats.peak_bits(torch.zeros(2, 3), ChannelAxis(1, 4))


def check_firing(x: Tensor, at: ChannelAxis) -> None:
    positive, total, zeros = stats.firing(x, at)
    assert (positive.dtype, total.dtype, zeros.dtype) == (torch.int64, torch.float64, torch.int64)
    for c, values in enumerate(by_channel(x, at)):
        assert int(positive[c]) == int((values > 0).sum())
        assert int(zeros[c]) == int((values == 0).sum())
        assert float(total[c]) == pytest.approx(np.abs(values[np.isfinite(values)]).sum(), rel=1e-5, abs=1e-30)


@twin
@given(activations())
def test_firing_counts_and_sums_equal_those_of_every_entry(case):
    check_firing(*case)


@twin
@given(activations(), st.booleans(), st.sampled_from([(-1.0, 1.0), (0.0, math.inf), (-0.5, 0.0), (-math.inf, 1.0)]))
def test_beyond_counts_entries_outside_the_bounds(case, inclusive, bounds):
    (x, at), (low, high) = case, bounds
    counts = stats.beyond(x, at, low, high, inclusive=inclusive)
    for c, v in enumerate(by_channel(x, at)):
        outside = (v <= low) | (v >= high) if inclusive else (v < low) | (v > high)
        assert int(counts[c]) == int(outside.sum())


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 150, 200), 1), ((2, 2, 400, 400), 1), ((40, 70, 60), 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_firing_is_the_same_over_inputs_of_many_blocks(shape, axis, dtype):
    check_firing(mixed(shape, dtype, 3), ChannelAxis(axis, shape[axis]))


def test_sums_of_large_half_precision_activations_do_not_overflow():
    h = torch.full((64, 2, 32, 32), 60000.0, dtype=torch.float16)
    assert stats.firing(h, ChannelAxis(1, 2))[1].tolist() == pytest.approx([float(h[0, 0, 0, 0]) * 65536] * 2)


def test_dormant_scores_average_to_one_over_the_layer():
    scores = stats.dormant_scores(torch.tensor([0.0, 1.0, 3.0, 4.0]))
    assert scores.tolist() == [0.0, 0.5, 1.5, 2.0]
    assert stats.dormant_scores(torch.zeros(3)).tolist() == [0.0] * 3
    broken = stats.dormant_scores(torch.tensor([1.0, math.nan, 3.0]))
    assert broken[[0, 2]].tolist() == [0.5, 1.5]
    assert bool(broken[1].isnan())


def test_gradient_ratios_compare_with_the_largest_finite_one():
    ratios = stats.gradient_ratios(torch.tensor([2.0, 0.0, 4.0, math.inf, math.nan]))
    assert ratios[:3].tolist() == [0.5, 0.0, 1.0]
    assert ratios[3:].isnan().all()
    assert stats.gradient_ratios(torch.zeros(2)).tolist() == [0.0, 0.0]
    assert stats.gradient_ratios(torch.zeros(0)).shape == (0,)


# -- kernels --------------------------------------------------------------------------------------------------------

MATRICES = st.tuples(st.integers(0, 5), st.integers(0, 40), st.sampled_from(DTYPES), SEEDS)


@twin
@given(MATRICES)
def test_row_norms_and_peaks_equal_those_of_numpy(case):
    count, length, dtype, seed = case
    rows = torch.randn(count, length, generator=generator(seed), dtype=torch.float64).to(dtype)
    norms, peaks = stats.row_norms(rows), stats.row_peaks(rows)
    assert norms.dtype == peaks.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for c, row in enumerate(rows.double().numpy()):
        assert float(norms[c]) == pytest.approx(math.sqrt((row**2).sum()), rel=1e-5)
        assert float(peaks[c]) == np.abs(row).max(initial=0.0)


def test_half_precision_norms_neither_overflow_nor_vanish():
    rows = torch.tensor([60000.0, 2.0**-24], dtype=torch.float16)[:, None].expand(2, 10_000)
    assert stats.row_norms(rows).tolist() == pytest.approx([100 * float(rows[0, 0]), 100 * 2.0**-24], rel=1e-5)


def test_a_peak_is_zero_only_for_a_row_of_zeros():
    rows = torch.tensor([[0.0, -0.0], [0.0, 1e-45], [-1e-45, 0.0], [math.nan, 0.0]])
    peaks = stats.row_peaks(rows)
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
    assert stats.checksums(rows).tolist() == slow_checksums(rows)
    assert stats.checksums(rows.t().contiguous().t()).tolist() == slow_checksums(rows)


def test_checksums_of_rows_longer_than_a_block_cover_every_entry():
    rows = torch.zeros(2, 300_000)
    before = stats.checksums(rows)
    for place in (0, 131_071, 131_072, 299_999):
        rows[1, place] = -0.0
        after = stats.checksums(rows)
        assert (after == before).tolist() == [True, False]
        rows[1, place] = 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_checksums_see_what_a_plain_sum_of_bits_does_not(dtype):
    g = generator(1)
    rows = torch.randn(1, 36, generator=g, dtype=torch.float64).to(dtype)
    before = int(stats.checksums(rows))
    seen = set()
    for i, j in itertools.combinations(range(36), 2):
        swapped, flipped, moved = rows.clone(), rows.clone(), rows.clone()
        swapped[0, [i, j]] = rows[0, [j, i]]
        flipped[0, [i, j]] *= -1
        bits = moved.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()])
        bits[0, i] += 1
        bits[0, j] -= 1
        seen |= {int(stats.checksums(changed)) for changed in (swapped, flipped, moved)}
    # 1890 changes, none of which may collide with the row itself and none with another: chance below 1e-9
    assert before not in seen
    assert len(seen) == 3 * 36 * 35 // 2


def test_nothing_global_is_touched():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    stats._odd_constants.cache_clear()
    weights = torch.nn.Parameter(torch.ones(3, 17))
    summary = stats.weight_summary(weights)
    outputs = [stats.checksums(weights), stats.row_norms(weights), stats.row_peaks(weights), summary.gini]
    outputs += [stats.peak_bits(weights, ChannelAxis(0, 3)), *stats.firing(weights, ChannelAxis(0, 3))]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(output.requires_grad for output in outputs)
    assert torch.equal(weights, torch.ones(3, 17))


# -- histograms -----------------------------------------------------------------------------------------------------


@twin
@given(st.integers(0, 300), st.sampled_from(DTYPES), SEEDS)
def test_bit_histogram_and_buckets_equal_counting_between_edges(count, dtype, seed):
    g = generator(seed)
    scale = 10.0 ** torch.randint(-6, 6, (count,), generator=g)
    x = mixed((count,), dtype, seed) * scale.to(dtype)
    counts = stats.bit_histogram(x)
    assert counts.shape == (1024,)
    assert int(counts.sum()) == count
    values = x.float().double().numpy()
    low, limits, buckets, left_out = stats.to_edges(counts)
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
    edges = stats.histogram_edges()
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
    low, limits, counts, _ = stats.to_edges(stats.bit_histogram(x))
    assert (low, limits[0], counts[0]) == (-(2.0**-126), 2.0**-126, len(x) - 1)
    assert (limits[-1], counts[-1]) == (1.5, 1)


def test_float64_narrows_to_infinity_and_to_zero():
    low, _, counts, left_out = stats.to_edges(stats.bit_histogram(torch.tensor([1e300, 1e-300], dtype=torch.float64)))
    assert (low, counts, left_out) == (-(2.0**-126), [1], 1)


@twin
@given(SEEDS, st.integers(1, 400))
def test_quantiles_are_right_within_their_half_octave(seed, count):
    values = torch.randn(count, generator=generator(seed))
    q = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    found = stats.histogram_quantiles(stats.bit_histogram(values), q)
    exact = np.quantile(values.numpy(), q, method="inverted_cdf")
    assert found == sorted(found)
    for approximate, value in zip(found, exact, strict=True):
        assert abs(approximate - value) <= 0.5 * abs(value)
    assert all(math.isnan(value) for value in stats.histogram_quantiles(torch.zeros(1024, dtype=torch.int64), [0.5]))


def test_bucket_moments_are_near_those_of_the_values():
    values = torch.rand(10_000, generator=generator(2)) + 1
    total, squares = stats.to_edges(stats.bit_histogram(values)).moments
    assert total == pytest.approx(15_000, rel=0.02)
    assert squares == pytest.approx(10_000 * 7 / 3, rel=0.03)


# -- sparsity -------------------------------------------------------------------------------------------------------


def slow_gini(values: np.ndarray) -> float:
    """Hurley and Rickard 2009, definition 2, on sorted magnitudes."""
    ordered, n = np.sort(np.abs(values)), len(values)
    return 1 - 2 * sum(v / ordered.sum() * (n - k + 0.5) / n for k, v in enumerate(ordered, 1))


@twin
@given(st.integers(2, 300), st.sampled_from(DTYPES), SEEDS, st.floats(0, 0.9), st.sampled_from([1e-3, 1.0, 30.0]))
def test_weight_summary_equals_sorting_and_comparing(count, dtype, seed, zeroed, scale):
    g = generator(seed)
    w = scale * torch.randn(count, generator=g, dtype=torch.float64) ** 3
    w = torch.where(torch.rand(count, generator=g) < zeroed, 0.0, w).to(dtype)
    w[0] = scale  # never all zero
    summary = stats.weight_summary(w.view(1, -1, 1))
    values = w.double().numpy()
    rms = math.sqrt((values**2).mean())
    near = np.abs(values) / rms
    assert float(summary.rms) == pytest.approx(rms, rel=1e-5)
    assert float(summary.zeros) == pytest.approx((values == 0).mean())
    assert (near < 0.01 * (1 - 1e-5)).mean() <= float(summary.near_zeros) + 1e-12
    assert float(summary.near_zeros) <= (near < 0.01 * (1 + 1e-5)).mean() + 1e-12
    assert float(summary.gini) == pytest.approx(slow_gini(values), abs=2**-6 / (1 - 2**-7))
    l1 = np.abs(values).sum()
    hoyer = (math.sqrt(count) - l1 / math.sqrt((values**2).sum())) / (math.sqrt(count) - 1)
    # l1 is off by up to 2**-7 of itself, and l1 / l2 is at most sqrt(n)
    assert float(summary.hoyer) == pytest.approx(hoyer, abs=2**-7 * math.sqrt(count) / (math.sqrt(count) - 1))
    assert torch.equal(summary.histogram, stats.bit_histogram(w))


def test_summary_of_weights_with_non_finite_entries_speaks_of_the_finite_ones():
    g = generator(7)
    finite = torch.randn(5000, generator=g)
    broken = torch.cat([finite, torch.tensor([math.nan, math.inf, -math.inf])])
    whole, part = stats.weight_summary(broken), stats.weight_summary(finite)
    for name in ("rms", "gini", "hoyer", "near_zeros"):
        assert float(getattr(whole, name)) == pytest.approx(float(getattr(part, name)), rel=0.02)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_summary_holds_where_squares_leave_float32(scale):
    w = torch.randn(20_000, generator=generator(8))
    usual, far = stats.weight_summary(w), stats.weight_summary(w * scale)
    assert float(far.rms) == pytest.approx(scale * float(usual.rms), rel=0.01)
    assert float(far.hoyer) == pytest.approx(float(usual.hoyer), abs=0.01)
    assert float(far.near_zeros) == pytest.approx(float(usual.near_zeros), abs=5e-4)


def test_weights_that_are_all_zero_or_absent_have_no_gini_and_no_hoyer():
    nothing = stats.weight_summary(torch.zeros(3, 4))
    assert (float(nothing.zeros), float(nothing.near_zeros), float(nothing.rms)) == (1.0, 1.0, 0.0)
    assert math.isnan(float(nothing.gini))
    assert math.isnan(float(nothing.hoyer))
    assert math.isnan(float(stats.weight_summary(torch.zeros(0, 4)).zeros))


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (70, 41)])
def test_summary_does_not_depend_on_the_layout(shape):
    w = torch.randn(shape, generator=generator(9))
    other = w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w.t().contiguous().t()
    first, second = stats.weight_summary(w), stats.weight_summary(other)
    assert torch.equal(first.histogram, second.histogram)
    assert float(first.rms) == pytest.approx(float(second.rms), rel=1e-6)


# One standard deviation at n = 400 000 is below 1e-3 for each of these, near zeros' sqrt(.008 * .992 / n) = 1.4e-4.
N = 400_000


def test_a_gaussian_layer_has_the_known_sparsity():
    w = torch.randn(N, generator=generator(10))
    assert float(stats.gini(w)) == pytest.approx(math.sqrt(2) - 1, abs=3e-3)
    assert float(stats.hoyer(w)) == pytest.approx(1 - math.sqrt(2 / math.pi), abs=3e-3)
    assert float(stats.near_zero_share(w)) == pytest.approx(math.erf(0.01 / math.sqrt(2)), abs=6e-4)
    assert float(stats.near_zero_share(w)) == pytest.approx(0.0080, abs=6e-4)
    assert float(stats.zero_share(w)) == 0.0


def test_a_uniform_layer_has_the_known_sparsity():
    w = torch.rand(N, generator=generator(11)) * 2 - 1
    assert float(stats.gini(w)) == pytest.approx(1 / 3, abs=3e-3)
    assert float(stats.hoyer(w)) == pytest.approx(1 - math.sqrt(3) / 2, abs=3e-3)


@pytest.mark.parametrize("power", [1, 3])
def test_gini_from_bins_is_far_closer_to_that_of_sorted_weights_than_its_bound(power):
    w = torch.randn(50_000, generator=generator(12)) ** power
    assert float(stats.gini(w)) == pytest.approx(slow_gini(w.double().numpy()), abs=1e-4)


def test_equal_weights_are_not_sparse_and_a_single_one_is_fully_so():
    assert float(stats.gini(torch.full((1000,), 0.3))) == pytest.approx(0.0, abs=1e-9)
    one = torch.zeros(1000)
    one[3] = 5.0
    assert float(stats.gini(one)) == pytest.approx(1 - 1 / 1000)
    assert float(stats.hoyer(one)) == pytest.approx(1.0, abs=2**-7)
    assert float(stats.zero_share(one)) == pytest.approx(0.999)


# -- how often chance alone kills a unit ------------------------------------------------------------------------------


def dead_share(pre_activations: Tensor) -> float:
    """Share of units that fired on none of the inputs: (inputs, units)."""
    h = pre_activations.relu()
    units = h.shape[1]
    fired = stats.is_fired(stats.peak_bits(h, ChannelAxis(1, units)), h.dtype)
    return 1 - float(fired.double().mean())


@pytest.mark.parametrize("inputs", [1, 2, 4, 8])
def test_a_unit_without_bias_is_dead_on_n_orthogonal_inputs_with_probability_two_to_minus_n(inputs):
    units = 200_000
    weights = torch.randn(units, 16, generator=generator(20 + inputs))
    expected = 2.0**-inputs
    # five standard deviations of a binomial share: one run in 1.7 million strays further
    spread = 5 * math.sqrt(expected * (1 - expected) / units)
    assert dead_share(torch.eye(16)[:inputs] @ weights.t()) == pytest.approx(expected, abs=spread)


@pytest.mark.parametrize(("shift", "inputs"), [(0.0, 5), (1.0, 10), (2.0, 100), (3.0, 1000)])
def test_a_unit_shifted_by_minus_b_is_dead_on_n_inputs_with_probability_phi_of_b_to_the_n(shift, inputs):
    units = 20_000
    pre_activations = torch.randn(inputs, units, generator=generator(30 + inputs)) - shift
    expected = (0.5 * (1 + math.erf(shift / math.sqrt(2)))) ** inputs
    spread = 5 * math.sqrt(expected * (1 - expected) / units)
    assert dead_share(pre_activations) == pytest.approx(expected, abs=spread)
