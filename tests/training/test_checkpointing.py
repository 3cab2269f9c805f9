"""Activation checkpointing and `save_on_cpu`: nothing is recomputed or copied for the monitor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers.models import DEAD, Layers, Tiny, dead
from helpers.training import quiet
from helpers.twins import train, train_twice


class First(nn.Module):
    """The first convolution and its ReLU; counts its forward passes."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(self.conv(x))


class Checkpointed(Tiny):
    """Its first convolution is recomputed in backward."""

    reentrant = False

    def make_net(self) -> nn.Module:
        net = Layers()
        self.first = First(net.conv1)
        del net.conv1
        return net

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.first, x.requires_grad_() if self.reentrant else x, use_reentrant=self.reentrant)
        x = F.relu(self.net.norm(self.net.conv2(x)))
        return self.net.head(x.mean((2, 3)))


class Reentrant(Checkpointed):
    reentrant = True


@pytest.mark.setting("activation checkpointing, both kinds", evidence="gradient")
@pytest.mark.parametrize("make", [Checkpointed, Reentrant], ids=["non-reentrant", "reentrant"])
def test_checkpointed_layers_fall_back_to_gradients_and_nothing_is_recomputed(make):
    plain = train(make, None)
    run = train_twice(make)
    assert run.model.first.calls == plain.model.first.calls == 24, "once forward and once in backward, twelve times"
    layer = run.report["first.conv"]
    assert layer.dead == []
    assert layer.zero_gradient == DEAD["conv1"]
    assert layer.evidence == "gradient"
    assert "checkpointing" in layer.note
    assert run.report["net.conv2"].dead == DEAD["conv2"]


class OnCpu(Tiny):
    """Saves its first convolution's activations through pack hooks, which count."""

    packed = unpacked = 0

    def forward(self, x: Tensor) -> Tensor:
        def pack(tensor: Tensor) -> Tensor:
            OnCpu.packed += 1
            return tensor

        def unpack(tensor: Tensor) -> Tensor:
            OnCpu.unpacked += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            x = F.relu(self.net.conv1(x))
        x = F.relu(self.net.norm(self.net.conv2(x)))
        return self.net.head(x.mean((2, 3)))


class SaveOnCpu(OnCpu):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            x = F.relu(self.net.conv1(x))
        x = F.relu(self.net.norm(self.net.conv2(x)))
        return self.net.head(x.mean((2, 3)))


def unpacked_by(monitor: Any) -> tuple[int, int]:
    OnCpu.packed = OnCpu.unpacked = 0
    train(OnCpu, monitor)
    return OnCpu.packed, OnCpu.unpacked


@pytest.mark.setting("`save_on_cpu`, saved-tensor hooks", evidence="gradient")
def test_tensors_that_are_saved_through_hooks_are_not_unpacked_for_the_monitor():
    assert unpacked_by(quiet()) == unpacked_by(None)


@pytest.mark.setting("`save_on_cpu`, saved-tensor hooks", evidence="gradient")
@pytest.mark.parametrize("make", [OnCpu, SaveOnCpu])
def test_layers_whose_activations_are_saved_through_hooks_fall_back_to_gradients(make):
    run = train_twice(make)
    assert run.report["net.conv1"].zero_gradient == DEAD["conv1"]
    assert "its activation is not read" in run.report["net.conv1"].note
    assert dead(run.report) == {"conv2": DEAD["conv2"]}
