"""What is not seen is said, and what only looks like a fault is not one: trained for real."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.short_runs import SEEDS, Training, alarms, conv_norm_net, found, last, mlp, sgd, train
from helpers.training import quiet
from lightning_deadkernel import DeadKernelError

pytestmark = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    L.seed_everything(seed, verbose=False)


class Parts(nn.Module):
    """A backbone and a head, joined as a test will have it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.head = nn.Linear(48, 10)
        self.other = nn.Linear(48, 10)


class Detached(Parts):
    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.backbone(pictures).detach())


def test_a_backbone_that_is_cut_off_by_a_detach_is_a_problem(seed: int) -> None:
    report = last(train(Detached()))
    (finding,) = found(report, "unwatched_layers")
    assert (finding.severity, finding.cause_word, finding.layer) == ("warning", "cut off", None)
    assert "net.backbone.1" in finding.cause
    assert report.problems[0].findings == (finding,)
    assert "Nothing found" not in report.verdict


def test_what_is_cut_off_stops_the_run_of_who_asked_for_that(seed: int) -> None:
    with pytest.raises(DeadKernelError, match="not everything that is trained can be watched"):
        train(Detached(), monitor=quiet(on_finding="raise"))


class InAPlainList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(64, 48), nn.Linear(48, 48)]
        self.head = nn.Linear(48, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        return self.head(x)


def test_layers_in_a_plain_list_are_found_to_be_in_no_module(seed: int) -> None:
    (finding,) = found(last(train(InAPlainList())), "unwatched_layers")
    assert (finding.severity, finding.evidence["in_no_module"]) == ("warning", 2)
    assert "ModuleList" in finding.advice


class BareTensors(Training):
    """A weight, a shift and an input that are tensors and no parameters; the input is another at each step."""

    def __init__(self, given: bool) -> None:
        super().__init__(nn.Linear(64, 48), sgd(0.05))
        self.bare, self.shift = (0.1 * torch.randn(48, 10)).requires_grad_(), torch.zeros(10, requires_grad=True)
        self.given = given

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pictures = batch[0].flatten(1).clone().requires_grad_()
        return F.cross_entropy(self.net(pictures).relu() @ self.bare + self.shift, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.net.parameters(), *([self.bare, self.shift] if self.given else [])], 0.05)


@pytest.mark.parametrize("given", [True, False])
def test_a_tensor_that_an_optimizer_was_given_is_a_weight_in_no_module_and_an_input_is_none(given: bool) -> None:
    findings = found(last(train(BareTensors(given))), "unwatched_layers")
    assert [finding.evidence["in_no_module"] for finding in findings] == [1] * given


class WithoutWeightInTheLoss(Training):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.net.backbone(batch[0])
        first, second = self.net.head(hidden), self.net.other(hidden)
        return F.cross_entropy(first, batch[1]) + 0.0 * F.cross_entropy(second, batch[1])


def test_a_head_whose_loss_has_no_weight_is_told_as_that(seed: int) -> None:
    report = last(train(WithoutWeightInTheLoss(Parts(), sgd(0.05))))
    (finding,) = found(report, "no_gradient")
    assert (finding.layer, finding.severity, finding.cause_word) == ("net.other", "warning", "ignored by the loss")
    assert [problem.findings for problem in report.problems] == [(finding,)]


class OnlyThroughAHeadWithoutWeight(WithoutWeightInTheLoss):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.net.backbone(batch[0])
        first, second = self.net.head(batch[0].flatten(1)[:, :48]), self.net.other(hidden)
        return F.cross_entropy(first, batch[1]) + 0.0 * F.cross_entropy(second, batch[1])


def test_what_feeds_a_head_without_weight_is_not_said_to_have_zero_weights_behind_it(seed: int) -> None:
    report = last(train(OnlyThroughAHeadWithoutWeight(Parts(), sgd(0.05))))
    causes = {finding.cause_word for finding in found(report, "starved_channels")}
    assert causes == {"no gradient downstream"}
    assert report.problems[0].findings[0].layer == "net.other"  # the root first, with what feeds it under it
    assert len(report.problems) == 1


class WithPenaltyOnScales(Training):
    """Network slimming: an L1 term drives the norm's scales to zero."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 3.0 * self.net[1].weight.abs().sum()


def test_scales_that_an_l1_term_has_collapsed_are_not_blamed_on_the_shift_or_on_decay(seed: int) -> None:
    report = last(train(WithPenaltyOnScales(conv_norm_net(), sgd(2e-4, weight_decay=1e-6)), epochs=60))
    causes = {
        finding.cause_word for kind in ("dead_channels", "zero_kernels") for finding in found(report, kind, "net.0")
    }
    assert "scale collapsed" in causes
    assert not causes & {"decayed", "shift driven negative"}


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter whose second factor starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 48).requires_grad_(False)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 48, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(48, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.flatten(1)
        return self.head((self.base(x) + self.up(self.down(x))).relu())


def test_an_adapter_that_starts_at_zero_is_quiet(seed: int) -> None:
    assert alarms(train(Adapted(), epochs=3)) == []


def test_a_variance_head_whose_softplus_works_in_its_tail_is_not_saturated(seed: int) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(64, 32), nn.Linear(32, 10)
            nn.init.constant_(self.out.bias, -7.0)

        def forward(self, pictures: Tensor) -> Tensor:
            return F.softplus(self.out(self.hidden(pictures.flatten(1)).relu()))

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs, torch.full_like(outputs, 1e-3))

    report = last(train(Small(), sgd(0.5), loss=loss))
    assert found(report, "saturated_channels") == []
    assert report["net.out"].states == ["active"] * 10


class BecomesNan(Training):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.trainer.global_step >= 40 else loss


def test_a_run_that_becomes_nan_has_that_as_its_one_problem(seed: int) -> None:
    report = last(train(BecomesNan(mlp(64, 32, 32, 10), sgd(0.05)), epochs=3))
    assert {finding.kind for finding in report.findings if finding.severity != "info"} == {"non_finite_gradient"}
    assert [len(layer.unknown) for layer in report.watched] == [layer.channels for layer in report.watched]
    (problem,) = report.problems
    assert (problem.severity, problem.findings[0].layer) == ("error", None)


def test_a_bias_whose_gradient_is_summed_over_positions_is_no_yardstick_for_a_weight(seed: int) -> None:
    """A decoder to large pictures: its last bias gets a gradient thousands of times that of any weight."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 32), nn.Conv2d(32, 1, 1)

        def forward(self, pictures: Tensor) -> Tensor:
            x = 1e-3 * self.first(pictures.flatten(1)).relu()
            return self.last(x[:, :, None, None].expand(-1, -1, 32, 32))

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs - 5.0).square().sum((1, 2, 3)).mean()

    report = last(train(Decoder(), sgd(1e-5), loss=loss))
    ratios = [layer.gradient_ratio for layer in report.watched]
    assert max(ratio or 0.0 for ratio in ratios) == 1.0
