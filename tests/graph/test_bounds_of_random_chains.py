"""Random chains whose units are put exactly where they are certified, and an attack that climbs on each of them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_deadkernel.graph.bounds import Gate
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader

CHANNELS, SIDE, UNITS = 6, 4, 5


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OverChannels(nn.Module):
    """A norm over the channels of each position."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Beside(nn.Module):
    """Half of the channels from one branch, half from another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(CHANNELS, CHANNELS // 2, 1), nn.Conv2d(CHANNELS, CHANNELS // 2, 1)
        self.norm = nn.InstanceNorm2d(CHANNELS // 2, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(self.one(x)), self.other(x).sigmoid()], 1)


class Evaluated(nn.BatchNorm2d):
    """With statistics that it keeps."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        with torch.no_grad():
            self.running_mean.normal_()
            self.running_var.uniform_(0.5, 2)

    def train(self, mode: bool = True) -> Evaluated:
        super().train(False)
        return self


LIMITS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: OverChannels(nn.LayerNorm(CHANNELS)),
    "rms": lambda: OverChannels(nn.RMSNorm(CHANNELS)),
    "group": lambda: nn.GroupNorm(2, CHANNELS),
    "instance": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "batch": lambda: nn.BatchNorm2d(CHANNELS),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": lambda: nn.Softmax(1),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-1, 2),
    "beside": Beside,
}
BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "dropout": lambda: nn.Dropout(0.3),
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2, padding=1),
    "mean": lambda: Do(lambda x: x.mean((2, 3), keepdim=True)),
    "larger": lambda: nn.Upsample(scale_factor=2),
    "reflected": lambda: nn.ReflectionPad2d(1) if SIDE > 2 else nn.Identity(),
    "turned": lambda: Do(lambda x: x.transpose(2, 3).flip(2)),
    "flipped channels": lambda: Do(lambda x: x.flip(1)),
    "some channels": lambda: Do(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1)),
    "half": lambda: Do(lambda x: x * 0.5),
    "two bytes": lambda: Do(lambda x: x.bfloat16().float()),
    "evaluated": lambda: Evaluated(CHANNELS),
}
KERNELS: dict[str, Callable[[], nn.Module]] = {
    "one": lambda: nn.Conv2d(CHANNELS, UNITS, 1),
    "padded": lambda: nn.Conv2d(CHANNELS, UNITS, 3, padding=2),
    "strided": lambda: nn.Conv2d(CHANNELS, UNITS, 3, padding=1, stride=2),
    "grouped": lambda: nn.Conv2d(CHANNELS, UNITS + 1, 1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, UNITS, 3, stride=2, padding=1),
    "grouped and transposed": lambda: nn.ConvTranspose2d(CHANNELS, UNITS + 1, 2, groups=2),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(UNITS)),
    "rows": lambda: nn.Sequential(Do(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(CHANNELS, UNITS)),
    "no bias of its own": lambda: nn.Sequential(
        Do(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(CHANNELS, UNITS, bias=False), Added()
    ),
}
BEHIND: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "half": lambda: Do(lambda x: x * 0.5),
    "dropout": nn.Dropout,
    "largest": lambda: Do(lambda x: x.amax(0, keepdim=True)),
    "turned": lambda: Do(lambda x: x.transpose(0, -1).contiguous()),
}
GATES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "in place": lambda: Do(lambda x: x.clone().relu_()),
    "relu6": nn.ReLU6,
    "clamp": lambda: Do(lambda x: x.clamp(min=0)),
}


class Added(nn.Module):
    """A bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(UNITS))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Chain(nn.Module):
    """Stem -> what limits -> what is done between -> kernels -> what is done behind -> rectifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.parts = [
            draw.choice(list(LIMITS)),
            *draw.sample(list(BETWEEN), draw.randrange(3)),
            draw.choice(list(KERNELS)),
        ]
        self.parts += [draw.choice(list(BEHIND)), draw.choice(list(GATES))]
        self.before = nn.Sequential(
            nn.Conv2d(2, CHANNELS, 1), LIMITS[self.parts[0]](), *(BETWEEN[name]() for name in self.parts[1:-3])
        )
        self.kernels, self.behind = KERNELS[self.parts[-3]](), BEHIND[self.parts[-2]]()
        self.gate = GATES[self.parts[-1]]()

    def ungated(self, x: Tensor) -> Tensor:
        return self.behind(self.kernels(self.before(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.ungated(x)).square().mean()

    def last_bias(self) -> nn.Parameter:
        *_, last = (module for module in self.kernels.modules() if hasattr(module, "bias") and module.bias is not None)
        assert isinstance(last.bias, nn.Parameter)
        return last.bias


def gates_of(net: Chain, x: Tensor) -> tuple[list[Gate], int]:
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net(x).grad_fn)
    facts = next(
        facts for name, facts in reader.facts.items() if name.startswith("kernels") and not facts.holds_no_kernels
    )
    return facts.gates, facts.unbounded


def attack(net: Chain, batch: Tensor, channels: list[int]) -> float:
    """The largest value before the rectifier that is found by random inputs, large ones, and by climbing."""
    best = -float("inf")
    along = -1 if net.parts[-3] in ("rows", "no bias of its own", "linear") else 1
    for start in range(3):
        x = (batch[:1] if start == 2 else batch) * 10.0**start
        x = x.expand_as(batch).clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.3 * 10.0**start)
        for step in range(25):
            optimizer.zero_grad()
            value = net.ungated(x).movedim(0 if along == -1 and net.parts[-2] == "turned" else along, 0)[channels]
            best = max(best, value.max().item())
            (-value.max() if step % 2 else -value.logsumexp(tuple(range(value.ndim)))).backward()
            optimizer.step()
    return best


@pytest.mark.parametrize("seed", range(80))
def test_no_attack_opens_a_rectifier_that_is_certified_by_a_hair(seed: int) -> None:
    net = Chain(seed)
    batch = torch.randn(3, 2, SIDE, SIDE)
    net(batch)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name or "before.1" in name or "before.2" in name:
                parameter.normal_()
        net.last_bias().zero_()
    gates, unbounded = gates_of(net, batch)
    assert not unbounded, net.parts
    (gate,) = gates
    rows = torch.tensor([gate.rows[channel] for channel in range(len(gate.rows))])
    with torch.no_grad():
        for _ in range(3):  # the margin grows with the bias
            high = gate.bound.interval(rows).high * (2 if net.parts[-2] == "half" else 1)
            net.last_bias().sub_(torch.where(high.isfinite(), high.float() * (1 + 1e-6) + 1e-7, 30.0))
    opens = gate.opens_for(range(len(rows)))
    certified = sorted(set(range(len(rows))) - opens)
    assert certified or not high.isfinite().any(), net.parts
    assert not certified or attack(net, batch, certified) <= 0, net.parts
