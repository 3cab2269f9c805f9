"""What the monitor does per step, counted in operators rather than in seconds."""

from __future__ import annotations

import gc
import sys
import warnings
from collections import Counter
from itertools import cycle
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.errors import DeadKernelInternalWarning
from lightning_deadkernel.evidence import step_statistics
from lightning_deadkernel.evidence.buffers import PAGES
from lightning_deadkernel.evidence.channel_evidence import ChannelEvidence

HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
HOST_READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique2", "_unique2", "masked_select"}


class Count(TorchDispatchMode):
    """Counts operators, and the bytes that `clone` copies."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.cloned = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.ops[name] += 1
        if name == "clone":
            self.cloned += out.numel() * out.element_size()
        return out


class Counted(DeadKernelMonitor):
    """Runs each of its hooks under a `Count`, and keeps one per step: ``steps[step][hook]``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(log_figures=False, save_report=False, **options)
        self.steps: list[dict[str, Count]] = []
        self.sampled: list[bool] = []


def _counted(name: str) -> Any:
    def hook(self: Counted, trainer: Any, *args: Any) -> None:
        if name == HOOKS[0]:
            self.steps.append({})
        with Count() as count:
            getattr(DeadKernelMonitor, name)(self, trainer, *args)
        self.steps[-1][name] = count
        if name == HOOKS[0]:
            self.sampled.append(self._run.sampled)

    return hook


for _name in HOOKS:
    setattr(Counted, _name, _counted(_name))


class Net(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def mlp(depth: int, width: int = 16, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=bias)
        nn.init.kaiming_normal_(linear.weight)
        layers += [linear, nn.LeakyReLU()]
    return nn.Sequential(*layers)


def fit(net: nn.Module, monitor: DeadKernelMonitor, batches: list[torch.Tensor], log_every: int = 50) -> None:
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=log_every,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", DeadKernelInternalWarning)
        trainer.fit(Net(net), DataLoader(TensorDataset(torch.stack(batches)), batch_size=None))


def noise(steps: int, width: int = 16, batch: int = 32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, generator=generator) for _ in range(steps)]


