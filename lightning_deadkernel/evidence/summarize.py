"""From the open window to the window the diagnosis reads: everything crosses to the host here, once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_deadkernel.evidence.channel_evidence import Segments
from lightning_deadkernel.evidence.first_non_finite import first_non_finite
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.open_window import Checksums, Seen
from lightning_deadkernel.evidence.prospects import groups_of, prospect
from lightning_deadkernel.evidence.step_values import StepValues
from lightning_deadkernel.evidence.weights import Draft, read_weights
from lightning_deadkernel.functional.adam import share_below_epsilon, steady_step_of
from lightning_deadkernel.functional.histograms import bit_histogram, bit_histograms
from lightning_deadkernel.graph.facts import ActivationKey, LayerFacts
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.sharding import whole
from lightning_deadkernel.observation import AdamState, FeatureMaps, LayerWindow, Window, WindowTensors
from lightning_deadkernel.thresholds import Thresholds

ASKED = 1 << 14
"""Entries of an optimizer's state that are looked at, of a larger one: a share is known to 0.004."""

CUT_OFF = "not in the graph of the loss: never used in the training step, or detached"
NO_INPUT = "nothing passed through: what came to it was empty on every batch of this window"


@torch.no_grad()
def summarize(
    observer: Observer,
    seen: Seen,
    epoch: int,
    global_step: int,
    optimizers: list[Any],
    thresholds: Thresholds,
    with_tensors: bool,
) -> tuple[Window, WindowTensors, Checksums]:
    """The open window in plain CPU tensors. With sharded weights every rank must call it; nothing gathered is changed.

    Args:
        observer: what was watched.
        seen: what was gathered, over all ranks.
        epoch: the window's last.
        global_step: at the window's end.
        optimizers: to tell which weights are in one.
        thresholds: where weak and vanishing begin.
        with_tensors: whether histograms and pictures are wanted.

    Returns:
        All layers in forward order, excluded ones last; what pictures need besides; the next window's checksums.
    """
    counts, index, tensors = seen.counts, observer.window.index, WindowTensors()
    groups = groups_of(optimizers)
    changed, weights_now = observer.window.compare_weights(observer.reader.watched)
    steps = StepValues(observer.window.steps, thresholds)
    norms = {id(p): name.rpartition(".")[0] for name, p in observer.model.named_parameters()} if index else {}
    described: list[tuple[Draft, LayerFacts]] = []
    listed = [facts for facts in observer.reader.facts.values() if not facts.holds_no_kernels]
    for facts in sorted(listed, key=lambda facts: (facts.excluded is not None, facts.order)):
        layer = facts.layer
        entry = _describe(facts)
        described.append((entry, facts))
        entry["in_optimizer"] = not optimizers or not layer.channels or id(layer.main) in groups
        entry["samples_before"] = seen.samples_before.get(layer.name, 0)
        entry["excluded"] = facts.excluded or _not_used(facts, observer, index, seen)
        if entry["excluded"] is not None:
            entry["missed"] = _missed(facts, entry["excluded"])
            entry["parameters"] = 0 if facts.layer.channels == 0 else layer.main.numel()
    watched = [(entry, facts) for entry, facts in described if entry["excluded"] is None]
    read_weights(watched, tensors if with_tensors else None)
    for entry, facts in watched:
        layer = facts.layer
        if layer.name in changed and counts.optimizer_steps:
            entry["unchanged"] = ~changed[layer.name].cpu()
        if index == 0:
            continue
        if counts.backwards:
            _read_gradients(entry, facts, observer, seen.segments, counts.backwards)
            _read_activations(entry, facts, seen)
            if entry["gating"] is not None and not observer.window.steps.sharded:
                _certify(entry, facts)
                if entry["gating"] == "rectifier":
                    entry["prospect"] = prospect(entry, facts, groups, thresholds)
        else:
            entry["gating"] = None
        if not layer.is_looked_up:  # of a table, a step has a gradient for few rows, and none for the others
            steps.fill(entry)
            if id(layer.main) in groups:
                entry["adam"] = _adam_state(layer, *groups[id(layer.main)], counts.optimizer_steps)
        entry["producers"], entry["consumers"] = _neighbours(facts, observer)
        entry["passes_zero"], entry["stays_zero"] = facts.passes_zero, facts.stays_zero
        entry["used_elsewhere"], entry["entering"] = facts.used_elsewhere, seen.entering.get(layer.name)
        if facts.scale is not None:
            entry["norm"] = norms.get(id(facts.scale))
        if with_tensors:
            _add_feature_maps(facts, observer.window.feature_maps, tensors)
    if with_tensors and index:
        _add_histograms(watched, tensors)
    drafts = sorted((entry for entry, _ in described), key=lambda entry: entry["excluded"] is not None)
    window = Window(
        index,
        epoch,
        global_step,
        counts.batches,
        counts.optimizer_steps,
        counts.sampled_steps,
        counts.samples,
        [LayerWindow(**entry) for entry in drafts],
        compiled=observer.reader.compiled,
        strangers=observer.reader.strangers(groups),
    )
    if index and counts.backwards:
        window.first_non_finite = first_non_finite(observer, seen, counts.optimizer_steps, global_step)
        bad = [values.max() for (kind, _), values in seen.segments.items() if kind == "nonfinite" and values.numel()]
        window.non_finite_batches = min(counts.batches, int(max(bad, default=0)))
    if index:
        steps.fill_window(window, {n for n, p in observer.model.named_parameters() if p.element_size() <= 2})
    return window, _with_first_kernels(tensors, observer, window), weights_now


