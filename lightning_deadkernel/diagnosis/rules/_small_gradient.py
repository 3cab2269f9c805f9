"""What the rules of vanishing and weak gradients share: who is concerned, and why."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import (
    DEPTH,
    SATURATED,
    SATURATED_DOWNSTREAM,
    UNDERFLOW,
    UNKNOWN,
    ZERO_AT_INITIALISATION,
    Cause,
    Evidence,
)
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import underflow
from lightning_deadkernel.diagnosis.weight_causes import PLAIN

SMALL_SCALE = 0.1
"""Scales of norms are initialised to one; a branch whose scale is below a tenth is all but shut."""
DEEP = 5
HEALTHY_STEP = 1e-5
"""||dW|| / ||W|| of a step from which on a layer learns well enough under an optimizer that normalises its steps: a
hundredth of the healthy landmark, ten times the line of slow."""

CAUSES = (ZERO_AT_INITIALISATION, UNDERFLOW, SATURATED_DOWNSTREAM, SATURATED, DEPTH, UNKNOWN)


def shares(layer: LayerContext) -> tuple[float, float]:
    """Shares of the last sampled steps on which the gradient was weak and vanishing; zeros while they are too few."""
    known = layer.past.small_gradient_shares if layer.observed.gradient_ratio is not None else None
    return known or (0.0, 0.0)


def is_vanishing(layer: LayerContext) -> bool:
    """Whether the layer's gradient vanished on enough of the last sampled steps."""
    return shares(layer)[1] >= layer.thresholds.share_of_steps


def is_weak(layer: LayerContext) -> bool:
    """Whether the layer's gradient was weak on enough of the last sampled steps, and not vanishing."""
    return shares(layer)[0] >= layer.thresholds.share_of_steps and not is_vanishing(layer)


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


def is_normalised(layer: LayerContext) -> bool:
    """Whether its optimizer divides by the size of the gradient (Adam and its kin), so that a small one makes no small
    step."""
    return layer.observed.optimizer is not None and layer.observed.optimizer not in PLAIN


def is_harmless(layer: LayerContext) -> bool:
    """Whether the layer learns all the same: its optimizer normalises its steps, and they are healthy."""
    ratio = layer.observed.update_ratio
    return is_normalised(layer) and ratio is not None and ratio >= HEALTHY_STEP


class Explainer:
    """Tells why a gradient is small. What lies nearer to the loss is counted once for all layers of the window."""

    def __init__(self, context: WindowContext) -> None:
        layers = sorted(context.layers, key=lambda layer: layer.observed.depth)
        self.depths = [layer.observed.depth for layer in layers]
        bounded = [layer.observed.gating == "bounded" for layer in layers]
        self.bounded = list(accumulate(bounded))
        self.flat = list(accumulate(b and _is_mostly_flat(la) for b, la in zip(bounded, layers, strict=True)))
        self.normed = context.window.has_norms or any(layer.observed.norm_scale is not None for layer in layers)
        self.blocking: dict[str, frozenset[str]] = {}
        """Layer -> wholly saturated layers of which every path from it to the loss passes one."""
        for layer in layers:
            self.blocking[layer.name] = self._blocked_by(layer)

    def _blocked_by(self, layer: LayerContext) -> frozenset[str]:
        found: set[str] = set()
        for consumer in layer.observed.consumers or ():
            other = layer.network.by_name.get(consumer.layer)
            if other is None:
                return frozenset()
            behind = {other.name} if _is_wholly_flat(other) else self.blocking.get(other.name)
            if not behind:
                return frozenset()
            found |= behind
        return frozenset(found)

    def cause(self, layer: LayerContext) -> Cause:
        """The first cause whose premise holds."""
        observed = layer.observed
        ratio, depth = observed.gradient_ratio or 0.0, observed.depth
        text = f"its gradient is {ratio:.1e} of the network's largest"
        if is_scale_growing(layer):
            assert observed.norm_scale is not None
            scale = float(observed.norm_scale.median())
            return ZERO_AT_INITIALISATION.because(
                f"{text}, as it passes a norm whose scale (gamma) has a median of {scale:.1e} and moves",
                "Nothing to fix where the scale was set to zero on purpose (residual branches): the gradient grows with"
                " it.",
                references.WARMUP,
                {"scale": scale},
            )
        cause = underflow(observed, above=f"{text}, and ")
        if cause is not None:
            return cause
        if self.blocking[layer.name]:
            names = ", ".join(sorted(self.blocking[layer.name]))
            return SATURATED_DOWNSTREAM.because(
                f"{text}: every path from it to the loss passes {names}, all of whose channels lie on a flat end",
                f"Bring {names} off its flat end first; this layer is sound.",
                references.GLOROT,
                {"consumers": names},
            )
        count = bisect_right(self.depths, depth)
        bounded = self.bounded[count - 1]
        if 2 * self.flat[count - 1] > count:
            return SATURATED.because(
                f"{text}: {self.flat[count - 1]} sigmoid or tanh layers between it and the loss have most of their"
                " inputs on a flat end",
                "Put a norm before each activation, scale the initial weights down (Xavier initialisation), or use ReLU"
                " or GELU in hidden layers.",
                references.GLOROT,
                {"bounded_layers": bounded},
            )
        if 2 * bounded > count:
            return DEPTH.because(
                f"{text}: {bounded} sigmoid or tanh layers lie between it and the loss, and each multiplies by its"
                " slope (at most 0.25 for sigmoid)",
                "Use ReLU or GELU in hidden layers, put a norm before each activation, or add skip connections.",
                references.GLOROT,
                {"bounded_layers": bounded},
            )
        if depth >= DEEP and not self.normed:
            return DEPTH.because(
                f"{text}: it shrinks over the {depth} layers to the loss, and the network has no norm",
                "Use He initialisation (kaiming_normal_ with nonlinearity='relu'; torch's default is smaller), add"
                " norms or skip connections.",
                references.HE,
            )
        ruled_out = ["a chain of sigmoid or tanh layers", "a saturated layer on every path to the loss"]
        ruled_out += ["depth without norms" if self.normed else f"depth (it is {depth} layers from the loss)"]
        return UNKNOWN.because(
            f"{text}; ruled out: {', '.join(ruled_out)}",
            "Compare the rms of the weights and activations of this layer with its neighbours': one of them is off"
            " scale.",
            references.GLOROT,
        )


def _is_mostly_flat(layer: LayerContext) -> bool:
    share = layer.observed.saturated_share
    return share is not None and share.numel() > 0 and float(share.mean()) > layer.thresholds.saturated_share


def _is_wholly_flat(layer: LayerContext) -> bool:
    return layer.observed.channels > 0 and len(layer.report.saturated) == layer.observed.channels
