"""A window and the history before it, to states and findings. Pure: tensors and dataclasses in, dataclasses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lightning_deadkernel.diagnosis.causes import UNKNOWN
from lightning_deadkernel.diagnosis.classify import activity, classify, not_finite
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import UNDERFLOW_SHARE
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.neighbours import neighbours, with_cascades
from lightning_deadkernel.diagnosis.rule import Found
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.observation import OF_KERNELS, LayerWindow, Window
from lightning_deadkernel.report.records import SEVERITIES, ChannelValues, Finding, LayerReport, Neighbours
from lightning_deadkernel.report.states import STATE_BITS, STATES, channels_with
from lightning_deadkernel.thresholds import Thresholds


def diagnose(
    window: Window, history: History, thresholds: Thresholds
) -> tuple[tuple[LayerReport, ...], tuple[Finding, ...]]:
    """Say of every channel what it is, and of every layer what is worth saying.

    Args:
        window: what was observed; index 0 is the state at initialisation, which has weights alone.
        history: the windows before. This window is added to it.
        thresholds: where the lines are drawn.

    Returns:
        The layers in the window's order, and the findings: errors first, then warnings, then infos; within a severity
        what has its root elsewhere last and after what is unknown, the network before its layers, and layers in forward
        order.
    """
    observed = {layer.name: layer for layer in window.layers}
    scores = {layer.name: activity(layer) for layer in window.layers}
    codes = {name: classify(layer, window, history, thresholds, scores[name]) for name, layer in observed.items()}
    history.update(window, codes)
    reports = []
    for name, layer in observed.items():
        values = None
        if layer.excluded is None and layer.rows in OF_KERNELS:
            values = ChannelValues(
                firing_rate=_list(layer.channel_firing_rate),
                sample_rate=_list(layer.sample_rate),
                gradient=_list(layer.gradient),
                dormant_score=_list(scores[name]),
                norms=_list(layer.norms),
                since=history.layers[name].since.tolist(),
            )
        around = neighbours(layer, observed) if window.index else None
        reports.append(_layer_report(layer, window, codes[name], values, around))
    layers = with_cascades(window, reports, thresholds)
    return layers, _findings(window, layers, history, thresholds)


def first_sight(window: Window, history: History, thresholds: Thresholds) -> None:
    """Has the history begin with layers that have come in the middle of training, of which weights alone are known."""
    first = replace(window, index=0)
    history.begin(
        window, {layer.name: classify(layer, first, history, thresholds, activity(layer)) for layer in window.layers}
    )


def _findings(
    window: Window, layers: Sequence[LayerReport], history: History, thresholds: Thresholds
) -> tuple[Finding, ...]:
    """All findings of a window that the history has taken in."""
    context = WindowContext(window, {report.name: report for report in layers}, history, thresholds)
    places = {layer.name: place for place, layer in enumerate(context.watched)}

    def rank(found: Found) -> tuple[int, bool, bool, int]:
        place = -1 if found.layer is None else places[found.layer.name]
        kind = found.cause.kind
        return -SEVERITIES.index(found.severity), kind.elsewhere, kind is UNKNOWN, place

    found = [pair for rule in RULES for pair in rule.findings(context)]
    return tuple(finding for _, finding in sorted(found, key=lambda pair: rank(pair[0])))


def _layer_report(
    layer: LayerWindow, window: Window, codes: Tensor, values: ChannelValues | None, around: Neighbours | None
) -> LayerReport:
    certified: list[int] = []
    if layer.certified_dead is not None:
        dead = (codes & STATE_BITS) == STATES.index("dead")
        certified = (layer.certified_dead & dead).nonzero().flatten().tolist()
    packed = codes.numpy().tobytes()
    return LayerReport(
        **{**layer.statistics(), "note": _note(layer, window, packed)},
        codes=packed,
        evidence=(
            "weight"
            if layer.gradient is None and (layer.gating is None or layer.fired is None)
            else "gradient"
            if layer.gating is None or layer.fired is None
            else "activation"
            if layer.exact
            else "sampled activation"
        ),
        certified_dead=certified,
        certified_batch=layer.certified_batch if certified else None,
        rated_samples=layer.rated_samples,
        values=values,
        neighbours=around,
    )


def _note(layer: LayerWindow, window: Window, codes: bytes) -> str | None:
    """What the table of layers alone would not tell."""
    without, unknown = (
        len(channels_with(codes, STATE_BITS, STATES.index(state))) for state in ("zero-gradient", "unknown")
    )
    parts = [layer.note] if layer.note else []
    if without and layer.rows not in OF_KERNELS:
        parts.append(f"{without} of {layer.channels} had no gradient in this window")
    elif without:
        why = "of what is compared, one is read" if layer.joined == "compared" else "no activation can be read here"
        parts.append(
            f"{without} of {layer.channels} kernels had no gradient in this window; {why}, so they may be dead, or"
            " nothing may listen to them"
        )
    if unknown and not window.audited:  # there it goes for all
        parts.append(f"what {unknown} of {layer.channels} kernels are is unknown: {_why_unknown(layer)}")
    share = layer.underflow_share
    if share is not None and share > UNDERFLOW_SHARE:
        parts.append(f"{100 * share:.3g}% of its float16 gradient entries were exactly zero")
    return "; ".join(parts) or None


def _why_unknown(layer: LayerWindow) -> str:
    if bool(not_finite(layer).any()):
        return "values were NaN or infinite, which proves nothing"
    if layer.gradient is None:
        return "no gradient was looked at"
    return (
        "they were never seen to fire, and yet have a gradient (which may be of a batch before, where gradients are not"
        " set to zero between steps)"
    )


def _list(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()
