"""At which inputs a layer's channels are read: what a reader makes of a change is seen by running it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import images, rows
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader
from lightning_deadkernel.observation import InputSlice


class Two(nn.Module):
    """One layer and what reads it; what stands between them is given."""

    def __init__(self, first: nn.Module, second: nn.Module, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = first, second, between

    def forward(self, x: Tensor) -> Tensor:
        made = self.second(self.between(self.first(x)))
        assert isinstance(made, Tensor)
        return made


def conv() -> nn.Module:
    return nn.Conv2d(3, 6, 3)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[Tensor], Tensor], Tensor]] = {
    "linear": (lambda: nn.Linear(5, 6), lambda: nn.Linear(6, 4), F.relu, rows(3, 5)),
    "linear on tokens": (lambda: nn.Linear(5, 6), lambda: nn.Linear(6, 4), F.relu, rows(3, 7, 5)),
    "convolution": (conv, lambda: nn.Conv2d(6, 4, 3), F.relu, images()),
    "pooled": (conv, lambda: nn.Conv2d(6, 4, 1), lambda x: F.max_pool2d(F.relu(x), 2), images()),
    "flattened": (conv, lambda: nn.Linear(6 * 36, 4), lambda x: F.relu(x).flatten(1), images()),
    "flattened, channels last": (
        conv,
        lambda: nn.Linear(6 * 36, 4),
        lambda x: F.relu(x).permute(0, 2, 3, 1).flatten(1),
        images(),
    ),
    "averaged": (conv, lambda: nn.Linear(6, 4), lambda x: F.relu(x).mean((2, 3)), images()),
    "grouped": (conv, lambda: nn.Conv2d(6, 4, 3, groups=2), F.relu, images()),
    "depthwise": (conv, lambda: nn.Conv2d(6, 12, 3, groups=6), F.relu, images()),
    "transposed": (conv, lambda: nn.ConvTranspose2d(6, 4, 3), F.relu, images()),
    "transposed and grouped": (
        conv,
        lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
        F.relu,
        images(),
    ),
    "from a transposed": (lambda: nn.ConvTranspose2d(3, 6, 3), lambda: nn.Conv2d(6, 4, 3), F.relu, images()),
    "shuffled": (
        conv,
        lambda: nn.Conv2d(6, 4, 3, groups=2),
        lambda x: F.channel_shuffle(F.relu(x), 3),
        images(),
    ),
    "a part of it": (conv, lambda: nn.Conv2d(4, 4, 3), lambda x: F.relu(x)[:, 1:5], images()),
    "twice": (
        conv,
        lambda: nn.Conv2d(12, 4, 3),
        lambda x: F.relu(x).repeat(1, 2, 1, 1),
        images(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_reader_does_not_see_a_channel_once_the_weights_at_its_inputs_are_zero(case: str) -> None:
    torch.manual_seed(0)
    first, second, between, x = CASES[case]
    net = Two(first(), second(), between)
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(x).square().mean().grad_fn)
    found = reader.consumers("first")
    if case == "twice":  # what is copied along its own axis is not followed
        assert found is None
        return
    assert found is not None
    (consumer,) = found
    assert consumer.layer == "second"
    assert consumer.slices is not None
    layer = reader.facts["second"].layer
    weight, bias = net.second.weight, net.first.bias
    entries = layer.columns(torch.arange(weight.numel()).view(weight.shape))
    with torch.no_grad():
        for channel in range(6):
            inputs = consumer.inputs(channel)
            kept = weight.clone()
            weight.view(-1)[entries[inputs].flatten()] = 0.0
            without = net(x)
            bias[channel] += 3.0
            torch.testing.assert_close(net(x), without, rtol=0, atol=0)
            weight.copy_(kept)
            seen = not torch.equal(net(x), without)
            bias[channel] -= 3.0
            assert seen == bool(inputs)
            # and no other channel's: each of them still shows
            weight.view(-1)[entries[inputs].flatten()] = 0.0
            for other in set(range(6)) - {channel}:
                before = net(x)
                bias[other] += 3.0
                assert torch.equal(net(x), before) == (consumer.inputs(other) == [])
                bias[other] -= 3.0
            weight.copy_(kept)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("rectified", [True, False])
def test_beside_another_value_along_the_channels_each_is_read_at_its_own_inputs(first: bool, rectified: bool) -> None:
    """As what is brought up in a U-Net, beside what is passed on to it, and the layers of a DenseNet."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.skip, self.join = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            up, skip = self.up(x), self.skip(x)
            values = [up.relu() if rectified else up, skip.relu()]
            made = self.join(torch.cat(values if first else values[::-1], 1))
            assert isinstance(made, Tensor)
            return made

    net = Beside()
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(images()).square().mean().grad_fn)
    for name, channels, place in (("up", 4, 0 if first else 6), ("skip", 6, 4 if first else 0)):
        (consumer,) = reader.consumers(name) or ()
        assert consumer.layer == "join"
        assert [consumer.inputs(channel) for channel in range(channels)] == [[place + at] for at in range(channels)]
        assert consumer.parameters_per_channel == 5 * 9


def test_a_slice_of_inputs_says_which_are_a_channels() -> None:
    slices = InputSlice(channel=2, count=3, place=5, places=10, outer=2, inner=4)
    assert slices.inputs(2) == [20, 21, 22, 23, 60, 61, 62, 63]
    assert slices.inputs(4) == [28, 29, 30, 31, 68, 69, 70, 71]
    assert slices.inputs(1) == slices.inputs(5) == []


def test_of_a_reader_that_is_used_twice_no_inputs_are_told() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.second(F.relu(self.first(x)))))  # type: ignore[no-any-return]

    net = Again()
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(rows(3, 4)).square().mean().grad_fn)
    (consumer,) = reader.consumers("first") or ()
    assert consumer.slices is None


BEHIND: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "nothing": (lambda x: x, True),
    "a pool": (lambda x: F.avg_pool2d(x, 2), True),
    "a dropout": (lambda x: F.dropout(x, 0.5), True),
    "a product": (lambda x: 3 * x, True),
    "a sum with a number": (lambda x: x + 1, False),
    "a sigmoid": (torch.sigmoid, False),
    "a batch norm": (lambda x: F.batch_norm(x, None, None, torch.ones(6), torch.ones(6), training=True), False),
    "padding by ones": (lambda x: F.pad(x, (1, 1), value=1.0), False),
    "softmax": (lambda x: x.softmax(1), False),
}


@pytest.mark.parametrize("between", BEHIND)
def test_whether_a_reader_gets_zero_of_a_dead_channel_is_known(between: str) -> None:
    op, passes = BEHIND[between]
    net = Two(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), lambda x: op(F.relu(x)))
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(images()).square().mean().grad_fn)
    assert reader.facts["first"].passes_zero == passes


def test_what_the_loss_reads_too_is_not_passed_on_as_zero_alone() -> None:
    net = Two(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), F.relu)
    reader = GraphReader(LayerTable.of(net, None, None))
    maps = F.relu(net.first(images()))
    reader.read((net.second(maps).square().mean() + maps.mean()).grad_fn)
    assert reader.consumers("first") is None  # so that `revive` takes it for hidden
