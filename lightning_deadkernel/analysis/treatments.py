"""Changes to a training that no setting of it makes, as callbacks: what a trial adds to the command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer


class WarmUp(Callback):
    """Raises the learning rate evenly from next to nothing to what it would be, over each optimizer's first steps.

    Only for the moment of the step: a scheduler goes on from the rates that it knows.

    Args:
        steps: how many; step n of them has n / `steps` of the rate.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"Expected `steps` to be a positive int, but got {steps}.")
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hooks each optimizer's step."""
        for optimizer in trainer.optimizers:
            rates: list[list[Any]] = []
            taken = count(1)
            # before a scheduler, which comes right after the step, reads the rates they are whole again
            optimizer.register_step_pre_hook(partial(self._lower, rates, taken))
            optimizer.register_step_post_hook(partial(self._raise, rates))

    def _lower(self, rates: list[list[Any]], taken: Iterator[int], optimizer: Optimizer, *_: Any) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])
        # a step that calls that of its base class runs the hooks within the hooks
        share = min(1.0, next(taken) / self.steps) if len(rates) == 1 else 1.0
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * share

    def _raise(self, rates: list[list[Any]], optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, rates.pop(), strict=True):
            group["lr"] = rate


class Standardised(Callback):
    """Shifts and scales what enters some layers to a mean of zero in each feature and a standard deviation of one over
    all, by the first batch.

    Args:
        layers: their names.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = layers

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hooks the layers."""
        for name in self.layers:
            pl_module.get_submodule(name).register_forward_pre_hook(partial(self._scale, []))

    @staticmethod
    def _scale(known: list[Tensor], layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        data, *others = arguments
        if not known:
            features = 1 if isinstance(layer, nn.modules.conv._ConvNd) else data.ndim - 1
            along = [axis for axis in range(data.ndim) if axis != features]
            mean = data.mean(along, keepdim=True)
            spread = (data - mean).square().mean().sqrt()
            known += [mean, torch.where(spread > 0, spread, 1)]
        return ((data - known[0]) / known[1], *others)


class HeInitialisation(Callback):
    """Draws the weights of some layers anew before the first step: normal with variance 2 / fan-in, biases zero.

    He et al. 2015, https://arxiv.org/abs/1502.01852. No other random number of the training changes by it.

    Args:
        layers: their names.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = layers

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws them. Raises ValueError for a name that is no layer with a weight."""
        seed = torch.initial_seed()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for name in self.layers:
                layer = pl_module.get_submodule(name)
                weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
                if not isinstance(weight, Tensor):
                    raise ValueError(f"Expected `layers` to name layers with a weight, but got {name!r}.")
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
                if isinstance(bias, Tensor):
                    nn.init.zeros_(bias)
