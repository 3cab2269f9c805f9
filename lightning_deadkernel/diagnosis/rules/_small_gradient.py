"""What the rules of vanishing and weak gradients share: who is concerned, and why."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import (
    DEPTH,
    SATURATED,
    UNDERFLOW,
    UNKNOWN,
    ZERO_AT_INITIALISATION,
    Cause,
    Evidence,
)
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import underflow

SMALL_SCALE = 0.1
"""Scales of norms are initialised to one; a branch whose scale is below a tenth is all but shut."""
BOUNDED_ACTIVATIONS = ("sigmoid", "tanh")
DEEP = 5

CAUSES = (ZERO_AT_INITIALISATION, UNDERFLOW, SATURATED, DEPTH, UNKNOWN)


def is_vanishing(layer: LayerContext) -> bool:
    """Whether the layer's gradient vanished on enough of the window's sampled steps."""
    return (
        layer.observed.gradient_ratio is not None and layer.observed.vanishing_share >= layer.thresholds.share_of_steps
    )


def is_weak(layer: LayerContext) -> bool:
    """Whether the layer's gradient was weak on enough of the window's sampled steps, and not vanishing."""
    return (
        layer.observed.gradient_ratio is not None
        and layer.observed.weak_share >= layer.thresholds.share_of_steps
        and not is_vanishing(layer)
    )


def evidence(layer: LayerContext, share_of_steps: float) -> Evidence:
    """The numbers that a small gradient rests on."""
    observed, largest_at = layer.observed, layer.window.largest_gradient_at
    return {
        "gradient_ratio": observed.gradient_ratio or 0.0,
        "depth": observed.depth,
        "share_of_steps": share_of_steps,
        **({} if largest_at is None else {"largest_gradient_at": largest_at}),
    }


def is_scale_growing(layer: LayerContext) -> bool:
    """Whether the gradient passes a norm whose scale is small and moves: what holds it back is on its way out."""
    scale = layer.observed.norm_scale
    return (
        scale is not None
        and scale.numel() > 0
        and float(scale.median()) < SMALL_SCALE
        and bool(layer.past.scale_moved.any())
    )


class Explainer:
    """Tells why a gradient is small. What lies nearer to the loss is counted once for all layers of the window."""

    def __init__(self, context: WindowContext) -> None:
        layers = sorted((layer.observed for layer in context.layers), key=lambda layer: layer.depth)
        self.depths = [layer.depth for layer in layers]
        self.bounded = list(accumulate(layer.activation in BOUNDED_ACTIVATIONS for layer in layers))
        self.normed = list(accumulate(layer.norm_scale is not None for layer in layers))

    def cause(self, layer: LayerContext) -> Cause:
        """The first cause whose premise holds."""
        ratio, depth = layer.observed.gradient_ratio or 0.0, layer.observed.depth
        text = f"its gradient is {ratio:.1e} of the network's largest"
        if is_scale_growing(layer):
            assert layer.observed.norm_scale is not None
            scale = float(layer.observed.norm_scale.median())
            return ZERO_AT_INITIALISATION.because(
                f"{text}, as it passes a norm whose scale (gamma) has a median of {scale:.1e} and moves",
                "Nothing to fix where the scale was set to zero on purpose (residual branches): the gradient grows with"
                " it.",
                references.WARMUP,
                {"scale": scale},
            )
        cause = underflow(layer.observed, above=f"{text}, and ")
        if cause is not None:
            return cause
        count = bisect_right(self.depths, depth)
        bounded, normed = self.bounded[count - 1], self.normed[count - 1]
        if 2 * bounded > count:
            return SATURATED.because(
                f"{text}: {bounded} sigmoid or tanh layers lie between it and the loss, and each multiplies by its"
                " slope (at most 0.25 for sigmoid)",
                "Use ReLU or GELU in hidden layers, put a norm before each activation, or add skip connections.",
                references.GLOROT,
                {"bounded_layers": bounded},
            )
        if depth >= DEEP and not normed:
            return DEPTH.because(
                f"{text}: it shrinks over the {depth} layers to the loss, none of which is followed by a norm",
                "Use He initialisation (kaiming_normal_ with nonlinearity='relu'; torch's default is smaller), add"
                " norms or skip connections.",
                references.HE,
            )
        return UNKNOWN.because(
            f"{text}; ruled out: a chain of sigmoid or tanh layers, depth without norms",
            "Compare the rms of the weights and activations of this layer with its neighbours': one of them is off"
            " scale.",
            references.GLOROT,
        )
