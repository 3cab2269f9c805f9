"""Activations that are summed together have the sums that each has alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadkernel.evidence.sampled import SMALL, SUMS, Sample, sums_of
from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.activations import ACTIVATIONS, Activation
from lightning_deadkernel.graph.parts import Part
from lightning_deadkernel.graph.paths import ActivationRead

FORMS = {
    "linear": ((5, 7), 1, 0),
    "tokens": ((3, 4, 7), 2, 0),
    "maps": ((3, 7, 4, 5), 1, 0),
    "no samples": ((6, 7), 1, None),
}
FUNCTIONS = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "leaky": F.leaky_relu, "relu6": F.relu6}


def sample(shape: tuple[int, ...], axis: int, along: int | None, function: Any, part: Part | None, at: int) -> Sample:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(at)) * 4
    x.select(axis, 1).abs_().neg_()
    x.select(axis, 2)[0] = torch.nan
    node = function(x.requires_grad_()).grad_fn
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    activation = ACTIVATIONS[name](node)
    assert isinstance(activation, Activation)
    part = part or Part.whole(ChannelAxis(axis, shape[axis]))
    read = ActivationRead(0, ACTIVATIONS[name], part, len(shape), None)
    return Sample((f"layer{at}",), read, activation, activation.saved_tensor(node), along)


def plain(one: Sample, channels: int) -> Tensor:
    """(7, C) by loops."""
    h = one.activation.output(one.saved).double().movedim(one.read.part.at.axis, -1)
    inputs = one.saved.movedim(one.read.part.at.axis, -1)
    sums = torch.zeros(len(SUMS), channels, dtype=torch.float64)
    for channel, place in zip(one.read.part.channels, one.read.part.places, strict=True):
        mine, given = h[..., place], inputs[..., place]
        if not mine.isfinite().all():
            continue
        sums[0, channel] = (mine > 0).sum()
        sums[1, channel] = mine.abs().sum()
        sums[2, channel] = (mine == 0).sum()
        if one.activation.has_flat_ends:
            sums[3, channel] = ((given <= one.activation.low) | (given >= one.activation.high)).sum()
        sums[4, channel] = mine.numel()
        if one.along is not None:
            sums[5, channel] = (mine > 0).flatten(1).any(1).sum() if mine.ndim > 1 else (mine > 0).sum()
            sums[6, channel] = len(mine)
    return sums


def of_finite(found: Sequence[Tensor]) -> Tensor:
    """(8, C) with 0 for channels that are not finite."""
    sums = torch.stack(list(found))
    return torch.where(sums[1].isfinite(), sums, 0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_activations_that_are_alike_have_together_the_sums_that_each_has_alone(form: str, function: str) -> None:
    shape, axis, along = FORMS[form]
    half = Part((ChannelAxis(axis, 7),), range(2), range(4, 6))
    mixed = Part((ChannelAxis(axis, 7),), (2, 0), (1, 3))
    group = [sample(shape, axis, along, FUNCTIONS[function], part, at) for at, part in enumerate((None, half, mixed))]
    channels = [7, 3, 4]
    assert len({one.alike for one in group}) == 1
    assert group[0].alike is not None
    together = of_finite(sums_of(group, channels))
    expected = torch.cat([plain(one, own) for one, own in zip(group, channels, strict=True)], 1)
    torch.testing.assert_close(together[:-1], expected, rtol=1e-6, atol=1e-6)
    alone = torch.cat([of_finite(sums_of([one], [own])) for one, own in zip(group, channels, strict=True)], 1)
    torch.testing.assert_close(alone[:-1], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(together[-1] > 0, expected[0] > 0)
    assert torch.equal(alone[-1] > 0, expected[0] > 0)


def test_what_differs_in_any_way_is_not_summed_together() -> None:
    first = sample((5, 7), 1, 0, F.relu, None, 0)
    others = [
        sample((6, 7), 1, 0, F.relu, None, 1),
        sample((5, 7), 1, None, F.relu, None, 2),
        sample((5, 7), 1, 0, F.gelu, None, 3),
        sample((5, 7), 0, None, F.relu, None, 4),
        first._replace(saved=first.saved.double()),
    ]
    assert all(other.alike != first.alike for other in others)
    assert sample((5, 9), 1, 0, F.relu, None, 5).alike == first.alike, "another number of channels"
    assert sample((SMALL // 8, 9), 1, 0, F.relu, None, 6).alike is None, "a copy would cost more than an operator"
    slopes = torch.rand(7, requires_grad=True)
    pair = [sample((5, 7), 1, 0, lambda x: F.prelu(x, slopes), None, at) for at in (7, 8)]
    assert pair[0].alike != pair[1].alike, "slopes of each channel are its own"
