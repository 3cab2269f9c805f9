"""The table of layers: names, kernels as rows, and weights computed without a side effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.layers import LayerTable, check_patterns


def only(model: nn.Module) -> Layer:
    (layer,) = LayerTable.of(model, None, None).layers
    return layer


@settings(max_examples=60)
@given(
    transposed=st.booleans(),
    dims=st.integers(1, 3),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
)
def test_a_row_is_the_kernel_that_alone_decides_its_output_channel(
    transposed: bool, dims: int, groups: int, inputs: int, outputs: int
) -> None:
    kind = [[nn.Conv1d, nn.Conv2d, nn.Conv3d], [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]]
    torch.manual_seed(0)
    module = kind[transposed][dims - 1](inputs * groups, outputs * groups, 2, groups=groups, bias=False)
    layer = only(module)
    x = torch.rand(1, inputs * groups, *[3] * dims) + 0.1
    rows = layer.rows(module.weight.detach())
    assert rows.shape == (layer.channels, module.weight.numel() // layer.channels)
    assert layer.channels == outputs * groups
    for channel in range(layer.channels):
        # the gradient of one output channel is non-zero on its own kernel's entries alone
        (grad,) = torch.autograd.grad(module(x)[:, channel].sum(), module.weight)
        touched = layer.rows(grad).ne(0).all(1)
        assert touched.nonzero().flatten().tolist() == [channel]


def test_layers_are_named_by_their_module_and_by_their_tensor_where_it_is_no_weight() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4))
            self.tokens = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.table = nn.Parameter(torch.rand(4, 4))
            self.scale = nn.Parameter(torch.rand(4))

    names = LayerTable.of(Model(), None, None).names
    packed = [f"attention.in_proj_weight.{part}" for part in "qkv"]
    assert names == ["table", "features.0", "tokens", *packed, "attention.out_proj"]


def test_patterns_leave_layers_out_by_name_with_the_option_as_reason() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    table = LayerTable.of(model, ["[01]"], ["1"])
    assert [layer.excluded for layer in table.layers] == [None, "left out by `exclude`", "left out by `include`"]
    assert [layer.name for layer in table.watched] == ["0"]


def test_a_pattern_that_matches_nothing_is_an_error_that_names_the_layers_there_are() -> None:
    check_patterns("include", ["conv*"], ["conv1", "fc"])
    with pytest.raises(ValueError) as error:
        check_patterns("include", ["conv*", "head*"], ["conv1", "fc"])
    assert str(error.value) == (
        "Expected every pattern of `include` to match a layer, but 'head*' matches none of: conv1, fc."
    )


REPARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "legacy weight_norm": nn.utils.weight_norm,
    "legacy spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_the_weight_is_the_one_of_the_forward_pass_and_reading_it_changes_nothing(kind: str) -> None:
    torch.manual_seed(0)
    module: Any = REPARAMETRIZED[kind](nn.Linear(5, 4)).train()
    x = torch.rand(3, 5)
    out = module(x) - module.bias
    layer = only(module)
    assert layer.reparametrized
    before, random = [b.clone() for b in module.state_dict().values()], torch.get_rng_state()
    weight = layer.weight()
    # spectral norm takes a power iteration at every training pass, so its weight moves on a little
    assert torch.allclose(F.linear(x, weight), out, atol=0.15 if "spectral" in kind else 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_a_plain_weight_is_not_reparametrized() -> None:
    assert not only(nn.Linear(5, 4)).reparametrized


def test_the_mask_of_a_pruned_layer_is_found() -> None:
    module = nn.Linear(5, 4)
    prune.ln_structured(module, "weight", 2, n=2, dim=0)
    layer = only(module)
    mask = layer.mask()
    assert mask is not None
    assert int((layer.rows(mask) == 0).all(1).sum()) == 2


def test_a_leaf_without_a_channel_axis_has_no_rows() -> None:
    layer = only(nn.Linear(5, 4))
    assert layer.rows_of(torch.zeros(())) is None
    assert layer.rows_of(torch.zeros(3, 5)) is None
    rows = layer.rows_of(torch.zeros(4, 1))
    assert rows is not None
    assert rows.shape == (4, 1)


def test_shared_and_frozen_and_lazy_weights_say_why_they_are_not_watched() -> None:
    first, second, frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    second.weight = first.weight
    reasons = [
        layer.excluded
        for layer in LayerTable.of(nn.Sequential(first, second, frozen, nn.LazyLinear(2)), None, None).layers
    ]
    assert reasons == [
        None,
        "it shares its weight with 0, where it is watched",
        "requires_grad=False",
        "its lazy parameters were never initialised",
    ]


def test_the_speaking_leaf_is_the_largest_one() -> None:
    layer = only(parametrizations.weight_norm(nn.Linear(5, 4)))
    assert isinstance(layer.main, Tensor)
    assert layer.main.shape == (4, 5)
    assert len(layer.leaves) == 2
