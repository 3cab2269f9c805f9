"""Layers that are frozen, unfrozen, added, replaced, adapted and removed while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.utils.data import DataLoader, TensorDataset

import lightning_deadkernel.graph.layers
from helpers.models import Resumable, Save
from helpers.tiny_nets import kill, rows
from helpers.training import SAFELY, SHORT, quiet
from helpers.twins import assert_identical, left_behind
from lightning_deadkernel import DeadKernelMonitor, Report

STEPS = 4
"""Of an epoch."""


class Net(L.LightningModule):
    """A backbone of two layers and a head behind ReLUs, kernels 1 and 4 of the first and 2 of the second dead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(kill(nn.Linear(5, 8), 1, 4), nn.ReLU(), kill(nn.Linear(8, 6), 2), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) - 1.0).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 1e-3)


class Rows(Resumable):
    def __init__(self) -> None:
        DataLoader.__init__(self, TensorDataset(rows(4 * STEPS, 5)), 4)
        self.begin = self.given = 0


class At(Callback):
    """Changes the model at one moment, and has the optimizer train all of it from then on."""

    def __init__(self, change: Callable[[Any], object], epoch: int = 1, batch: int | None = None) -> None:
        self.change, self.epoch, self.batch = change, epoch, batch

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch and self.batch is None:
            self._do(trainer, module)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            self._do(trainer, module)

    def _do(self, trainer: Any, module: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.change(module)
        module.to(module.device)
        (group,) = trainer.optimizers[0].param_groups
        group["params"] = [p for p in module.parameters() if p.requires_grad]


def train(callbacks: list[Any], epochs: int = 3, net: Any = None, ckpt: Any = None, **options: Any) -> Any:
    net = net or Net()
    trainer = L.Trainer(**{**SHORT, "max_epochs": epochs, "log_every_n_steps": 50, "callbacks": callbacks, **options})
    trainer.fit(net, Rows(), ckpt_path=ckpt, **(SAFELY if ckpt else {}))
    return trainer, net


def watched(*changes: Any, epochs: int = 3, after: bool = False, **options: Any) -> DeadKernelMonitor:
    """Trains with and without the monitor, which must leave the same behind; the monitor before or after the others."""
    make = [change if callable(change) and not isinstance(change, At) else (lambda c=change: c) for change in changes]
    monitor = quiet(**{name: options.pop(name) for name in ("every_n_train_steps",) if name in options})
    others = [new() for new in make]
    monitored = train([*others, monitor] if after else [monitor, *others], epochs, **options)
    plain = train([new() for new in make], epochs, **options)
    assert_identical(left_behind(*monitored), left_behind(*plain))
    return monitor


def dead(report: Report) -> dict[str, list[int]]:
    return {layer.name: layer.dead for layer in report.layers if layer.dead}


BACKBONE = {"backbone.0": [1, 4], "backbone.2": [2]}


@pytest.mark.setting("layers that are frozen, unfrozen, replaced or added in mid-training", evidence="activation")
@pytest.mark.parametrize("after", [False, True], ids=["monitor first", "monitor last"])
def test_a_backbone_is_watched_from_the_epoch_that_unfreezes_it(after: bool) -> None:
    monitor = watched(lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1), after=after)
    before, at, last = monitor.reports[1:]
    for name in BACKBONE:
        assert before[name].excluded == "requires_grad=False since initialisation"
        assert at[name].excluded is None
        assert at[name].note == "watched since epoch 1 (step 4), when it was unfrozen"
    assert dead(at) == dead(last) == BACKBONE
    assert last["backbone.0"].states[0] == "active"
    assert [finding.cause_word for finding in last.findings if finding.kind == "dead_channels"] == [
        "shift driven negative"
    ] * 2
    (finding,) = (f for f in last.findings if f.layer == "backbone.0" and f.kind == "dead_channels")
    assert finding.evidence["since_window"] == 2
    assert finding.samples == 16
    assert before["head"].excluded is None
    assert before["head"].note is last["head"].note is None