def _describe(facts: LayerFacts) -> Draft:
    return {
        "name": facts.layer.name,
        "kind": facts.layer.kind,
        "channels": facts.layer.channels,
        "rows": facts.layer.span.kind,
        "heads": facts.layer.span.heads,
        "depth": facts.depth,
        "plain_ahead": facts.ahead.plain if facts.ahead else 0,
        "bounded_ahead": facts.ahead.bounded if facts.ahead else 0,
        "note": facts.note,
        "activation": facts.activation,
        "gating": facts.gating,
        "groups": facts.layer.groups,
        "joined": next((how for how in ("compared", "stacked", "summed") if getattr(facts.paths, how)), None),
        "together": tuple(sorted(facts.together)),
    }


def _not_used(facts: LayerFacts, observer: Observer, index: int, seen: Seen) -> str | None:
    if index == 0 or facts.layer.name in seen.reached:
        return NO_INPUT if _is_empty(facts, observer, seen) else None
    if facts.layer.name in seen.samples_before:
        return f"not seen yet ({facts.since or 'it came in this window'})"
    if not observer.reader.has_learned:
        return None
    return "not used in this window" if facts.confirmed else CUT_OFF


def _is_empty(facts: LayerFacts, observer: Observer, seen: Seen) -> bool:
    """It was used on no sample and no position, as its activations show, or those that alone feed it; nor had it a
    gradient."""
    feeding = [facts] if facts.activations else [observer.reader.facts[name] for name in facts.producers or ()]
    keys = {key for one in feeding for key in one.activations}
    gradient = seen.segments.get(("gradient", facts.layer.name))
    # positions are counted as long as some channel has not fired
    nothing = bool(keys) and all(key in seen.passed and not seen.passed[key][1] for key in keys)
    return nothing and all(one.activations for one in feeding) and gradient is not None and not gradient.any()


@torch.no_grad()
def first_sight(observer: Observer, names: Collection[str], index: int, epoch: int, global_step: int) -> Window:
    """The weights of layers that have come in the middle of training, before their first step; `index` is that of
    the last window that has closed."""
    window = Window(index, epoch, global_step, batches=0, optimizer_steps=0, sampled_steps=0, samples=0)
    described: list[tuple[Draft, LayerFacts]] = []
    for facts in observer.reader.facts.values():
        if facts.layer.name in names and not facts.holds_no_kernels:
            described.append((_describe(facts), facts))
    read_weights(described, None)
    window.layers = [LayerWindow(**entry) for entry, _ in described]
    return window


