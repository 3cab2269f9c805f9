"""A rectifier that the loss is made of says nothing of the layer before it: a margin that is met kills no kernel."""

from __future__ import annotations

from collections.abc import Callable

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import DEAD, kill, rows, watch
from lightning_deadkernel import Report

HINGES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge of a critic": lambda x: F.relu(1 - x).mean(),
    "of both kinds of pictures": lambda x: F.relu(1 - x[:4]).mean() + F.relu(1 - x[4:]).mean(),
    "with targets": lambda x: F.relu(1 - x * torch.ones(8, 1)).mean(),
    "by clamp, weighted": lambda x: 0.5 * (1 - x).clamp(min=0).sum() / 8,
    "of some samples": lambda x: F.relu(1 - x)[torch.tensor([0, 2])].mean(),
    "squared": lambda x: F.relu(1 - x).pow(2).mean(),
    "squared, by hand": lambda x: (lambda h: (h * h).mean())(F.relu(1 - x)),
    "without a margin": lambda x: F.relu(-x).sum(1).mean(),
    "margin_ranking_loss": lambda x: F.margin_ranking_loss(x, torch.zeros_like(x), torch.ones_like(x), margin=1),
    "softplus of a critic": lambda x: F.softplus(-10 * x).mean(),
    "logsigmoid of a critic": lambda x: -F.logsigmoid(10 * x).mean(),
    "beside another term": lambda x: F.relu(1 - x).mean() + 0 * x.square().mean(),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda x: F.mse_loss(F.relu(x), torch.ones_like(x)),
    "mse by hand": lambda x: (F.relu(x) - 1).pow(2).mean(),
    "absolute": lambda x: (1 - F.relu(x)).abs().mean(),
    "cross entropy": lambda x: F.cross_entropy(F.relu(x), torch.zeros(8, dtype=torch.long)),
    "square": lambda x: F.relu(x).square().mean(),
    "poisson": lambda x: F.poisson_nll_loss(F.relu(x), torch.ones_like(x)),
}


class Ending(lightning.LightningModule):
    """A hidden layer, an output, and a loss of it."""

    def __init__(self, loss: Callable[[Tensor], Tensor], outputs: int) -> None:
        super().__init__()
        self.hidden, self.out, self.loss = nn.Linear(4, 6), nn.Linear(6, outputs), loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.out(F.relu(self.hidden(batch[0]))))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def trained(loss: Callable[[Tensor], Tensor], bias: list[float]) -> Report:
    torch.manual_seed(0)
    net = Ending(loss, len(bias))
    kill(net.hidden, *DEAD)
    with torch.no_grad():
        net.out.bias[:] = torch.tensor(bias)
    return watch(net, rows(8, 4), batch_size=8)


@pytest.mark.parametrize("form", HINGES)
def test_a_margin_that_is_met_on_all_samples_kills_no_kernel_of_the_layer_that_meets_it(form: str) -> None:
    report = trained(HINGES[form], [100.0])
    assert (report["out"].states, report["out"].activation) == (["zero-gradient"], None)
    assert report["hidden"].dead == list(DEAD)
    assert [finding.kind for finding in report.findings if finding.layer == "out"] == []
    report = trained(HINGES[form], [-100.0])
    assert (report["out"].states, report["out"].activation) == (["active"], None)


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_an_output_behind_a_rectifier_that_is_compared_with_targets_may_be_dead(form: str) -> None:
    report = trained(ACTIVATIONS[form], [-100.0, 1.0])
    assert (report["out"].dead, report["out"].activation) == ([0], "relu")
