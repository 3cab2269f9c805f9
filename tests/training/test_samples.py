"""What counts as a sample: each forward pass through a layer, whatever the loader's rows are."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.training import fit
from lightning_deadkernel import Report
from lightning_deadkernel.report.describe import describe
from lightning_deadkernel.training.trainer import batch_size

OFF = 1
"""The unit that never fires."""


class Told(L.LightningModule):
    """One hidden layer and an output; how it is run is up to `forward`."""

    def __init__(self, run, layer: nn.Module | None = None, manual: int = 0) -> None:
        super().__init__()
        self.first = layer or nn.Linear(4, 3)
        self.head = nn.LazyLinear(2) if layer is None else nn.Flatten()
        self.run, self.manual = run, manual
        self.automatic_optimization = not manual
        with torch.no_grad():
            self.first.bias.fill_(1.0)
            self.first.bias[OFF] = -100.0
            if layer is None:
                self.head(torch.zeros(1, 3))

    def training_step(self, batch, batch_idx):
        if not self.manual:
            return self.run(self, batch[0]).square().mean()
        optimizer = self.optimizers()
        for _ in range(self.manual):
            optimizer.zero_grad()
            self.manual_backward(self.run(self, batch[0]).square().mean())
            optimizer.step()
        return None

    def hidden(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)


def watched(run, x: Tensor, batch_size: int = 8, **options) -> Report:
    net = Told(run, options.pop("layer", None), options.pop("manual", 0))
    report = fit(net, x, batch_size, log_every_n_steps=1, **options).report
    assert report is not None
    assert report["first"].dead == [OFF]
    return report


def dead_of(report: Report):
    (finding,) = [f for f in report.findings if f.kind == "dead_channels"]
    return finding


@pytest.mark.parametrize(
    ("run", "manual", "options", "samples"),
    [
        (lambda net, x: net.hidden(x), 0, {}, 48),
        (lambda net, x: net.hidden(x) + net.hidden(-x), 0, {}, 96),
        (lambda net, x: net.hidden(torch.cat([x, -x])), 0, {}, 96),
        (lambda net, x: net.hidden(x.repeat(16, 1)), 0, {"batch_size": 1}, 48 * 16),
        (lambda net, x: net.hidden(x), 3, {}, 144),
        (lambda net, x: net.hidden(x), 0, {"accumulate_grad_batches": 3}, 48),
    ],
    ids=["one pass", "two passes", "pairs", "sixteen replayed rows", "a replay loop", "accumulation"],
)
def test_samples_are_forward_passes_and_the_bound_follows_them(run, manual, options, samples):
    torch.manual_seed(0)
    report = watched(run, torch.randn(48, 4), manual=manual, **options)
    finding = dead_of(report)
    assert finding.samples == samples
    assert finding.evidence["highest_possible_firing_rate"] == pytest.approx(3 / samples)


def test_one_use_with_two_activations_is_one_forward_pass():
    def run(net, x):
        h = net.first(x)
        return net.head(torch.relu(h) + torch.relu(h * 2))

    torch.manual_seed(0)
    assert dead_of(watched(run, torch.randn(48, 4))).samples == 48


def test_nodes_of_graphs_are_positions():
    """Two batches of three graphs with 7 and 11 nodes: none of these can be told to be a graph's."""

    class Graphs:
        def __init__(self, nodes: int) -> None:
            self.x, self.num_graphs = torch.randn(nodes, 4), 3

    class OfGraphs(Told):
        def training_step(self, batch, batch_idx):
            return self.hidden(batch.x).square().mean()

    torch.manual_seed(0)
    data = DataLoader([Graphs(7), Graphs(11)], batch_size=None, collate_fn=lambda graph: graph)
    report = fit(OfGraphs(Told.hidden), data, log_every_n_steps=1).report
    assert report.samples == 6
    finding = dead_of(report)
    assert finding.evidence["positions"] == 18
    assert finding.evidence["highest_possible_per_position_firing_rate"] == pytest.approx(3 / 18)
    assert "highest_possible_firing_rate" not in finding.evidence
    assert report["first"].sample_rate == [None] * 3


def brute_force(net: Told, x: Tensor) -> list[float]:
    """Share of samples on some position of which each channel is above zero, one sample at a time."""
    h = torch.relu(net.first(x))
    channels = 1 if isinstance(net.first, nn.Conv2d) else h.ndim - 1
    h = h.movedim(channels, 1).flatten(2) if h.ndim > 2 else h[:, :, None]
    return [sum(bool((h[i, c] > 0).any()) for i in range(len(h))) / len(h) for c in range(h.shape[1])]


@pytest.mark.parametrize(
    ("shape", "shift"), [((48, 4), -0.4), ((48, 5, 4), -1), ((48, 4, 6, 6), -1.5)], ids=["rows", "windows", "maps"]
)
def test_the_sample_rate_is_the_share_of_samples_on_some_position_of_which_a_channel_fires(shape, shift):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 3, 3) if len(shape) == 4 else None
    net = Told(Told.hidden, layer)
    with torch.no_grad():
        net.first.bias.copy_(torch.tensor([shift, -100.0, 0.2]))
    x = torch.randn(shape)
    expected = brute_force(net, x)
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), 0.0)
    report = fit(net, x, 8, log_every_n_steps=1).report
    assert report["first"].sample_rate == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert report["first"].rated_samples == 48
    assert f"{round(48 * expected[0])} of 48 samples" in str(describe(report))


def test_sequences_first_are_told_by_the_size_of_the_batch():
    torch.manual_seed(0)
    x = torch.randn(48, 5, 4)
    rates = []
    for run in (Told.hidden, lambda net, x: net.hidden(x.transpose(0, 1))):
        torch.manual_seed(1)
        rates.append(watched(run, x)["first"].sample_rate)
    assert rates[0] == rates[1]
    assert rates[0][OFF] == 0


def test_what_a_batch_holds_is_asked_of_its_maker_where_it_says_so():
    assert batch_size(SimpleNamespace(num_graphs=3, x=torch.zeros(7, 4))) == 3
    assert batch_size(TensorDataset(torch.zeros(7, 4)).tensors) == 7
