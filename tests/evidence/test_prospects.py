"""What is said of the future of dead kernels, against the optimizer that goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.training import fit, quiet
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader
from lightning_deadkernel.report.records import Finding
from lightning_deadkernel.report.sentences import prospect

WIDTH = 16
Optimizer = Callable[[Any], torch.optim.Optimizer]


class Block(L.LightningModule):
    """A norm -> 6 units, of which two are shut -> an output."""

    def __init__(self, optimizer: Optimizer, shift: float = -5.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.unit, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 6), nn.Linear(6, 1)
        self.optimizer = optimizer
        with torch.no_grad():
            self.unit.weight.copy_(F.normalize(torch.randn(6, WIDTH)))  # reach 4 at most
            self.unit.bias[:] = 0.0
            self.unit.bias[:2] = shift

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.out(F.relu(self.unit(self.norm(batch[0])))).square().mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self)


def dead_finding(net: Block) -> Finding:
    monitor = quiet()
    fit(net, torch.randn(32, WIDTH), monitor=monitor)
    assert monitor.report is not None
    assert monitor.report["unit"].dead == [0, 1]
    return next(finding for finding in monitor.report.findings if finding.kind == "dead_channels")


def whole(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Optimizer:
    return lambda net: make(net.parameters(), **options)


DECAYING = {
    "SGD": (whole(torch.optim.SGD, lr=0.1, weight_decay=0.05), 0),
    "momentum": (whole(torch.optim.SGD, lr=0.01, weight_decay=0.05, momentum=0.9), 0),
    "AdamW": (whole(torch.optim.AdamW, lr=0.01, weight_decay=0.5), 0),
    "Adam": (whole(torch.optim.Adam, lr=1e-3, weight_decay=1e-2), None),
}


@pytest.mark.parametrize("name", DECAYING)
def test_dead_kernels_fade_when_it_is_said(name: str) -> None:
    make, opened = DECAYING[name]
    net = Block(make)
    finding = dead_finding(net)
    foretold = finding.evidence["faded_in_steps"]
    assert finding.evidence.get("opened_by_decay") == opened
    kernels, optimizer = net.unit.weight, net.trainer.optimizers[0]
    target = 1e-3 * float(kernels.detach().norm(dim=1).max())
    kernels.grad = torch.zeros_like(kernels)
    others = [p for p in net.parameters() if p is not kernels]
    for parameter in others:
        parameter.grad = None
    steps = 0
    while float(kernels[:2].detach().norm(dim=1).max()) > target:
        optimizer.step()
        steps += 1
        assert steps < 20_000
    early = 0.6 if name == "Adam" else 0.95  # Adam's date is that of the largest entry, and no moments from before
    assert early * foretold <= steps <= foretold * 1.02


def groups(weights: float, shifts: float) -> Optimizer:
    def make(net: Block) -> torch.optim.Optimizer:
        shift, rest = [net.unit.bias], [p for p in net.parameters() if p is not net.unit.bias]
        decays = [{"params": shift, "weight_decay": shifts}, {"params": rest, "weight_decay": weights}]
        return torch.optim.AdamW(decays, 1e-3)

    return make


@pytest.mark.parametrize(
    ("weights", "shifts", "shift", "opened"),
    [
        (0.1, 0.1, -5.0, 0),
        (0.1, 0.0, -5.0, 0),
        (0.0, 0.1, -5.0, 2),
    ],
)
def test_whether_decay_brings_them_back_depends_on_what_it_takes_more_of(
    weights: float, shifts: float, shift: float, opened: int
) -> None:
    finding = dead_finding(Block(groups(weights, shifts), shift))
    assert finding.evidence["opened_by_decay"] == opened


def test_no_input_opens_them_before_the_date_and_some_input_does_soon_after() -> None:
    net = Block(groups(0.0, 0.1))
    earliest = int(dead_finding(net).evidence["opened_in_steps_at_the_earliest"])
    reader = GraphReader(LayerTable.of(net, None, None))
    reader.read(net.training_step([torch.randn(8, WIDTH)], 0).grad_fn)
    facts, optimizer = reader.facts["unit"], net.trainer.optimizers[0]
    for parameter in net.parameters():
        parameter.grad = None
    net.unit.bias.grad = torch.zeros_like(net.unit.bias)
    optimizer.state.clear()

    def opens() -> bool:
        v = net.unit.weight.detach()[:2] * net.norm.weight.detach()
        best = F.layer_norm(1e3 * (v - v.mean(1, keepdim=True)), (WIDTH,), net.norm.weight, net.norm.bias)
        return bool((net.unit(best)[:, :2].diagonal() > 0).any())

    for _ in range(earliest - 1):
        optimizer.step()
    assert facts.never_open([0, 1])[0] == {0, 1}
    assert not opens()
    for _ in range(earliest // 10):
        optimizer.step()
    assert opens()


def test_without_decay_nothing_moves_them_and_of_an_unknown_optimizer_nothing_is_said() -> None:
    finding = dead_finding(Block(whole(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)))
    assert finding.evidence["moved_by"] == "nothing"
    still = "Nothing moves their weights any more: they have no gradient and no weight decay"
    assert prospect(finding) == still, "they are certified: no change of what they read lets them fire"
    open_to_change = replace(finding, evidence={**finding.evidence, "certified": 0})
    assert prospect(open_to_change) == f"{still}; they fire again only if what they read changes"
    finding = dead_finding(Block(whole(torch.optim.RMSprop, lr=1e-3, weight_decay=0.1)))
    assert not {"moved_by", "faded_in_steps", "opened_by_decay"} & set(finding.evidence)


def test_a_learning_rate_of_zero_at_the_end_of_a_schedule_says_nothing_of_what_comes() -> None:
    finding = dead_finding(Block(whole(torch.optim.AdamW, lr=0.0, weight_decay=0.1)))
    assert "moved_by" not in finding.evidence


def test_adams_date_rests_on_the_gradients_that_it_remembers() -> None:
    def date(remembered: float) -> int:
        finding = dead_finding(Block(lambda net: warmed(net, remembered)))
        return int(finding.evidence["faded_in_steps"])

    def warmed(net: Block, remembered: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-2)
        kernels = net.unit.weight
        state = {"exp_avg": torch.zeros_like(kernels), "exp_avg_sq": torch.full_like(kernels, remembered)}
        optimizer.state[kernels] = {"step": torch.tensor(1000.0), **state}
        return optimizer

    assert date(1e-2) > 2 * date(0.0)


def remembering(make: Callable[..., torch.optim.Optimizer], name: str, value: float, **options: Any) -> Optimizer:
    """An optimizer that remembers gradients of this size of the kernels of the unit."""

    def made(net: Block) -> torch.optim.Optimizer:
        optimizer = make(net.parameters(), **options)
        kernels = net.unit.weight
        state = {
            "exp_avg": torch.zeros_like(kernels),
            "exp_avg_sq": torch.ones_like(kernels),
            "step": torch.tensor(9.0),
        }
        optimizer.state[kernels] = state | {name: value * kernels.detach().sign()}
        return optimizer

    return made


@pytest.mark.parametrize(
    ("make", "name", "options"),
    [
        (torch.optim.SGD, "momentum_buffer", {"momentum": 0.9}),
        (torch.optim.AdamW, "exp_avg", {"weight_decay": 0.0}),
    ],
    ids=["SGD", "AdamW"],
)
def test_what_momentum_still_moves_is_not_said_to_be_moved_by_nothing(
    make: Callable[..., torch.optim.Optimizer], name: str, options: dict[str, Any]
) -> None:
    def moved_by(value: float) -> object:
        net = Block(remembering(make, name, value, lr=1e-3, **options))
        told = dead_finding(net).evidence["moved_by"]
        before = net.unit.weight[:2].detach().clone()
        net.unit.weight.grad = torch.zeros_like(net.unit.weight)
        net.trainer.optimizers[0].step()
        assert (told == "nothing") == torch.equal(net.unit.weight[:2], before)
        return told

    assert moved_by(0.1) == "momentum"
    assert moved_by(0.0) == "nothing"


def test_the_date_of_fading_counts_what_momentum_carries_on() -> None:
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.05, "momentum": 0.9}
    net = Block(remembering(torch.optim.SGD, "momentum_buffer", -2.0, **options))  # away from zero
    foretold = dead_finding(net).evidence["faded_in_steps"]
    kernels, optimizer = net.unit.weight, net.trainer.optimizers[0]
    target = 1e-3 * float(kernels.detach().norm(dim=1).max())
    kernels.grad = torch.zeros_like(kernels)
    steps = 0
    while float(kernels[:2].detach().norm(dim=1).max()) > target:
        optimizer.step()
        steps += 1
    assert 0.98 * foretold <= steps <= 1.02 * foretold


@pytest.mark.parametrize("remembered", ["unit.bias", "norm.bias"])
def test_momentum_of_the_shift_moves_a_kernel_too(remembered: str) -> None:
    def made(net: Block) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        of = net.get_parameter(remembered)
        optimizer.state[of] = {"momentum_buffer": torch.ones_like(of)}
        return optimizer

    finding = dead_finding(Block(made))
    assert (finding.evidence["moved_by"] == "momentum") == (remembered == "unit.bias")  # else what they read changes
    assert ("by that, or if what they read changes" in prospect(finding)) == (remembered == "unit.bias")
