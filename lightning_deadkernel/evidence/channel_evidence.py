"""What was seen of every channel in the open window: two flat tensors on the device, reduced over ranks at its end.

Past 300 lines because activations and gradients share one layout of the two tensors, which must not be known twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_deadkernel.evidence.buffers import PendingChannels, StepBuffer, marks
from lightning_deadkernel.evidence.sampled import SUMS
from lightning_deadkernel.functional.kernels import row_max
from lightning_deadkernel.graph.facts import ActivationKey, Source
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.sharding import is_sharded, local, shard_offset

Segments = dict[tuple[str, Any], Tensor]
"""(kind, layer or activation key) -> the values of its channels."""

grad_of = attrgetter("grad")
OF_SOURCES = ("gradient", "nonfinite", "first", "kernel")
OF_ACTIVATIONS = ("fired", "blown")
FEW = 1 << 10
"""Sums of sampled steps that are taken in together: of small operators in a row the first one alone is slow."""


class ChannelEvidence:
    """Flat per-channel evidence of one window: `maxima` (max over ranks) and `totals` (sum over ranks).

    `maxima` holds, for each source and channel, the largest finite \\|gradient\\| there, read every step
    (``gradient``); on how many it was NaN or infinite (``nonfinite``), and the mark of the first (``first``); and the
    largest at the ``kernel`` itself, read on sampled steps while that at the source is 0. Then for each activation
    which channels ``fired``, and the mark of the first sampled step on which they were NaN or infinite (``blown``).
    `totals` holds each activation's ``sums`` over the sampled steps: (7, C), see `SUMS`.

    Args:
        device: where everything is kept.
        sources: where each layer's gradient is read.
        activations: activation key -> channels.
    """

    def __init__(
        self,
        device: torch.device,
        sources: dict[str, Source],
        activations: dict[ActivationKey, int],
    ) -> None:
        self.device = device
        wide = any(source.layer.main.dtype == torch.float64 for source in sources.values())
        self.dtype = dtype = torch.float64 if wide else torch.float32
        # the 1-D sources first: what every step writes to is one piece
        self.sources = dict(sorted(sources.items(), key=lambda item: item[1].parameter is None))
        self.activations = dict(activations)
        self._reads = 0
        """Gradients that were read so far in this window."""
        self.passed: dict[ActivationKey, list[int]] = {}
        """Activation -> how many samples and positions of it were read, and how many reads could not tell the samples;
        all there were while some channel of it had not fired."""
        self._places: dict[tuple[str, Any], tuple[int, int]] = {}
        maxima = totals = 0
        for kind in OF_SOURCES:
            for name, source in self.sources.items():
                self._places[kind, name] = (maxima, maxima + source.layer.channels)
                maxima += source.layer.channels
        for kind in OF_ACTIVATIONS:
            for key, channels in self.activations.items():
                self._places[kind, key] = (maxima, maxima + channels)
                maxima += channels
        for key, channels in self.activations.items():
            self._places["sums", key] = (totals, totals + channels)
            totals += channels
        self.maxima = torch.zeros(maxima, dtype=dtype, device=device)
        self.totals = torch.zeros(len(SUMS), totals, dtype=torch.float64, device=device)
        self._found_columns: dict[tuple[ActivationKey, ...], Tensor] = {}
        sizes = {source.layer.channels for source in self.sources.values()} | set(self.activations.values())
        self._zeros = {size: torch.zeros(size, dtype=dtype, device=device) for size in sizes}
        self._order = {key: place for place, key in enumerate(self.activations)}
        self._nothing = [self._zeros[channels] for channels in self.activations.values()]
        """What a step shows of activations that it does not read."""
        self._flat = {name: source.parameter for name, source in self.sources.items() if source.parameter is not None}
        self._flat_channels = sum(self.sources[name].layer.channels for name in self._flat)
        self._parameters = list(self._flat.values())
        self._elsewhere = any(p.device != device or is_sharded(p) for p in self._parameters)
        self._rows = [name for name, source in self.sources.items() if source.parameter is None]
        self._gradients = StepBuffer(self._flat_channels, dtype, device)
        self._firings = StepBuffer(sum(self.activations.values()), dtype, device)
        self._samples: list[tuple[tuple[ActivationKey, ...], Tensor, int]] = []
        """Sums of sampled steps that are not in `totals` yet, and how many gradients had been read before each."""
        self.not_fired: PendingChannels[ActivationKey] = PendingChannels()
        """Activations with channels that are not known to have fired in this window."""
        self._no_gradient: PendingChannels[str] = PendingChannels()
        """Layers with channels that are not known to have had a gradient in this window."""
        self._restart_counts()

    # -- layout --------------------------------------------------------------------------------------------------

    def rearranged(
        self,
        sources: dict[str, Source],
        activations: dict[ActivationKey, int],
        names: Mapping[str, str] | None = None,
    ) -> ChannelEvidence:
        """The same evidence laid out for these sources and activations; `names` as in `renamed`."""
        new = ChannelEvidence(self.device, sources, activations)
        self.flush()
        for kind, key in self._places:
            new._put((kind, renamed(key, names)), self.segment(kind, key))
        new._reads = self._reads
        new.passed = {now: numbers for key, numbers in self.passed.items() if (now := renamed(key, names))}
        if names is None:  # so that a graph of another shape makes no layer be read anew that has been seen
            new.not_fired.take_up(self.not_fired, {k for k, n in activations.items() if self.activations.get(k) != n})
            same = {
                n for n in self.sources.keys() & sources.keys() if self.sources[n].parameter is sources[n].parameter
            }
            new._no_gradient.take_up(self._no_gradient, sources.keys() - same)
        return new

    def loaded(
        self, segments: Segments, activations: dict[ActivationKey, int], reads: int, with_sums: bool
    ) -> ChannelEvidence:
        """What `segments` gave after so many reads of gradients, so far as the layers are there; sums only on the rank
        that is to hold them."""
        new = ChannelEvidence(self.device, self.sources, activations)
        new._reads = reads
        for (kind, key), values in segments.items():
            if with_sums or kind != "sums":
                new._put((kind, key), values)
        return new

    def _put(self, key: tuple[str, Any], values: Tensor) -> None:
        if key in self._places and self.segment(*key).numel() == values.numel():
            seen = self.segment(*key)  # a layer that shared an activation with one that is gone may have two
            values = values.to(seen).view_as(seen)
            seen.copy_(seen + values if key[0] == "sums" else torch.maximum(seen, values))

    def _restart_counts(self) -> None:
        self.not_fired.clear(self.activations)
        self._no_gradient.clear(self.sources)

    def segment(self, kind: str, key: Any) -> Tensor:
        """The part of `maxima` or `totals` that belongs to one source or activation: a view."""
        start, stop = self._places[kind, key]
        return (self.totals if kind == "sums" else self.maxima)[..., start:stop]

    def reset(self) -> None:
        """Begins a new window."""
        self._gradients.clear()
        self._firings.clear()
        self._samples.clear()
        self.maxima.zero_()
        self.totals.zero_()
        self._reads, self.passed = 0, {}
        self._restart_counts()

    def flush(self) -> None:
        """Takes in the pages of steps that are not full yet."""
        self._flush_gradients()
        self._flush_firings()

    def _flush_gradients(self) -> None:
        channels = sum(source.layer.channels for source in self.sources.values())
        starts = (0, channels, 2 * channels)
        largest, count, first = (self.maxima[start : start + self._flat_channels] for start in starts)
        self._gradients.flush(largest, (count, first), self._reads)

    def _flush_firings(self) -> None:
        self._firings.flush(self._of_all("fired"))
        while self._samples:
            self._take_sample(*self._samples.pop(0))

    # -- activations ---------------------------------------------------------------------------------------------

    def all_fired(self) -> bool:
        """Whether every channel of every activation is known to have fired in this window."""
        self.not_fired.poll()
        return not self.not_fired.parts

    def read_activations(self, maxima: dict[ActivationKey, Tensor]) -> None:
        """Notes which channels fired: one launch for all.

        Args:
            maxima: activation key -> (C,), > 0 where the channel fired; NaN is no evidence.
        """
        parts = list(self._nothing)
        for key, largest in maxima.items():  # one on another device (a model in several parts) `cat` refuses
            parts[self._order[key]] = largest if largest.device == self.device else largest.to(self.device)
        if self._firings.append(parts):
            self._flush_firings()
        self._count_not_fired()

    def _count_not_fired(self) -> None:
        if not self.not_fired.is_count_due():
            return
        self._flush_firings()
        # all that are pending, not only those of this step: others may be read on every second step, never on this one
        if self.not_fired.parts:
            self.not_fired.append({key: self.segment("fired", key) <= 0 for key in self.not_fired.parts})

    def count(self, key: ActivationKey, passed: tuple[int, int, int]) -> None:
        """Counts what passed through an activation: samples, positions, and whether samples could not be told."""
        before = self.passed.get(key, (0, 0, 0))
        self.passed[key] = [before[0] + passed[0], before[1] + passed[1], before[2] + passed[2]]

    def add_samples(self, found: Sequence[tuple[tuple[ActivationKey, ...], Sequence[Tensor]]]) -> None:
        """Adds a sampled step's firing counts, magnitudes, exact zeros and flat-end counts, and notes which channels
        fired; of a channel that holds NaN or infinity, only that it does."""
        parts = [of[row] for row in range(len(SUMS) + 1) for _, of in found]
        if any(of[0].device != self.device for _, of in found):
            parts = [part.to(self.device) for part in parts]
        keys = tuple(key for keys, _ in found for key in keys)
        sums = torch.cat(parts)
        self._samples.append((keys, sums.view(len(SUMS) + 1, -1), self._reads))
        if len(self._samples) * sums.numel() >= FEW:
            self._flush_firings()
        self._count_not_fired()

    def _take_sample(self, keys: tuple[ActivationKey, ...], sums: Tensor, reads: int) -> None:
        columns = self._columns(keys)
        if not (sums.is_cpu and np.isfinite(sums[1].numpy()).all()):  # on a device, to ask would be to wait
            finite = sums[1].isfinite()
            blown = (~finite).to(self.dtype) * marks(reads)
            self._of_all("blown").scatter_reduce_(0, columns, blown, "amax")
            sums = torch.where(finite, sums, 0)
        self.totals.index_add_(1, columns, sums[:-1])
        self._of_all("fired").scatter_reduce_(0, columns, sums[-1].to(self.dtype), "amax")

    def _columns(self, keys: tuple[ActivationKey, ...]) -> Tensor:
        """Places of the channels of these activations among those of all."""
        if keys not in self._found_columns:
            places = [range(*self._places["sums", key]) for key in keys]
            index = torch.tensor([place for some in places for place in some])
            self._found_columns[keys] = index.to(self.device, non_blocking=True)
        return self._found_columns[keys]

    def _of_all(self, kind: str) -> Tensor:
        """What `maxima` has of one kind of all activations: a view."""
        count = self.totals.shape[1]
        start = len(self.maxima) + (OF_ACTIVATIONS.index(kind) - len(OF_ACTIVATIONS)) * count
        return self.maxima[start : start + count]

    # -- gradients -----------------------------------------------------------------------------------------------

    @property
    def without_gradient(self) -> Collection[str]:
        """Layers with channels that are not known to have had a gradient in this window."""
        return self._no_gradient.parts

    def read_gradients(self, only: frozenset[str] | None = None, looked_up: Mapping[str, Tensor] | None = None) -> None:
        r"""Notes the \|gradient\| of every channel: one launch for all 1-D sources of the network; weight rows are
        read only for layers that have not shown a gradient on all channels yet.

        Args:
            only: names of the layers in the graph of this backward, where others may hold stale gradients.
            looked_up: tables -> (n,) rows that this backward looked up: none of the others has got a gradient.
        """
        full = False
        if self._parameters:
            plain = only is None and not self._elsewhere
            try:
                full = self._gradients.append(
                    list(map(grad_of, self._parameters)) if plain else self._placed_grads(only)
                )
            except TypeError:  # some parameter has none, which it costs too much to ask of each at every step
                full = self._gradients.append(self._placed_grads(only))
        self._reads += 1
        if full:
            self._flush_gradients()
        if self._rows and self._no_gradient.parts:
            self._read_rows(only, looked_up or {})

    def _placed_grads(self, only: frozenset[str] | None) -> list[Tensor]:
        return [
            self._zeros[self.sources[name].layer.channels]
            if (grad := p.grad) is None or (only is not None and name not in only)
            else self._placed(grad)
            for name, p in self._flat.items()
        ]

    def _read_rows(self, only: frozenset[str] | None, looked_up: Mapping[str, Tensor]) -> None:
        self._no_gradient.poll()
        left = [name for name in self._rows if name in self._no_gradient.parts]
        pending = [name for name in left if only is None or name in only]
        read = [self._read_kernel(name, "gradient", looked_up.get(name)) for name in pending]
        if any(read) and self._no_gradient.is_count_due():
            self._count_no_gradient(left)

    def read_kernels(self) -> None:
        """On a sampled step: the same at the kernels of the layers some of whose channels showed no gradient yet.

        A shift or bias may have an exactly zero gradient while its kernel has one, so a zero there is confirmed here.
        """
        self._no_gradient.poll()
        pending = [name for name in self._flat if name in self._no_gradient.parts]
        if pending:
            for name in pending:
                self._read_kernel(name, "kernel")
            self._flush_gradients()
            self._count_no_gradient(pending)

    def _read_kernel(self, name: str, kind: str, rows: Tensor | None = None) -> bool:
        layer = self.sources[name].layer
        maxima = table_max(layer, rows) if layer.is_looked_up else kernel_max(layer)
        if maxima is None:
            return False
        maxima, seen = self._placed(maxima, layer.channels), self.segment(kind, name)
        finite = maxima.isfinite()
        torch.maximum(seen, torch.where(finite, maxima, 0), out=seen)
        if kind == "gradient":
            first = self.segment("first", name)
            self.segment("nonfinite", name).add_(~finite)
            torch.maximum(first, torch.where(finite, 0, marks(self._reads - 1)).to(first), out=first)
        return True

    def _placed(self, values: Tensor, channels: int | None = None) -> Tensor:
        """(C,) on this device and of this dtype; a shard's channels stand at their global place, 0 elsewhere."""
        channels = values.shape[0] if channels is None else channels
        offset = shard_offset(values)
        values = local(values).detach().to(self.device, self.dtype)
        if len(values) == channels:
            return values
        return torch.nn.functional.pad(values, (offset, channels - offset - len(values)))

    def _count_no_gradient(self, names: list[str]) -> None:
        self._no_gradient.append({name: self.segment("gradient", name) <= 0 for name in names})

    # -- window ends ---------------------------------------------------------------------------------------------

    def segments(self, several_ranks: bool) -> Segments:
        """All that was seen, after `flush`, on the CPU; of several ranks together, where every rank must call it
        with the same layers and activations. The evidence itself stays as it is."""
        segments: Segments = {}
        for summed in (False, True):
            # ranks that saw other graphs may have laid the same parts out in another order
            keys = sorted((key for key in self._places if (key[0] == "sums") == summed), key=str)
            if not keys:
                continue
            parts = [self.segment(*key) for key in keys]
            values = torch.cat(parts, -1)
            if several_ranks:
                # the larger of a number and NaN is each backend's own matter
                values = values if summed else values.nan_to_num(torch.inf, torch.inf)
                operator = torch.distributed.ReduceOp.SUM if summed else torch.distributed.ReduceOp.MAX
                torch.distributed.all_reduce(values, operator)
            segments.update(zip(keys, torch.split(values.cpu(), [part.shape[-1] for part in parts], -1), strict=True))
        return segments


