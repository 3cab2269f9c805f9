"""What the sampled steps of a window say of each layer."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.evidence.step_statistics import StepStatistics
from lightning_deadkernel.observation import Window
from lightning_deadkernel.thresholds import Thresholds

UNDERFLOW_WORTH_A_NOTE = 0.1
"""Share of a weight's gradient entries that underflowed in float16."""


def _medians(table: Tensor) -> list[float]:
    """Of each column (the lower one of two), without NaN; NaN where there is nothing else."""
    return (table.nanmedian(0).values if len(table) else table.new_full(table.shape[1:], torch.nan)).tolist()


def _largest(table: Tensor) -> list[float]:
    """Of each column, without NaN; NaN where there is nothing else."""
    seen = ~table.isnan()
    largest = torch.where(seen, table, -torch.inf).amax(0) if len(table) else table.new_zeros(table.shape[1:])
    return torch.where(seen.any(0), largest, torch.nan).tolist()


def _note_on_underflow(share: float) -> str | None:
    if share <= UNDERFLOW_WORTH_A_NOTE:
        return None
    if share == 1:
        return "all of its gradient entries are zero in float16: they underflowed, or none arrived"
    return f"{share:.0%} of its gradient entries underflowed to zero in float16"


def _share_below(ratios: Tensor, line: float) -> Tensor:
    """(L,) share of the steps with a ratio above 0 and below a line; of their last third where that is less: what was
    small and is not any more, as behind a scale that began at zero, does no harm."""
    small, known = (ratios > 0) & (ratios < line), ~ratios.isnan()
    shares = [small[first:].double().sum(0) / known[first:].sum(0) for first in (0, len(ratios) * 2 // 3)]
    return torch.fmin(*shares)


class StepValues:
    """The sampled steps, spread over the layers."""

    def __init__(self, steps: StepStatistics, thresholds: Thresholds) -> None:
        self.steps = steps
        self.column = {layer.name: i for i, layer in enumerate(steps.layers)}
        self.tables = tables = steps.tables()
        ratios = tables.ratios
        known = (~ratios.isnan()).sum(0)
        self.values = {
            "gradient_ratio": _medians(ratios),
            "gradient_rms": _medians(torch.where(tables.rms.isfinite(), tables.rms, torch.nan)),
            "gradient_steps": known.tolist(),
            **{
                name: _share_below(ratios, line).tolist()
                for name, line in (
                    ("weak_share", thresholds.weak_gradient),
                    ("vanishing_share", thresholds.vanishing_gradient),
                )
            },
            "update_ratio": _medians(tables.updates),
            "update_ratio_max": _largest(tables.updates),
            "step_over_rate": _medians(tables.over_rate),
            "step_over_rate_max": _largest(tables.over_rate),
            "underflow_share": tables.underflow.nanmean(0).tolist(),
            "lost_updates": tables.lost.tolist(),
        }
        """Statistic -> one value a layer; NaN where it was not observed."""

    def fill(self, entry: dict[str, Any]) -> None:
        """Gradient and update sizes of one layer."""
        at = self.column[entry["name"]]
        entry |= {name: values[at] for name, values in self.values.items() if not math.isnan(values[at])}
        entry["note"] = entry["note"] or _note_on_underflow(entry.get("underflow_share") or 0.0)
        entry["learning_rate"] = self.steps.learning_rates.get(entry["name"])
        entry["first_learning_rate"] = self.steps.first_rates.get(entry["name"])
        entry["weight_decay"], entry["decoupled_decay"] = self.steps.decays.get(entry["name"], (0.0, False))
        entry["optimizer"], entry["momentum"] = self.steps.optimizers.get(entry["name"], (None, 0.0))

    def fill_window(self, window: Window, coarse: Collection[str]) -> None:
        """Sizes of all gradients together, and what is lost of parameters with one axis.

        Args:
            coarse: names of the parameters held in two bytes.
        """
        totals = self.tables.totals
        finite = totals[totals.isfinite()]
        window.gradient_norm = float(finite.median()) if finite.numel() else None
        window.skipped_steps = int((~totals.isfinite()).sum()) if self.steps.scaled else 0
        window.largest_gradient_at = self.tables.largest_at
        window.lost_elsewhere = {n: s for n, s in self.tables.lost_elsewhere.items() if n in coarse}
