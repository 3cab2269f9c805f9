"""Evidence and history to states, findings and savings. Pure: tensors and dataclasses in, dataclasses out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis.causes import CAUSES
from lightning_deadkernel.diagnosis.channel_rules import UNDERFLOW_SHARE
from lightning_deadkernel.diagnosis.findings import KINDS, find, headline, new_findings
from lightning_deadkernel.diagnosis.history import History, LayerPast, gradient_seen
from lightning_deadkernel.diagnosis.signs import SHRUNK
from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.records import ChannelValues, Finding, LayerReport, Savings
from lightning_deadkernel.report.states import DORMANT, FROZEN, RARE, STATE_BITS, STATES, ZERO_KERNEL, State
from lightning_deadkernel.thresholds import Thresholds

__all__ = ["CAUSES", "KINDS", "classify", "diagnose", "headline", "new_findings", "savings"]

REDO_EPSILON = 1e-9
"""Added to a layer's mean, so that a layer of zeros is dormant throughout (Sokar et al. 2023, in their code)."""


def diagnose(
    window: Window, history: History, thresholds: Thresholds
) -> tuple[tuple[LayerReport, ...], tuple[Finding, ...]]:
    """Say of every channel what it is, and of every layer what is worth saying.

    Args:
        window: what was observed; index 0 is the state at initialisation, which has weights alone.
        history: the windows before. This window is added to it.
        thresholds: where the lines are drawn.

    Returns:
        The layers in the window's order, and the findings: errors first, then warnings, then infos, in forward order
        within.
    """
    layers = tuple(_layer_report(layer, classify(layer, window, history, thresholds)) for layer in window.layers)
    history.update(window, layers)
    return layers, find(window, layers, history, thresholds)


def classify(layer: LayerWindow, window: Window, history: History, thresholds: Thresholds) -> Tensor:
    """One code per channel: the first state that matches, and the flags.

    Returns:
        (C,) uint8; see `report.STATES` and the flags beside it.
    """
    codes = torch.zeros(layer.channels, dtype=torch.uint8)
    if layer.excluded is not None:
        return codes + STATES.index("excluded")
    if window.index > 0:
        frozen = _unchanged(layer, window)
        codes = _states(layer, frozen, thresholds)
        codes = _hold(codes, layer, history.get(layer.name))
        for flag, channels in (
            (FROZEN, frozen),
            (DORMANT, _dormant(layer, thresholds)),
            (RARE, _rare(layer, thresholds)),
        ):
            codes[channels] |= flag
    codes[_zero_kernel(layer, history.get(layer.name), thresholds)] |= ZERO_KERNEL
    return codes


def _states(layer: LayerWindow, frozen: Tensor, thresholds: Thresholds) -> Tensor:
    """The table of states: the first that matches, "active" where none does."""
    some, none = gradient_seen(layer)
    nowhere = torch.zeros(layer.channels, dtype=torch.bool)
    rules: list[tuple[State, Tensor]]
    if layer.gating is None or layer.fired is None:
        rules = [("zero-gradient", none)]
    else:
        fires, off = layer.fired, ~layer.fired
        # sampled steps may have missed the batch on which a channel fires: there the gradient must agree
        dead = off if layer.exact else off & none
        stuck = _stuck(layer, none, thresholds)
        # what leaves a leaky activation below zero is heard by whatever listens, so no gradient means that nothing does
        starved = none & (fires if layer.gating != "leaky" else torch.ones_like(fires))
        rules = [
            ("dead", dead if layer.gating == "rectifier" else nowhere),
            ("saturated", stuck | (off & none if layer.gating in ("smooth", "bounded") else nowhere)),
            ("silent", off & some if layer.gating != "rectifier" else nowhere),
            ("starved", starved),
            ("frozen", fires & frozen),
        ]
    codes = torch.zeros(layer.channels, dtype=torch.uint8)
    for state, channels in reversed(rules):
        codes[channels] = STATES.index(state)
    return codes


def _stuck(layer: LayerWindow, none: Tensor, thresholds: Thresholds) -> Tensor:
    if layer.saturated_share is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    if layer.gating == "bounded":
        return layer.saturated_share > thresholds.saturated_share
    # one-sided activations rest on a flat end by design: only where all inputs do does that explain a missing gradient
    return (layer.saturated_share >= 1.0) & none