def renamed(key: Any, names: Mapping[str, str] | None) -> Any:
    """A layer's name, or an activation's key, with other names of layers; without those that are in none."""
    if names is None:
        return key
    if isinstance(key, str):
        return names.get(key)
    return tuple(sorted(names[name] for name in key if name in names))


def table_max(layer: Layer, rows: Tensor | None) -> Tensor | None:
    """(C,) largest \\|gradient\\| of each row of a table; None without a gradient.

    Args:
        layer: the table.
        rows: (n,) those that may have one; None: any.
    """
    grad = layer.main.grad
    if grad is None or is_sharded(grad):
        return None if grad is None else kernel_max(layer)
    if grad.is_sparse:
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
    elif rows is not None:
        values = grad.detach().index_select(0, rows)
    else:
        return row_max(grad.detach())
    maxima = row_max(values)
    return maxima.new_zeros(layer.channels).scatter_reduce_(0, rows, maxima, "amax")


def kernel_max(layer: Layer) -> Tensor | None:
    """(C,) largest \\|gradient\\| of each kernel, or its shard's (a DTensor's local rows); None without a gradient.

    NaN and inf come through as they are. The maximum is taken, not the L2 norm, which underflows.
    """
    grad = layer.main.grad
    if grad is None or grad.is_sparse:
        return None
    if not is_sharded(grad):
        rows = layer.rows_of(grad.detach())
        return None if rows is None else row_max(rows)
    part = local(grad.detach())
    if not part.numel():  # fewer rows than ranks
        return part.new_zeros(layer.channels)
    # the parts of a weight that is sharded along its inputs hold all channels, of which the ranks' maximum is taken
    others = tuple(dim for dim in range(part.ndim) if dim != layer.channel_dim)
    maxima: Tensor = torch.linalg.vector_norm(part, ord=float("inf"), dim=others)
    if len(maxima) == layer.channels:
        return maxima
    offset = shard_offset(grad)
    return torch.nn.functional.pad(maxima, (offset, layer.channels - offset - len(maxima)))
