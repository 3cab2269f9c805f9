"""Graphs of another shape at almost every step: what is learned of them, how often, and what is said."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from helpers.tiny_nets import kill, rows
from helpers.training import SHORT, quiet
from helpers.twins import assert_identical, left_behind
from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.graph import reader

STEPS = 200


class Recurrent(L.LightningModule):
    """A ReLU network over sequences of any length, kernels 1 and 4 of its output layer dead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(3, 6)
        self.out, self.head = kill(nn.Linear(6, 8), 1, 4), nn.Linear(8, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        h = batch.new_zeros(batch.shape[1], 6)
        for x in batch:
            h = self.cell(x, h)
        return self.head(F.relu(self.out(h))).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = kill(nn.Linear(6, 8), 2, 5), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.back(F.relu(self.wide(x)))


class StochasticDepth(L.LightningModule):
    """24 blocks each of which is left out at every second step: 2^24 shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks, self.head = nn.Linear(3, 6), nn.ModuleList(Block() for _ in range(24)), nn.Linear(6, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = self.stem(batch)
        for block, keeps in zip(self.blocks, torch.rand(24) < 0.5, strict=True):
            x = block(x) if keeps else x
        return self.head(x).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def sequences() -> list[Tensor]:
    """One of each length."""
    return [rows(1 + (7 * step) % STEPS, 2, 3) for step in range(STEPS)]


NETS = {
    "sequences of 200 lengths": (Recurrent, sequences, 1, {"out": [1, 4]}),
    "stochastic depth of 24 blocks": (
        StochasticDepth,
        lambda: [rows(4, 3)] * STEPS,
        12,
        {f"blocks.{i}.wide": [2, 5] for i in range(24)},
    ),
}


@pytest.mark.parametrize(("make", "batches", "rounds", "killed"), NETS.values(), ids=NETS)
def test_new_shapes_cost_no_more_than_walking_over_them(
    make: Any, batches: Any, rounds: int, killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[int] = []
    learned: list[int] = []
    walk, learn = reader.walk, reader.GraphReader.learn

    def counting_walk(*args: Any) -> Any:
        found = walk(*args)
        walked.append(len(found[0]))
        return found

    def counting_learn(self: Any, nodes: Any, gathered: Any) -> Any:
        learned.append(len(nodes))
        return learn(self, nodes, gathered)

    def train(*callbacks: Any) -> Any:
        net = make()
        trainer = L.Trainer(**{**SHORT, "log_every_n_steps": 10, "callbacks": list(callbacks)})
        torch.manual_seed(1)
        trainer.fit(net, DataLoader(batches(), batch_size=None))
        return left_behind(trainer, net)

    plain = train()
    monkeypatch.setattr(reader, "walk", counting_walk)
    monkeypatch.setattr(reader.GraphReader, "learn", counting_learn)
    monitor: DeadKernelMonitor = quiet(every_n_train_steps=STEPS // 4)
    assert_identical(train(monitor), plain)

    windows, largest = len(monitor.reports) - 1, max(walked)
    assert windows == 4
    assert len(walked) <= STEPS
    needed = windows * rounds  # until each layer was looked at once in a window
    assert sum(learned) <= sum(walked) / reader.LEARNING + (reader.FEW + needed + 1) * largest
    assert len(learned) <= reader.FEW + needed + sum(walked) / reader.LEARNING / min(walked)
    assert monitor.report is not None
    assert {layer.name: layer.dead for layer in monitor.report.layers if layer.dead} == killed
    assert [layer.name for layer in monitor.report.layers if layer.excluded] == []
    assert {monitor.report[name].evidence for name in killed} == {"sampled activation"}
    for report in monitor.reports[1:]:
        assert {(f.kind, f.layer) for f in report.findings if f.kind == "dead_channels"} == {
            ("dead_channels", name) for name in killed
        }
        assert not {f.kind for f in report.findings} & {"unwatched_layers", "no_gradient", "starved_channels"}


class Leaves(L.LightningModule):
    """Inputs that need a gradient, new ones at each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = kill(nn.Linear(3, 8), 1, 4), nn.Linear(8, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.kept = [*getattr(self, "kept", []), batch.requires_grad_()]  # so that no id comes again
        return self.head(F.relu(self.first(batch))).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def test_inputs_that_need_a_gradient_make_no_new_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    learn = reader.GraphReader.learn
    monkeypatch.setattr(reader.GraphReader, "learn", lambda *args: learned.append(1) or learn(*args))
    monitor: DeadKernelMonitor = quiet()
    L.Trainer(**{**SHORT, "callbacks": [monitor]}).fit(
        Leaves(), DataLoader([rows(4, 3) for _ in range(20)], batch_size=None)
    )
    assert len(learned) == 1
    assert monitor.report is not None
    assert monitor.report["first"].dead == [1, 4]
    assert monitor.report["first"].evidence == "activation"
