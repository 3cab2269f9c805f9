"""Runs that become NaN or infinite: what they show before, where it began, and that nothing else is made of it.

Where it began is known from the networks themselves, which look at every value that a layer computes.
"""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.models import DEAD, Guarded, Tiny, dead, images
from helpers.training import ACCELERATOR, SAFELY, looked_at, quiet
from helpers.twins import train, train_twice
from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.evidence import open_window

HIDDEN = 4


class Deep(Tiny):
    """Four hidden layers and an output; notes the steps and layers whose activations, or losses, are not finite."""

    lr = 0.01
    noted: list[tuple[int, str]]

    def __init__(self) -> None:
        super().__init__()
        type(self).noted = []

    def make_net(self) -> nn.Module:
        widths = [16, *[24] * HIDDEN, 3]
        return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def note(self, value: Tensor, where: str) -> Tensor:
        if not value.isfinite().all():
            self.noted.append((self.global_step + 1, where))
        return value

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        for index, layer in enumerate(self.net[:-1]):
            x = self.note(F.relu(layer(x)), f"net.{index}")
        return self.net[-1](x)

    def training_step(self, batch, batch_idx):
        return self.note(self.loss(batch), "loss")


class Exploding(Deep):
    lr = 1e12


class LogOfZero(Deep):
    def loss(self, batch):
        loss = super().loss(batch)
        return loss + torch.log(loss.detach() * 0) if self.global_step == 8 else loss


class NotANumberFromTheStart(Deep):
    def make_net(self) -> nn.Module:
        net = super().make_net()
        with torch.no_grad():
            net[2].weight[3, 5] = math.nan
        return net


