"""What was seen of every channel in the open window: flat states on the device, reduced over ranks at its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_deadkernel.evidence.buffers import Arena, Countdown
from lightning_deadkernel.functional.firing import ChannelAxis, count_outside, firing
from lightning_deadkernel.functional.kernels import row_max
from lightning_deadkernel.graph.activations import Activation
from lightning_deadkernel.graph.facts import ActivationKey, Source
from lightning_deadkernel.graph.layers import Layer
from lightning_deadkernel.graph.sharding import local, shard_offset

SITE_SUMS = ("positives", "magnitudes", "zeros", "flat")
"""Per-channel sums of a site over the sampled steps; one more number, the entries per channel, stands after them."""


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
        self.sites: dict[ActivationKey, int] = {}
        self.entries: dict[ActivationKey, float] = {}
        self.silent: Countdown[ActivationKey] = Countdown()
        """Sites with channels that are not known to have fired in this window."""
        self.unmoved: Countdown[str] = Countdown()
        """Layers with channels that are not known to have had a gradient in this window."""
        self.maxima: Tensor
        self.totals: Tensor
        self.add_state("maxima", torch.zeros(0, dtype=dtype), dist_reduce_fx="max")
        self.add_state("totals", torch.zeros(0, dtype=torch.float64), dist_reduce_fx="sum")
        self._places: dict[tuple[str, Any], tuple[int, int]] = {}
        self._nothing: dict[int, Tensor] = {}
        self._flat: list[tuple[str, torch.nn.Parameter, Tensor]] = []
        self._odd = False
        self._rows: list[str] = []
        self._gradients = self._activations = Arena(0, dtype, torch.device("cpu"))

    # -- layout --------------------------------------------------------------------------------------------------

    def arrange(self, sources: dict[str, Source], sites: dict[ActivationKey, int]) -> None:
        """Lays out the states for these sources and sites (key -> channels); what was seen before is kept."""
        self._drain()
        old = {key: self.segment(*key).clone() for key in self._places}
        # the 1-D sources first: what every step writes to is one piece
        self.sources = dict(sorted(sources.items(), key=lambda item: item[1].parameter is None))
        self.sites = dict(sites)
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
        sizes = {source.layer.channels for source in self.sources.values()} | set(self.sites.values())
        self._nothing = {size: torch.zeros(size, dtype=self.dtype_of_maxima, device=device) for size in sizes}
        self._flat = [
            (name, source.parameter, self._nothing[source.layer.channels])
            for name, source in self.sources.items()
            if source.parameter is not None
        ]
        self._odd = any(p.device != device or hasattr(p, "to_local") for _, p, _ in self._flat)
        self._rows = [name for name, source in self.sources.items() if source.parameter is None]
        self._gradients = Arena(sum(len(nothing) for _, _, nothing in self._flat), self.dtype_of_maxima, device)
        self._activations = Arena(sum(self.sites.values()), self.dtype_of_maxima, device)
        self._begin_countdown()

    def _begin_countdown(self) -> None:
        # what has been seen before a new layout (a graph of another shape) is counted again at the next read
        self.silent.begin(self.sites)
        self.unmoved.begin(self.sources)

    def segment(self, kind: str, key: Any) -> Tensor:
        """The part of a state that belongs to one source or site: a view."""
        start, stop = self._places[kind, key]
        state = self.totals if kind == "sums" else self.maxima
        return state[start:stop]

    def reset(self) -> None:
        """Opens a new window."""
        super().reset()
        self._gradients.forget()
        self._activations.forget()
        self._begin_countdown()
        self.entries = {}

    def _drain(self) -> None:
        """Takes into the states what the last steps noted."""
        self._drain_gradients()
        self._drain_activations()

    def _drain_gradients(self) -> None:
        size = sum(len(nothing) for _, _, nothing in self._flat)
        channels = sum(source.layer.channels for source in self.sources.values())
        self._gradients.drain(self.maxima[:size], self.maxima[channels : channels + size])

    def _drain_activations(self) -> None:
        channels = sum(source.layer.channels for source in self.sources.values())
        self._activations.drain(self.maxima[3 * channels :])

    # -- activations ---------------------------------------------------------------------------------------------

    def all_fired(self) -> bool:
        """Whether every channel of every site is known to have fired in this window."""
        self.silent.land()
        return not self.silent.pending

    def read_activations(self, maxima: dict[ActivationKey, Tensor]) -> None:
        """Notes which channels fired: one launch for all.

        Args:
            maxima: site -> (C,), > 0 where the channel fired; NaN is no evidence.
        """
        # a tensor on another device (a model in several parts) is rare, and `cat` refuses it
        device = self.maxima.device
        parts = [maxima.get(site, self._nothing[channels]) for site, channels in self.sites.items()]
        full = self._activations.note([part if part.device == device else part.to(device) for part in parts])
        if self.silent.read():
            self._drain_activations()
            self._count_silent()
        elif full:
            self._drain_activations()

    def _count_silent(self) -> None:
        # all that are pending, not only those of this step: others may be read on every second step, never on this one
        sites = list(self.silent.pending)
        if sites:
            silent = [(self.segment("fired", site) <= 0).sum(dtype=torch.int32) for site in sites]
            self.silent.update(sites, torch.stack(silent))

    def sample_activation(self, site: ActivationKey, activation: Activation, at: ChannelAxis, saved: Tensor) -> Tensor:
        """Adds a sampled step's firing counts, magnitudes, exact zeros and flat-end counts of one activation.

        Returns:
            (C,) float64 counts of entries > 0.
        """
        counts = [*firing(activation.output(saved), at, activation.rectifies)]
        if activation.has_flat_ends:
            counts.append(count_outside(saved, at, activation.low, activation.high, inclusive=True))
        sums = torch.cat(counts)
        self.segment("sums", site)[: len(sums)].add_(sums.to(self.totals.device))
        self.entries[site] = self.entries.get(site, 0) + saved.numel() / at.size
        return counts[0]

    # -- gradients -----------------------------------------------------------------------------------------------

    def read_gradients(self, only: frozenset[str] | None = None) -> None:
        r"""Notes the \|gradient\| of every channel: one launch for all 1-D sources of the network; weight rows are
        read only for layers that have not shown a gradient on all channels yet.

        Args:
            only: names of the layers in the graph of this backward, where others may hold stale gradients.
        """
        if self._flat:
            if only is None and not self._odd:
                parts = [nothing if (grad := p.grad) is None else grad for _, p, nothing in self._flat]
            else:
                parts = [
                    nothing if p.grad is None or (only is not None and name not in only) else self._placed(p.grad)
                    for name, p, nothing in self._flat
                ]
            if self._gradients.note(parts):
                self._drain_gradients()
        if self._rows:
            self.unmoved.land()
            pending = [name for name in self._rows if name in self.unmoved.pending and (only is None or name in only)]
            read = [self._read_kernel(name, "gradient", "wild") for name in pending]
            if any(read) and self.unmoved.read():
                self._count_unmoved([name for name in self._rows if name in self.unmoved.pending])

    def read_kernels(self) -> None:
        """On a sampled step: the same at the kernels of the layers some of whose channels showed no gradient yet.

        A shift or bias may have an exactly zero gradient while its kernel has one, so a zero there is confirmed here.
        """
        self.unmoved.land()
        pending = [name for name, _, _ in self._flat if name in self.unmoved.pending]
        if pending:
            for name in pending:
                self._read_kernel(name, "kernel")
            self._drain_gradients()
            self._count_unmoved(pending)

    def _read_kernel(self, name: str, largest: str, wild: str | None = None) -> bool:
        layer = self.sources[name].layer
        maxima = kernel_max(layer)
        if maxima is None:
            return False
        maxima, seen = self._placed(maxima, layer.channels), self.segment(largest, name)
        torch.fmax(seen, maxima, out=seen)
        if wild is not None:
            seen = self.segment(wild, name)
            torch.maximum(seen, maxima, out=seen)
        return True

    def _placed(self, values: Tensor, channels: int | None = None) -> Tensor:
        """(C,) on the arena's device and of its dtype; a shard's channels stand at their global place, 0 elsewhere."""
        channels = values.shape[0] if channels is None else channels
        offset = shard_offset(values)
        values = local(values).detach().to(self.maxima.device, self.dtype_of_maxima)
        if len(values) == channels:
            return values
        return torch.nn.functional.pad(values, (offset, channels - offset - len(values)))

    def _count_unmoved(self, names: list[str]) -> None:
        unmoved = [(self.segment("gradient", name) <= 0).sum(dtype=torch.int32) for name in names]
        self.unmoved.update(names, torch.stack(unmoved))

    # -- torchmetrics --------------------------------------------------------------------------------------------

    def update(self, maxima: dict[ActivationKey, Tensor]) -> None:
        """What `read_activations` does: torchmetrics asks for the name."""
        self.read_activations(maxima)

    def close(self) -> None:
        """Completes the states, before they are read or reduced over ranks."""
        self._drain()
        for site, entries in self.entries.items():
            self.segment("sums", site)[-1] = entries
        self._update_count = max(1, self._update_count)

    def segments(self) -> dict[tuple[str, Any], Tensor]:
        """(kind, layer or site) -> CPU tensor, for all segments: one copy to the host per state. After `close`."""
        states = {"maxima": self.maxima.cpu(), "totals": self.totals.cpu()}
        return {
            (kind, key): states["totals" if kind == "sums" else "maxima"][start:stop]
            for (kind, key), (start, stop) in self._places.items()
        }

    def compute(self) -> dict[tuple[str, Any], Tensor]:
        """The same as a metric's compute, which torchmetrics wraps in its own cache and reduction."""
        return self.segments()


def kernel_max(layer: Layer) -> Tensor | None:
    """(C,) largest \\|gradient\\| of each kernel, or its shard's (a DTensor's local rows); None without a gradient.

    NaN and inf come through as they are. The maximum is taken, not the L2 norm, which underflows.
    """
    grad = layer.main.grad
    if grad is None or grad.is_sparse:
        return None
    if not hasattr(grad, "to_local"):
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
