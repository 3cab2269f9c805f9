"""What is kept of one layer's past."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from lightning_deadkernel.observation import ENOUGH_STEPS, LayerWindow, Window
from lightning_deadkernel.report.states import ZERO_KERNEL

NEVER = -1


@dataclass
class LayerPast:
    """One layer's past. `(C,)` tensors are on the CPU; windows are given by index, `NEVER` where there was none."""

    first_window: int
    """Window in which the layer was first seen; 0 is initialisation."""
    first_step: int
    """Global step of that window: above 0 the run had begun before it was watched."""
    first_norm: Tensor
    """(C,) float32 kernel norm then; NaN where it was not observed."""
    first_zero: Tensor
    """(C,) bool: the kernel, or its norm's scale, was zero or next to it then."""
    first_scale: Tensor
    """(C,) float32 \\|gamma\\| when it was first seen, at the end of the first window of training, as the norm that
    follows a layer is known by the graph alone; NaN without a norm."""
    scale: Tensor
    """(C,) float32 \\|gamma\\| in the last window; NaN without a norm."""
    scale_moved: Tensor
    """(C,) bool: \\|gamma\\| changed between the last two windows."""
    codes: Tensor
    """(C,) uint8 codes of the last window."""
    since: Tensor
    """(C,) int32 window in which the present state began."""
    before: Tensor
    """(C,) uint8 codes of the window before the last."""
    before_since: Tensor
    """(C,) int32 window in which the state of `before` began."""
    last_fired: Tensor
    """(C,) int32 last window in which the channel fired."""
    rate: Tensor
    """(C,) float32 firing rate in that window; NaN where it was not observed."""
    reckless: Tensor
    """(C,) float32 largest update ratio but for decay's part, the layer's own or a producer's, in that window and the
    one after."""
    slung: Tensor
    """(C,) float32 how many times its steady size a step of Adam was in the same two windows, where it is that which
    made it large, see `history.times_steady`; else 0."""
    last_gradient: Tensor
    """(C,) int32 last window with a gradient."""
    stop_norm: Tensor
    """(C,) float32 kernel norm at the end of that window."""
    update_ratio: float = math.nan
    previous_update_ratio: float = math.nan
    learning_rate: float = math.nan
    previous_learning_rate: float = math.nan
    largest_learning_rate: float = 0.0
    decay: float = 0.0
    """Sum of -log(1 - lr * weight decay) over the steps since it was first seen, with the largest learning rate of each
    window: decoupled decay alone can have shrunk a weight by exp(-decay) at most."""
    recent: list[list[float]] = field(default_factory=list)
    """Of the last windows that have `ENOUGH_STEPS` sampled steps together, oldest first: how many had a gradient ratio,
    on how many it was weak, and on how many vanishing."""
    from_start: bool = False
    """It was seen before its first step: at the beginning of the run, or where it came in the middle of training."""
    travel: float = 0.0
    """Sum of the learning rates over the same steps: an optimizer that normalises its steps moves a weight about as far
    at most by decay alone."""

    @property
    def small_gradient_shares(self) -> tuple[float, float] | None:
        """Shares of the last sampled steps on which the gradient was weak and vanishing; None while too few."""
        steps, weak, vanishing = (sum(numbers) for numbers in zip([0.0] * 3, *self.recent, strict=True))
        return (weak / steps, vanishing / steps) if steps >= ENOUGH_STEPS else None

    def add_gradient_steps(self, steps: int, weak: float, vanishing: float) -> None:
        """Takes in a window's sampled steps, and the shares of them that were weak and vanishing."""
        self.recent = [*self.recent, [steps, weak * steps, vanishing * steps]]
        while sum(numbers[0] for numbers in self.recent[1:]) >= ENOUGH_STEPS:
            self.recent = self.recent[1:]


PLAIN = ("SGD", "ASGD")
"""Optimizers whose steps are as large as the gradient; all others are taken to normalise."""


def step_of_decay(layer: LayerWindow) -> float:
    """Which part of ||dW|| / ||W|| a step of weight decay alone makes, where it does not pass an optimizer that
    normalises: it shrinks a kernel, and turns it nowhere."""
    if not layer.decoupled_decay and layer.optimizer not in (None, *PLAIN):
        return 0.0
    return (layer.learning_rate or 0.0) * layer.weight_decay / max(1e-3, 1.0 - layer.momentum)


TENSORS = tuple(field.name for field in fields(LayerPast) if field.type == "Tensor")


def values_of(values: Tensor | None, channels: int) -> Tensor:
    """(C,) float32 on the CPU, a copy; NaN where nothing was observed."""
    return torch.full((channels,), math.nan) if values is None else values.detach().to("cpu", torch.float32, copy=True)


def begun(window: Window, layer: LayerWindow, codes: Tensor, from_start: bool) -> LayerPast:
    """The past of a layer that is seen for the first time."""
    count = layer.channels
    scale, norms = values_of(layer.norm_scale, count), values_of(layer.norms, count)
    never = torch.full((count,), NEVER, dtype=torch.int32)
    begun = torch.full((count,), window.index, dtype=torch.int32)
    return LayerPast(
        first_window=window.index,
        first_step=window.global_step,
        from_start=from_start,
        first_norm=norms,
        first_zero=(codes & ZERO_KERNEL) != 0,
        first_scale=scale,
        scale=scale.clone(),
        scale_moved=torch.zeros(count, dtype=torch.bool),
        codes=codes,
        since=begun,
        before=codes.clone(),
        before_since=begun.clone(),
        last_fired=never,
        rate=torch.full((count,), math.nan),
        reckless=torch.zeros(count),
        slung=torch.zeros(count),
        last_gradient=never.clone(),
        stop_norm=norms.clone(),
    )
