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

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_INFINITY = {torch.float32: 0x7F80_0000, torch.float64: 0x7FF0_0000_0000_0000}
_MAGNITUDE = {torch.float32: 0x7FFF_FFFF, torch.float64: 0x7FFF_FFFF_FFFF_FFFF}

SITE_SUMS = ("positives", "magnitudes", "zeros", "flat")
"""Per-channel sums of a site over the sampled steps; one more number, the entries per channel, stands after them."""


@dataclass
class Source:
    """Where a layer's per-step gradient evidence is read: a (C,) parameter, or the rows of its weight."""

    layer: Layer
    parameter: torch.nn.Parameter | None = None
    kind: str = "weight"


class _Countdown:
    """How many channels of each slot are still unseen, brought to the host without waiting for the device."""

    def __init__(self) -> None:
        self.left: dict[Any, int] = {}
        self._flights: list[tuple[list[Any], Tensor, Any]] = []

    def reset(self) -> None:
        self.left, self._flights = {}, []

    def is_done(self, slot: Any) -> bool:
        self._land()
        return self.left.get(slot) == 0

    def update(self, slots: list[Any], counts: Tensor) -> None:
        """Takes (len(slots),) int32 counts on the device; they are known to `is_done` once they have arrived."""
        if counts.is_cuda:
            host = torch.empty_like(counts, device="cpu", pin_memory=True).copy_(counts, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._flights.append((slots, host, event))
        else:
            self._flights.append((slots, counts, None))

    def _land(self) -> None:
        while self._flights and (self._flights[0][2] is None or self._flights[0][2].query()):
            slots, host, _ = self._flights.pop(0)
            # numpy reads host memory as it is: no operator runs, nothing can synchronise
            self.left.update(zip(slots, host.numpy().tolist(), strict=True))


class ChannelEvidence(Metric):
    """Flat per-channel evidence of one window: `maxima` (max over ranks) and `totals` (sum over ranks).

    `maxima` holds, for each source, the largest \\|gradient\\| of each channel twice (at the source, read every step,
    and at the kernel itself, read on sampled steps while the first is still 0), then for each site whether each
    channel fired. `totals` holds the non-finite gradient entries of each source's channels, then each site's sums.
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

    # -- layout --------------------------------------------------------------------------------------------------

    def arrange(self, sources: dict[str, Source], sites: dict[SiteKey, int]) -> None:
        """Lays out the states for these sources and sites (key -> channels); what was seen before is kept."""
        old = {key: self.segment(*key).clone() for key in self._places}
        self.sources, self.sites = dict(sources), dict(sites)
        self._places, maxima, totals = {}, 0, 0
        for kind in ("gradient", "kernel"):
            for name, source in self.sources.items():
                self._places[kind, name] = (maxima, maxima + source.layer.channels)
                maxima += source.layer.channels
        for name, source in self.sources.items():
            self._places["non-finite", name] = (totals, totals + source.layer.channels)
            totals += source.layer.channels
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

    def segment(self, kind: str, key: Any) -> Tensor:
        """The part of a state that belongs to one source or site: a view."""
        start, stop = self._places[kind, key]
        state = self.totals if kind in ("non-finite", "sums") else self.maxima
        return state[start:stop]

    def reset(self) -> None:
        """Opens a new window."""
        super().reset()
        self.unseen.reset()
        self.entries = {}

    # -- activations ---------------------------------------------------------------------------------------------

    def is_pending(self, site: SiteKey) -> bool:
        """Whether some channel of the site is not known to have fired in this window."""
        return not self.unseen.is_done(site)

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

    @torch.no_grad()
    def read_gradients(self, only: Iterable[str] | None = None) -> None:
        """Takes the largest \\|gradient\\| of every channel into `maxima`: a fixed number of launches for all 1-D
        sources; weight rows are read only for layers that have not shown a gradient on all channels yet.

        Args:
            only: names of the layers in the graph of this backward, where others may hold stale gradients.
        """
        if not self.sources:
            return
        names = None if only is None else set(only)
        parts, rows = [], []
        for name, source in self.sources.items():
            channels = source.layer.channels
            grad = None
            if names is None or name in names:
                if source.parameter is not None:
                    grad = source.parameter.grad
                elif not self.unseen.is_done(("gradient", name)):
                    grad = kernel_peaks(source.layer)
                    rows.append(name)
            if grad is None:
                parts.append(self._nothing[channels])
            elif grad.shape[0] == channels and grad.device == self._buffer.device and not hasattr(grad, "to_local"):
                parts.append(grad)
            else:
                parts.append(self._placed(grad, channels))
        torch.cat(parts, out=self._buffer)
        self._note(self._buffer, self.maxima[: len(self._buffer)], self.totals[: len(self._buffer)])
        if rows:
            self._count_unseen(rows)

    def read_kernels(self) -> None:
        """On a sampled step: the same at the kernels of the layers some of whose channels showed no gradient yet.

        A shift or bias may have an exactly zero gradient while its kernel has one, so a zero there is confirmed here.
        """
        indirect = [name for name, source in self.sources.items() if source.parameter is not None]
        for name in indirect:
            if self.unseen.is_done(("gradient", name)):
                continue
            peaks = kernel_peaks(self.sources[name].layer)
            if peaks is not None:
                peaks = self._placed(peaks, self.sources[name].layer.channels).clone()
                self._note(peaks, self.segment("kernel", name), None)
        if indirect:
            self._count_unseen(indirect)

    def _note(self, values: Tensor, maxima: Tensor, non_finite: Tensor | None) -> None:
        """`maxima` = max(maxima, |values|) on the bits, where NaN and inf are counted apart and are no evidence."""
        dtype = values.dtype
        bits = values.view(_BITS[dtype])
        bits.bitwise_and_(_MAGNITUDE[dtype])
        wild = bits >= _INFINITY[dtype]
        if non_finite is not None:
            non_finite.add_(wild)
        bits.masked_fill_(wild, 0)
        seen = maxima.view(_BITS[dtype])
        torch.maximum(seen, bits, out=seen)

    def _placed(self, values: Tensor, channels: int) -> Tensor:
        """(C,) on the arena's device and of its dtype; a shard's channels stand at their global place, 0 elsewhere."""
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
            (kind, key): states["totals" if kind in ("non-finite", "sums") else "maxima"][start:stop]
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
    rows = layer.rows_of(grad.detach())
    if rows is None:
        return None
    peaks: Tensor = torch.linalg.vector_norm(rows, ord=float("inf"), dim=1)
    if hasattr(grad, "to_local"):
        offset = shard_offset(grad)
        peaks = torch.nn.functional.pad(peaks, (offset, layer.channels - offset - len(peaks)))
    return peaks


def shard_offset(tensor: Any) -> int:
    """First global row of a DTensor's local shard along dim 0; 0 for any other tensor."""
    if not hasattr(tensor, "to_local"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0])
