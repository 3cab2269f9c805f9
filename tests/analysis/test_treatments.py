"""Warm-up, He initialisation and standardised data: what they do, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helpers.training import SHORT
from lightning_deadkernel.analysis.treatments import HeInitialisation, Standardised, WarmUp


class Net(L.LightningModule):
    """Keeps the learning rate of every step, as the optimizer sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = torch.nn.Linear(6, 40), torch.nn.Linear(40, 2)
        self.rates: list[float] = []
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch[0])
        return self.head(self.first(batch[0]).relu()).square().mean()

    def configure_optimizers(self) -> Any:
        net = self
        torch.optim.SGD([torch.zeros(1)], lr=1.0)  # from the first one on, hooks run in the step of SGD itself, too

        class Noting(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                loss = closure()
                net.rates.append(self.param_groups[0]["lr"])
                super().step()
                return loss

        optimizer = Noting(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}]


def fitted(*callbacks: L.Callback, **options: Any) -> Net:
    L.seed_everything(0, verbose=False)
    net, loader = Net(), DataLoader(TensorDataset(torch.randn(24, 6)), 4, shuffle=True)
    L.Trainer(**{**SHORT, "callbacks": list(callbacks), **options}).fit(net, loader)
    return net


def test_warm_up_takes_its_share_of_what_the_schedule_gives_and_leaves_the_schedule_alone() -> None:
    assert fitted(WarmUp(4)).rates == pytest.approx([0.1 * 0.5**n * min(1, (n + 1) / 4) for n in range(6)])
    assert fitted().rates == pytest.approx([0.1 * 0.5**n for n in range(6)])


def test_warm_up_counts_steps_and_not_batches() -> None:
    assert fitted(WarmUp(2), accumulate_grad_batches=2).rates == pytest.approx([0.05, 0.05, 0.025])


@pytest.mark.parametrize("steps", [0, -1])
def test_warm_up_over_no_step_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"positive int, but got {steps}"):
        WarmUp(steps)


def test_he_initialisation_draws_the_named_layer_and_no_other_random_number_of_the_training() -> None:
    begun: list[torch.Tensor] = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            begun.extend([pl_module.first.weight.clone(), pl_module.first.bias.clone(), pl_module.head.weight.clone()])

    plain, treated = fitted(Look()), fitted(HeInitialisation(["first"]), Look())
    assert not torch.equal(begun[0], begun[3])
    assert float(begun[3].std()) == pytest.approx((2 / 6) ** 0.5, rel=0.15)
    assert not begun[4].any()
    assert torch.equal(begun[2], begun[5])
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, treated.seen, strict=True))  # the same batches


def test_he_initialisation_of_what_has_no_weight_is_refused() -> None:
    with pytest.raises(AttributeError, match="second"):
        fitted(HeInitialisation(["second"]))


@pytest.mark.parametrize("layer", [torch.nn.Linear(3, 2), torch.nn.Conv1d(3, 2, 1)])
def test_standardised_data_has_no_mean_in_any_feature_and_a_deviation_of_one_over_all(layer: torch.nn.Module) -> None:
    shape = (50, 3, 1) if isinstance(layer, torch.nn.Conv1d) else (50, 3)
    features = torch.tensor([100.0, 0.0, -5.0]).view(3, 1) if len(shape) > 2 else torch.tensor([100.0, 0.0, -5.0])
    first, second = torch.randn(shape) * 4 + features, torch.randn(shape) * 4 + features
    seen: list[torch.Tensor] = []

    class Reading(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

    Standardised(["layer"]).on_fit_start(L.Trainer(**SHORT), Reading())
    layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    layer(first), layer(second)
    assert float(seen[0].transpose(1, -1).flatten(0, -2).mean(0).abs().max()) < 1e-4
    assert float(seen[0].square().mean().sqrt()) == pytest.approx(1.0, rel=1e-4)
    mean = first.mean([0, *range(2, first.ndim)], keepdim=True)
    assert torch.allclose(seen[1], (second - mean) / (first - mean).square().mean().sqrt(), atol=1e-4)


def test_data_that_is_all_the_same_becomes_zero() -> None:
    layer = torch.nn.Linear(3, 2)
    assert not Standardised._scale([], layer, (torch.ones(4, 3),))[0].any()
