"""What a rule looks at: one window of the whole network, and each of its layers with its past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.history import History, LayerPast, gradient_seen
from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.thresholds import Thresholds


@dataclass(frozen=True)
class WindowContext:
    """A window that the history has taken in. What several rules ask of the whole network is computed once here."""

    window: Window
    reports: Mapping[str, LayerReport]
    history: History
    thresholds: Thresholds

    @cached_property
    def layers(self) -> tuple[LayerContext, ...]:
        """The watched layers, in forward order."""
        return tuple(
            LayerContext(layer, self.reports[layer.name], past, self)
            for layer in self.window.layers
            if layer.excluded is None and (past := self.history.get(layer.name)) is not None
        )

    @cached_property
    def by_name(self) -> Mapping[str, LayerContext]:
        """The watched layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def loss_is_flat(self) -> bool:
        """No watched layer had any gradient, though all were looked at."""
        return bool(self.layers) and all(bool(layer.without_gradient.all()) for layer in self.layers)

    @cached_property
    def wholly_non_finite(self) -> bool:
        """Each of several layers had a NaN or infinite gradient."""
        return len(self.layers) > 1 and all(layer.observed.non_finite_gradients for layer in self.layers)


@dataclass(frozen=True)
class LayerContext:
    """One watched layer: what was observed, what it is called, what it has been through."""

    observed: LayerWindow
    report: LayerReport
    past: LayerPast
    network: WindowContext

    @property
    def name(self) -> str:
        """Its qualified module name."""
        return self.observed.name

    @property
    def window(self) -> Window:
        """The window it was observed in."""
        return self.network.window

    @property
    def thresholds(self) -> Thresholds:
        """Where the lines are drawn."""
        return self.network.thresholds

    @cached_property
    def _gradient(self) -> tuple[Tensor, Tensor]:
        return gradient_seen(self.observed)

    @property
    def with_gradient(self) -> Tensor:
        """(C,) bool: a gradient was surely seen."""
        return self._gradient[0]

    @property
    def without_gradient(self) -> Tensor:
        """(C,) bool: it was looked for a gradient, and there surely was none."""
        return self._gradient[1]

    @property
    def is_first_window(self) -> bool:
        """Whether the layer is seen for the first time."""
        return self.past.first_window == self.window.index

    @property
    def watched_from_start(self) -> bool:
        """Whether it was seen at initialisation, before the first step of the run."""
        return self.past.first_window == 0 and self.past.first_step == 0

    def mask(self, channels: Sequence[int]) -> Tensor:
        """(C,) bool: True at the given channels."""
        where = torch.zeros(self.observed.channels, dtype=torch.bool)
        if channels:
            where[list(channels)] = True
        return where

    def everywhere(self, holds: bool) -> Tensor:
        """(C,) bool: the same for all channels."""
        return torch.full((self.observed.channels,), holds)

    def since(self, channels: Tensor) -> dict[str, float | int | str]:
        """The window in which the state of these channels, (C,) bool, began; the earliest of them."""
        return {"since_window": int(self.past.since[channels].min())}

    def wholly_dead(self, name: str) -> bool:
        """Whether every channel of that layer is dead."""
        report = self.network.reports.get(name)
        return report is not None and report.channels > 0 and len(report.dead) == report.channels

    def wholly_zero(self, name: str) -> bool:
        """Whether every kernel of that layer, or the norm's scale after it, is zero or next to it."""
        report = self.network.reports.get(name)
        return report is not None and report.channels > 0 and len(report.zero_kernels) == report.channels


def span(values: Tensor, form: str = ".3g") -> str:
    """One value, or the smallest and the largest of them, for a sentence."""
    low, high = float(values.min()), float(values.max())
    first, last = format(low, form), format(high, form)
    return first if first == last else f"{first} to {last}"


def windows(values: Tensor) -> str:
    """``"window 3"`` or ``"windows 2 to 5"``."""
    low, high = int(values.min()), int(values.max())
    return f"window {low}" if low == high else f"windows {low} to {high}"