def _missed(facts: LayerFacts, excluded: str) -> Literal["cut off", "no input", "unreadable"] | None:
    if facts.layer.excluded is not None:  # someone wants it so
        return None
    if excluded in (CUT_OFF, NO_INPUT):
        return "cut off" if excluded == CUT_OFF else "no input"
    return "unreadable" if facts.exclusion is not None else None


def _read_gradients(entry: Draft, facts: LayerFacts, observer: Observer, segments: Segments, backwards: int) -> None:
    name = facts.layer.name
    source = observer.window.channels.sources.get(name)
    if source is None:
        return
    entry["gradient"] = gradient = segments["gradient", name]
    bad = segments["nonfinite", name]
    gradient.masked_fill_((gradient == 0) & (bad >= backwards), torch.nan)  # not finite on any batch: nothing is known
    if source.parameter is not None:
        # `read_kernels` skips layers that had shown a gradient everywhere: that is one at the kernel as well
        kernel = segments["kernel", name]
        passes = gradient > 0
        if facts.scale is not None:  # nothing passes a norm of scale zero
            passes &= whole(facts.scale.detach()).cpu() != 0
        entry["weight_gradient"] = torch.where(passes, torch.maximum(kernel, gradient), kernel)
    # a scaler skips every step whose gradients overflowed: what it skipped is no finding
    if not observer.window.steps.scaled:
        entry["non_finite_gradients"] = int((bad > 0).sum())
    entry["penalised"] = facts.penalised
    # a norm's shift does not see what the norm makes of a kernel for the others, unless none of them has any gradient
    shared = facts.paths.statistics and source.kind == "shift" and bool(gradient.any())
    untold = facts.used_otherwise or shared
    entry["penalty_seen"] = facts.penalised and (facts.source_penalised or untold)
    if facts.penalised and not entry["penalty_seen"]:
        entry["weight_gradient"] = None  # what a penalty in the loss adds to the kernel tells nothing; its source does


def _read_activations(entry: Draft, facts: LayerFacts, seen: Seen) -> None:
    entry["off_gradient"], entry["shared_statistics"] = facts.off_gradient, facts.paths.statistics
    keys: list[ActivationKey] = [key for key in facts.activations if ("fired", key) in seen.segments]
    if facts.gating is None or not keys:
        entry["gating"] = None
        return
    entry["fired"] = torch.stack([seen.segments["fired", key] for key in keys]).amax(0) > 0
    entry["other_gatings"] = {
        kind: _of_mask(mask, entry["channels"]) for kind, mask in facts.gatings.items() if kind != facts.gating
    }
    entry["exact"] = seen.counts.unread == 0
    if facts.layer.name not in seen.looked:  # it took part in steps that were not read alone
        entry["gating"] = None
        return
    passed = [numbers for key in keys if (numbers := seen.passed.get(key)) is not None]
    if passed:
        samples, positions, unknown = (max(column) for column in zip(*passed, strict=True))
        entry["passed_samples"], entry["passed_positions"] = None if unknown else samples, positions
    # NumPy's small operations take a third of the time of PyTorch's
    sums = np.sum([seen.segments["sums", key].numpy() for key in keys], axis=0)
    positives, magnitudes, zeros, flat, entries, on, samples = sums
    seen_entries = entries > 0
    if seen_entries.any():
        with np.errstate(invalid="ignore"):
            means = np.stack([positives, magnitudes, zeros, flat]) / entries
            sample_rate = on / samples
        # channels without an activation of their own (the half of a gated linear unit that passes) get the others' mean
        means = np.where(seen_entries, means, means[:, seen_entries].mean(1, keepdims=True))
        entry["firing_rate"], _, entry["activation_sparsity"], _ = means.mean(1).tolist()
        rates, entry["activation_mean"], _, saturated = torch.from_numpy(means)
        entry["channel_firing_rate"] = rates
        if entry.get("passed_samples") and len(keys) == 1 and samples.any():
            entry["sample_rate"] = torch.from_numpy(sample_rate)  # NaN where a channel has no activation of its own
            entry["rated_samples"] = int(samples.max())
        entry["flat_output"] = facts.flat_output
        if facts.reports_flat_ends:
            entry["saturated_share"] = saturated


