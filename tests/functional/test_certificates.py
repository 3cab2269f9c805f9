"""Largest values in closed form, against inputs that are built to attain them, and against every input there is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_deadkernel.functional.certificates import (
    Interval,
    Precision,
    after_norm,
    linear,
    norm_limit,
    over_rows,
    size,
    size_after_norm,
)

CPU = torch.device("cpu")
NORMS = {"layer": True, "rms": False}


def normed(x: Tensor, centred: bool, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """The norm itself, without an eps."""
    width = (x.shape[-1],)
    if centred:
        return F.layer_norm(x, width, gain, shift, eps=0.0)
    y = F.rms_norm(x, width, gain, eps=0.0)
    return y if shift is None else y + shift


def best_inputs(weight: Tensor, gain: Tensor, centred: bool) -> Tensor:
    """(R, d): of each unit the direction in which it rises most."""
    v = weight * gain
    return v - v.mean(1, keepdim=True) if centred else v


@pytest.mark.parametrize("norm", NORMS)
def test_the_bound_after_a_norm_is_attained_by_the_input_that_is_built_for_it(norm: str) -> None:
    torch.manual_seed(0)
    centred, d, units = NORMS[norm], 64, 512
    weight, bias = torch.randn(units, d) / math.sqrt(d), torch.randn(units)
    gain, shift = torch.randn(d), torch.randn(d)
    bound = after_norm(weight, bias, gain, shift, centred=centred)
    y = normed(best_inputs(weight, gain, centred), centred, gain, shift)
    attained = (weight * y).sum(1) + bias
    assert ((attained - bound).abs() / size_after_norm(weight, bias, gain, shift)).max() < 4e-6
    random = F.linear(normed(torch.randn(20_000, d), centred, gain, shift), weight, bias).amax(0)
    assert (random < bound).all()  # random inputs stay below it, or nothing would be gained by it


@pytest.mark.parametrize("norm", NORMS)
def test_an_input_that_attains_the_bound_opens_the_rectifier_exactly_where_the_bound_is_above_zero(norm: str) -> None:
    torch.manual_seed(1)
    centred, d = NORMS[norm], 32
    weight, gain, shift = torch.randn(4000, d), torch.randn(d), torch.randn(d)
    free = after_norm(weight, None, gain, shift, centred=centred)
    bias = (-free * (1 + 1e-3 * torch.randn(4000).sign())).float()
    bound = after_norm(weight, bias, gain, shift, centred=centred)
    y = normed(best_inputs(weight, gain, centred).double(), centred, gain.double(), shift.double())
    fires = (weight * y).sum(1) + bias > 0
    assert 0.4 < fires.float().mean() < 0.6
    assert torch.equal(fires, bound > 0)


def test_of_512_units_after_a_norm_those_that_are_certified_never_fire_and_some_that_never_fire_are_not() -> None:
    for norm, centred in NORMS.items():
        torch.manual_seed(2)
        d, units = 64, 512
        weight, gain, shift = torch.randn(units, d) / 8, torch.rand(d) + 0.5, torch.randn(d) / 8
        bias = -10 * torch.rand(units)
        certified = after_norm(weight, bias, gain, shift, centred=centred) <= 0
        fired = torch.zeros(units, dtype=torch.bool)
        for _ in range(20):
            fired |= (F.linear(normed(torch.randn(10_000, d), centred, gain, shift), weight, bias) > 0).any(0)
        assert not (fired & certified).any(), norm
        assert 50 < int(certified.sum()) < int((~fired).sum()) - 50, norm


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), place=st.integers(0, 39))
def test_one_of_n_normalised_values_is_never_beyond_its_limit_and_a_lone_one_is_at_it(
    values: list[float], place: int
) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    n = len(values)
    if x.std(correction=0) > 1e-3:
        normalised = (x - x.mean()) / x.std(correction=0)
        assert normalised.abs().max() <= norm_limit(n, True) * (1 + 1e-9)
    lone = F.one_hot(torch.tensor(place % n), n).double()
    assert ((lone - lone.mean()) / lone.std(correction=0)).max() == pytest.approx(norm_limit(n, True))
    assert (lone / lone.square().mean().sqrt()).max() == pytest.approx(norm_limit(n, False))


corners = st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 3), st.floats(-2, 2)), min_size=1, max_size=6)


@given(corners, st.floats(-5, 5))
def test_the_interval_of_a_linear_unit_is_that_of_all_corners(
    inputs: list[tuple[float, float, float]], b: float
) -> None:
    low, widths, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*inputs, strict=True))
    ends = [low, low + widths]
    values = [
        float(sum(w * ends[pick][i] for i, (w, pick) in enumerate(zip(weight, picks, strict=True))) + b)
        for picks in itertools.product((0, 1), repeat=len(inputs))
    ]
    found = linear(weight[None], torch.tensor([b], dtype=torch.float64), Interval(*ends))
    assert float(found.low) == pytest.approx(min(values), abs=1e-12)
    assert float(found.high) == pytest.approx(max(values), abs=1e-12)
    assert float(size(weight[None], None, Interval(*ends))) >= max(map(abs, values)) - abs(b) - 1e-12


def test_no_weight_is_no_product_even_of_an_input_without_end() -> None:
    weight, bias = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]), torch.tensor([-1.0, -1.0, -1.0])
    anything = Interval(torch.tensor(-math.inf), torch.tensor(math.inf))
    positive = Interval(torch.tensor(0.0), torch.tensor(math.inf))
    assert linear(weight, bias, anything).high.tolist() == [-1, math.inf, math.inf]
    assert linear(weight, bias, positive).high.tolist() == [-1, -1, math.inf]
    assert linear(weight, bias, positive, precision=Precision.of(torch.bfloat16, CPU)).high.tolist()[2] == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_nothing_above_zero_need_no_margin(dtype: torch.dtype) -> None:
    precision = Precision.of(dtype, CPU)
    weight, bias = -torch.rand(5, 700).float().exp2() * 1e-6, torch.tensor([0.0, -1e-9, -1.0, 1e-9, 1.0])
    positive = Interval(torch.tensor(0.0), torch.tensor(math.inf))
    high = linear(weight, bias, positive, precision=precision).high
    assert (high > 0).tolist() == [False, False, False, True, True]
    x = torch.rand(20, 700) * 100
    assert not (F.linear(x.to(dtype), weight[:3].to(dtype), bias[:3].to(dtype)) > 0).any()


@given(st.lists(st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4), min_size=1, max_size=5), st.floats(-2, 2))
def test_of_one_hot_inputs_all_is_known(rows: list[list[float]], b: float) -> None:
    weight, bias = torch.tensor(rows), torch.full((len(rows),), b)
    four = torch.eye(4)
    assert torch.equal(over_rows(weight, bias, four) > 0, (F.linear(four, weight, bias) > 0).any(0))


def test_over_the_rows_of_a_table_the_largest_value_is_that_of_the_best_row() -> None:
    torch.manual_seed(3)
    table, weight, bias = torch.randn(10_000, 7).double(), torch.randn(5, 7).double(), torch.randn(5).double()
    assert torch.allclose(over_rows(weight, bias, table), F.linear(table, weight, bias).amax(0))


@pytest.mark.parametrize("missing", [False, True])
def test_several_vectors_are_each_at_their_largest_or_left_out(missing: bool) -> None:
    torch.manual_seed(4)
    weight, gain, shift = torch.randn(3, 2, 8), torch.randn(8), torch.randn(8)
    each = [after_norm(weight[:, i], None, gain, shift) for i in range(2)]
    expected = sum(one.clamp(min=0) if missing else one for one in each)
    assert torch.allclose(after_norm(weight, None, gain, shift, missing=missing), torch.as_tensor(expected))


def test_no_mask_of_a_dropout_lifts_a_unit_above_the_bound() -> None:
    torch.manual_seed(5)
    d, scale = 6, 2.0
    weight, gain, shift = torch.randn(50, d).double(), torch.randn(d).double(), torch.randn(d).double()
    bound = after_norm(weight, None, gain, shift, dropped=scale)
    for mask in itertools.product((0.0, scale), repeat=d):
        kept = torch.tensor(mask).double()
        v = weight * kept * gain
        best = normed(v - v.mean(1, keepdim=True), True, gain, shift) if any(mask) else shift.expand(50, d)
        assert ((weight * kept * best.nan_to_num()).sum(1) <= bound + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [8, 768, 16_384])
def test_what_a_norm_computes_is_normalised_within_its_margin(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(6)
    margin = Precision.of(dtype, CPU).of_norm(centred=True)
    offsets = (0, 3, 1000) if torch.finfo(dtype).bits > 16 else (0, 3)  # two bytes cannot hold more beside 1
    for offset in offsets:
        y = F.layer_norm((torch.randn(64, width) + offset).to(dtype), (width,), eps=0.0).double()
        assert y.norm(dim=1).max() <= math.sqrt(width) * (1 + margin)
        assert y.mean(1).abs().max() <= margin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_computed_sum_lies_within_its_margin_of_the_exact_one(dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    precision = Precision.of(dtype, CPU)
    for terms in (1, 16, 1000, 20_000):
        weight, x, bias = torch.randn(20, terms).double(), torch.randn(20, terms).double(), torch.randn(20).double()
        x[:10] = -weight[:10].sign() * x[:10].abs()  # of one sign, and of either
        computed = torch.stack(
            [F.linear(x[i].to(dtype), weight[i : i + 1].to(dtype), bias[i : i + 1].to(dtype))[0] for i in range(20)]
        )
        exact = (weight * x).sum(1) + bias
        sizes = (precision.rounded_up(weight) * x.abs()).sum(1) + bias.abs()
        assert ((computed.double() - exact).abs() <= precision.of_sum(terms) * sizes).all()


def test_a_type_has_the_precision_of_the_settings_of_now() -> None:
    assert Precision.of(torch.float32, CPU).operands == 2.0**-24
    assert Precision.of(torch.bfloat16, CPU).operands == 2.0**-8
    assert Precision.of(torch.float32, torch.device("cuda")).operands == 2.0**-11  # TensorFloat-32 in convolutions
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert Precision.of(torch.float32, CPU).operands == 2.0**-8
    finally:
        torch.set_float32_matmul_precision(before)
