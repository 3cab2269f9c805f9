"""What a training proves of its dead kernels: certified, never seen to fire, and firing are told apart everywhere."""

from __future__ import annotations

import json
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.training import fit, quiet
from lightning_deadkernel import Report
from lightning_deadkernel.report.codec import from_json, pack, to_json, unpack

WIDTH = 16


class Block(L.LightningModule):
    """A norm -> 8 units, of which two cannot fire, two do not on these inputs, and four do."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.unit, self.out = nn.Linear(WIDTH, 8), nn.Linear(8, 1)
        self.p, self.change = 0.0, change
        with torch.no_grad():
            self.unit.weight.copy_(F.normalize(torch.randn(8, WIDTH)))  # reach 4 at most, and 1 as a rule
            self.unit.bias.copy_(torch.tensor([-6.0, -4.3, -3.7, -3.7, 0, 0, 0, 0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.change is not None:
            self.change(self)
        y = F.dropout(self.norm(self.stem(batch[0])), self.p) if self.p else self.norm(self.stem(batch[0]))
        return self.out(F.relu(self.unit(y))).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4)


def report_of(net: L.LightningModule, **options: Any) -> Report:
    monitor = quiet()
    fit(net, torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(0)), monitor=monitor, **options)
    assert monitor.report is not None
    return monitor.report


def test_of_the_dead_some_are_certified_and_some_were_only_not_seen_to_fire() -> None:
    report = report_of(Block(), max_epochs=2)
    layer = report["unit"]
    assert layer.dead == [0, 1, 2, 3]
    assert layer.certified_dead == [0, 1]
    assert layer.certified_batch is None
    finding = next(finding for finding in report.findings if finding.kind == "dead_channels")
    assert finding.evidence["certified"] == 2
    assert finding.evidence["highest_possible_firing_rate"] == pytest.approx(3 / 32)
    assert report["stem"].certified_dead == report["out"].certified_dead == []
    assert "2 of 4 dead kernels certified: no input at all can make them fire" in report.to_markdown()


def test_certificates_are_written_and_read_back() -> None:
    report = report_of(Block())
    assert from_json(Report, to_json(report)) == report
    (written,) = (layer for layer in json.loads(to_json(report))["layers"] if layer["name"] == "unit")
    assert written["certified_dead"] == [0, 1]
    assert unpack(Report, pack(report))["unit"].certified_dead == [0, 1]
    frame = report.channels_dataframe()
    assert frame[frame.layer == "unit"].certified_dead.tolist() == [True, True] + [False] * 6
    assert report.to_dataframe().set_index("layer").certified_dead["unit"] == 2


def test_a_dropout_that_drops_more_from_some_step_on_takes_the_certificate_until_graphs_teach_anew() -> None:
    def more(net: Block) -> None:
        net.p = 0.1 if net.global_step < 8 else 0.2

    monitor = quiet()
    fit(Block(more), torch.randn(32, WIDTH), monitor=monitor, max_epochs=3, log_every_n_steps=1)
    assert [report["unit"].certified_dead for report in monitor.reports[1:]] == [[0], [], [0]]


def test_a_gain_that_is_replaced_is_read_anew() -> None:
    def replaced(net: Block) -> None:
        if net.global_step == 12:
            net.norm = nn.LayerNorm(WIDTH)
            net.norm.weight.data.fill_(100.0)

    monitor = quiet()
    fit(Block(replaced), torch.zeros(32, WIDTH), monitor=monitor, max_epochs=3)
    assert [report["unit"].certified_dead for report in monitor.reports[1:]] == [[0, 1], [], []]


def test_where_not_every_graph_was_read_nothing_is_certified() -> None:
    class Hidden(Block):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            y = torch.utils.checkpoint.checkpoint(self.norm, self.stem(batch[0]), use_reentrant=True)
            return self.out(F.relu(self.unit(y))).square().mean()

    layer = report_of(Hidden())["unit"]
    assert layer.dead
    assert layer.certified_dead == []
