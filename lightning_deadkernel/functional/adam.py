"""Adam's step over its learning rate, u = |dw| / lr: its size while gradients keep theirs, and once they grow.

Kingma and Ba 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980, section 2.1, bound u;
the values here follow from the weights that a step gives to the gradients before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

PLAIN_STEPS = 5
"""RAdam's first steps are not divided by the size of the gradient."""


def steady_step(beta1: float, momentum: float | None = None) -> float:
    """Root mean square of u under independent gradients of mean 0 and steady size: sqrt((1 - beta1) / (1 + beta1)).

    Args:
        beta1: decay of the mean gradient.
        momentum: NAdam's at this step, which weighs the last gradient once more; None: plain Adam.
    """
    if momentum is None:
        return math.sqrt((1 - beta1) / (1 + beta1))
    last, before = 1 - momentum * beta1, momentum * (1 - beta1)
    return math.sqrt(last**2 + before**2 * beta1**2 / (1 - beta1**2))


def step_after_quiet(beta1: float, beta2: float, quiet: float = 0.0) -> float:
    """The largest u where gradients of size 1 and one sign follow a long spell of size `quiet` and any sign."""
    steps = torch.arange(1, 10_000, dtype=torch.float64)
    sizes = 1 - beta2**steps * (1 - quiet**2)
    return float(((1 - beta1**steps) / sizes.sqrt()).max())


def steady_step_of(optimizer: Optimizer, group: Mapping[str, Any], step: int, steps: int) -> float | None:
    """`steady_step` of one of an optimizer's groups; None where it does not divide by the size of the gradient, or not
    so (Adamax, Adafactor), or did not on all steps that are looked at.

    Args:
        optimizer: whose rule it is.
        group: one of its `param_groups`.
        step: steps that it has taken.
        steps: the last of them that are looked at.
    """
    if not isinstance(optimizer, Adam | AdamW | NAdam | RAdam):
        return None
    beta1, beta2 = (float(beta) for beta in group["betas"])
    if isinstance(optimizer, NAdam):
        return steady_step(beta1, beta1 * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"])))
    if isinstance(optimizer, RAdam):
        return steady_step(beta1) * _rectified(beta2, step) if step - steps >= PLAIN_STEPS else None
    return steady_step(beta1)


def _rectified(beta2: float, step: int) -> float:
    """The factor by which RAdam shortens a step (Liu et al. 2020, https://arxiv.org/abs/1908.03265)."""
    most = 2 / (1 - beta2) - 1
    now = most - 2 * step * beta2**step / (1 - beta2**step)
    return math.sqrt((now - 4) * (now - 2) * most / ((most - 4) * (most - 2) * now)) if now > 4 else 0.0


def share_below_epsilon(second_moment: Tensor, beta2: float, step: int, epsilon: float) -> float | None:
    """Of the entries that have had a gradient, those whose size sqrt(v / (1 - beta2^step)) is at most epsilon, which
    then at least halves their steps; None where no entry had one.

    Args:
        second_moment: running mean of squared gradients, of any shape.
        beta2: its decay.
        step: steps that it has taken.
        epsilon: that the optimizer adds.
    """
    seen = second_moment > 0
    below = seen & (second_moment <= epsilon**2 * (1 - beta2**step))
    entries, small = torch.stack([seen.sum(), below.sum()]).tolist()
    return small / entries if entries else None
