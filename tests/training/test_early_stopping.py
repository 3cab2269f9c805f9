"""The README's recipe: a run stops when too much is dead, and a healthy one does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from helpers.models import Tiny
from helpers.training import quiet
from helpers.twins import train


def recipe() -> list[Any]:
    return [
        EarlyStopping(
            monitor="deadkernel/dead_fraction",
            mode="min",
            divergence_threshold=0.25,
            patience=1_000_000,
            check_on_train_epoch_end=True,
        )
    ]


class Healthy(Tiny):
    """Nothing is dead, so the share stays at 0 and never improves."""

    def make_net(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))


class Dying(Healthy):
    """Five of six hidden units are shut for good."""

    def make_net(self) -> torch.nn.Module:
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        with torch.no_grad():
            net[1].bias[:5] = -100.0
        return net


@pytest.mark.parametrize(("make", "epochs"), [(Healthy, 5), (Dying, 1)])
def test_a_run_stops_where_too_much_is_dead_and_only_there(make: Any, epochs: int) -> None:
    run = train(make, quiet(), callbacks=recipe, max_epochs=5)
    assert [report.window for report in run.monitor.reports[1:]] == list(range(1, epochs + 1))
