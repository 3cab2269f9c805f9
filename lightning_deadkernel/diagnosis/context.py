"""What a rule looks at: one window of the whole network, and each of its layers with its past."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.layer_past import LayerPast
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
        """The watched layers whose evidence is finite, in forward order: of NaN nothing follows."""
        return tuple(layer for layer in self.watched if not layer.is_lost)

    @cached_property
    def watched(self) -> tuple[LayerContext, ...]:
        """All watched layers, in forward order."""
        return tuple(
            LayerContext(layer, self.reports[layer.name], past, self)
            for layer in self.window.layers
            if layer.excluded is None and (past := self.history.layers.get(layer.name)) is not None
        )

    def having(self, word: str) -> Iterator[tuple[LayerContext, Tensor]]:
        """The layers with channels in a state or with a flag, by the report's word for them; (C,) bool: which."""
        for layer in self.layers:
            if channels := getattr(layer.report, word):
                yield layer, layer.mask(channels)

    @cached_property
    def by_name(self) -> Mapping[str, LayerContext]:
        """The watched layers by name."""
        return {layer.name: layer for layer in self.watched}

    @cached_property
    def entrances(self) -> Mapping[str, Sequence[str]]:
        """Layer -> the layers that data enters, where all that it reads comes by these, with no norm in between."""
        found: dict[str, Sequence[str]] = {}
        for layer in self.watched:
            if layer.observed.entering is not None:
                found[layer.name] = (layer.name,)
                continue
            behind = [found.get(name, ()) for name in layer.observed.producers or () if not self._is_normed(name)]
            if behind and all(behind) and len(behind) == len(layer.observed.producers or ()):
                found[layer.name] = behind[0] if len(behind) == 1 else tuple(dict.fromkeys(chain(*behind)))
        return found

    def _is_normed(self, name: str) -> bool:
        layer = self.by_name.get(name)
        return layer is None or layer.observed.norm_scale is not None or layer.observed.shared_statistics

    @cached_property
    def loss_is_flat(self) -> bool:
        """No watched layer had any gradient, though all were looked at, and it is not the outputs that are shut."""
        outputs = [layer for layer in self.layers if layer.is_output]
        shut = bool(outputs) and all(layer.wholly("dead", "saturated") for layer in outputs)
        return bool(self.watched) and not shut and all(bool(layer.without_gradient.all()) for layer in self.watched)

    def wholly(self, name: str, *words: str) -> bool:
        """Whether all channels of that layer are in one of these states, or have one of these flags: all the same."""
        report = self.reports.get(name)
        return (
            report is not None
            and report.channels > 0
            and any(len(getattr(report, word)) == report.channels for word in words)
        )

    def when(self, windows: Tensor) -> str:
        """The end of a window, or of the first and last of several, by the run's clock: ``"epoch 2 (step 138)"``."""
        low, high = (int(end) for end in (windows.min(), windows.max()))
        return self.history.when(low) if low == high else f"{self.history.when(low)} to {self.history.when(high)}"


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

    @property
    def with_gradient(self) -> Tensor:
        """(C,) bool: a gradient was surely seen."""
        return self.observed.gradient_seen[0]

    @property
    def without_gradient(self) -> Tensor:
        """(C,) bool: it was looked for a gradient, and there surely was none."""
        return self.observed.gradient_seen[1]

    @cached_property
    def holds_nan(self) -> bool:
        """Its weights are NaN or infinite."""
        return self.observed.norms is not None and not bool(self.observed.norms.isfinite().all())

    @property
    def is_lost(self) -> bool:
        """Its weights are NaN or infinite, or its gradients were on all steps that were looked at."""
        rms = self.observed.gradient_rms
        of_gradients = self.observed.non_finite_gradients > 0 and (rms is None or not math.isfinite(rms))
        return of_gradients or self.holds_nan

    @cached_property
    def small_gradient_shares(self) -> tuple[float, float]:
        """Shares of the last sampled steps on which the gradient was weak and vanishing; zeros while too few."""
        known = self.past.small_gradient_shares if self.observed.gradient_ratio is not None else None
        return known or (0.0, 0.0)

    @property
    def is_output(self) -> bool:
        """Whether nothing but the loss reads it."""
        return self.observed.depth == 0 and not self.observed.consumers and self.window.index > 0

    @property
    def rate(self) -> str:
        """The learning rate in the user's own setting: ``"the learning rate (lr=0.4 of SGD)"``."""
        rate, optimizer = self.observed.learning_rate, self.observed.optimizer
        if rate is None or optimizer is None:
            return "the learning rate"
        return f"the learning rate (lr={rate:g} of {optimizer})"

    @property
    def highest_rate(self) -> str:
        """The same of the largest that there was, where a schedule has lowered it since."""
        rate, largest = self.observed.learning_rate, self.past.largest_learning_rate
        if rate is None or self.observed.optimizer is None or not largest > rate:
            return self.rate
        return f"the learning rate (up to {largest:.3g} of {self.observed.optimizer})"

    @property
    def is_first_window(self) -> bool:
        """Whether the layer is seen for the first time."""
        return self.past.first_window == self.window.index

    @property
    def samples(self) -> int | None:
        """Samples of the window that it was watched on; None where that is not known."""
        return None if self.window.samples is None else self.window.samples - self.observed.samples_before

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

    def when(self, windows: Tensor) -> str:
        """See `WindowContext.when`."""
        return self.network.when(windows)

    def wholly(self, *words: str) -> bool:
        """See `WindowContext.wholly`."""
        return self.network.wholly(self.name, *words)


def span(values: Tensor, form: str = ".3g") -> str:
    """One value, or the smallest and the largest of them, for a sentence."""
    low, high = float(values.min()), float(values.max())
    first, last = format(low, form), format(high, form)
    return first if first == last else f"{first} to {last}"
