"""Trials of real trainings through the function: what each needs to kill its kernels is known from its making."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helpers.training import fit as train
from lightning_deadkernel import DeadKernelMonitor, Report, why

SHUT = [1, 4, 5, 8]
"""Units that something holds below zero."""


class Shut(L.LightningModule):
    """Units that a bias of `bias`, and a constant `shift` that is added behind it, hold below zero.

    Inputs are in 0..1 and weights small, so that each of the two alone is enough, whatever the other is.
    """

    def __init__(self, bias: float = -50.0, shift: float = 0.0, lr: float = 0.01) -> None:
        super().__init__()
        self.hidden, self.head, self.lr = torch.nn.Linear(8, 12), torch.nn.Linear(12, 3), lr
        held = torch.zeros(12)
        held[SHUT] = 1.0
        torch.nn.init.uniform_(self.hidden.weight, 0.05, 0.5)
        with torch.no_grad():
            self.hidden.bias.copy_(bias * held)
        self.register_buffer("shift", shift * held)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        logits = self.head((self.hidden(batch[0]) + self.shift).relu())
        return torch.nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def fit_of(**unchanged: Any) -> Any:
    def fit(change: dict[str, Any] | None, seed: int) -> DeadKernelMonitor:
        L.seed_everything(0, verbose=False)
        net = Shut(**{**unchanged, **(change or {})})
        data = TensorDataset(torch.rand(96, 8), torch.randint(3, (96,)))
        torch.manual_seed(seed)
        return train(net, DataLoader(data, 8, shuffle=True), max_epochs=2)

    return fit


def verdicts(trial: Any) -> dict[str, str]:
    return {arm.name: arm.verdict for arm in trial.arms if arm.verdict}


def test_the_one_cause_of_a_real_run_is_the_one_change_that_suffices() -> None:
    trial = why(fit_of(), {"a tenth of the learning rate": {"lr": 0.001}, "no bias": {"bias": 0.0}})
    assert trial.named == {"hidden": SHUT}
    assert (trial.reproduced, trial.bit_for_bit) == (4, True)
    assert verdicts(trial) == {"a tenth of the learning rate": "no difference from chance", "no bias": "sufficient"}
    assert trial.verdict.startswith("No bias suffices: with that alone changed none of 4 named kernels is dead")
    assert [len(arm.runs) for arm in trial.arms] == [1, 1, 2, 3, 3]


def test_of_two_causes_each_of_which_is_enough_none_is_named_alone() -> None:
    arms = {"no bias": {"bias": 0.0}, "no shift": {"shift": 0.0}}
    trial = why(fit_of(shift=-50.0), arms)
    assert verdicts(trial) == {
        "no bias": "changed nothing",
        "no shift": "changed nothing",
        "all together": "sufficient",
    }
    assert trial.verdict.startswith("No change suffices alone, but together they do (no bias, no shift)")
    assert "none is named alone" in trial.verdict


def test_of_two_changes_each_of_which_is_enough_none_is_named_as_the_cause() -> None:
    """What holds the units down takes both its halves: to lift either is enough."""
    arms = {"half the shift": {"shift": 0.0}, "no bias": {"bias": 0.0}}
    trial = why(fit_of(bias=-1.0, shift=-1.0, lr=0.001), arms)
    assert verdicts(trial) == {"half the shift": "sufficient", "no bias": "sufficient"}
    assert trial.verdict.startswith("Each of 2 changes suffices by itself")
    assert "none of them alone is the cause" in trial.verdict


def test_where_nothing_that_is_tried_helps_that_is_the_answer() -> None:
    trial = why(fit_of(), {"lower rate": {"lr": 0.001}, "higher rate": {"lr": 0.02}}, seeds=1)
    assert trial.verdict.startswith("Nothing that was tried helps: 2 changes")


def test_a_run_that_is_not_seeded_is_not_said_to_repeat() -> None:
    def unseeded(change: Any, seed: int) -> DeadKernelMonitor:
        net = Shut(bias=0.0 if change else -50.0)
        torch.nn.init.normal_(net.hidden.weight[:2], std=float(torch.rand(())) / 100)
        return train(net, torch.utils.data.DataLoader(TensorDataset(torch.rand(32, 8), torch.randint(3, (32,))), 8))

    trial = why(unseeded, {"no bias": 1.0}, seeds=2)
    assert not trial.bit_for_bit
    assert trial.reproduced == 4  # the same four, though from other weights
    assert "but not to the last bit" in " ".join(trial.conclusion)


def test_a_broken_arm_is_a_line_and_what_is_no_report_is_refused() -> None:
    trial = why(fit_of(), {"typo": {"rate": 1.0}, "no bias": {"bias": 0.0}}, seeds=1)
    assert verdicts(trial) == {"typo": "failed", "no bias": "sufficient"}
    (typo,) = (arm for arm in trial.arms if arm.name == "typo")
    assert typo.error == "TypeError: Shut.__init__() got an unexpected keyword argument 'rate'"
    with pytest.raises(RuntimeError, match="`fit` is to return a monitor with a report, or a report, but it"):
        why(lambda change, seed: 3, {"any": None})


def test_a_report_does_as_well_as_its_monitor() -> None:
    def fit(change: Any, seed: int) -> Report:
        report = fit_of()(change, seed).report
        assert report is not None
        return report

    assert why(fit, {"no bias": {"bias": 0.0}}, seeds=1).verdict.startswith("No bias suffices")


def test_no_training_begins_when_the_time_is_over() -> None:
    with pytest.raises(RuntimeError, match="the control was not run: 1e-09 minutes were over"):
        why(fit_of(), {"no bias": {"bias": 0.0}}, max_minutes=1e-9)


@pytest.mark.parametrize(("options", "words"), [({"seeds": 0}, "`seeds`.*got 0"), ({"max_minutes": -1.0}, "got -1.0")])
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        why(fit_of(), {"no bias": {}}, **options)


def test_no_arms_are_refused() -> None:
    with pytest.raises(ValueError, match="`arms` to name at least one change"):
        why(fit_of(), {})
