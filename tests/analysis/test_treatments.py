"""Warm-up and He initialisation as callbacks: the rates of the steps, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helpers.training import SHORT
from lightning_deadkernel.analysis.treatments import HeInitialisation, WarmUp


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
