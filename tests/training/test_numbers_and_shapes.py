"""Numbers beyond float32's range, and parameters that change their shape in the middle of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.training import quiet
from helpers.twins import QUIET
from lightning_deadkernel import Report
from lightning_deadkernel.functional.sparsity import weight_summary

Change = Callable[[nn.Sequential], None]


class Scaled(L.LightningModule):
    """The first layer's weights times a factor, the second's divided by it: the output, and what is dead, stay."""

    def __init__(self, factor: float = 1.0, dtype: torch.dtype = torch.float32, change: Change | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
        with torch.no_grad():
            self.net[0].bias[2] = -100.0
            for parameter in self.net[0].parameters():
                parameter *= factor
            self.net[2].weight /= factor
        self.factor, self.change = factor, change

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.change is not None and self.current_epoch == 1 and batch_idx == 3:
            self.change(self.net)
            for parameter in self.parameters():
                parameter.grad = None
        return self.net(batch[0].to(self.net[0].weight.dtype)).square().mean()

    def configure_optimizers(self) -> Any:
        first, second, rest = list(self.net[0].parameters()), [self.net[2].weight], self.net[4].parameters()
        return torch.optim.SGD(
            [
                {"params": first, "lr": 1e-3 * self.factor**2},
                {"params": second, "lr": 1e-3 / self.factor**2},
                {"params": [self.net[2].bias, *rest], "lr": 1e-3},
            ]
        )


def fit(model: L.LightningModule, log_every: int = 2) -> Report:
    monitor = quiet()
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    L.Trainer(**{**QUIET, "max_epochs": 3, "log_every_n_steps": log_every}, callbacks=[monitor]).fit(
        model, DataLoader(TensorDataset(data), 8)
    )
    assert [report.window for report in monitor.reports] == [0, 1, 2, 3], "the watch goes on"
    return monitor.reports[-1]


@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(1e50, torch.float64), (1e-50, torch.float64), (1e140, torch.float64), (1e16, torch.float32)],
)
def test_huge_and_tiny_weights_are_told_like_others(factor: float, dtype: torch.dtype) -> None:
    plain, scaled = fit(Scaled(1.0, dtype)), fit(Scaled(factor, dtype))
    for layer, other in zip(plain.layers, scaled.layers, strict=True):
        assert other.dead == layer.dead
        assert other.zero_kernels == layer.zero_kernels
        assert other.gini == pytest.approx(layer.gini, abs=0.02)
        assert other.weight_sparsity == layer.weight_sparsity
        assert other.update_ratio is not None
    # the second layer takes the same relative steps whatever the factor
    assert scaled["net.2"].update_ratio == pytest.approx(plain["net.2"].update_ratio, rel=0.01)
    assert not {finding.kind for finding in scaled.findings} & {"sparse_weights", "non_finite_gradient"}
    assert plain["net.0"].dead == [2]


def test_a_summary_of_float64_weights_does_not_depend_on_their_scale() -> None:
    weights = torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[3] = 0
    one = weight_summary(weights)
    for factor in (2.0**300, 2.0**-300):
        other = weight_summary(weights * factor)
        for name in ("zeros", "near_zeros", "gini", "hoyer"):
            assert float(getattr(other, name)) == float(getattr(one, name)), name
        assert float(other.rms) == pytest.approx(float(one.rms) * factor)
        assert int(other.histogram.sum()) == weights.numel()


def widened(net: nn.Sequential) -> None:
    net[0].weight.data = torch.cat([net[0].weight.data, torch.randn(3, 4)])
    net[0].bias.data = torch.cat([net[0].bias.data, torch.zeros(3)])
    net[2].weight.data = torch.cat([net[2].weight.data, torch.randn(8, 3)], 1)


def narrowed(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].weight.set_(net[0].weight[:5].clone())
        net[0].bias.set_(net[0].bias[:5].clone())
        net[2].weight.set_(net[2].weight[:, :5].clone())


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("log_every", [1, 2, 50])
@pytest.mark.parametrize(("change", "channels"), [(widened, 11), (narrowed, 5)])
def test_a_layer_that_changes_its_shape_is_watched_as_a_new_one_and_the_others_go_on(
    change: Change, channels: int, log_every: int
) -> None:
    report = fit(Scaled(change=change), log_every)
    first, second, head = report.layers
    assert first.channels == channels
    assert first.dead == [2]
    for layer in (first, second):
        assert layer.excluded is None
        assert (
            layer.note
            == "watched since epoch 1 (step 11), when it was given a new weight, of which nothing earlier is told"
        )
    assert head.note is None
    assert head.states == ["active", "active"]
    assert head.gradient_ratio is not None