class RootOfZero(Deep):
    """The loss is finite, and its gradient is not: 0 times the infinite slope of the root at 0."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        for index, layer in enumerate(self.net[:-1]):
            x = F.relu(layer(x))
            if index == 1 and self.training and self.global_step == 8:
                x = x + (x * 0).sqrt()
        return self.net[-1](x)


def spoilt(*places: int) -> DataLoader:
    """Batches 0 to 11 of eight samples; a pixel of these is NaN."""
    x, y = images(96).tensors
    x = x.clone()
    for place in places:
        x[8 * place + 3, 0, 2, 2] = math.nan
    return DataLoader(TensorDataset(x, y), 8)


def finding_of(report):
    (finding,) = [finding for finding in report.findings if finding.kind == "non_finite_gradient"]
    return finding


@pytest.mark.parametrize("log_every", [1, pytest.param(1000, marks=looked_at)])
@pytest.mark.parametrize("make", [Exploding, NotANumberFromTheStart])
def test_the_first_step_and_layer_with_values_that_are_not_finite_are_named(make, log_every):
    run = train_twice(make, data=spoilt, max_epochs=3, log_every_n_steps=log_every)
    step, layer = make.noted[0]
    for report in run.monitor.reports[1 + (step - 1) // 12 :]:  # the windows after tell of the same beginning
        finding = finding_of(report)
        assert (finding.evidence["step"], finding.layer) == (step, layer)
        assert finding.severity == "error"
        assert [finding.kind for finding in report.findings if finding.severity != "info"] == ["non_finite_gradient"]
        assert f"came at step {step}: the activation of {layer} was the first" in finding.cause
        assert ("lower the learning rate" in finding.advice) == (step > 1)
        assert ("a step before had changed weights by" in finding.cause) == (step > 1)


def test_nan_in_the_inputs_is_told_of_the_layer_that_reads_them():
    run = train_twice(Deep, data=lambda: spoilt(7), max_epochs=1, log_every_n_steps=1000)
    finding = finding_of(run.report)
    assert Deep.noted[0] == (8, "net.0") == (finding.evidence["step"], finding.layer)
    assert "what enters net.0 was, which no layer in the graph of that step had made" in finding.cause
    assert "Look at the data of that step" in finding.advice
    assert "learning rate" not in finding.advice
    assert run.report.non_finite_batches == 5  # from that step on the weights are NaN
    assert "7 of 12 batches were finite" in run.report.to_markdown()


@looked_at
def test_a_loss_that_is_not_finite_after_finite_activations_is_told_as_that():
    run = train_twice(LogOfZero, data=spoilt, max_epochs=1, log_every_n_steps=1000)
    assert LogOfZero.noted[0] == (9, "loss")
    finding = finding_of(run.report)
    assert (finding.evidence["step"], finding.layer) == (9, None)
    # net.4 makes the outputs, which no activation follows
    assert "all activations that could be read were finite, that of net.3 the last of them" in finding.cause
    assert "Go back to the last checkpoint" in finding.advice


class Masked(Deep):
    """All of an attention is masked; but for the first, no layer has an activation."""

    def first(self, x: Tensor) -> Tensor:
        return F.relu(self.net[0](x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.adaptive_avg_pool2d(x, 4).flatten(1))
        x = (x @ x.T + torch.full((len(x), len(x)), -math.inf)).softmax(1) @ x
        for layer in self.net[1:]:
            x = layer(x)
        return x


class MaskedAndLinear(Masked):
    def first(self, x: Tensor) -> Tensor:
        return self.net[0](x)


@looked_at
@pytest.mark.parametrize(
    ("make", "where"),
    [(Masked, "that of net.0 the last of them"), (MaskedAndLinear, "where it began is not known")],
)
def test_nan_of_an_operation_between_layers_is_not_said_to_come_behind_the_outputs(make, where):
    finding = finding_of(train_twice(make, data=spoilt, max_epochs=2, log_every_n_steps=1000).report)
    assert (finding.evidence["step"], finding.layer) == (1, None)
    assert where in finding.cause
    assert "net.4" not in finding.cause
    assert "no learning rate did it" in finding.advice
    assert "checkpoint" not in finding.advice


def test_gradients_that_are_born_not_finite_in_the_backward_pass_are_told_where():
    run = train_twice(RootOfZero, data=spoilt, max_epochs=1, log_every_n_steps=1000)
    finding = finding_of(run.report)
    assert (finding.evidence["step"], finding.layer) == (9, "net.1")
    assert "those nearer to the loss were finite" in finding.cause


@pytest.mark.parametrize("log_every", [1, 1000])
def test_of_a_nan_batch_among_many_the_others_show_all_and_it_shows_nothing(log_every):
    run = train_twice(Guarded, data=lambda: spoilt(4), max_epochs=1, log_every_n_steps=log_every)
    healthy = train(Guarded, quiet(), data=spoilt, max_epochs=1, log_every_n_steps=log_every)
    assert dead(run.report) == DEAD
    assert [layer.states for layer in run.report.layers] == [layer.states for layer in healthy.report.layers]
    assert run.report.non_finite_batches == 1
    assert healthy.report.non_finite_batches == 0
    assert (finding_of(run.report).evidence["step"], finding_of(run.report).severity) == (5, "warning")
    assert finding_of(run.report).layer == "net.conv1"
    clean = train(Guarded, quiet(every_n_train_steps=6), data=lambda: spoilt(4), max_epochs=1).monitor.reports[2]
    assert not [finding for finding in clean.findings if finding.kind == "non_finite_gradient"]


def test_infinite_activations_and_gradients_make_nothing_active():
    def infinite():
        x, y = images(96).tensors
        return DataLoader(TensorDataset(torch.full_like(x, math.inf), y), 8)

    report = train_twice(Guarded, data=infinite, max_epochs=1).report
    assert report.non_finite_batches == 12
    assert {state for layer in report.layers for state in layer.states} == {"unknown"}


@pytest.fixture
def _not_waited_for(monkeypatch):
    """As on a GPU: losses are not at hand before the backward."""
    monkeypatch.setattr(open_window, "is_at_hand", lambda loss: False)


@pytest.mark.usefixtures("_not_waited_for")
def test_on_a_device_that_is_not_waited_for_the_step_is_known_and_the_place_said_not_to_be():
    run = train_twice(Exploding, data=spoilt, max_epochs=1, log_every_n_steps=1000)
    finding = finding_of(run.report)
    assert finding.evidence["step"] == Exploding.noted[0][0]
    assert "where it began is not known" in finding.cause


class Scaled(Tiny):
    """Its gradients overflow at the scaler's first scale; on wish its loss is NaN for good."""

    broken = False

    def loss(self, batch):
        return super().loss(batch) * (math.nan if self.broken and self.global_step >= 0 else 1)


