"""What was seen of every channel in the open window: flat states on the device, reduced over ranks at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_deadkernel.layers import Layer, local
from lightning_deadkernel.nodes import Activation
from lightning_deadkernel.statistics import ChannelAxis, beyond, firing, is_fired, peak_bits

SiteKey = tuple[str, ...]
"""Names of the layers that an activation hears, sorted. Activations that hear the same layers are one site."""

SITE_SUMS = ("positives", "magnitudes", "zeros", "flat")
"""Per-channel sums of a site over the sampled steps; one more number, the entries per channel, stands after them."""


@dataclass
class Source:
    """Where a layer's per-step gradient evidence is read: a (C,) parameter, or the rows of its weight."""

    layer: Layer
    parameter: torch.nn.Parameter | None = None
    kind: str = "weight"


class _Countdown:
    """Slots with channels still unseen. Their counts come to the host without waiting for the device."""

    def __init__(self) -> None:
        self.pending: set[Any] = set()
        self._flights: list[tuple[list[Any], Tensor, Any]] = []

    def begin(self, slots: Iterable[Any]) -> None:
        """Everything is unseen again."""
        self.pending, self._flights = set(slots), []

    def update(self, slots: list[Any], counts: Tensor) -> None:
        """Takes (len(slots),) int32 counts on the device; `land` learns of them once they have arrived."""
        if counts.is_cuda:
            host = torch.empty_like(counts, device="cpu", pin_memory=True).copy_(counts, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._flights.append((slots, host, event))
        else:
            self._flights.append((slots, counts, None))

    def land(self) -> None:
        """Takes in the counts that have arrived."""
        while self._flights and (self._flights[0][2] is None or self._flights[0][2].query()):
            slots, host, _ = self._flights.pop(0)
            # numpy reads host memory as it is: no operator runs, nothing can synchronise
            self.pending.difference_update(slot for slot, left in zip(slots, host.numpy(), strict=True) if left == 0)


class ChannelEvidence(Metric):
    """Flat per-channel evidence of one window: `maxima` (max over ranks) and `totals` (sum over ranks).

    `maxima` holds, for each source, the largest \\|gradient\\| of each channel three times (at the source, read every
    step: NaN ignored, then NaN kept; at the kernel itself, read on sampled steps while the first is still 0), then for
    each site whether each channel fired. `totals` holds each site's sums over the sampled steps.
    """

    full_state_update = False

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype_of_maxima = dtype
        self.sources: dict[str, Source] = {}
        self.sites: dict[SiteKey, int] = {}
        self.entries: dict[SiteKey, float] = {}
        self.unseen = _Countdown()
        self.maxima: Tensor
        self.totals: Tensor
        self.add_state("maxima", torch.zeros(0, dtype=dtype), dist_reduce_fx="max")
        self.add_state("totals", torch.zeros(0, dtype=torch.float64), dist_reduce_fx="sum")
        self._places: dict[tuple[str, Any], tuple[int, int]] = {}
        self._indices: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._buffer = torch.zeros(0)
        self._nothing: dict[int, Tensor] = {}
        self._arena = (self._buffer, self._buffer, self._buffer)
        """The state, and its parts that every step writes to: views cost more than what is done with them."""
        self._plan: list[tuple[str, Source, Any, Tensor]] = []

    # -- layout --------------------------------------------------------------------------------------------------

    def arrange(self, sources: dict[str, Source], sites: dict[SiteKey, int]) -> None:
        """Lays out the states for these sources and sites (key -> channels); what was seen before is kept."""
        old = {key: self.segment(*key).clone() for key in self._places}
        self.sources, self.sites = dict(sources), dict(sites)
        self._places, maxima, totals = {}, 0, 0
        for kind in ("gradient", "wild", "kernel"):
            for name, source in self.sources.items():
                self._places[kind, name] = (maxima, maxima + source.layer.channels)
                maxima += source.layer.channels
        for site, channels in self.sites.items():
            self._places["fired", site] = (maxima, maxima + channels)
            maxima += channels
            size = len(SITE_SUMS) * channels + 1
            self._places["sums", site] = (totals, totals + size)
            totals += size
        device = self.maxima.device
        self.add_state("maxima", torch.zeros(maxima, dtype=self.dtype_of_maxima, device=device), dist_reduce_fx="max")
        self.add_state("totals", torch.zeros(totals, dtype=torch.float64, device=device), dist_reduce_fx="sum")
        for key, values in old.items():
            if key in self._places and self.segment(*key).shape == values.shape:
                self.segment(*key).copy_(values)
        channels = sum(source.layer.channels for source in self.sources.values())
        sizes = {source.layer.channels for source in self.sources.values()}
        self._buffer = torch.zeros(channels, dtype=self.dtype_of_maxima, device=device)
        self._nothing = {size: torch.zeros(size, dtype=self.dtype_of_maxima, device=device) for size in sizes}
        self._indices = {}
        self._plan = [self._planned(name, source) for name, source in self.sources.items()]
        self._begin_countdown()

    def _planned(self, name: str, source: Source) -> tuple[str, Source, Any, Tensor]:
        """(name, source, its parameter if its gradient can be taken as it is, zeros for a step without one)."""
        parameter = source.parameter
        plain = parameter is not None and parameter.device == self._buffer.device and not hasattr(parameter, "to_local")
        return name, source, parameter if plain else None, self._nothing[source.layer.channels]

    def _begin_countdown(self) -> None:
        # what has been seen before a new layout (a graph of another shape) is counted again at the next read
        self.unseen.begin([*self.sites, *(("gradient", name) for name in self.sources)])

    def segment(self, kind: str, key: Any) -> Tensor:
        """The part of a state that belongs to one source or site: a view."""
        start, stop = self._places[kind, key]
        state = self.totals if kind == "sums" else self.maxima
        return state[start:stop]

    def reset(self) -> None:
        """Opens a new window."""
        super().reset()
        self._begin_countdown()
        self.entries = {}

    # -- activations ---------------------------------------------------------------------------------------------

    def is_pending(self, site: SiteKey) -> bool:
        """Whether some channel of the site is not known to have fired in this window."""
        return site in self.unseen.pending

    def any_pending(self) -> bool:
        """Whether some channel of any site is not known to have fired in this window."""
        self.unseen.land()
        return not self.unseen.pending.isdisjoint(self.sites)

    def read_activations(self, reads: Sequence[tuple[SiteKey, ChannelAxis, Tensor]]) -> None:
        """Notes which channels fired: one reduction per activation, then a fixed number of launches for all."""
        by_dtype: dict[torch.dtype, list[tuple[SiteKey, ChannelAxis, Tensor]]] = {}
        for read in reads:
            by_dtype.setdefault(read[2].dtype, []).append(read)
        for dtype, group in by_dtype.items():
            bits = torch.cat([peak_bits(x, at).to(self.maxima.device) for _, at, x in group])
            fired = is_fired(bits, dtype).to(self.maxima.dtype)
            index, slots = self._index(tuple(site for site, _, _ in group))
            self.maxima.scatter_reduce_(0, index, fired, "amax")
            unseen = (self.maxima[index] <= 0).to(torch.int32)
            sites = list(dict.fromkeys(site for site, _, _ in group))
            counts = torch.zeros(len(sites), dtype=torch.int32, device=unseen.device).index_add_(0, slots, unseen)
            self.unseen.update(sites, counts)

    def _index(self, sites: tuple[SiteKey, ...]) -> tuple[Tensor, Tensor]:
        """For activations in this order: place of each channel in `maxima`, and which distinct site it is of."""
        if sites not in self._indices:
            device, order = self.maxima.device, list(dict.fromkeys(sites))
            places = [self._places["fired", site] for site in sites]
            index = torch.cat([torch.arange(*place) for place in places])
            slots = torch.cat(
                [torch.full((b - a,), order.index(site)) for site, (a, b) in zip(sites, places, strict=True)]
            )
            if len(self._indices) > 256:
                self._indices.clear()
            self._indices[sites] = (index.to(device), slots.to(device))
        return self._indices[sites]

    def sample_activation(self, site: SiteKey, activation: Activation, at: ChannelAxis, saved: Tensor) -> None:
        """Adds a sampled step's firing counts, magnitudes, exact zeros and flat-end counts of one activation."""
        positives, magnitudes, zeros = firing(activation.output(saved), at)
        flat = torch.zeros_like(positives)
        if activation.low > -float("inf") or activation.high < float("inf"):
            flat = beyond(saved, at, activation.low, activation.high, inclusive=True)
        sums = torch.cat([part.to(torch.float64) for part in (positives, magnitudes, zeros, flat)])
        target = self.segment("sums", site)
        target[:-1].add_(sums.to(target.device))
        self.entries[site] = self.entries.get(site, 0) + saved.numel() / at.size

    # -- gradients -----------------------------------------------------------------------------------------------

    def read_gradients(self, only: Iterable[str] | None = None) -> None:
        """Takes the largest \\|gradient\\| of every channel into `maxima`: a fixed number of launches for all 1-D
        sources; weight rows are read only for layers that have not shown a gradient on all channels yet.

        Args:
            only: names of the layers in the graph of this backward, where others may hold stale gradients.
        """
        if not self.sources:
            return
        self.unseen.land()
        names = None if only is None else set(only)
        parts, rows = [], []
        for name, source, plain, nothing in self._plan:
            grad = None
            if names is not None and name not in names:
                pass
            elif plain is not None:
                grad = plain.grad
            elif source.parameter is not None:
                grad = source.parameter.grad if source.parameter.grad is None else self._placed(source.parameter.grad)
            elif ("gradient", name) in self.unseen.pending:
                grad = kernel_peaks(source.layer)
                grad = grad if grad is None else self._placed(grad)
                rows.append(name)
            parts.append(nothing if grad is None else grad)
        if any(part.requires_grad for part in parts):  # `create_graph=True`: gradients are part of a graph themselves
            parts = [part.detach() for part in parts]
        values = torch.cat(parts, out=self._buffer).abs_()
        if self._arena[0] is not self.maxima:  # a reset or a reduction has put another tensor there
            size = len(values)
            self._arena = (self.maxima, self.maxima[:size], self.maxima[size : 2 * size])
        _, seen, wild = self._arena
        torch.fmax(seen, values, out=seen)
        torch.maximum(wild, values, out=wild)
        if rows:
            self._count_unseen(rows)

    def read_kernels(self) -> None:
        """On a sampled step: the same at the kernels of the layers some of whose channels showed no gradient yet.

        A shift or bias may have an exactly zero gradient while its kernel has one, so a zero there is confirmed here.
        """
        self.unseen.land()
        unseen = [
            name
            for name, source in self.sources.items()
            if source.parameter is not None and ("gradient", name) in self.unseen.pending
        ]
        for name in unseen:
            peaks = kernel_peaks(self.sources[name].layer)
            if peaks is not None:
                seen = self.segment("kernel", name)
                torch.fmax(seen, self._placed(peaks, self.sources[name].layer.channels), out=seen)
        if unseen:
            self._count_unseen(unseen)

    def _placed(self, values: Tensor, channels: int | None = None) -> Tensor:
        """(C,) on the arena's device and of its dtype; a shard's channels stand at their global place, 0 elsewhere."""
        channels = values.shape[0] if channels is None else channels
        offset = shard_offset(values)
        values = local(values).detach().to(self._buffer.device, self._buffer.dtype)
        if len(values) == channels:
            return values
        return torch.nn.functional.pad(values, (offset, channels - offset - len(values)))

    def _count_unseen(self, names: list[str]) -> None:
        unseen = [(self.segment("gradient", name) <= 0).sum(dtype=torch.int32) for name in names]
        self.unseen.update([("gradient", name) for name in names], torch.stack(unseen))

    # -- torchmetrics --------------------------------------------------------------------------------------------

    def update(self, reads: Sequence[tuple[SiteKey, ChannelAxis, Tensor]]) -> None:
        """What `read_activations` does, as a metric's update."""
        self.read_activations(reads)

    def close(self) -> None:
        """Writes the host's counts into the states, before they are reduced over ranks."""
        for site, entries in self.entries.items():
            self.segment("sums", site)[-1] = entries
        self._update_count = max(1, self._update_count)

    def segments(self) -> dict[tuple[str, Any], Tensor]:
        """(kind, layer or site) -> CPU tensor, for all segments: one copy to the host per state."""
        states = {"maxima": self.maxima.cpu(), "totals": self.totals.cpu()}
        return {
            (kind, key): states["totals" if kind == "sums" else "maxima"][start:stop]
            for (kind, key), (start, stop) in self._places.items()
        }

    def compute(self) -> dict[tuple[str, Any], Tensor]:
        """The same as a metric's compute, which torchmetrics wraps in its own cache and reduction."""
        return self.segments()


def kernel_peaks(layer: Layer) -> Tensor | None:
    """(C,) largest \\|gradient\\| of each kernel, or its shard's (a DTensor's local rows); None without a gradient.

    NaN and inf come through as they are. The maximum is taken, not the L2 norm, which underflows.
    """
    grad = layer.main.grad
    if grad is None or grad.is_sparse:
        return None
    if not hasattr(grad, "to_local"):
        rows = layer.rows_of(grad.detach())
        return None if rows is None else torch.linalg.vector_norm(rows, ord=float("inf"), dim=1)
    part = local(grad.detach())
    if not part.numel():  # fewer rows than ranks
        return part.new_zeros(layer.channels)
    # the parts of a weight that is sharded along its inputs hold all channels, of which the ranks' maximum is taken
    others = tuple(dim for dim in range(part.ndim) if dim != layer.channel_dim)
    peaks: Tensor = torch.linalg.vector_norm(part, ord=float("inf"), dim=others)
    if len(peaks) == layer.channels:
        return peaks
    offset = shard_offset(grad)
    return torch.nn.functional.pad(peaks, (offset, layer.channels - offset - len(peaks)))


def shard_offset(tensor: Any) -> int:
    """First global row of a DTensor's local shard along dim 0; 0 for any other tensor."""
    if not hasattr(tensor, "to_local"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0])
