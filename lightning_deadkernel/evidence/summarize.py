"""From an observer's device state to the window the diagnosis reads: everything crosses to the host here, once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.evidence.channel_evidence import SITE_SUMS
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.functional.histograms import bit_histogram
from lightning_deadkernel.functional.kernels import row_max, row_norms
from lightning_deadkernel.functional.sparsity import weight_summary
from lightning_deadkernel.graph.facts import ActivationKey, LayerFacts
from lightning_deadkernel.graph.layers import Layer
from lightning_deadkernel.graph.sharding import whole
from lightning_deadkernel.observation import LayerWindow, Window, WindowTensors
from lightning_deadkernel.thresholds import Thresholds

Tensors = dict[tuple[str, Any], Tensor]
Draft = dict[str, Any]
"""The fields of a `LayerWindow` on its way."""

UNDERFLOW_WORTH_A_NOTE = 0.1
"""Share of a weight's gradient entries that underflowed in float16."""


@torch.no_grad()
def read_window(
    observer: Observer,
    window: Window,
    optimizers: list[Any],
    thresholds: Thresholds,
    histograms: bool,
    observed: Tensors,
) -> tuple[Window, WindowTensors]:
    """Fills `window` with all layers, in forward order.

    Args:
        observer: what was gathered; its evidence has been reduced over the ranks into `observed`.
        window: index, counters and notes; index 0 takes weights only.
        optimizers: to tell which weights are in one, and their decay.
        thresholds: where weak and vanishing begin.
        histograms: whether pictures and loggers want them.
        observed: `ChannelEvidence.compute()`.
    """
    tensors = WindowTensors()
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    changed = observer.changed_since_last()
    steps = _Steps(observer, thresholds)
    known = observer.reader.facts
    drafts: list[Draft] = []
    graph_seen = bool(observer.reader.maps)
    for name in sorted(known, key=lambda name: (known[name].excluded is not None, known[name].order)):
        layer = known[name].layer
        entry = _describe(layer, known[layer.name])
        drafts.append(entry)
        entry["excluded"] = known[name].excluded or _not_used(layer, observer, graph_seen, window)
        if entry["excluded"] is not None:
            continue
        _read_weights(entry, layer, known[layer.name], tensors if histograms else None)
        entry["in_optimizer"] = not optimizers or id(layer.main) in held
        if layer.name in changed and window.optimizer_steps:
            entry["unchanged"] = ~changed[layer.name].cpu()
        if window.index == 0:
            continue
        _read_gradients(entry, layer, observer, observed)
        steps.fill(entry)
        _read_activations(entry, known[layer.name], observer, observed)
        entry["producers"], entry["consumers"] = _neighbours(known[layer.name], observer)
        if histograms:
            _add_histograms(entry, layer, tensors)
    drafts.sort(key=lambda entry: entry["excluded"] is not None)
    window.layers = [LayerWindow(**entry) for entry in drafts]
    if window.index:
        steps.fill_window(window)
    window.compiled = observer.reader.compiled
    return window, _with_first_kernels(tensors, observer, window)


def _describe(layer: Layer, known: LayerFacts) -> Draft:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "channels": layer.channels,
        "depth": known.depth,
        "note": known.note,
        "activation": known.activation,
        "gating": known.gating,
    }


def _not_used(layer: Layer, observer: Observer, graph_seen: bool, window: Window) -> str | None:
    if window.index == 0 or not graph_seen or layer.name in observer.reached:
        return None
    if observer.reader.facts[layer.name].confirmed:
        return "not used in this window"
    return "not in the graph of the loss: never used in the training step, or detached"


def _read_weights(entry: Draft, layer: Layer, known: LayerFacts, tensors: WindowTensors | None) -> None:
    weight = whole(layer.weight())
    rows = layer.rows(weight)
    entry["norms"], entry["largest"] = row_norms(rows).cpu(), row_max(rows).cpu()
    entry["bytes_per_parameter"] = layer.main.element_size()
    extras = [known.scale, known.source.parameter if known.source else None]
    owned = {id(p): p.numel() for p in (layer.main, layer.bias, *extras) if p is not None}
    entry["parameters"] = sum(owned.values())
    if known.scale is not None:
        entry["norm_scale"] = whole(known.scale.detach()).abs().float().cpu()
    if known.source is not None and known.source.parameter is not None:
        entry["shift"] = whole(known.source.parameter.detach()).float().cpu()
    summary = weight_summary(weight)
    entry["weight_sparsity"], entry["weight_near_zeros"] = float(summary.zeros), float(summary.near_zeros)
    entry["gini"], entry["hoyer"] = float(summary.gini), float(summary.hoyer)
    # two rows tell almost always; only if they are equal the rest is compared
    entry["identical"] = len(rows) > 1 and torch.equal(rows[0], rows[1]) and bool((rows == rows[:1]).all())
    mask = layer.mask()
    if mask is not None:
        entry["masked"] = (layer.rows(mask) == 0).all(1).cpu()
    if tensors is not None:
        tensors.histograms.setdefault("weights", {})[layer.name] = summary.histogram.cpu()
        tensors.histograms.setdefault("kernel_norms", {})[layer.name] = bit_histogram(entry["norms"])