class ScaledAndBroken(Scaled):
    broken = True


def scaler() -> list[MixedPrecision]:
    scale = torch.amp.GradScaler(ACCELERATOR, init_scale=2.0**20, backoff_factor=2.0**-8)
    return [MixedPrecision("16-mixed", ACCELERATOR, scale)]


def test_steps_that_a_scaler_skips_are_no_faults_and_a_loss_that_is_nan_is_one():
    skipped = train_twice(Scaled, plugins=scaler, data=spoilt, max_epochs=1)
    assert skipped.report.non_finite_batches >= 1
    assert dead(skipped.report) == DEAD
    assert not [finding for finding in skipped.report.findings if finding.kind == "non_finite_gradient"]
    broken = train_twice(ScaledAndBroken, plugins=scaler, data=spoilt, max_epochs=1)
    assert finding_of(broken.report).evidence["step"] == 1


@pytest.mark.usefixtures("_not_waited_for")
def test_a_loss_that_is_nan_is_told_where_the_scaler_skips_its_steps_and_none_is_waited_for():
    broken = train_twice(ScaledAndBroken, plugins=scaler, data=spoilt, max_epochs=1, log_every_n_steps=1000)
    finding = finding_of(broken.report)
    assert finding.evidence["step"] == 1
    assert "the loss was; where it began is not known" in finding.cause


@pytest.mark.slow
def test_a_run_that_becomes_nan_has_its_report_pictures_and_console_to_the_end(tmp_path, capsys):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = train(Exploding, DeadKernelMonitor(), data=spoilt, max_epochs=3)
    (path,) = Path().rglob("report.json")
    assert Report.load(path).window == 2
    assert list(path.parent.glob("*.png"))
    assert not [str(one.message) for one in said if "could not" in str(one.message) or "failed" in str(one.message)]
    assert "NaN or infinite" in capsys.readouterr().out
    assert run.report.verdict.startswith(f"{Exploding.noted[0][1]}: gradients are NaN or infinite")


@looked_at
def test_a_half_open_window_keeps_where_it_began(tmp_path):
    def keep():
        return [ModelCheckpoint(tmp_path, "middle", every_n_train_steps=7, save_top_k=-1)]

    def go_on(trainer, model, data):
        trainer.fit(model, data, ckpt_path=tmp_path / "middle.ckpt", **SAFELY)

    whole = train(Guarded, quiet(), data=lambda: spoilt(6), callbacks=keep, max_epochs=1, enable_checkpointing=True)
    resumed = train(Guarded, quiet(), data=lambda: spoilt(6), fit=go_on, max_epochs=1)
    assert resumed.report.non_finite_batches == whole.report.non_finite_batches == 1
    assert finding_of(resumed.report).evidence["step"] == finding_of(whole.report).evidence["step"] == 7
    assert finding_of(resumed.report).layer == "net.conv1"


class Huge(Tiny):
    """Values of 1e60 are as good as any in float64, and no float32 can hold them."""

    lr = 1e-122

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * 1e60)

    def loss(self, batch):
        x, _ = batch
        return self(x).square().mean()


def test_float64_beyond_the_range_of_float32_is_finite():
    data = lambda: DataLoader(images(48, torch.float64), 8)  # noqa: E731
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1)).double()

    class Net(Huge):
        def make_net(self) -> nn.Module:
            with torch.no_grad():
                net[0].bias.copy_(torch.tensor([0.0, 0, -1e65, 0], dtype=torch.float64))
            return copy.deepcopy(net)

    report = train_twice(Net, data=data, precision="64-true").report
    assert report.non_finite_batches == 0
    assert report["net.0"].states == ["active", "active", "dead", "active"]
    assert report["net.0"].values.gradient[0] > 1e50
    assert report["net.0"].values.dormant_score == pytest.approx([1, 1, 0, 1], abs=0.7)
    assert report["net.0"].gradient_ratio > 0.01
    assert 1e-12 < report["net.0"].update_ratio < 10
    (finding,) = [finding for finding in report.findings if finding.severity != "info"]
    assert (finding.kind, finding.evidence["shift"]) == ("dead_channels", -1e65)