class FreezeAgain(BaseFinetuning):
    """Trains the head alone, then all, then the head again."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)
        elif epoch == 2:
            self.freeze(pl_module.backbone)
        elif epoch == 3:
            self.make_trainable(pl_module.backbone)


def test_a_layer_that_is_frozen_again_says_since_when_and_keeps_its_history_for_later() -> None:
    monitor = watched(FreezeAgain, epochs=4)
    first, second, third, fourth = monitor.reports[1:]
    assert first["backbone.0"].excluded == "requires_grad=False since initialisation"
    assert third["backbone.0"].excluded == "requires_grad=False since epoch 2 (step 8)"
    assert second["backbone.0"].note == "watched since epoch 1 (step 4), when it was unfrozen"
    assert fourth["backbone.0"].note == "watched since epoch 3 (step 12), when it was unfrozen"
    assert dead(second) == dead(fourth) == BACKBONE
    assert dead(third) == {}
    (finding,) = (f for f in fourth.findings if f.layer == "backbone.0" and f.kind == "dead_channels")
    assert finding.evidence["since_window"] == 2


def new_head(net: Any) -> None:
    net.head = nn.Sequential(kill(nn.Linear(6, 5), 0, 3), nn.ReLU(), nn.Linear(5, 3))


def same_name(net: Any) -> None:
    net.backbone[2] = kill(nn.Linear(8, 6), 5)


def weight_anew(net: Any) -> None:
    torch.manual_seed(3)
    net.backbone[2].weight = nn.Parameter(torch.randn(6, 8))
    net.backbone[2].bias = nn.Parameter(torch.tensor([9.0, 9, 9, 9, 9, -900]))


class Lora(nn.Module):
    """A frozen layer and a low-rank matrix beside it, as in peft."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def lora(net: Any) -> None:
    net.backbone[2] = Lora(net.backbone[2])


def wrapped(net: Any) -> None:
    net.backbone = nn.Sequential(kill(nn.Linear(5, 5), 3), nn.ReLU(), net.backbone)


def shifted_by_one(net: Any) -> None:
    net.backbone = nn.Sequential(nn.Identity(), *net.backbone)


def new_norm(net: Any) -> None:
    net.backbone[1] = nn.Sequential(kill(nn.BatchNorm1d(8), 6), nn.ReLU())


def layer_gone(net: Any) -> None:
    net.backbone[2] = nn.Identity()
    net.head = nn.Linear(8, 3)


def toggled(net: Any) -> None:
    net.backbone[0].requires_grad_(False)


def weight_normed(net: Any) -> None:
    parametrizations.weight_norm(net.backbone[0])


def pruned(net: Any) -> None:
    prune.ln_structured(net.backbone[0], "weight", amount=2, n=2, dim=0)


ANEW = "when it was given a new weight, of which nothing earlier is told"
ADDED = "when it was added"
CHANGES: dict[str, tuple[Any, dict[str, list[int]], dict[str, str]]] = {
    # change, what is dead after it, what is said of layers
    "head replaced by a deeper one": (new_head, {**BACKBONE, "head.0": [0, 3]}, {"head.0": ADDED, "head.2": ADDED}),
    "a layer replaced by its like": (same_name, {"backbone.0": [1, 4], "backbone.2": [5]}, {"backbone.2": ANEW}),
    "a weight registered anew": (weight_anew, {"backbone.0": [1, 4], "backbone.2": [5]}, {"backbone.2": ANEW}),
    "LoRA": (
        lora,
        {"backbone.0": [1, 4], "backbone.2.lora_B": [2]},  # which adds to a kernel that is off
        {"backbone.2.lora_A": ADDED, "backbone.2.lora_B": ADDED, "backbone.2.base_layer": "requires_grad=False since"},
    ),
    "layers put before": (
        wrapped,
        {"backbone.0": [3], "backbone.2.0": [1, 4], "backbone.2.2": [2]},
        {"backbone.0": ADDED, "backbone.2.0": "called backbone.0 until", "backbone.2.2": "called backbone.2 until"},
    ),
    "names that move": (
        shifted_by_one,
        {"backbone.1": [1, 4], "backbone.3": [2]},
        {"backbone.1": "called backbone.0 until", "backbone.3": "called backbone.2 until"},
    ),
    "a norm put between": (new_norm, {"backbone.0": [6], "backbone.2": [2]}, {}),
    "a layer removed": (layer_gone, {"backbone.0": [1, 4]}, {"head": ANEW}),
    "frozen": (toggled, {"backbone.2": [2]}, {"backbone.0": "requires_grad=False since"}),
    "weight norm": (weight_normed, BACKBONE, {}),
    "weight norm of old": (lambda net: old_weight_norm(net.backbone[0]), BACKBONE, {}),
    "spectral norm": (lambda net: parametrizations.spectral_norm(net.backbone[0]), BACKBONE, {}),
    "spectral norm of old": (lambda net: old_spectral_norm(net.backbone[0]), BACKBONE, {}),
    "pruned": (pruned, BACKBONE, {}),
}


