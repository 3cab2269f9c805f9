"""Sizes of gradients and updates, taken on sampled steps only; kept on the device, read once per window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadkernel.layers import Layer, local
from lightning_deadkernel.statistics import gradient_ratios

LIMIT = 512
"""Samples of one window that are kept; past it every second is dropped, so that memory stays bounded."""


@dataclass
class Series:
    """Rows of per-layer numbers, one per sampled step: (steps, L). NaN: not observed."""

    rows: list[Tensor] = field(default_factory=list)
    stride: int = 1
    offered: int = 0

    def append(self, row: Tensor) -> None:
        """Keeps the row, or every `stride`-th once the window is long."""
        if self.offered % self.stride == 0:
            self.rows.append(row)
            if len(self.rows) > LIMIT:
                self.rows, self.stride = self.rows[::2], self.stride * 2
        self.offered += 1

    def table(self) -> Tensor | None:
        """(steps, L) float64 on the CPU; None without samples."""
        return torch.stack(self.rows).double().cpu() if self.rows else None


class StepSampler:
    """Measures one optimizer step: gradients before it, the update after it."""

    def __init__(self, layers: Sequence[Layer], device: torch.device, update_ratio: bool = True) -> None:
        self.layers = list(layers)
        self.device = device
        self.update_ratio = update_ratio
        self.reset()

    def reset(self) -> None:
        """Opens a new window."""
        self.ratios, self.rms, self.updates, self.totals, self.underflow = (Series() for _ in range(5))
        self.learning_rates: dict[str, float] = {}
        self.decays: dict[str, tuple[float, bool]] = {}
        self.gradient_counts: dict[str, Tensor] = {}
        self.largest_at: tuple[list[str], Tensor] | None = None
        self._before: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._valid: Tensor | None = None
        self.scaled = False
        """A gradient scaler is in use: a step whose gradients overflowed was skipped."""

    @torch.no_grad()
    def before_step(
        self, optimizer: Any, names: dict[int, str], scale: Tensor | None, scaled: bool, underflow: bool
    ) -> None:
        """Reads the gradients that `optimizer` is about to use: accumulated, unclipped.

        Args:
            optimizer: whose parameters are read.
            names: id of a parameter -> its name.
            scale: device scalar that the gradients are still multiplied by; None if they are unscaled.
            scaled: a gradient scaler is in use and skips steps whose gradients overflowed.
            underflow: count exact zeros among the gradient entries (fp16).
        """
        parameters = [
            p
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and not p.grad.is_sparse
        ]
        self._note_groups(optimizer)
        if not parameters:
            return
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        rms, total = self._sizes(parameters, grads, scale)
        ratios = gradient_ratios(rms)
        place = {id(p): i for i, p in enumerate(parameters)}
        index = [place.get(id(layer.main), -1) for layer in self.layers]
        self.ratios.append(_pick(ratios, index))
        self.rms.append(_pick(rms, index))
        self.totals.append(total)
        finite = torch.where(rms.isfinite(), rms, -1.0)
        self.largest_at = ([names.get(id(p), "?") for p in parameters], finite.argmax())
        self.scaled = scaled
        self._valid = total.isfinite() if scaled else None
        if underflow:
            zeros = torch.stack([(g == 0).float().mean().to(self.device) for g in grads])
            self.underflow.append(_pick(zeros, index))
        if self.update_ratio:
            mine = [layer for layer in self.layers if id(layer.main) in place and layer.name not in self._before]
            copies = [local(layer.main).detach().clone() for layer in mine]
            self._before.update((la.name, (la.main, copy)) for la, copy in zip(mine, copies, strict=True))

    def _sizes(
        self, parameters: list[nn.Parameter], grads: list[Tensor], scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """rms of each gradient, and the L2 norm of all; sums of squares are added up over the shards of a DTensor."""
        norms = [_norm(g).to(self.device) for g in grads]
        stacked = torch.stack(norms)
        if any(hasattr(p, "to_local") for p in parameters):
            squares = stacked.double().square()
            torch.distributed.all_reduce(squares)
            stacked = squares.sqrt()
        if scale is not None:
            stacked = stacked / scale.to(self.device)
        sizes = torch.tensor([p.numel() for p in parameters], dtype=stacked.dtype, device=self.device)
        return stacked / sizes.sqrt(), torch.linalg.vector_norm(stacked)

    def _note_groups(self, optimizer: Any) -> None:
        held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for layer in self.layers:
            group = held.get(id(layer.main))
            if group is None:
                continue
            rate = group.get("lr", 0.0)
            if not isinstance(rate, Tensor):
                self.learning_rates[layer.name] = max(float(rate), self.learning_rates.get(layer.name, 0.0))
            decoupled = bool(group.get("decoupled_weight_decay")) or "AdamW" in type(optimizer).__name__
            self.decays[layer.name] = (float(group.get("weight_decay", 0.0) or 0.0), decoupled)

    @torch.no_grad()
    def after_step(self) -> None:
        """Compares the weights with what they were before the step, and lets the copies go."""
        before, self._before = self._before, {}
        if not before:
            return
        olds = [old for _, old in before.values()]
        news = [local(parameter).detach() for parameter, _ in before.values()]
        sizes = torch.stack([_norm(old).to(self.device) for old in olds])
        torch._foreach_sub_(olds, news)
        changes = torch.stack([_norm(old).to(self.device) for old in olds])
        if any(hasattr(parameter, "to_local") for parameter, _ in before.values()):
            squares = torch.stack([sizes, changes]).double().square()
            torch.distributed.all_reduce(squares)
            sizes, changes = squares.sqrt().unbind(0)
        ratios = torch.where(sizes > 0, changes / sizes, torch.nan)
        if self._valid is not None:
            ratios = torch.where(self._valid, ratios, torch.nan)  # AMP skips a step whose gradients overflowed
        place = {name: i for i, name in enumerate(before)}
        self.updates.append(_pick(ratios, [place.get(layer.name, -1) for layer in self.layers]))


def _norm(x: Tensor) -> Tensor:
    """L2 norm in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return norm


def _pick(values: Tensor, index: list[int]) -> Tensor:
    """`values[index]`, NaN where the index is -1."""
    padded = torch.cat([values, values.new_full((1,), torch.nan)])
    return padded[torch.tensor(index, device=values.device)]
