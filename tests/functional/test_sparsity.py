"""Weight sparsity against sorting and comparing, and against answers known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.floats import DTYPES, SEEDS, generator, twin
from lightning_deadkernel.functional import histograms, sparsity


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
    summary = sparsity.weight_summary(w.view(1, -1, 1))
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
    assert torch.equal(summary.histogram, histograms.bit_histogram(w))


def test_summary_of_weights_with_non_finite_entries_speaks_of_the_finite_ones():
    g = generator(7)
    finite = torch.randn(5000, generator=g)
    broken = torch.cat([finite, torch.tensor([math.nan, math.inf, -math.inf])])
    whole, part = sparsity.weight_summary(broken), sparsity.weight_summary(finite)
    for name in ("rms", "gini", "hoyer", "near_zeros"):
        assert float(getattr(whole, name)) == pytest.approx(float(getattr(part, name)), rel=0.02)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_summary_holds_where_squares_leave_float32(scale):
    w = torch.randn(20_000, generator=generator(8))
    usual, far = sparsity.weight_summary(w), sparsity.weight_summary(w * scale)
    assert float(far.rms) == pytest.approx(scale * float(usual.rms), rel=0.01)
    assert float(far.hoyer) == pytest.approx(float(usual.hoyer), abs=0.01)
    assert float(far.near_zeros) == pytest.approx(float(usual.near_zeros), abs=5e-4)


def test_weights_that_are_all_zero_or_absent_have_no_gini_and_no_hoyer():
    nothing = sparsity.weight_summary(torch.zeros(3, 4))
    assert (float(nothing.zeros), float(nothing.near_zeros), float(nothing.rms)) == (1.0, 1.0, 0.0)
    assert math.isnan(float(nothing.gini))
    assert math.isnan(float(nothing.hoyer))
    assert math.isnan(float(sparsity.weight_summary(torch.zeros(0, 4)).zeros))


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (70, 41)])
def test_summary_does_not_depend_on_the_layout(shape):
    w = torch.randn(shape, generator=generator(9))
    other = w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w.t().contiguous().t()
    first, second = sparsity.weight_summary(w), sparsity.weight_summary(other)
    assert torch.equal(first.histogram, second.histogram)
    assert float(first.rms) == pytest.approx(float(second.rms), rel=1e-6)


# One standard deviation at n = 400 000 is below 1e-3 for each of these, near zeros' sqrt(.008 * .992 / n) = 1.4e-4.
N = 400_000


def test_a_gaussian_layer_has_the_known_sparsity():
    w = torch.randn(N, generator=generator(10))
    assert float(sparsity.weight_summary(w).gini) == pytest.approx(math.sqrt(2) - 1, abs=3e-3)
    assert float(sparsity.weight_summary(w).hoyer) == pytest.approx(1 - math.sqrt(2 / math.pi), abs=3e-3)
    assert float(sparsity.weight_summary(w).near_zeros) == pytest.approx(math.erf(0.01 / math.sqrt(2)), abs=6e-4)
    assert float(sparsity.weight_summary(w).near_zeros) == pytest.approx(0.0080, abs=6e-4)
    assert float(sparsity.weight_summary(w).zeros) == 0.0


def test_a_uniform_layer_has_the_known_sparsity():
    w = torch.rand(N, generator=generator(11)) * 2 - 1
    assert float(sparsity.weight_summary(w).gini) == pytest.approx(1 / 3, abs=3e-3)
    assert float(sparsity.weight_summary(w).hoyer) == pytest.approx(1 - math.sqrt(3) / 2, abs=3e-3)


@pytest.mark.parametrize("power", [1, 3])
def test_gini_from_bins_is_far_closer_to_that_of_sorted_weights_than_its_bound(power):
    w = torch.randn(50_000, generator=generator(12)) ** power
    assert float(sparsity.weight_summary(w).gini) == pytest.approx(slow_gini(w.double().numpy()), abs=1e-4)


def test_equal_weights_are_not_sparse_and_a_single_one_is_fully_so():
    assert float(sparsity.weight_summary(torch.full((1000,), 0.3)).gini) == pytest.approx(0.0, abs=1e-9)
    one = torch.zeros(1000)
    one[3] = 5.0
    assert float(sparsity.weight_summary(one).gini) == pytest.approx(1 - 1 / 1000)
    assert float(sparsity.weight_summary(one).hoyer) == pytest.approx(1.0, abs=2**-7)
    assert float(sparsity.weight_summary(one).zeros) == pytest.approx(0.999)


def test_nothing_global_is_touched():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    weights = torch.nn.Parameter(torch.ones(3, 17))
    sparsity.weight_summary(weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights, torch.ones(3, 17))


def test_few_weights_and_many_are_summed_up_alike_alone_and_together():
    many = torch.randn(2 * sparsity.SORTED, generator=generator(11))
    few = [many[: sparsity.SORTED - 1].view(-1, 3), many[:40].half(), many[:7].double(), torch.zeros(0, 3)]
    together = sparsity.weight_summaries([few[0], many, *few[1:]])
    for summary, weights in zip(together, [few[0], many, *few[1:]], strict=True):
        alone = sparsity.weight_summary(weights)
        assert torch.equal(summary.histogram, histograms.bit_histogram(weights))
        for name in ("zeros", "near_zeros", "gini", "hoyer", "rms"):
            assert getattr(summary, name) == pytest.approx(getattr(alone, name), nan_ok=True)
    binned = sparsity._summary(few[0])
    for name in ("zeros", "near_zeros", "gini", "hoyer", "rms"):
        assert getattr(together[0], name) == pytest.approx(getattr(binned, name), abs=1e-3)
