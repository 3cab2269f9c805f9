"""What is kept of the past so that a cause can be told: a few numbers per channel, whatever the run's length.

The states of past windows themselves live in the reports; here is only what explains the next one.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.layer_past import TENSORS, LayerPast, begun, step_of_decay, values_of
from lightning_deadkernel.observation import (
    ENOUGH_STEPS,
    HEALTHY_UPDATE_RATIO,
    LayerWindow,
    NonFinite,
    Window,
)
from lightning_deadkernel.report.states import STATE_BITS, STATES

VERSION = 1
BASELINE_WINDOWS = 16
"""Windows whose gradient norms make the running baseline: enough for a median, few enough to follow a schedule."""
FROM_NOTHING = 1e-2
"""Norm of a kernel, from 0.58 to 1.4 in usual draws, below which its first steps are large beside nothing."""
USUAL_STEP = 10 * HEALTHY_UPDATE_RATIO
"""An update ratio that is no cause for concern; steps above it, all in one direction, knock kernels out."""


def times_steady(layer: LayerWindow) -> float:
    """How many times its steady size the largest step of Adam was, where nothing else made it large; else 0.

    No step is larger than the learning rate while gradients keep their size, whatever they are: |m| <= sqrt(v). With
    the spread of steady steps twice on top, their running mean of squares must have been far behind them.
    """
    adam, ratio, step = layer.adam, layer.update_ratio_max, layer.step_over_rate_max
    if adam is None or ratio is None or step is None or not step > 1 + 2 * adam.steady:
        return 0.0
    return step / adam.steady if ratio * adam.steady / step < USUAL_STEP < ratio else 0.0


class History:
    """The past of all layers, from initialisation on.

    Memory is about 49 bytes per channel, and 16 bytes per window for the clock. The state holds plain dicts, lists,
    numbers, strings and tensors alone, so it loads with ``torch.load(weights_only=True)``.
    """

    def __init__(self) -> None:
        self.layers: dict[str, LayerPast] = {}
        self._clock = array("q")
        """Epoch and global step at the end of each window in turn; copies share it, since it only grows."""
        self.non_finite: NonFinite | None = None
        """Where NaN or infinity began that the last window has as well; None where that was finite."""
        self.gradient_norms: list[float] = []
        """Finite gradient norms of the last windows, oldest first; the last entry is the last window's."""

    def waits_for_steps(self) -> int | None:
        """Sampled steps that there are, where they are too few for a share of them; None where they are enough."""
        steps = [sum(int(numbers[0]) for numbers in past.recent) for past in self.layers.values() if past.recent]
        return max(steps) if steps and max(steps) < ENOUGH_STEPS else None

    def copy(self) -> History:
        """One that can be updated while this one stays as it is: what is updated gets new tensors."""
        copy = History()
        copy.layers = {name: replace(past) for name, past in self.layers.items()}
        copy._clock, copy.gradient_norms, copy.non_finite = self._clock, self.gradient_norms, self.non_finite
        return copy

    def clock(self, index: int) -> tuple[int, int]:
        """Epoch and global step at the end of a window; -1 where they are not known."""
        epoch, step = self._clock[2 * index : 2 * index + 2] or (-1, -1)
        return epoch, step

    def when(self, index: int) -> str:
        """The end of a window by the run's clock: ``"epoch 2 (step 138)"``."""
        if index <= 0:
            return "initialisation"
        epoch, step = self.clock(index)
        return f"window {index}" if epoch < 0 else f"epoch {epoch:,} (step {step:,})"

    def update(self, window: Window, codes: Mapping[str, Tensor]) -> None:
        """Take in a closed window and its verdicts.

        Args:
            window: what was observed.
            codes: (C,) uint8 of each of `window.layers`, by name. Excluded layers leave their past untouched.
        """
        # what an interrupted closing of this same window has added is written over
        missing = 2 * window.index - len(self._clock)
        self._clock[2 * window.index :] = array("q", [-1] * missing + [window.epoch, window.global_step])
        ratios = {layer.name: self._ratio(layer, window) for layer in window.layers}
        slung = {layer.name: times_steady(layer) * bool(ratios[layer.name]) for layer in window.layers}
        for layer in window.layers:
            if layer.excluded is not None:
                continue
            past = self.layers.get(layer.name)
            if past is None or past.codes.numel() != layer.channels:
                begins = window.index == window.global_step == 0
                past = self.layers[layer.name] = begun(window, layer, codes[layer.name], begins)
            else:
                self._states(past, window, layer, codes[layer.name])
            self._evidence(past, window, layer)
            near = (layer.name, *(layer.producers or ()))
            fired, one_before = past.last_fired == window.index, past.last_fired == window.index - 1
            for of, values in (("reckless", ratios), ("slung", slung)):
                # the largest value in the window in which a channel last fired and the one after
                now = min(max(values.get(name, 0.0) for name in near), torch.finfo(torch.float32).max)
                before = getattr(past, of)
                until = torch.where(one_before, before.clamp(min=now), before).masked_fill_(fired, now)
                setattr(past, of, until)
        self.layers = {name: past for name, past in self.layers.items() if name in codes}
        first = window.first_non_finite
        if first is not None:
            first = replace(first, largest_update=max(filter(math.isfinite, ratios.values()), default=0.0))
        self.non_finite = None if first is None else self.non_finite or first
        if window.gradient_norm is not None and math.isfinite(window.gradient_norm):
            self.gradient_norms = [*self.gradient_norms, float(window.gradient_norm)][-BASELINE_WINDOWS:]

    def _ratio(self, layer: LayerWindow, window: Window) -> float:
        """The largest update ratio but for decay's part; 0 if not observed, or where it began next to zero."""
        ratio, past = layer.update_ratio_max, self.layers.get(layer.name)
        if ratio is None or math.isnan(ratio):
            return 0.0
        if past is not None and window.index <= past.first_window + 1 and bool((past.first_norm < FROM_NOTHING).all()):
            return 0.0
        return max(0.0, float(ratio) - step_of_decay(layer))

    @staticmethod
    def _states(past: LayerPast, window: Window, layer: LayerWindow, codes: Tensor) -> None:
        changed = (codes & STATE_BITS) != (past.codes & STATE_BITS)
        past.before, past.before_since = past.codes, past.since
        past.since = past.since.masked_fill(changed, window.index)
        past.codes = codes
        scale = values_of(layer.norm_scale, layer.channels)
        past.scale, before = scale, past.scale
        if layer.norm_scale is None:
            past.scale_moved = torch.zeros_like(changed)
            return
        past.scale_moved = (scale != before) & ~(scale.isnan() & before.isnan())
        if bool(past.first_scale.isnan().all()):
            past.first_scale = scale.clone()
            if window.index == past.first_window + 1:
                # no step of an optimizer lands on exactly zero: what is zero by then was so from the start
                past.first_zero = past.first_zero | (scale == 0)

    @staticmethod
    def _evidence(past: LayerPast, window: Window, layer: LayerWindow) -> None:
        some, _ = layer.gradient_seen
        if layer.penalised:  # the penalty's own gradient goes on after the network's has stopped
            some = some & ((past.codes & STATE_BITS) != STATES.index("dead"))
        past.last_gradient = past.last_gradient.masked_fill(some, window.index)
        if layer.norms is not None:
            past.stop_norm = torch.where(some, layer.norms.float(), past.stop_norm)
        if layer.fired is not None:
            past.last_fired = past.last_fired.masked_fill(layer.fired, window.index)
            enough = window.sampled_steps >= min(ENOUGH_STEPS, window.optimizer_steps)
            rates = values_of(layer.channel_firing_rate if enough else None, layer.channels)
            past.rate = torch.where(layer.fired, rates, past.rate)
        if layer.gradient_ratio is not None:
            steps = window.sampled_steps if layer.gradient_steps is None else layer.gradient_steps
            past.add_gradient_steps(steps, layer.weak_share, layer.vanishing_share)
        if window.optimizer_steps:
            past.previous_update_ratio, past.previous_learning_rate = past.update_ratio, past.learning_rate
            past.update_ratio = math.nan if layer.update_ratio is None else float(layer.update_ratio)
            past.learning_rate = math.nan if layer.learning_rate is None else float(layer.learning_rate)
            rate = layer.learning_rate or 0.0
            past.largest_learning_rate = max(past.largest_learning_rate, rate)
            past.decay -= window.optimizer_steps * math.log1p(-min(rate * layer.weight_decay, 0.999))
            past.travel += window.optimizer_steps * rate

    def state_dict(self) -> dict[str, Any]:
        """The whole history as plain data; `load_state_dict` takes it back."""
        names = [field.name for field in fields(LayerPast)]
        layers = {name: {of: getattr(past, of) for of in names} for name, past in self.layers.items()}
        clock = torch.from_numpy(np.array(self._clock))
        non_finite = {} if self.non_finite is None else {"non_finite": asdict(self.non_finite)}
        return {
            "version": VERSION,
            "gradient_norms": list(self.gradient_norms),
            "clock": clock,
            "layers": layers,
            **non_finite,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace this history by a saved one.

        Raises:
            ValueError: if the state was written by a version of another format, or is damaged.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"Expected a history of version {VERSION}, but got version {state.get('version')!r}.")
        names = {field.name for field in fields(LayerPast)}
        later = {"decay", "travel", "recent", "from_start", "slung"}
        layers: dict[str, LayerPast] = {}
        for name, saved in state["layers"].items():
            if set(saved) | later != names:
                odd = ", ".join(sorted(names ^ (set(saved) | later)))
                raise ValueError(f"Expected the history of layer {name!r} to be complete, but these differ: {odd}.")
            values: dict[str, Any] = {"from_start": saved["first_window"] == saved["first_step"] == 0, **saved}
            values.setdefault("slung", torch.zeros_like(saved["reckless"]))
            lengths = {values[field].numel() for field in TENSORS}
            if len(lengths) != 1:
                raise ValueError(
                    f"Expected one value per channel of layer {name!r}, but got lengths {sorted(lengths)}."
                )
            layers[name] = LayerPast(**(values | {field: values[field].cpu().clone() for field in TENSORS}))
        self.layers = layers
        self._clock = array("q", map(int, state.get("clock", ())))
        self.gradient_norms = [float(norm) for norm in state["gradient_norms"]]
        non_finite = state.get("non_finite")
        self.non_finite = None if non_finite is None else NonFinite(**non_finite)

    def restrict(self, channels: Mapping[str, int]) -> list[str]:
        """Drop the layers that have another number of channels than they had.

        Args:
            channels: layer name -> number of channels, of the layers that there are.

        Returns:
            The names of the forgotten layers, for a warning.
        """
        other = [name for name, past in self.layers.items() if channels.get(name, n := past.codes.numel()) != n]
        for name in other:
            del self.layers[name]
        return other

    def follow(self, names: Mapping[str, str]) -> None:
        """Keep the layers whose kernels are still there.

        Args:
            names: their names, and what they are called from now on.
        """
        self.layers = {names[name]: past for name, past in self.layers.items() if name in names}

    def begin(self, window: Window, codes: Mapping[str, Tensor]) -> None:
        """Take in the first sight of layers that came in the middle of training.

        Args:
            window: their weights before their first step.
            codes: (C,) uint8 of each of `window.layers`, by name.
        """
        for layer in window.layers:
            self.layers[layer.name] = begun(window, layer, codes[layer.name], from_start=True)