def test_an_unsampled_step_never_reads_from_the_device() -> None:
    monitor = Counted()
    torch.manual_seed(1)
    net = nn.Sequential(mlp(3), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        net[1].bias[3] = -100.0  # stays pending, so that the reads of a pending layer are counted too
    fit(net, monitor, noise(20))
    unsampled = [step for step, sampled in zip(monitor.steps, monitor.sampled, strict=True) if not sampled]
    assert len(unsampled) == 12
    for step in unsampled:
        for hook, count in step.items():
            assert not HOST_READS & count.ops.keys(), (hook, count.ops)
    assert monitor.report is not None
    assert monitor.report["net.1"].dead == [3]


def test_gradient_evidence_is_one_launch_a_step_at_any_depth_and_a_few_more_when_the_pages_are_full() -> None:
    launches: dict[int, list[dict[str, int]]] = {}
    for depth in (4, 40):
        monitor = Counted()
        fit(mlp(depth), monitor, noise(2 * PAGES + 8))
        ops = [step["on_after_backward"].ops for step in monitor.steps[2:-1]]
        views = ("slice", "detach", "view", "unbind")
        launches[depth] = [{name: count for name, count in of.items() if name not in views} for of in ops]
    assert launches[4] == launches[40]
    cheap = {"cat": 1}
    # the first step, a sampled one, has looked at its page at once
    assert [step for step, of in enumerate(launches[4], 2) if of != cheap] == [PAGES, 2 * PAGES]
    assert all(sum(of.values()) <= 7 for of in launches[4])


def test_a_resolved_layer_is_not_read_again_until_the_next_window() -> None:
    monitor = Counted()
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    fit(net, monitor, noise(30, batch=256))  # a zero-mean unit is silent on a batch of 256 once in 2**256
    reads = [sum(step["on_before_backward"].ops.values()) for step in monitor.steps]
    assert reads[0] > 0
    assert all(not count for count, sampled in zip(reads[2:], monitor.sampled[2:], strict=True) if not sampled)


class Called(DeadKernelMonitor):
    """Counts the Python functions that each of its hooks calls, itself among them: ``calls[step][hook]``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(log_figures=False, save_report=False, **options)
        self.calls: list[Counter[str]] = []


def _called(name: str) -> Any:
    def hook(self: Called, *args: Any) -> None:
        if name == HOOKS[0]:
            self.calls.append(Counter())
        calls = self.calls[-1]
        before = sys.getprofile()
        sys.setprofile(lambda frame, event, arg: calls.update([name] if event == "call" else []))
        try:
            getattr(DeadKernelMonitor, name)(self, *args)
        finally:
            sys.setprofile(before)

    return hook


for _name in HOOKS:
    setattr(Called, _name, _called(_name))


@pytest.mark.parametrize("depth", [2, 20])
def test_an_ordinary_step_of_a_settled_network_is_one_launch_and_few_calls_at_any_depth(depth: int) -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(
            *(part for _ in range(depth) for part in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()))
        )

    counted, called = Counted(), Called()
    for monitor in (counted, called):
        torch.manual_seed(0)
        fit(net(), monitor, noise(30, batch=256))
    steps = [step for step, sampled in zip(counted.steps, counted.sampled, strict=True) if not sampled][4:]
    assert len(steps) > 10
    for step in steps:
        ops = sum((count.ops for count in step.values()), Counter[str]())
        assert ops == {"cat": 1}
    # each call is about a microsecond of memory that training has flushed; after a sampled step the next is planned
    most = dict(zip(HOOKS, (6, 5, 6, 1, 7), strict=True))
    ordinary = [step for step in range(5, 30) if not any(counted.sampled[step - 1 : step + 1])]
    assert len(ordinary) > 10
    for step in ordinary:
        assert all(called.calls[step][hook] <= most[hook] for hook in HOOKS), called.calls[step]


class Alternating(nn.Module):
    """Two tasks in turn; optionally a head that none of them uses."""

    def __init__(self, spare: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(2))
        self.spare = nn.Linear(16, 4) if spare else None
        self.turn = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.turn += 1
        return self.heads[self.turn % 2](x)


@pytest.mark.parametrize("spare", [False, True])
def test_what_has_fired_is_left_alone_also_beside_tasks_in_turn_and_layers_never_used(
    monkeypatch: pytest.MonkeyPatch, spare: bool
) -> None:
    net, read = Alternating(spare), Counter[int]()
    with torch.no_grad():
        net.heads[1][0].bias[3] = -100.0  # stays pending for ever
    original = ChannelEvidence.read_activations

    def counting(self: ChannelEvidence, maxima: Any) -> None:
        read[net.turn % 2] += len(maxima)
        original(self, maxima)

    monkeypatch.setattr(ChannelEvidence, "read_activations", counting)
    monitor = Counted()
    fit(net, monitor, noise(200, batch=256))
    # reads 1, 2, 4, 8 are counted: by then both heads have been read, and what fired of them is known a step later
    assert read[0] <= 8
    assert read[1] >= 90
    assert monitor.report is not None
    assert monitor.report["net.heads.1.0"].dead == [3]
    assert monitor.report["net.heads.0.0"].dead == []


@pytest.mark.parametrize("log_every", [1, 7, 50, 1000])
@pytest.mark.parametrize("fires_on", [[17], list(range(1, 40, 2)), [38]])
def test_a_channel_that_fires_in_few_batches_is_not_dead_at_any_logging_interval(
    log_every: int, fires_on: list[int]
) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[:, 0] = 1.0
        net[0].bias.copy_(torch.tensor([0.0, -5.0, -50.0]))  # the second fires only where the first input is large
    batches = [x.abs() for x in noise(40, width=4)]
    for step in fires_on:
        batches[step][0, 0] = 10.0
    for step in set(range(40)) - set(fires_on):
        batches[step].clamp_(max=1.0)
    monitor = Counted()
    fit(net, monitor, batches, log_every)
    assert monitor.report is not None
    assert monitor.report.samples == 40 * 32
    assert monitor.report["net.0"].dead == [2]


def test_memory_between_steps_is_per_channel_and_does_not_grow() -> None:
    alive: dict[int, int] = {}

    class Watched(DeadKernelMonitor):
        def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(trainer, model, outputs, batch, batch_idx)
            if batch_idx in (17, 28, 97):
                gc.collect()
                tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
                storages = [x.untyped_storage() for x in tensors if x.layout == torch.strided]
                alive[batch_idx] = sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    monitor = Watched(log_figures=False, save_report=False)
    width, depth = 64, 4
    fit(mlp(depth, width), monitor, noise(100, width))
    # between the sampled steps nothing is added; a sampled step adds a few numbers per layer
    assert alive[28] - alive[17] <= 8 * 16
    assert alive[97] - alive[17] <= 8 * 16 * depth * 5


def test_a_sampled_step_copies_the_weights_once_and_an_unsampled_one_never() -> None:
    monitor = Counted()
    net = mlp(5)
    weights = sum(p.numel() * 4 for p in net.parameters() if p.ndim == 2)
    fit(net, monitor, noise(20))
    for step, sampled in zip(monitor.steps, monitor.sampled, strict=True):
        copied = step["on_before_optimizer_step"].cloned
        assert copied == (weights if sampled else 0)


def test_without_the_update_ratio_no_copy_of_the_weights_is_made() -> None:
    monitor = Counted(update_ratio=False)
    fit(mlp(5), monitor, noise(4), log_every=1)
    assert all(step["on_before_optimizer_step"].cloned == 0 for step in monitor.steps)
    assert monitor.report is not None
    assert all(layer.update_ratio is None for layer in monitor.report.layers)
    assert all(layer.gradient_ratio is not None for layer in monitor.report.layers)


def test_weight_rows_are_read_only_until_every_channel_has_shown_a_gradient() -> None:
    monitor = Counted()
    fit(mlp(4, bias=False), monitor, noise(10))
    reads = [step["on_after_backward"].ops["amax"] for step in monitor.steps]
    assert reads[0] == 4
    assert set(reads[2:]) == {0}


@pytest.mark.parametrize("steps", [2, 30])
def test_a_large_network_is_copied_whole_on_the_first_and_last_step_and_in_turn_between(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    net = mlp(5)
    weights = net[0].weight.numel()
    monkeypatch.setattr(step_statistics, "TURN", 2 * weights)
    updates: dict[int, dict[int, float]] = {}

    class Compared(Counted):
        def on_before_optimizer_step(self, trainer: Any, model: Any, optimizer: Any) -> None:
            super().on_before_optimizer_step(trainer, model, optimizer)
            self.old = [layer.weight.detach().clone() for layer in net if isinstance(layer, nn.Linear)]

        def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            new = [layer.weight.detach() for layer in net if isinstance(layer, nn.Linear)]
            updates[batch_idx] = {i: float((b - a).norm() / a.norm()) for i, (a, b) in enumerate(zip(self.old, new))}  # noqa: B905
            super().on_train_batch_end(trainer, model, outputs, batch, batch_idx)

    monitor = Compared()
    fit(net, monitor, noise(steps), log_every=5)
    copied = [step["on_before_optimizer_step"].cloned // (4 * weights) for step in monitor.steps]
    assert [copied[0], copied[-1]] == [5, 5]
    sampled = [step for step, yes in enumerate(monitor.sampled) if yes and step not in (0, steps - 1)]
    assert all(copied[step] == 2 for step in sampled)
    turns = [(0, 1), (2, 3), (4, 0), (1, 2), (3, 4)]
    assert monitor.report is not None
    for index, layer in enumerate(monitor.report.layers):
        steps_of = [0, *(step for step, turn in zip(sampled, cycle(turns)) if index in turn), steps - 1]
        seen = torch.tensor([updates[step][index] for step in steps_of])
        assert layer.update_ratio == pytest.approx(float(seen.median()), rel=1e-4)
        assert layer.update_ratio_max == pytest.approx(float(seen.max()), rel=1e-4)


def test_a_half_precision_loss_does_not_change_the_number_of_reads() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(torch.bfloat16)
    monitor = Counted()
    fit(net, monitor, [x.bfloat16() for x in noise(20, batch=256)])
    reads = [sum(step["on_before_backward"].ops.values()) for step in monitor.steps]
    assert all(not count for count, sampled in zip(reads[2:], monitor.sampled[2:], strict=True) if not sampled)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; not run without one")
def test_an_unsampled_step_never_waits_for_a_cuda_device() -> None:
    class Strict(DeadKernelMonitor):
        steps = strict_steps = 0

    def strict(name: str) -> Any:
        def hook(self: Strict, trainer: Any, *args: Any) -> None:
            if name == HOOKS[0]:
                getattr(DeadKernelMonitor, name)(self, trainer, *args)
                self.steps += 1
                # the first two read the graph, the last ends a window
                self.free = self._run.sampled or self.steps <= 2 or trainer.is_last_batch
                self.strict_steps += not self.free
                return
            torch.cuda.set_sync_debug_mode("default" if self.free else "error")
            try:
                getattr(DeadKernelMonitor, name)(self, trainer, *args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return hook

    for name in HOOKS:
        setattr(Strict, name, strict(name))
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        net[0].bias[3] = -100.0
    monitor = Strict(log_figures=False, save_report=False)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cuda", devices=1, logger=False, callbacks=[monitor], log_every_n_steps=50
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeadKernelInternalWarning)  # a hook that waits raises, and is then left out
        trainer.fit(Net(net), DataLoader(TensorDataset(torch.stack(noise(120))), batch_size=None))
    assert monitor.report is not None
    assert monitor.strict_steps > 100
    assert 3 in monitor.report["net.0"].dead