def _unknown(layer: LayerWindow) -> Tensor:
    """(C,) bool: NaN or infinity has touched the channel, so that what it did not show proves nothing."""
    unknown = torch.full((layer.channels,), layer.non_finite_gradients > 0)
    for values in (layer.norms, layer.gradient, layer.activation_mean):
        if values is not None:
            unknown |= ~values.isfinite()
    return unknown


def _hold(codes: Tensor, layer: LayerWindow, past: LayerPast | None) -> Tensor:
    """NaN neither revives nor kills: a channel it has touched stays what it was, unless it was seen to fire."""
    unknown = _unknown(layer)
    active = codes == STATES.index("active")
    before = torch.zeros_like(codes) if past is None or past.codes.numel() != codes.numel() else past.codes & STATE_BITS
    fires = layer.fired if layer.fired is not None else torch.zeros_like(unknown)
    return torch.where(unknown & ~(active & fires) & (codes != before), before, codes)


def _unchanged(layer: LayerWindow, window: Window) -> Tensor:
    """(C,) bool: a gradient reached the kernel, the optimizer stepped, and not one bit of the kernel changed."""
    stepped = window.optimizer_steps > 0 and not 0 < window.sampled_steps <= window.skipped_steps
    asked = not layer.in_optimizer or (layer.learning_rate or 0.0) > 0
    if layer.unchanged is None or not (stepped and asked):
        return torch.zeros(layer.channels, dtype=torch.bool)
    some, _ = gradient_seen(layer)
    if layer.weight_gradient is not None:  # the shift may listen while the kernel's own gradient is zero
        some = layer.weight_gradient > 0
    if layer.norm_scale is not None:  # nothing passes a norm of scale zero
        some = some & (layer.norm_scale > 0)
    if layer.gradient_rms == 0:  # not one of the kernels had a gradient of its own on the sampled steps
        some = torch.zeros_like(some)
    frozen = layer.unchanged & some
    return frozen if layer.masked is None else frozen & ~layer.masked


def dormant_scores(layer: LayerWindow) -> Tensor | None:
    """The ReDo score, (C,): mean \\|h\\| over the layer's mean of it (Sokar et al. 2023, arXiv 2302.12902)."""
    if layer.activation_mean is None or layer.gating is None:
        return None
    mean = layer.activation_mean.float()
    return mean / (mean.mean() + REDO_EPSILON)


def _dormant(layer: LayerWindow, thresholds: Thresholds) -> Tensor:
    scores = dormant_scores(layer)
    if scores is None or layer.depth == 0:
        return torch.zeros(layer.channels, dtype=torch.bool)
    return scores <= thresholds.dormant


def _rare(layer: LayerWindow, thresholds: Thresholds) -> Tensor:
    if layer.fired is None or layer.channel_firing_rate is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    return layer.fired & (layer.channel_firing_rate < thresholds.rare)


def _zero_kernel(layer: LayerWindow, past: LayerPast | None, thresholds: Thresholds) -> Tensor:
    zero = torch.zeros(layer.channels, dtype=torch.bool)
    if layer.largest is not None:
        zero |= layer.largest == 0
    if layer.norms is not None and layer.channels:
        small = layer.norms < thresholds.zero_kernel * layer.norms.nan_to_num(nan=0.0).amax()
        if past is not None and past.codes.numel() == layer.channels:
            # beside a kernel that has blown up all others look small: they are not, unless they have shrunk themselves
            small &= past.first_zero | ~(layer.norms >= SHRUNK * past.first_norm)
        zero |= small
    if layer.norm_scale is not None:
        zero |= layer.norm_scale < thresholds.norm_scale
    return zero


def _layer_report(layer: LayerWindow, codes: Tensor) -> LayerReport:
    scores = dormant_scores(layer)
    watched = layer.excluded is None
    return LayerReport(
        **{**layer.statistics(), "note": _note(layer, codes)},
        codes=bytes(codes.tolist()),
        evidence=(
            "weight"
            if layer.gradient is None and (layer.gating is None or layer.fired is None)
            else "gradient"
            if layer.gating is None or layer.fired is None
            else "activation"
            if layer.exact
            else "sampled activation"
        ),
        values=ChannelValues(
            firing_rate=_list(layer.channel_firing_rate),
            gradient=_list(layer.gradient),
            dormant_score=_list(scores),
            norms=_list(layer.norms),
        )
        if watched
        else None,
    )


