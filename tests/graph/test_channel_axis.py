"""Where channels go: every element carries its channel's number through the real op: what comes out is true."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.activations import ACTIVATIONS
from lightning_deadkernel.graph.channel_axis import Step, carried, output_shape, through_view
from lightning_deadkernel.graph.ops import canonical
from lightning_deadkernel.graph.parts import Part, follow
from lightning_deadkernel.graph.paths import ActivationRead

Shape = tuple[int, ...]


def tags(shape: Shape, at: ChannelAxis) -> Tensor:
    """A tensor whose every entry is one more than the number of its channel."""
    place = torch.arange(shape[at.axis]) // at.inner % at.size + 1
    return place.reshape([-1 if d == at.axis else 1 for d in range(len(shape))]).expand(shape).double().contiguous()


def axes_of(shape: Shape) -> list[ChannelAxis]:
    """Every way in which channels may lie along one dimension of such a tensor."""
    return [
        ChannelAxis(axis, size, outer, n // size // outer)
        for axis, n in enumerate(shape)
        for size in range(2, n + 1)
        if n % size == 0
        for outer in range(1, n // size + 1)
        if n // size % outer == 0
    ]


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple).filter(lambda s: prod(s) > 1)


@st.composite
def placed(draw: st.DrawFn, min_dims: int = 1, max_size: int = 4) -> tuple[Shape, ChannelAxis]:
    shape = tuple(draw(st.lists(st.integers(1, max_size), min_size=min_dims, max_size=4)))
    choices = axes_of(shape)
    assume(choices)
    return shape, draw(st.sampled_from(choices))


@given(placed(), st.data())
def test_a_reshape_is_followed_exactly_where_the_channels_still_lie_along_one_dimension(
    start: tuple[Shape, ChannelAxis], data: st.DataObject
) -> None:
    before, at = start
    after = data.draw(st.sampled_from(_factorizations(prod(before))))
    moved = tags(before, at).reshape(after)
    found = through_view(at, before, after)
    fitting = [a for a in axes_of(after) if a.size == at.size and torch.equal(tags(after, a), moved)]
    assert (found is None) == (not fitting)
    assert found is None or found in fitting


@given(placed(), st.data())
def test_channels_are_where_indices_over_other_axes_put_them(
    start: tuple[Shape, ChannelAxis], data: st.DataObject
) -> None:
    before, at = start
    indices: list[Any] = []
    axis, masked = 0, False
    while axis < len(before):  # numbers, masks over one axis or two, all of an axis
        kind = data.draw(st.sampled_from(["all", "numbers", "mask"]))
        wide = data.draw(st.integers(1, 2)) if kind == "mask" else 1
        if axis <= at.axis < axis + wide or (kind == "mask" and masked) or axis + wide > len(before):
            kind, wide = "all", 1
        elif kind == "mask":
            masked = True
            indices.append(torch.arange(prod(before[axis : axis + wide])).reshape(before[axis : axis + wide]) == 0)
        elif kind == "numbers":
            indices.append(torch.zeros(data.draw(st.sampled_from([(1,), (3,), (2, 1), (2, 3)])), dtype=torch.int64))
        if kind == "all":
            indices.append(slice(None))
        axis += wide
    x = tags(before, at).requires_grad_()
    assume(any(isinstance(index, Tensor) for index in indices))
    try:
        y = x[tuple(indices)]
    except IndexError:  # shapes that cannot be broadcast to one another
        assume(False)
    found = carried(Step(y.grad_fn, canonical(y.grad_fn), before), at)
    assert found is not None
    assert torch.equal(tags(tuple(y.shape), *found), y.detach())


def _factorizations(n: int) -> list[Shape]:
    return [
        s for k in (1, 2, 3, 4) for s in product([d for d in range(1, n + 1) if n % d == 0], repeat=k) if prod(s) == n
    ]


def _dims(draw: st.DrawFn, ndim: int) -> list[int]:
    chosen = draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
    return [d - ndim if draw(st.booleans()) else d for d in chosen]


@st.composite
def an_op(draw: st.DrawFn, x: Tensor) -> Tensor:
    """A random op that copies, moves, averages or picks entries, applied to `x`."""
    n = x.ndim
    dim = draw(st.integers(-n, n - 1))
    length = x.shape[dim]
    kinds = (
        "permute transpose T flip roll pad reflect index cat stack split chunk unbind select slice repeat expand clone "
        "add mul mean amax sum unsqueeze squeeze reshape maxpool avgpool adaptive nearest relu1d fill "
        "shuffle pixels unpixels"
    ).split()
    kind = draw(st.sampled_from(kinds))
    if kind in ("mean", "sum", "avgpool", "adaptive"):
        assume(bool((x != 0).all()))  # padding is no channel's and would be averaged with one
    match kind:
        case "permute":
            return x.permute(draw(st.permutations(range(n))))
        case "transpose":
            return x.transpose(dim, draw(st.integers(-n, n - 1)))
        case "T":
            assume(n == 2)
            return x.t()
        case "flip":
            return x.flip(_dims(draw, n))
        case "roll":
            if draw(st.booleans()):
                return x.roll(draw(st.integers(-3, 3)))
            dims = _dims(draw, n)
            return x.roll([draw(st.integers(-3, 3)) for _ in dims], dims)
        case "pad":
            pads = [draw(st.integers(-1, 2)) for _ in range(2 * draw(st.integers(1, n)))]
            y = F.pad(x, pads) if all(s + a + b > 0 for s, a, b in _padded(x.shape, pads)) else x.clone()
            assume(y.numel())
            return y
        case "reflect":
            assume(n in (2, 3) and x.shape[-1] > 1)
            return F.pad(x, (1, draw(st.integers(-1, 1))), mode=draw(st.sampled_from(["reflect", "replicate"])))
        case "index":
            return x.index_select(dim, torch.tensor([draw(st.integers(0, length - 1)) for _ in range(3)]))
        case "cat":
            return torch.cat([x, x], dim)
        case "stack":
            return torch.stack([x, x], draw(st.integers(-n - 1, n)))
        case "split":
            return draw(st.sampled_from(x.split(draw(st.integers(1, length)), dim)))
        case "chunk":
            return draw(st.sampled_from(x.chunk(draw(st.integers(1, 3)), dim)))
        case "unbind":
            assume(n > 1)
            return draw(st.sampled_from(x.unbind(dim)))
        case "select":
            assume(n > 1)
            return x.select(dim, draw(st.integers(0, length - 1)))
        case "slice":
            return x.narrow(dim, 0, draw(st.integers(1, length)))
        case "repeat":
            return x.repeat([draw(st.integers(1, 2)) for _ in range(n + draw(st.integers(0, 1)))])
        case "expand":
            return x.expand(2, *x.shape)
        case "clone":
            return x.clone()
        case "add":
            return x + torch.zeros([draw(st.sampled_from([1, s])) for s in x.shape])
        case "mul":
            return x * torch.ones(x.shape[-1])
        case "mean":
            return x.mean(_dims(draw, n), keepdim=draw(st.booleans()))
        case "amax":
            return x.amax(_dims(draw, n), keepdim=draw(st.booleans()))
        case "sum":
            return x.sum(dim, keepdim=True) / length
        case "unsqueeze":
            return x.unsqueeze(draw(st.integers(-n - 1, n)))
        case "squeeze":
            return x.squeeze()
        case "reshape":
            return x.reshape(draw(st.sampled_from(_factorizations(x.numel()))))
        case "maxpool":
            assume(n == 4)
            return F.max_pool2d(x, 3, stride=draw(st.integers(1, 2)), padding=1)
        case "avgpool":
            assume(n == 3)
            return F.avg_pool1d(x, 3, stride=1, padding=1, count_include_pad=False)
        case "adaptive":
            assume(n == 4)
            return F.adaptive_avg_pool2d(x, draw(st.sampled_from([1, (2, 1), tuple(x.shape[2:])])))
        case "nearest":
            assume(n == 4)
            return F.interpolate(x, size=(draw(st.integers(1, 5)), draw(st.integers(1, 5))))
        case "shuffle":
            assume(n >= 3)
            return F.channel_shuffle(x, draw(st.sampled_from([g for g in (1, 2, 3, 4) if x.shape[1] % g == 0])))
        case "pixels":
            assume(n >= 3 and x.shape[-3] % 4 == 0)
            return F.pixel_shuffle(x, 2)
        case "unpixels":
            assume(n >= 3 and x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0)
            return F.pixel_unshuffle(x, 2)
        case "fill":
            mask = torch.zeros([draw(st.sampled_from([1, s])) for s in x.shape], dtype=torch.bool)
            return x.masked_fill(mask, 0.0)
        case _:
            return x.neg().neg()


def _padded(shape: torch.Size, pads: list[int]) -> list[tuple[int, int, int]]:
    return [(shape[-1 - i], pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)]


def followed(y: Tensor, x: Tensor, at: ChannelAxis) -> list[Part] | None:
    """Where the reader says that the channels of `x` are in `y`; None where it does not say."""

    def of(node: Any, slot: int) -> list[Part] | None:
        if node is x.grad_fn:
            return [Part.whole(at)]
        inputs = node.next_functions
        shapes = [None if child is None else output_shape(child, nr) for child, nr in inputs]
        held: list[Part] = []
        for position, (child, nr) in enumerate(inputs):
            before = None if child is None else of(child, nr)
            for part in before or ():
                shape = shapes[position]
                assert shape is not None
                moved = follow(Step(node, canonical(node), shape, position, shapes, slot), part)
                if moved is None:
                    return None
                held += [one for one in moved if one not in held]
            if child is not None and before is None:
                return None
        return held

    return of(y.grad_fn, y.output_nr)


@settings(max_examples=2000)
@given(placed(max_size=6), st.data())
def test_whatever_ops_do_the_channels_are_where_the_reader_says_and_nowhere_else(
    start: tuple[Shape, ChannelAxis], data: st.DataObject
) -> None:
    shape, at = start
    x = tags(shape, at).requires_grad_().clone()
    y = x
    for _ in range(data.draw(st.integers(1, 4))):
        assume(0 < y.numel() < 5000 and 0 < y.ndim < 7)
        y = data.draw(an_op(y))
    try:
        parts = followed(y, x, at)
    except LookupError:
        return  # named as unknown in the report: nothing is claimed
    if parts is None or not all(part.is_apart for part in parts):
        return  # said to be lost: nothing is claimed
    found = 0
    for part in parts:
        read = ActivationRead(0, ACTIVATIONS["Relu"], part, y.ndim, None)
        assert read.fits(y) or any((digit.outer, digit.inner) != (1, 1) for digit in part.digits)
        values, here = read.laid_out(y.detach())
        rows = values.unflatten(here.axis, (here.outer, here.size, here.inner)).movedim(here.axis + 1, 0).flatten(1)
        for channel, place in zip(part.channels, part.places, strict=True):
            kept = rows[place][rows[place] != 0]  # padding belongs to no channel
            assert torch.allclose(kept, torch.full_like(kept, channel + 1), rtol=0, atol=1e-9)
            found += kept.numel()
    assert found == int((y != 0).sum())


KEEPS = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "roll of positions": lambda x: x.roll((1, 2), (2, 3)),
    "flip of the batch": lambda x: x.flip(0),
    "pooling": lambda x: F.max_pool2d(x, 2),
    "padding": lambda x: F.pad(x, (1, 1, 1, 1)),
    "mean": lambda x: x.mean((2, 3)),
    "mean of the batch": lambda x: x.mean(0),
    "flatten": lambda x: x.flatten(1),
    "tokens": lambda x: x.flatten(2),
    "batch into channels": lambda x: x.reshape(1, 12, 4, 4),
    "select": lambda x: x[1],
    "unbind": lambda x: x.unbind(3)[0],
    "stack": lambda x: torch.stack([x, x], 0),
    "cat": lambda x: torch.cat([x, x], 2),
    "repeat": lambda x: x.repeat(1, 1, 2, 2),
    "padding mask": lambda x: x.masked_fill(torch.ones(2, 1, 4, 4, dtype=torch.bool), 0.0),
}


@pytest.mark.parametrize("op", KEEPS)
def test_ops_that_keep_channels_apart_are_followed(op: str) -> None:
    x = torch.ones(2, 6, 4, 4, requires_grad=True).clone()
    node = KEEPS[op](x).grad_fn
    found = carried(Step(node, canonical(node), (2, 6, 4, 4)), ChannelAxis(1, 6))
    assert found is not None
    assert [at.size for at in found] == [6]


MIXES = {
    "roll": lambda x: x.roll(1, 1),
    "roll of everything": lambda x: x.roll(1),
    "flip": lambda x: x.flip(1),
    "padding": lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)),
    "index": lambda x: x[:, torch.tensor([1, 0, 2, 3, 4, 5])],
    "cat": lambda x: torch.cat([x, x], 1),
    "part": lambda x: x[:, :3],
    "mean": lambda x: x.mean(1),
    "turned": lambda x: x.reshape(2, 4, 4, 6),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "pooling over channels": lambda x: F.avg_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1),
}


@pytest.mark.parametrize("op", MIXES)
def test_ops_that_mix_or_renumber_channels_lose_them(op: str) -> None:
    x = torch.ones(2, 6, 4, 4, requires_grad=True).clone()
    node, way = MIXES[op](x).grad_fn, []
    while node is not x.grad_fn:
        way.append(node)
        node = node.next_functions[0][0]
    at: ChannelAxis | None = ChannelAxis(1, 6)
    shape: Shape = (2, 6, 4, 4)
    for node in reversed(way):
        found = carried(Step(node, canonical(node), shape), at) if at is not None else None
        at = found[0] if found is not None and len(found) == 1 else None
        shape = output_shape(node)
    assert at is None


def test_an_op_in_no_table_is_a_lookup_error() -> None:
    node = torch.ones(2, requires_grad=True).erfinv().grad_fn
    with pytest.raises(LookupError, match="Erfinv"):
        carried(Step(node, canonical(node), (2,)), ChannelAxis(0, 2))