@pytest.mark.setting("layers that are frozen, unfrozen, replaced or added in mid-training", evidence="activation")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("batch", [None, 2], ids=["at an epoch's start", "in its middle"])
@pytest.mark.parametrize(("change", "killed", "said"), CHANGES.values(), ids=CHANGES)
def test_the_layers_are_those_of_now(change: Any, killed: Any, said: Any, batch: int | None) -> None:
    monitor = watched(At(change, batch=batch))
    before, at, last = monitor.reports[1:]
    assert dead(before) == BACKBONE
    assert dead(last) == killed
    step = 4 if batch is None else 6
    for layer in last.layers:
        told = "; ".join(filter(None, (layer.excluded, layer.note)))
        if layer.name in said:
            assert said[layer.name] in told
            if change is not shifted_by_one or batch is None:  # the graph is the same: seen at the next sampled step
                assert f"epoch 1 (step {step})" in told
        else:
            assert "since" not in told
            assert "until" not in told
    stayed = {layer.name for layer in last.layers} & {layer.name for layer in before.layers} - said.keys()
    for finding in last.findings:
        if finding.kind == "dead_channels" and finding.layer in stayed and change is not new_norm:
            assert finding.evidence["since_window"] == 1
    for report in (at, last):
        assert not [f for f in report.findings if f.kind in ("unwatched_layers", "no_gradient", "starved_channels")]


def reparametrized(net: Any) -> None:
    parametrizations.weight_norm(net.backbone[0])
    old_weight_norm(net.backbone[2])
    old_spectral_norm(net.head)


def plain_again(net: Any) -> None:
    parametrize.remove_parametrizations(net.backbone[0], "weight")
    remove_weight_norm(net.backbone[2])
    remove_spectral_norm(net.head)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_the_end_of_a_parametrization_leaves_the_kernels_their_history() -> None:
    monitor = watched(At(reparametrized, epoch=1), At(plain_again, epoch=2), epochs=4)
    last = monitor.reports[-1]
    assert dead(last) == BACKBONE
    assert [layer.note for layer in last.layers] == [None] * 3
    assert all(f.evidence["since_window"] == 1 for f in last.findings if f.kind == "dead_channels")


