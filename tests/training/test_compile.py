"""`torch.compile`: gradients at every step, activations on sampled steps that run eagerly, and no recompilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

from helpers.models import DEAD, Layers, Manual, Tiny, dead
from helpers.training import quiet
from helpers.twins import assert_identical, train
from lightning_deadkernel.training.compile import Stance

SAMPLED = "activations were read on sampled steps, which ran eagerly"


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def stance() -> str:
    return torch._dynamo.eval_frame._stance.stance


class Wrapped(Tiny):
    """`torch.compile(model)` of a part."""

    backend = "aot_eager"

    def make_net(self) -> nn.Module:
        return torch.compile(Layers(), backend=self.backend)


class InPlace(Tiny):
    """`model.compile()` of a part."""

    def make_net(self) -> nn.Module:
        net = Layers()
        net.compile(backend="aot_eager")
        return net


class Inductor(Wrapped):
    backend = "inductor"


class Function(Tiny):
    """A compiled function, which no module tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.call = torch.compile(lambda x: self.net(x), backend="aot_eager")

    def forward(self, x: Any) -> Any:
        return self.call(x)


def whole_module() -> Any:
    """`torch.compile(lightning_module)`."""
    return torch.compile(Tiny(), backend="aot_eager")


def module_in_place() -> Any:
    """`lightning_module.compile()`."""
    model = Tiny()
    model.compile(backend="aot_eager")
    return model


def counted(make: Any, monitor: Any, **options: Any) -> tuple[Any, dict[str, dict[str, int]]]:
    """A run, and what the compiler counted: graphs, graph breaks, recompilations."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = train(make, monitor, **options)
    counters = torch._dynamo.utils.counters
    kept = ("stats", "graph_break", "recompiles", "frames", "unimplemented")
    return run, {name: dict(counters[name]) for name in kept}


def names(run: Any) -> dict[str, list[int]]:
    return {name.replace("_orig_mod.", ""): channels for name, channels in dead(run.report).items()}


@pytest.mark.setting('`torch.compile`, `when_compiled="gradients"`', evidence="gradient")
@pytest.mark.parametrize("make", [Wrapped, InPlace, Function, whole_module, module_in_place, Inductor])
def test_gradients_alone_leave_compiled_training_bit_identical_and_compile_nothing_more(make):
    plain, without = counted(make, None)
    run, with_monitor = counted(make, quiet(when_compiled="gradients"))
    assert with_monitor == without
    assert without["stats"]["unique_graphs"] >= 1
    assert_identical(run.left_behind, plain.left_behind)
    if make is not module_in_place or run.report.notes:
        assert dead(run.report) == {}, "no activation was read, so nothing is called dead"
        assert any("no activation was read, states rest on gradients" in note for note in run.report.notes)
        conv1 = next(layer for layer in run.report.layers if layer.name.endswith("conv1"))
        assert conv1.zero_gradient == DEAD["conv1"]
        assert conv1.evidence == "gradient"


@pytest.mark.setting(
    '`torch.compile`, `when_compiled="sample"` (aot_eager, inductor)',
    evidence="activation, sampled steps",
    note="sampled steps run eagerly: other bits than compiled ones",
)
@pytest.mark.parametrize("make", [Wrapped, InPlace, Function, whole_module, Inductor])
def test_sampled_steps_run_eagerly_and_find_the_dead_channels_with_no_recompilation(make):
    _, without = counted(make, None)
    run, with_monitor = counted(make, quiet(), max_epochs=2, log_every_n_steps=4)
    assert with_monitor["graph_break"] == without["graph_break"]
    assert with_monitor["recompiles"] == without["recompiles"]
    assert with_monitor["stats"]["unique_graphs"] == without["stats"]["unique_graphs"]
    assert names(run) == DEAD
    assert any(SAMPLED in note for note in run.report.notes)
    conv1 = next(layer for layer in run.report.layers if layer.name.endswith("conv1"))
    assert conv1.evidence == "sampled activation"
    assert stance() == "default"


def by_hand() -> Any:
    """A compiled module that optimizes by hand: Lightning's hooks run within the compiled step."""
    return torch.compile(Manual(), backend="aot_eager")


@pytest.mark.setting('`torch.compile`, `when_compiled="gradients"`', evidence="gradient")
def test_the_compiler_does_not_trace_through_the_monitor_of_a_module_that_optimizes_by_hand():
    short = {"max_epochs": 1, "limit_train_batches": 4}
    plain, without = counted(by_hand, None, **short)
    run, with_monitor = counted(by_hand, quiet(when_compiled="gradients"), **short)
    assert with_monitor["stats"] == without["stats"]
    assert with_monitor["recompiles"] == without["recompiles"]
    assert_identical(run.left_behind, plain.left_behind)
    assert run.report["net.conv1"].zero_gradient == DEAD["conv1"]


class Fails(Wrapped):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        stances.append(stance())
        if self.global_step == 6:
            raise RuntimeError("in a sampled step")
        return super().training_step(batch, batch_idx)


class Leaves(Wrapped):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 2 else None

    def on_train_epoch_end(self) -> None:
        stances.append(stance())


stances: list[str] = []


def test_the_stance_is_given_back_on_every_way_out_of_a_step(monkeypatch):
    stances.clear()
    train(Fails, quiet(), raises=RuntimeError, log_every_n_steps=3)
    assert stances == ["force_eager", "default", "force_eager", "default", "default", "force_eager", "force_eager"]
    assert stance() == "default"

    stances.clear()
    train(Leaves, quiet(), log_every_n_steps=1)
    assert stances == ["default", "default"]
    assert stance() == "default"

    def broken(*args: Any) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr("lightning_deadkernel.evidence.observer.Observer.before_backward", broken)
    with pytest.warns(match="a fault of our own"):
        train(Wrapped, quiet())
    assert stance() == "default"


def test_a_users_own_stance_is_given_back():
    with torch.compiler.set_stance("eager_on_recompile"):
        held = Stance()
        held.force_eager()
        held.force_eager()
        assert stance() == "force_eager"
        held.restore()
        assert stance() == "eager_on_recompile"
        held.restore()
        assert stance() == "eager_on_recompile"
    assert stance() == "default"
