"""How an activation is read on ordinary steps: as it was before, as long as nothing of it has changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_deadkernel.functional.firing import ChannelAxis, channel_max, largest_of
from lightning_deadkernel.graph.activations import Activation
from lightning_deadkernel.graph.paths import ActivationRead

FEW = 4
"""Where at most one in so many channels is still unseen, only these are read, if they lie in pieces."""
PIECE = 64
"""Bytes of a piece that is worth it: a line of the cache."""


class Look:
    """A read whose layout, and what it counts, are worked out once.

    Args:
        read: where the channels are.
        activation: how to read it.
        saved: what its node kept for backward in this step.
        rows: samples in the batch; None: unknown.
        counted: samples, positions, and reads that cannot tell the samples, that it adds; None: nothing.
    """

    def __init__(
        self,
        read: ActivationRead,
        activation: Activation,
        saved: Tensor,
        rows: int | None,
        counted: tuple[int, int, int] | None,
    ) -> None:
        self._reader, self._activation, self._rows, self.counted = read.reader, activation, rows, counted
        self._attribute = f"_saved_{activation.saved}"
        self._shape, self._stride, self._dtype, self._device = saved.shape, saved.stride(), saved.dtype, saved.device
        at = read.part.at
        self._largest = largest_of(tuple(saved.shape), saved.stride(), saved.dtype, saved.is_cpu, at)
        self._axis = at.axis % saved.ndim
        piece = self._stride[self._axis] * saved.element_size()
        self._pieces = at.outer == at.inner == 1 and saved.is_contiguous() and piece >= PIECE

    @staticmethod
    def fits(read: ActivationRead, activation: Activation, channels: int) -> bool:
        """Whether such a read can be a look: of what the node keeps as it is, and of all channels of the kernel."""
        plain = activation.positive is None and activation.is_kept_as_it_is
        return plain and read.part.slab is None and len(read.part.digits) == 1 and read.is_whole(channels)

    def again(self, node: Any, rows: int | None, left: Tensor | None) -> Tensor | None:
        """(C,) > 0 where a channel fired; None where something is not as it was.

        Args:
            node: of this step.
            rows: samples in the batch.
            left: (n,) the channels that are still unseen, which are all that need be read; None: all.
        """
        activation = self._reader(node)
        if rows != self._rows or (activation is not self._activation and activation != self._activation):
            return None
        saved: Tensor = getattr(node, self._attribute)
        same = saved.shape == self._shape and saved.stride() == self._stride
        if not same or saved.dtype is not self._dtype or saved.device != self._device:
            return None
        if left is None or not self._pieces or FEW * len(left) > self._shape[self._axis]:
            return self._largest(saved)
        some = channel_max(saved.detach().index_select(self._axis, left), ChannelAxis(self._axis, len(left)))
        return some.new_zeros(self._shape[self._axis]).index_copy_(0, left, some)
