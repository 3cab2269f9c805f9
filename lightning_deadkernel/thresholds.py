"""Where the diagnosis draws its lines, each with the source it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def _within(interval: str, default: float) -> Any:
    """A threshold and the interval that it must lie in; round brackets leave the end out."""
    return field(default=default, metadata={"interval": interval})


@dataclass(frozen=True)
class Thresholds:
    """The lines that the diagnosis draws.

    Exact facts (never fired, gradient exactly zero, not one bit changed) need no threshold and have none here.

    Args:
        dormant: a channel is dormant if its mean absolute activation, over the layer's mean of it, is at or below this
            (the ReDo score, Sokar et al. 2023, arXiv 2302.12902, who use 0.025).
        rare: a channel is rare if it fires on fewer than this share of samples and positions.
        zero_kernel: a kernel counts as zero if its L2 norm is below this times the largest norm in its layer (relative
            form of the criterion of Mehta et al. 2019, arXiv 1811.12495).
        norm_scale: a kernel counts as zero if the \\|gamma\\| of the norm that follows is below this (Mehta et al.
            2019, arXiv 1811.12495).
        saturated_share: a channel is saturated if more than this share of its inputs lie on a flat end of a bounded
            activation, beyond +-5 for sigmoid and tanh (their slopes there are below 0.7 % and 0.02 %).
        weak_gradient: a layer's gradient is weak if R = rms(grad) / largest rms(grad) of any weight is below this.
            Free of loss scale, batch size and learning rate.
        vanishing_gradient: a layer's gradient is vanishing if R is below this: float32 holds about seven digits, so one
            learning rate cannot serve both ends of such a network.
        share_of_steps: weak and vanishing must hold on at least this share of a window's sampled steps.
        exploding_growth: the gradient is exploding if the window's norm is more than this times the median of the
            windows before (the norm is the network's own measure, as in clipping: Pascanu et al. 2013,
            arXiv 1211.5063).
        update_small: an update ratio ||dW|| / ||W|| below this is slow; about 1e-3 is healthy (CS231n course notes,
            "Ratio of weights:updates").
        update_large: an update ratio above this is reckless: a tenth of the kernel changes in one step.
        lost_updates: updates are lost if at least this share of a layer's weights with a gradient are left bitwise
            unchanged by an optimizer step.
        zero_share: a layer's weights are sparse if more than this share is exactly zero.
        near_zero_share: a layer's weights are sparse if more than this share is below 1e-2 of their rms; a Gaussian has
            0.0080.
        gini: a layer's weights are sparse if the Gini index of \\|w\\| is above this; a Gaussian has 0.414, a Laplacian
            0.5, a uniform 0.333 (Hurley and Rickard 2009, arXiv 0811.4706).

    Raises:
        TypeError: if a value is no number.
        ValueError: if a value lies outside of its interval, or two of them are in the wrong order.
    """

    dormant: float = _within("[0, 1)", 0.025)
    rare: float = _within("[0, 1)", 0.01)
    zero_kernel: float = _within("[0, 1)", 1e-3)
    norm_scale: float = _within("[0, 1)", 1e-3)
    saturated_share: float = _within("(0, 1)", 0.5)
    weak_gradient: float = _within("(0, 1)", 1e-3)
    vanishing_gradient: float = _within("(0, 1)", 1e-6)
    share_of_steps: float = _within("(0, 1]", 0.5)
    exploding_growth: float = _within("(1, inf)", 100.0)
    update_small: float = _within("(0, inf)", 1e-6)
    update_large: float = _within("(0, inf)", 1e-1)
    lost_updates: float = _within("(0, 1]", 0.5)
    zero_share: float = _within("(0, 1]", 0.5)
    near_zero_share: float = _within("(0, 1]", 0.1)
    gini: float = _within("(0, 1]", 0.7)

    def __post_init__(self) -> None:
        for name, interval in INTERVALS.items():
            value = getattr(self, name)
            expected = f"Expected `thresholds.{name}` to be a float in {interval}, but got {value!r}."
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(expected)
            if math.isnan(value) or not _inside(value, interval):
                raise ValueError(expected)
        for low, high in (("vanishing_gradient", "weak_gradient"), ("update_small", "update_large")):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"Expected `thresholds.{low}` to be below `thresholds.{high}`, but got "
                    f"{getattr(self, low)!r} and {getattr(self, high)!r}."
                )


INTERVALS: dict[str, str] = {one.name: one.metadata["interval"] for one in fields(Thresholds)}
"""Threshold -> the interval it must lie in."""
