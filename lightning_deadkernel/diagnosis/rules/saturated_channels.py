"""Kernels whose inputs lie on the flat end of their activation.

## What it finds

Kernels behind a sigmoid, tanh or another bounded activation most of whose inputs lie on a flat end (beyond ±5, or at
the bound), and kernels behind a smooth activation (GELU, SiLU) that never fired, got no gradient, and whose output is
where that activation is flat.

## Why it matters

On a flat end the slope is next to zero, so no gradient passes: the kernel, and all that feeds it alone, stands still.

## What to do

Put a norm before the activation, scale the initial weights down (Xavier initialisation), or lower the learning rate
that drove it there. An output that has made up its mind is meant to saturate.

## Reference

- Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks,
  https://proceedings.mlr.press/v9/glorot10a.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, Evidence
from lightning_deadkernel.diagnosis.classify import at_the_top
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext, span
from lightning_deadkernel.diagnosis.death_causes import SHIFT_REACH
from lightning_deadkernel.diagnosis.gradient_causes import NO_GRADIENT_CAUSES, NO_GRADIENT_KINDS, unknown_absence
from lightning_deadkernel.diagnosis.inputs import LARGE, entrance, is_large, is_off_centre, standardise, told
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.diagnosis.weight_causes import assign, channel_cause
from lightning_deadkernel.report.records import Severity

AS_OUTPUT = (
    "These are outputs of the network: give the loss what comes before the activation (as by"
    " binary_cross_entropy_with_logits), which has a slope everywhere, and see whether the targets lie in its range."
)
NEARLY_ALL = 0.9
HARD = ("hardtanh", "hardsigmoid", "clamp")
"""Activations with a bound that inputs of unit size reach, and a slope that is whole up to there."""
NEAR_FLAT_OUTPUT = 0.95
"""Share of the constant that an activation tends to (ELU, CELU, SELU) from which on it is flat: its slope there is a
twentieth."""
FLAT_AT = 5.0
"""Where sigmoid and tanh begin to be flat, and GELU and SiLU are on their off side."""
UPPER_BOUND = 6.0
"""Of ReLU6."""
FADED_OUTPUT = 0.05
"""Mean |h| below which one that tends to zero (GELU, SiLU, Mish) is flat, as far as it never fired."""


@rule("{of} saturated", causes.SATURATED, *NO_GRADIENT_KINDS)
def saturated_channels(context: WindowContext) -> Iterator[Found]:
    """Channels in the state "saturated"; where they do not lie on a flat end, why else they have no gradient."""
    for layer, saturated in context.having("saturated"):
        for channels, cause in assign(layer, saturated, (_saturated, *NO_GRADIENT_CAUSES), unknown_absence):
            if layer.is_output and cause.kind is causes.SATURATED:
                bias = _by_its_bias(layer, channels)
                cause = replace(cause, advice=f"Look at its {bias} first. {AS_OUTPUT}" if bias else AS_OUTPUT)
            yield Found(layer, _severity(layer, channels), cause, layer.since(channels), channels)


def _severity(layer: LayerContext, channels: Tensor) -> Severity:
    share = layer.observed.saturated_share
    stopped = int((layer.without_gradient & channels).sum())
    if layer.observed.depth == 0 and not stopped:  # an output that has made up its mind is meant to saturate
        return "info"
    hard = layer.observed.activation in HARD and share is not None and float(share[channels].max()) < NEARLY_ALL
    if hard and not stopped:  # on the other samples its slope is whole
        return "info"
    stuck = stopped == int(channels.sum()) or (share is not None and float(share[channels].mean()) >= NEARLY_ALL)
    return "error" if bool(channels.all()) and stuck else "warning"


def _is_flat(layer: LayerContext) -> Tensor:
    """Its inputs were seen to lie on a flat end."""
    observed = layer.observed
    if observed.gating == "rectifier":
        return at_the_top(observed)
    if observed.saturated_share is not None:
        return observed.saturated_share > layer.thresholds.saturated_share
    if observed.activation_mean is None or observed.activation is None:
        return layer.everywhere(False)
    if observed.flat_output > 0:
        return observed.activation_mean > NEAR_FLAT_OUTPUT * observed.flat_output
    return observed.activation_mean < FADED_OUTPUT


def _by_its_bias(layer: LayerContext, channels: Tensor) -> str:
    """``"bias of -120"`` where that alone puts them all on the flat end, whatever usual inputs add; else empty."""
    observed = layer.observed
    if observed.shift is None or observed.norms is None:
        return ""
    reach = SHIFT_REACH * (observed.norms if observed.norm_scale is None else observed.norm_scale)
    line = UPPER_BOUND if observed.gating == "rectifier" else FLAT_AT
    if not bool((observed.shift.abs() - reach > line)[channels].all()):
        return ""
    name = "bias" if observed.norm_scale is None else "norm's shift (beta)"
    return f"{name} of {span(observed.shift[channels])}"


@channel_cause(causes.SATURATED, _is_flat)
def _saturated(layer: LayerContext, channels: Tensor) -> Cause:
    observed = layer.observed
    stopped = int((layer.without_gradient & channels).sum())
    share = None if observed.saturated_share is None else float(observed.saturated_share[channels].mean())
    text = (
        f"whenever they fire they lie on the flat end of {observed.activation}"
        if observed.gating == "rectifier"
        else f"{share:.0%} of their inputs lie on the flat end of {observed.activation}"
        if share is not None
        else f"they never fired, and their outputs lie on the flat end of {observed.activation}"
    )
    off = next((holds for holds in (is_large, is_off_centre) if entrance(layer, holds) is layer), None)
    data, bias = observed.entering, _by_its_bias(layer, channels)
    of_them = f"{stopped} of them {'has' if stopped == 1 else 'have'} no gradient at all"
    then = (
        f" a norm before the activation, scale the initial weights down (Xavier initialisation) or lower {layer.rate}."
    )
    text += ", where the slope is next to zero"
    text += "; no gradient comes back" if stopped == int(channels.sum()) else f"; {of_them}" if stopped else ""
    evidence: Evidence = {"without_gradient": stopped}
    if share is not None:
        evidence = {"saturated_share": share, **evidence}
    if data is not None and off is not None:
        return causes.SATURATED.because(
            f"{text}; {told(data, layer.name, off)}",
            f"{standardise(layer.name)}; if that is not enough, put{then}",
            f"{references.EFFICIENT_BACKPROP}; {references.GLOROT}",
            evidence | {"input_rms": data.rms},
        )
    if bias:
        text += f"; the {bias} alone puts them there"
        advice = f"Set the {bias} to 0, and look at how it is initialised; lower {layer.rate} if training has moved it."
    elif observed.producers is None and (data is None or data.rms > LARGE):
        advice = f"Scale the network's inputs to about unit size where this layer reads them, put{then}"
    else:
        advice = f"Put{then}"
    return causes.SATURATED.because(text, advice, references.GLOROT, evidence)
