"""One layer: the parameters that make its kernels, and along which axis its channels run."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from lightning_deadkernel.graph.rows import KERNELS, RowSpan
from lightning_deadkernel.graph.sharding import is_sharded, local
from lightning_deadkernel.observation import LOOKED_UP


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that owns a weight which a convolution or a linear op consumes, as its module's type tells.

    What graphs teach about it is kept with their reader (`facts.LayerFacts`).
    """

    name: str
    module: nn.Module
    tensor: str
    """Name of the weight on its module, before any parametrization: ``"weight"``."""
    leaves: tuple[nn.Parameter, ...]
    """The parameters that make the weight: itself, or e.g. (g, v) under weight norm."""
    channels: int
    channel_dim: int = 0
    transposed: bool = False
    groups: int = 1
    bias: nn.Parameter | None = None
    excluded: str | None = None
    """Why it is not watched, known before any graph was seen."""
    standard: bool = True
    """A convolution or linear module by type."""
    span: RowSpan = KERNELS
    """Which rows of the weight are this layer's, and what they are."""
    shape: tuple[int, ...] = ()
    """Of the leaf with the most elements, when the table was made."""

    @property
    def kind(self) -> str:
        """Class name of the module."""
        return type(self.module).__name__.removeprefix("Parametrized")

    @property
    def main(self) -> nn.Parameter:
        """The leaf with the most elements, the one whose gradient and update speak for the weight."""
        return self.leaves[0] if len(self.leaves) == 1 else max(self.leaves, key=lambda leaf: leaf.numel())

    @property
    def reparametrized(self) -> bool:
        """Whether the weight is computed from its parameters (weight norm, spectral norm, a pruning mask, ...)."""
        return self.module._parameters.get(self.tensor) is not self.main

    @property
    def is_vector(self) -> bool:
        """A scale, a shift or a token by its shape, whatever axes it was given: it takes a graph to show a kernel."""
        return not self.standard and self.main.numel() == max(self.main.shape)

    @property
    def is_looked_up(self) -> bool:
        """Its rows are entries of a table."""
        return self.span.kind in LOOKED_UP

    def is_as(self, other: Layer) -> bool:
        """Whether another table's layer is the same in all that makes it, by name, module and parameters."""
        mine, theirs = (
            (la.name, la.shape, la.channels, la.excluded, *map(id, (la.module, la.bias, *la.leaves)))
            for la in (self, other)
        )
        return mine == theirs

    def has_kernels_of(self, other: Layer) -> bool:
        """Whether the weight is that of `other`: its parameter, or what one makes of it without turning a kernel
        (weight norm, or the end of it)."""
        if (self.span, self.channels, self.shape) != (other.span, other.channels, other.shape):
            return False
        if self.main is other.main:
            return True
        alike = (self.module, self.tensor) == (other.module, other.tensor) and not is_sharded(self.main)
        return alike and _are_parallel(self, other)

    def own(self, tensor: Tensor) -> Tensor:
        """This layer's part of a weight-shaped tensor: a view."""
        return tensor[self.span.start : self.span.stop] if self.span.name else tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """A weight-shaped tensor as (C, K), one kernel a row; a view where the layout allows."""
        tensor = local(tensor)
        if self.transposed and self.channel_dim == 1:
            inputs, per_group = tensor.shape[:2]
            grouped = tensor.reshape(self.groups, inputs // self.groups, per_group, -1)
            return grouped.transpose(1, 2).reshape(self.groups * per_group, -1)
        if self.channel_dim:
            tensor = tensor.movedim(self.channel_dim, 0)
        return self.own(tensor.reshape(tensor.shape[0], -1))

    def columns(self, tensor: Tensor) -> Tensor:
        """A weight-shaped tensor as (I, K), what reads one input a row; a view where the layout allows."""
        tensor = self.own(local(tensor))
        if self.channel_dim:
            return tensor.reshape(tensor.shape[0], -1)
        grouped = tensor.reshape(self.groups, -1, tensor.shape[1], prod(tensor.shape[2:]))
        return grouped.transpose(1, 2).reshape(self.groups * tensor.shape[1], -1)

    def rows_of(self, leaf: Tensor) -> Tensor | None:
        """Like `rows` for any leaf; None for one that has no channel axis (a scalar scale, say)."""
        values = local(leaf)
        expected = self.channels // self.groups if self.transposed else self.channels
        if values.ndim <= self.channel_dim or self.own(values).shape[self.channel_dim] != expected:
            return None
        return self.rows(values)

    @torch.no_grad()
    def weight(self) -> Tensor:
        """The weight as the forward pass uses it, (…): masked, normalised, and computed without any side effect."""
        held = self.module.__dict__.get(self.tensor)  # weight_norm, spectral_norm and pruning of torch.nn.utils
        if isinstance(held, Tensor):
            return held.detach()
        parametrizations = getattr(self.module, "parametrizations", None)
        if parametrizations is not None and self.tensor in parametrizations:
            # A parametrization may have buffers (spectral norm's vectors) and draw random numbers: work on a copy.
            with torch.random.fork_rng(devices=[]):
                made = deepcopy(parametrizations[self.tensor]).eval()()
            if isinstance(made, Tensor):
                return made.detach()
        return self.main.detach()

    def mask(self) -> Tensor | None:
        """The pruning mask of `torch.nn.utils.prune`, weight-shaped; None without one."""
        mask = getattr(self.module, f"{self.tensor}_mask", None)
        return mask if isinstance(mask, Tensor) else None


MOVED = 0.1
"""Farther than a few steps of training move a unit vector; two random ones lie 1.4 apart."""


@torch.no_grad()
def _are_parallel(layer: Layer, other: Layer) -> bool:
    """Whether each kernel points where the other's points, or both are zero; NaN points nowhere."""
    one, two = (la.rows_of(la.main.detach()) for la in (layer, other))
    if one is None or two is None or one.device != two.device:
        return False
    if one.shape[1] == 1:  # which points up or down
        return bool(torch.allclose(one, two, rtol=MOVED))
    apart = nn.functional.normalize(one.double(), dim=1) - nn.functional.normalize(two.double(), dim=1)
    return bool((apart.norm(dim=1) < MOVED).all())