def _read_gradients(entry: Draft, layer: Layer, observer: Observer, observed: Tensors) -> None:
    source = observer.evidence.sources.get(layer.name)
    if source is None or not observer.backwards:
        return
    # an infinite gradient is one: only its size is not known
    entry["gradient"] = torch.nan_to_num(observed["gradient", layer.name])
    if source.parameter is not None:
        entry["weight_gradient"] = observed["kernel", layer.name].clone()
        # `read_kernels` skips layers that had shown a gradient everywhere: that is one at the kernel as well
        seen = entry["gradient"] > 0
        entry["weight_gradient"][seen] = torch.maximum(entry["weight_gradient"], entry["gradient"])[seen]
    # a scaler skips every step whose gradients overflowed: what it skipped is no finding
    entry["non_finite_gradients"] = (
        0 if observer.sampler.scaled else int((~observed["wild", layer.name].isfinite()).sum())
    )
    entry["penalised"] = observer.reader.facts[layer.name].penalised


def _read_activations(entry: Draft, known: LayerFacts, observer: Observer, observed: Tensors) -> None:
    sites: list[ActivationKey] = [site for site in known.activations if ("fired", site) in observed]
    if known.gating is None or not sites or not observer.backwards:
        entry["gating"] = None
        return
    fired = torch.stack([observed["fired", site] for site in sites]).amax(0) > 0
    entry["fired"] = fired
    entry["exact"] = observer.unread == 0
    channels = entry["channels"]
    sums = torch.stack([observed["sums", site] for site in sites]).sum(0)
    entries = float(sums[-1])
    if entries:
        parts = {name: sums[i * channels : (i + 1) * channels] / entries for i, name in enumerate(SITE_SUMS)}
        entry["channel_firing_rate"], entry["activation_mean"] = parts["positives"], parts["magnitudes"]
        entry["firing_rate"] = float(parts["positives"].mean())
        entry["activation_sparsity"] = float(parts["zeros"].mean())
        if known.reports_flat_ends:
            entry["saturated_share"] = parts["flat"]


def _neighbours(known: LayerFacts, observer: Observer) -> tuple[tuple[str, ...] | None, Any]:
    producers = tuple(sorted(known.producers)) if known.producers else None
    return producers, observer.reader.consumers(known.layer.name)


def _add_histograms(entry: Draft, layer: Layer, tensors: WindowTensors) -> None:
    grad = layer.main.grad
    if grad is not None and not grad.is_sparse:
        tensors.histograms.setdefault("gradients", {})[layer.name] = bit_histogram(whole(grad)).cpu()
    rates = entry.get("channel_firing_rate")
    if rates is not None:
        tensors.histograms.setdefault("firing_rate", {})[layer.name] = bit_histogram(rates.float())


def _with_first_kernels(tensors: WindowTensors, observer: Observer, window: Window) -> WindowTensors:
    layers = {layer.name: layer for layer in observer.reader.layers}
    for entry in window.layers:
        layer = layers[entry.name]
        if entry.excluded is None and layer.main.ndim == 4 and not layer.transposed:
            kernels = whole(layer.weight()).float().cpu().clone()
            return WindowTensors(tensors.histograms, entry.name, kernels)
    return tensors


def _median(values: Tensor) -> float | None:
    values = values[~values.isnan()]
    return float(values.median()) if values.numel() else None


def _note_on_underflow(share: float) -> str | None:
    if share <= UNDERFLOW_WORTH_A_NOTE:
        return None
    if share == 1:
        return "all of its gradient entries are zero in float16: they underflowed, or none arrived"
    return f"{share:.0%} of its gradient entries underflowed to zero in float16"


class _Steps:
    """The sampled steps, spread over the layers."""

    def __init__(self, observer: Observer, thresholds: Thresholds) -> None:
        self.sampler, self.thresholds = observer.sampler, thresholds
        self.column = {layer.name: i for i, layer in enumerate(self.sampler.layers)}
        self.tables = self.sampler.tables()

    def _values(self, table: Tensor, name: str) -> Tensor:
        values = table[:, self.column[name]]
        return values[~values.isnan()]

    def fill(self, entry: Draft) -> None:
        """Gradient and update sizes of one layer."""
        ratios = self._values(self.tables.ratios, entry["name"])
        entry["gradient_ratio"] = _median(ratios)
        rms = self._values(self.tables.rms, entry["name"])
        entry["gradient_rms"] = _median(rms[rms.isfinite()])
        if ratios.numel():
            lines = self.thresholds
            entry["weak_share"] = float(((ratios > 0) & (ratios < lines.weak_gradient)).double().mean())
            entry["vanishing_share"] = float(((ratios > 0) & (ratios < lines.vanishing_gradient)).double().mean())
        updates = self._values(self.tables.updates, entry["name"])
        entry["update_ratio"] = _median(updates)
        entry["update_ratio_max"] = float(updates.max()) if updates.numel() else None
        underflow = self._values(self.tables.underflow, entry["name"])
        entry["underflow_share"] = float(underflow.mean()) if underflow.numel() else None
        entry["note"] = entry["note"] or _note_on_underflow(entry["underflow_share"] or 0.0)
        entry["learning_rate"] = self.sampler.learning_rates.get(entry["name"])
        entry["weight_decay"], entry["decoupled_decay"] = self.sampler.decays.get(entry["name"], (0.0, False))

    def fill_window(self, window: Window) -> None:
        """Sizes of all gradients together."""
        totals = self.tables.totals
        finite = totals[totals.isfinite()]
        window.gradient_norm = _median(finite)
        window.skipped_steps = int((~totals.isfinite()).sum()) if self.sampler.scaled else 0
        window.largest_gradient_at = self.tables.largest_at
