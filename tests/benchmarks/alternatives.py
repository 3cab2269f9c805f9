"""The monitor and what people use instead, as callbacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import Tensor, nn

from lightning_deadkernel import DeadKernelMonitor


class GradNorm(L.Callback):
    """Lightning's `grad_norm`, logged at each step."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        module.log_dict(L.pytorch.utilities.grad_norm(module, norm_type=2))


class ForwardHooks(L.Callback):
    """A forward hook on every ReLU that notes which channels fired."""

    def __init__(self) -> None:
        self.fired: dict[nn.Module, Tensor] = {}
        self.handles: list[Any] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        relus = [part for part in module.modules() if isinstance(part, nn.ReLU)]
        self.handles = [relu.register_forward_hook(self.look) for relu in relus]

    def look(self, relu: nn.Module, inputs: Any, output: Tensor) -> None:
        fired = (output > 0).transpose(0, 1).flatten(1).any(1)
        self.fired[relu] = self.fired[relu] | fired if relu in self.fired else fired

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        for handle in self.handles:
            handle.remove()


class Histograms(L.Callback):
    """TensorBoard's `add_histogram` of all weights and gradients on sampled steps."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            for name, parameter in module.named_parameters():
                trainer.logger.experiment.add_histogram(f"weights/{name}", parameter, trainer.global_step)
                trainer.logger.experiment.add_histogram(f"gradients/{name}", parameter.grad, trainer.global_step)


class Torchmortem(L.Callback):
    """The package torchmortem at its defaults."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        from torchmortem import Autopsy

        self.autopsy = Autopsy(module, optimizer=trainer.optimizers[0]).__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.autopsy.step(loss=outputs["loss"].item())

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self.autopsy.__exit__(None, None, None)


def ormas() -> L.Callback:
    """The package ormas-monitor at its defaults."""
    from ormas_monitor.integrations.lightning import OrmasMonitorCallback

    callback: L.Callback = OrmasMonitorCallback(verbose=False)
    return callback


def monitor(**options: Any) -> Callable[[], L.Callback]:
    """The monitor, silent and without pictures, which are drawn at window ends only."""
    return lambda: DeadKernelMonitor(on_finding="ignore", log_figures=False, **options)


@dataclass(frozen=True)
class Variant:
    """A way to train: plain, or with one callback."""

    name: str
    callback: Callable[[], L.Callback] | None
    every_step: bool = False
    """All steps are sampled ones."""
    dead: bool = False
    """The first channel behind every activation is dead, so no layer ever resolves."""


def variants() -> list[Variant]:
    found = [
        Variant("plain", None),
        Variant("monitor", monitor()),
        Variant("monitor-all-dead", monitor(), dead=True),
        Variant("monitor-each-step", monitor(), every_step=True),
        Variant("grad-norm", GradNorm, every_step=True),
        Variant("forward-hooks", ForwardHooks, every_step=True),
        Variant("add-histogram", Histograms),
    ]
    if importlib.util.find_spec("ormas_monitor"):
        found.append(Variant("ormas-monitor", ormas))
    if importlib.util.find_spec("torchmortem"):
        found.append(Variant("torchmortem", Torchmortem))
    return found