def _certify(entry: Draft, facts: LayerFacts) -> None:
    """What the weights of now prove of the channels that were not seen to fire, where every step's graph was read."""
    if not entry["exact"]:
        return
    silent = (~entry["fired"]).nonzero().flatten().tolist()
    proven, entry["certified_batch"] = facts.never_open(silent)
    entry["certified_dead"] = torch.zeros(entry["channels"], dtype=torch.bool)
    entry["certified_dead"][sorted(proven)] = True


def _of_mask(mask: int, channels: int) -> Tensor:
    """(C,) bool of the lowest bits of a number."""
    lowest = np.frombuffer(mask.to_bytes(channels // 8 + 1, "little"), np.uint8)
    return torch.from_numpy(np.unpackbits(lowest, count=channels, bitorder="little").astype(bool))


def _neighbours(facts: LayerFacts, observer: Observer) -> tuple[tuple[str, ...] | None, Any]:
    producers = tuple(sorted(facts.producers)) if facts.producers else None
    return producers, observer.reader.consumers(facts.layer.name)


def _adam_state(layer: Layer, optimizer: Any, group: Mapping[str, Any], steps: int) -> AdamState | None:
    state = optimizer.state.get(layer.main, {})
    if "exp_avg_sq" not in state:
        return None
    step = int(state["step"])
    steady = steady_step_of(optimizer, group, step, steps)
    if steady is None:
        return None
    (beta1, beta2), epsilon = map(float, group["betas"]), float(group["eps"])
    second = layer.own(whole(state.get("max_exp_avg_sq", state["exp_avg_sq"]))).flatten()
    second = second[:: second.numel() // ASKED + 1]
    return AdamState(steady, beta1, beta2, epsilon, share_below_epsilon(second, beta2, step, epsilon))


def _add_histograms(watched: Sequence[tuple[Draft, LayerFacts]], tensors: WindowTensors) -> None:
    for entry, facts in watched:
        grad = facts.layer.main.grad
        if grad is not None and not grad.is_sparse:
            counts = bit_histogram(facts.layer.own(whole(grad))).cpu()
            tensors.histograms.setdefault("gradients", {})[entry["name"]] = counts
    rates = {entry["name"]: rate for entry, _ in watched if (rate := entry.get("channel_firing_rate")) is not None}
    if rates:
        counted = bit_histograms([rate.float() for rate in rates.values()])
        tensors.histograms["firing_rate"] = dict(zip(rates, counted, strict=True))


def _with_first_kernels(tensors: WindowTensors, observer: Observer, window: Window) -> WindowTensors:
    layers = {layer.name: layer for layer in observer.reader.layers}
    for entry in window.layers:
        layer = layers[entry.name]
        if entry.excluded is None and layer.main.ndim == 4 and not layer.transposed:
            kernels = whole(layer.weight()).float().cpu().clone()
            return replace(tensors, first_layer=entry.name, first_kernels=kernels)
    return tensors


def _add_feature_maps(facts: LayerFacts, kept: Mapping[ActivationKey, FeatureMaps], tensors: WindowTensors) -> None:
    key = min((key for key in facts.activations if key in kept), default=None)
    if key is not None:
        image = kept[key].image
        on_host = FeatureMaps(kept[key].maps.float().cpu(), None if image is None else image.float().cpu())
        tensors.feature_maps[facts.layer.name] = on_host
