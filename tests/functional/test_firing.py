"""What fired, and how strongly, against a slow and obvious twin and against answers known in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.floats import DTYPES, SEEDS, generator, mixed, tiny, twin
from lightning_deadkernel.functional import firing
from lightning_deadkernel.functional.firing import ChannelAxis


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


@twin
@given(activations())
def test_peaks_tell_what_fired_as_comparing_every_entry_does(case):
    x, at = case
    peaks = firing.channel_max(x, at)
    assert peaks.shape == (at.size,)
    assert peaks.dtype == x.dtype
    for c, values in enumerate(by_channel(x, at)):
        has_nan = bool(np.isnan(values).any())  # torch's NaN constant is positive, so it is always seen
        assert bool(peaks[c].isnan()) == has_nan
        assert bool(peaks[c] > 0) == (not has_nan and bool((values > 0).any()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_strictly_positive_values_count_as_fired(dtype):
    values = [0.0, -0.0, -1.0, -math.inf, -tiny(dtype), math.nan, tiny(dtype), 1.0, math.inf]
    peaks = firing.channel_max(torch.tensor([values], dtype=dtype), ChannelAxis(1, len(values)))
    assert (peaks > 0).tolist() == [False] * 6 + [True] * 3
    assert peaks.isnan().tolist() == [False] * 5 + [True] + [False] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_negative_nan_never_fires_and_hides_no_positive_value(dtype):
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    negative_nan = torch.tensor(-1, dtype=signed).view(dtype)
    batch = torch.stack([torch.full((4,), -2.0, dtype=dtype), torch.tensor([3.0, -0.0, -math.inf, 0.0], dtype=dtype)])
    batch[0, :] = negative_nan
    peaks = firing.channel_max(batch, ChannelAxis(1, 4))
    assert (peaks > 0).tolist() == [True, False, False, False]
    assert peaks.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)])
def test_an_empty_batch_is_no_evidence(shape):
    at = ChannelAxis(1, 3)
    x = torch.empty(shape)
    assert firing.channel_max(x, at).tolist() == [0.0] * 3
    assert [part.tolist() for part in firing.firing(x, at)] == [[0] * 3] * 3
    assert firing.count_outside(x, at, -1, 1).tolist() == [0] * 3


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("samples", [1, 5, 64])
def test_few_channels_last_read_every_row(channels, samples):
    x = -torch.rand(samples, channels, 7, 5, generator=generator(0)).contiguous(memory_format=torch.channels_last)
    for sample, channel in itertools.product({0, samples // 2, samples - 1}, range(channels)):
        x[sample, channel, 6, 4] = 0.5
        fired = firing.channel_max(x, ChannelAxis(1, channels)) > 0
        assert fired.tolist() == [c == channel for c in range(channels)]
        x[sample, channel, 6, 4] = -0.5


def test_dtypes_and_axes_that_cannot_be_read_are_named():
    with pytest.raises(TypeError, match=r"torch\.int64"):
        firing.channel_max(torch.zeros(2, 3, dtype=torch.int64), ChannelAxis(1, 3))
    with pytest.raises(ValueError, match="1 \\* 4 \\* 1 entries along dimension 1"):
        firing.channel_max(torch.zeros(2, 3), ChannelAxis(1, 4))


@pytest.fixture(params=["in blocks", "in few launches"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the CPU, and as on a GPU."""
    monkeypatch.setattr(firing, "IN_BLOCKS", {"cpu"} if request.param == "in blocks" else set())
    monkeypatch.setattr(firing, "PIECE", 100)


both_ways = pytest.mark.usefixtures("_way")


def check_firing(x: Tensor, at: ChannelAxis, nonnegative: bool = False) -> None:
    positive, total, zeros = firing.firing(x, at, nonnegative)
    assert {part.dtype for part in (positive, total, zeros)} == {torch.float64}
    for c, values in enumerate(by_channel(x, at)):
        if np.isfinite(values).all():
            assert int(positive[c]) == int((values > 0).sum())
            assert int(zeros[c]) == int((values == 0).sum())
            assert float(total[c]) == pytest.approx(np.abs(values).sum(), rel=1e-5, abs=1e-30)
        else:
            assert not math.isfinite(total[c])


@both_ways
@twin
@given(activations())
def test_firing_counts_and_sums_equal_those_of_every_entry(case):
    check_firing(*case)


@both_ways
@twin
@given(activations(), st.booleans())
def test_firing_of_what_is_never_negative_takes_fewer_passes_to_the_same_result(case, finite):
    x, at = case
    check_firing(torch.nan_to_num(x, 1.0, 2.0).relu() if finite else x.relu(), at, nonnegative=True)


@both_ways
@twin
@given(activations(), st.booleans(), st.sampled_from([(-1.0, 1.0), (0.0, math.inf), (-0.5, 0.0), (-math.inf, 1.0)]))
def test_beyond_counts_entries_outside_the_bounds(case, inclusive, bounds):
    (x, at), (low, high) = case, bounds
    counts = firing.count_outside(x, at, low, high, inclusive=inclusive)
    for c, v in enumerate(by_channel(x, at)):
        outside = (v <= low) | (v >= high) if inclusive else (v < low) | (v > high)
        assert int(counts[c]) == int(outside.sum())


@both_ways
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 150, 200), 1), ((2, 2, 400, 400), 1), ((40, 70, 60), 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_firing_is_the_same_over_inputs_of_many_blocks(shape, axis, dtype):
    check_firing(mixed(shape, dtype, 3), ChannelAxis(axis, shape[axis]))


@both_ways
def test_sums_of_large_half_precision_activations_do_not_overflow():
    h = torch.full((64, 2, 32, 32), 60000.0, dtype=torch.float16)
    assert firing.firing(h, ChannelAxis(1, 2))[1].tolist() == pytest.approx([float(h[0, 0, 0, 0]) * 65536] * 2)


def test_nothing_global_is_touched():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    h = torch.nn.Parameter(torch.ones(3, 17))
    outputs = [firing.channel_max(h, ChannelAxis(0, 3)), *firing.firing(h, ChannelAxis(0, 3))]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(output.requires_grad for output in outputs)
    assert torch.equal(h, torch.ones(3, 17))


# -- how often chance alone kills a unit ------------------------------------------------------------------------------


def dead_share(pre_activations: Tensor) -> float:
    """Share of units that fired on none of the inputs: (inputs, units)."""
    h = pre_activations.relu()
    units = h.shape[1]
    fired = firing.channel_max(h, ChannelAxis(1, units)) > 0
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "along", "axis"), [((5, 3), 0, 1), ((5, 3, 2, 4), 0, 1), ((4, 5, 3), 1, -1), ((0, 3), 0, 1)]
)
def test_samples_on_which_a_channel_fires_are_those_with_an_entry_above_zero(dtype, shape, along, axis):
    x = -torch.rand(shape, generator=generator(1)).to(dtype)
    x[torch.rand(shape, generator=generator(2)) < 0.15] = 0.5
    expected = [
        sum(bool((x.select(along, n).select(axis if axis < 0 else axis - 1, c) > 0).any()) for n in range(shape[along]))
        for c in range(3)
    ]
    assert firing.samples_on(x, along, axis).tolist() == expected
