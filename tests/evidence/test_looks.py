"""What is read as it was before is read right, or not at all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadkernel.evidence.looks import FEW, Look
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.activations import ACTIVATIONS
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.parts import Part
from lightning_deadkernel.graph.paths import ActivationRead

FORMS = {
    "linear": torch.empty(6, 40),
    "maps": torch.empty(3, 40, 5, 7),
    "maps of one place": torch.empty(3, 40, 1, 1),
    "channels last": torch.empty(3, 40, 5, 7).contiguous(memory_format=torch.channels_last),
    "half": torch.empty(3, 40, 5, 7, dtype=torch.bfloat16),
}


def node_of(x: Tensor) -> object:
    return F.relu(x.requires_grad_()).grad_fn


@pytest.mark.parametrize("form", FORMS)
def test_of_channels_that_are_still_unseen_a_look_tells_which_fired(form: str) -> None:
    like = FORMS[form]
    x = torch.empty_like(like).copy_(torch.randn(like.shape, generator=torch.Generator().manual_seed(0)))
    x[:, ::3] = -1.0
    x[:, 7] = -1.0
    x[-1, 7] = torch.nan  # of either sign: no evidence
    node = node_of(x)
    read = ActivationRead(0, ACTIVATIONS["Relu"], Part.whole(ChannelAxis(1, 40)), x.ndim, None)
    activation = ACTIVATIONS["Relu"](node)
    assert activation is not None
    assert Look.fits(read, activation, 40)
    look = Look(read, activation, activation.saved_tensor(node), 3, None)
    fired = x.detach().clamp(min=0).movedim(1, 0).flatten(1).amax(1) > 0
    every = look.again(node, 3, None)
    assert every is not None
    assert torch.equal(every > 0, fired)
    left = torch.arange(3, 40, FEW)
    some = look.again(node, 3, left)
    assert some is not None
    assert some.shape == (40,)
    assert torch.equal(some[left] > 0, fired[left])


def test_a_look_is_of_no_use_where_anything_has_changed() -> None:
    x = torch.randn(3, 4, 5, 6)
    node = node_of(x)
    read = ActivationRead(0, ACTIVATIONS["Relu"], Part.whole(ChannelAxis(1, 4)), 4, None)
    activation = ACTIVATIONS["Relu"](node)
    assert activation is not None
    look = Look(read, activation, activation.saved_tensor(node), 3, None)
    assert look.again(node_of(torch.randn(3, 4, 5, 6)), 3, None) is not None
    assert look.again(node, 2, None) is None, "another number of samples"
    for other in (torch.randn(3, 4, 6, 5), torch.randn(3, 4, 5, 6).double(), x.detach().mT.contiguous().mT):
        assert look.again(node_of(other), 3, None) is None
    half = ActivationRead(0, read.reader, Part((ChannelAxis(1, 4),), range(2), range(2)), 4, None)
    assert not Look.fits(half, activation, 2), "a half of what was saved"
    tanh = ActivationRead(0, ACTIVATIONS["Softplus"], read.part, 4, None)
    softplus = ACTIVATIONS["Softplus"](F.softplus(x).grad_fn)
    assert softplus is not None
    assert not Look.fits(tanh, softplus, 4), "it is > 0 where its input need not be"


def test_channels_that_fire_late_are_seen_whatever_else_is_left_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 3))
    with torch.no_grad():
        net[0].bias[5] = net[0].bias[9] = -100.0
    observer = Observer(net, LayerTable.of(net, None, None))
    observer.begin_window(1)
    for step in range(100):
        with torch.no_grad():
            net[0].bias[9] = 100.0 if step == 37 else -100.0
        loss = net(torch.randn(4, 2, 8, 8)).square().mean()
        observer.window.rows = 4
        observer.before_backward(loss, sampled=False)
        loss.backward()
        observer.after_backward(sampled=False)
    channels = observer.window.channels
    assert channels.not_fired.left(("0",), torch.device("cpu")).tolist() == [5]
    channels.flush()
    fired = channels.segment("fired", ("0",)) > 0
    assert (~fired).nonzero().flatten().tolist() == [5]
    assert channels.passed[("0",)] == [400, 400 * 64, 0]
