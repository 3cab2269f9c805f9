"""What an optimizer makes of a parameter whose gradient is zero from here on: its weight decay alone, step by step.

The rules are those of PyTorch's own optimizers, with the settings of now; of others nothing is known. SGD's decay
enters by the gradient, so that its momentum carries it on: with d the decay, (w, buffer) go through a fixed matrix at
each step. AdamW shrinks the weight by 1 - lr d. Through Adam's gradient (L2) each step is of about the learning rate,
however small the decay, as it is divided by its own size (Loshchilov and Hutter 2019, Decoupled Weight Decay
Regularization, arXiv 1711.05101): there steps are followed one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

MOST_STEPS = 10**9
LONG = 256
"""Steps that tell the long run."""
FOLLOWED = 10_000
"""Steps of Adam that are followed, in about as many microseconds."""


@dataclass(frozen=True)
class Decay:
    """The rule by which a parameter without a gradient moves."""

    kind: Literal["none", "decoupled", "sgd", "adam"]
    rate: float
    decay: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @classmethod
    def of(cls, optimizer: Any, group: dict[str, Any]) -> Decay | None:
        """The rule of a parameter group; None where it is not known."""
        known: dict[type, Literal["sgd", "adam", "decoupled"]] = {
            torch.optim.SGD: "sgd",
            torch.optim.Adam: "adam",
            torch.optim.AdamW: "decoupled",
        }
        kind = known.get(type(optimizer))
        if kind is None or group.get("maximize"):
            return None
        rate, decay = float(group["lr"]), float(group["weight_decay"])
        if not rate or not decay:
            return cls("none", rate, decay)
        if kind == "sgd":
            momentum, dampening = float(group["momentum"]), float(group["dampening"])
            rule = cls(kind, rate, decay, momentum, dampening, bool(group["nesterov"]))
            return None if rule.overshoots else rule
        if kind == "decoupled" or group.get("decoupled_weight_decay"):
            return cls("decoupled", rate, decay) if rate * decay < 1 else None
        betas = tuple(map(float, group["betas"]))
        return None if group["amsgrad"] else cls(kind, rate, decay, betas=betas, eps=float(group["eps"]))  # type: ignore[arg-type]

    def shares(self, steps: int) -> tuple[float, float]:
        """What is left of a weight after so many steps: of itself, and of the momentum buffer that it had.

        Of `decoupled` and `sgd`; moments of AdamW that are left from gradients before move it beside this.
        """
        if self.kind != "sgd":
            return (1 - self.rate * self.decay * (self.kind == "decoupled")) ** steps, 0.0
        if not self.momentum:
            return (1 - self.rate * self.decay) ** steps, 0.0
        left = np.linalg.matrix_power(self._step(), steps)[0]
        return float(left[0]), float(left[1])

    @property
    def overshoots(self) -> bool:
        """Of `sgd`: it takes a weight past zero, as it does where momentum is large beside a step's decay."""
        if not self.momentum:
            return self.rate * self.decay >= 1
        kept = np.linalg.eigvals(self._step()).astype(complex)  # which some versions of NumPy return always
        return bool((kept.imag != 0).any() or (kept.real <= 0).any() or (kept.real >= 1).any())

    def _step(self) -> Any:
        """(2, 2) what a step makes of (w, buffer)."""
        buffer = np.array([(1 - self.dampening) * self.decay, self.momentum])
        update = buffer if not self.nesterov else np.array([self.decay, 0.0]) + self.momentum * buffer
        return np.array([np.array([1.0, 0.0]) - self.rate * update, buffer])

    def steps_until(
        self, size: float, target: float, buffer: float = 0.0, square: float = 0.0, taken: int = 0
    ) -> int | None:
        """Steps until a weight of this size is no larger than the target; None: never, or not within those followed.

        Args:
            size: of the weight, or norm of a kernel.
            target: above zero.
            buffer: SGD's momentum buffer of it, along the weight.
            square: Adam's running mean of squared gradients, from before the gradient was zero: it makes steps smaller.
            taken: Adam's steps so far.
        """
        if size <= target:
            return 0
        if self.kind == "adam":
            return self._followed(size, target, square, taken)

        def is_small(steps: int) -> bool:
            own, carried = self.shares(steps)
            return abs(own * size + carried * buffer) <= target

        high = 1
        while not is_small(high):
            high *= 2
            if self.kind == "none" or high > MOST_STEPS:
                return None
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_small(middle) else (middle, high)
        return high

    def _followed(self, w: float, target: float, v: float, taken: int) -> int | None:
        """Adam from a running mean of gradients that is zero, as it soon is when gradients are."""
        (b1, b2), m = self.betas, 0.0
        for step in range(taken + 1, taken + FOLLOWED + 1):
            gradient = self.decay * w
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient * gradient
            w -= self.rate * m / (1 - b1**step) / (math.sqrt(v / (1 - b2**step)) + self.eps)
            if abs(w) <= target:
                return step - taken
        return None

    def is_slower(self, other: Decay) -> bool | None:
        """Whether what it moves keeps more of itself than what the other does, in the long run; None: not known."""
        if "adam" in (self.kind, other.kind):
            return None
        return self.per_step() > other.per_step() * (1 + 1e-12)

    def per_step(self) -> float:
        """What a step leaves of a weight, in the long run; not of `adam`, whose steps do not shrink with the weight."""
        return float(abs(self.shares(LONG)[0]) ** (1 / LONG))