class InStep(Net):
    """Replaces a layer within a training step, that of a batch whose graph may not be read at all."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if (self.current_epoch, batch_idx) == (1, 2):
            At(same_name)._do(self.trainer, self)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_layer_may_be_replaced_within_a_step(every: int | None) -> None:
    monitor, plain = quiet(every_n_train_steps=every), train([], net=InStep())
    assert_identical(left_behind(*train([monitor], net=InStep())), left_behind(*plain))
    changed = next(report for report in monitor.reports if report.global_step >= 7)
    assert dead(changed)["backbone.2"] == [5]
    assert dead(monitor.reports[-1]) == {"backbone.0": [1, 4], "backbone.2": [5]}
    assert "epoch 1 (step 6)" in str(monitor.reports[-1]["backbone.2"].note)


def test_a_verdict_on_a_layer_that_came_late_rests_on_the_samples_it_has_seen() -> None:
    at, last = watched(At(same_name, batch=2)).reports[2:]
    for report, samples in ((at, 8), (last, 16)):
        (finding,) = (f for f in report.findings if f.layer == "backbone.2" and f.kind == "dead_channels")
        assert finding.channels == (5,)
        assert finding.samples == samples
        assert finding.evidence["highest_possible_firing_rate"] == 3 / samples
        (finding,) = (f for f in report.findings if f.layer == "backbone.0" and f.kind == "dead_channels")
        assert finding.samples == 16


class AfterTheLastBatch(At):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == STEPS - 1:
            self._do(trainer, module)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        pass


def test_of_a_layer_that_no_step_has_used_yet_nothing_is_claimed() -> None:
    at, last = watched(lambda: AfterTheLastBatch(same_name), after=True).reports[2:]
    expected = f"not seen yet (watched since epoch 1 (step 8), {ANEW})"
    assert at["backbone.2"].excluded == expected
    assert not [f for f in at.findings if f.layer == "backbone.2" or f.kind == "unwatched_layers"]
    assert dead(at) == {"backbone.0": [1, 4]}
    assert dead(last) == {"backbone.0": [1, 4], "backbone.2": [5]}


def never_fires(net: Any) -> None:
    """Kernel 3 is below zero for all inputs, all of which are positive, and by its weights alone."""
    net.backbone[0] = nn.Linear(5, 8)
    with torch.no_grad():
        net.backbone[0].weight.abs_()[3] *= -1
        net.backbone[0].bias.zero_()


def test_a_kernel_that_came_dead_is_born_dead_and_not_since_the_first_window() -> None:
    last = watched(At(never_fires, epoch=2), epochs=4).reports[-1]
    (finding,) = (f for f in last.findings if f.layer == "backbone.0" and f.kind == "dead_channels")
    assert finding.channels == (3,)
    assert finding.cause_word == "born dead"
    assert "since it came at step 8" in finding.cause
    assert finding.evidence["since_window"] == 3


def zeroed(net: Any) -> None:
    net.backbone[2] = kill(nn.Linear(8, 6), 4, 5)
    net.backbone[2].weight.data[4:] = 0


def test_kernels_that_came_as_zeros_were_zero_from_their_start() -> None:
    last = watched(At(zeroed, batch=2)).reports[-1]
    (finding,) = (f for f in last.findings if f.layer == "backbone.2" and f.kind == "dead_channels")
    assert finding.channels == (4, 5)
    assert finding.cause_word == "zero at initialisation"


@pytest.mark.parametrize("batch", [None, 2], ids=["at an epoch's start", "in its middle"])
@pytest.mark.parametrize("change", [new_head, lora, toggled, weight_anew], ids=lambda change: change.__name__)
@pytest.mark.parametrize("step", [7, 8, 10])
def test_a_run_that_is_resumed_after_the_change_tells_the_same(
    tmp_path: Any, change: Any, batch: Any, step: int
) -> None:
    path = tmp_path / "at.ckpt"
    whole = quiet()
    train([whole, At(change, batch=batch), Save(path, step)], enable_checkpointing=True)

    net = Net()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        change(net)
    resumed = quiet()
    train([resumed], net=net, ckpt=path)
    assert [r.window for r in resumed.reports] == [r.window for r in whole.reports]
    for mine, other in zip(resumed.reports, whole.reports, strict=True):
        assert mine.compact() == other.compact()


def test_ordinary_steps_do_not_look_at_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    original = lightning_deadkernel.graph.layers._registered

    def counting(model: Any) -> Any:
        looks.append(1)
        return original(model)

    monkeypatch.setattr(lightning_deadkernel.graph.layers, "_registered", counting)
    monitor = quiet()
    data = DataLoader(TensorDataset(rows(400, 5)), 4)
    L.Trainer(**{**SHORT, "max_epochs": 2, "log_every_n_steps": 50, "callbacks": [monitor]}).fit(Net(), data)
    sampled = sum(report.sampled_steps for report in monitor.reports)
    graphs, windows, start = 1, 2, 2
    assert len(looks) == sampled + graphs + windows + start + 1


def test_pictures_and_loggers_take_layers_that_come_and_go(tmp_path: Any) -> None:
    monitor = DeadKernelMonitor(on_finding="ignore", min_steps=1)
    logger = CSVLogger(tmp_path)
    changes = [At(new_head), At(layer_gone, epoch=2), At(toggled, epoch=3)]
    train([monitor, *changes], epochs=4, logger=logger)
    assert monitor.report is not None
    columns = Path(logger.log_dir, "metrics.csv").read_text().splitlines()[0]
    for name in ("head.0", "head", "backbone.0", "backbone.2"):
        assert f"deadkernel.gradient_ratio/{name}" in columns
    folder = Path(logger.log_dir, "deadkernel")
    assert Report.load(folder / "report.json").layers == monitor.report.layers
    assert list(folder.glob("*.png"))
    text = (folder / "report.md").read_text()
    assert "`backbone.0`: requires_grad=False since epoch 3 (step 12)" in text
    assert any(
        "no longer in the model since epoch 2 (step 8): backbone.2" in note for r in monitor.reports for note in r.notes
    )


class Toggling(Net):
    """Two optimizers by hand, each of which turns off `requires_grad` of what it does not train while it is at work."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == (1, 2):
            same_name(self)
            self.optimizers()[0].param_groups[0]["params"] = list(self.backbone.parameters())
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward((self(batch[0]) - 1.0).square().mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), 1e-3) for part in (self.backbone, self.head)]


def test_what_a_step_turns_off_for_a_moment_is_not_frozen_and_a_new_layer_is_found_all_the_same() -> None:
    monitor = quiet()
    torch.manual_seed(7)
    train([monitor], net=Toggling())
    for report in monitor.reports[1:]:
        assert [layer.excluded for layer in report.layers] == [None] * 3
    before, at, last = monitor.reports[1:]
    assert dead(before) == BACKBONE
    assert dead(at) == dead(last) == {"backbone.0": [1, 4], "backbone.2": [5]}
    assert last["backbone.0"].note is last["head"].note is None
    assert ANEW in str(last["backbone.2"].note)


def test_of_a_finetuning_that_is_resumed_the_report_says_what_is_trained_now(tmp_path: Any) -> None:
    path = tmp_path / "at.ckpt"
    train([quiet(), BackboneFinetuning(1), Save(path, 6)], enable_checkpointing=True)
    resumed = quiet()
    _, net = train([resumed, BackboneFinetuning(1)], ckpt=path)
    assert [report.window for report in resumed.reports] == [0, 1, 2, 3]
    last = resumed.reports[-1]["backbone.0"]
    if net.backbone[0].weight.requires_grad:
        assert last.dead == [1, 4]
    else:  # Lightning 2.6 freezes the backbone on resuming and does not unfreeze it again
        assert last.excluded == "requires_grad=False since epoch 1 (step 6)"