def _note(layer: LayerWindow, codes: Tensor) -> str | None:
    """What the table of layers alone would not tell."""
    unheard = int(((codes & STATE_BITS) == STATES.index("zero-gradient")).sum())
    told = [layer.note] if layer.note else []
    if unheard:
        told.append(
            f"{unheard} of {layer.channels} kernels had no gradient in this window; no activation can be read here, so"
            " they may be dead or only unheard"
        )
    share = layer.underflow_share
    if share is not None and share > UNDERFLOW_SHARE:
        told.append(f"{100 * share:.3g} % of its float16 gradient entries were exactly zero")
    return "; ".join(told) or None


def _list(values: Tensor | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values.tolist()]


def _removable(layer: LayerWindow, report: LayerReport) -> Tensor:
    """(C,) bool: what leaves the channel is zero for every input seen, so that nothing changes when it goes.

    A zero kernel alone is not enough: with a positive shift it hands on a constant, which must be folded into the
    consumer first, and as long as a gradient reaches it, it may yet learn.
    """
    removable = torch.zeros(layer.channels, dtype=torch.bool)
    if layer.excluded is not None:
        return removable
    removable[report.dead] = True
    nothing = torch.zeros(layer.channels, dtype=torch.bool)
    if layer.largest is not None and layer.norm_scale is None:
        nothing |= layer.largest == 0
    if layer.norm_scale is not None:
        nothing |= layer.norm_scale == 0
    if layer.shift is not None:
        nothing &= layer.shift == 0
    some, none = gradient_seen(layer)
    return removable | (nothing & none & ~some)


def savings(window: Window, layers: Sequence[LayerReport]) -> Savings:
    """What would be saved if the channels went whose output is zero, with what their consumers hold for them.

    Consumers that add several layers up hold one slice for all of them, which goes only if the channel is removable in
    each. Where a consumer's channel goes as well, what both share is counted once.
    """
    reports = {report.name: report for report in layers}
    observed = {layer.name: layer for layer in window.layers}
    removable = {layer.name: _removable(layer, reports[layer.name]) for layer in window.layers}
    parameters, bytes_, unknown = 0.0, 0.0, []
    slices: dict[str, float] = {}
    for layer in window.layers:
        gone = removable[layer.name]
        count = int(gone.sum())
        if not count:
            continue
        own = layer.parameters * count / layer.channels
        parameters, bytes_ = parameters + own, bytes_ + own * layer.bytes_per_parameter
        if layer.consumers is None:
            unknown.append(layer.name)
        for consumer in layer.consumers or ():
            freed = _freed(layer.name, consumer.layer, observed, removable)
            if freed is None:
                unknown.append(layer.name)
            else:
                slices[consumer.layer] = slices.get(consumer.layer, 0.0) + freed * consumer.parameters_per_channel
    for name, freed in slices.items():
        kept = 1.0 - float(removable[name].float().mean())
        parameters, bytes_ = parameters + freed * kept, bytes_ + freed * kept * observed[name].bytes_per_parameter
    channels = sum(int(gone.sum()) for gone in removable.values())
    return Savings(channels, round(parameters), round(bytes_), tuple(dict.fromkeys(unknown)))


def _freed(
    producer: str, consumer: str, observed: dict[str, LayerWindow], removable: dict[str, Tensor]
) -> float | None:
    """Slices of the consumer that go with the producer's channels; None where the graph does not tell."""
    reader = observed.get(consumer)
    if reader is None or reader.producers is None or producer not in reader.producers:
        return None
    inputs = [observed[name] for name in reader.producers if name in observed]
    if len(inputs) != len(reader.producers):
        return None
    widths = [
        link.parameters_per_channel * layer.channels
        for layer in inputs
        for link in layer.consumers or ()
        if link.layer == consumer
    ]
    if len(inputs) == 1 or sum(widths) <= reader.parameters:  # alone, or side by side
        return float(removable[producer].sum())
    shapes = {layer.channels for layer in inputs}
    if len(shapes) != 1:
        return None
    together = torch.stack([removable[layer.name] for layer in inputs]).all(0)
    return float(together.sum()) / len(inputs)  # summed up: each of the inputs brings its share of the one slice
