"""What is worth saying of whole layers and of the network: gradients, updates, weights.

Severities: *info* is worth knowing and normal, *warning* is capacity or speed lost, *error* makes training useless.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.channel_rules import loss_is_flat, underflow
from lightning_deadkernel.diagnosis.context import Cause, Evidence, View, finding
from lightning_deadkernel.diagnosis.history import History, gradient_seen
from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.records import Finding, Severity
from lightning_deadkernel.thresholds import Thresholds

MANY_LAYERS = 3
WEAK_MARGIN = 0.1
"""A gradient less than tenfold below the line is told of, and no more."""
SMALL_SCALE = 0.1
"""Scales of norms are initialised to one; a branch whose scale is below a tenth is all but shut."""
SCHEDULED = 0.01
"""A learning rate below a hundredth of the largest there was is the schedule's wish."""
BOUNDED_ACTIVATIONS = ("sigmoid", "tanh")
DEEP = 5
GAUSSIAN_NEAR_ZERO, GAUSSIAN_GINI = 0.0080, 0.414


def small_gradient(view: View) -> Iterator[Finding]:
    """Vanishing, else weak, by the ratio that is free of scale."""
    layer, lines = view.layer, view.thresholds
    vanishing = layer.vanishing_share >= lines.share_of_steps
    if layer.gradient_ratio is None or not (vanishing or layer.weak_share >= lines.share_of_steps):
        return
    where = view.window.largest_gradient_at
    evidence: Evidence = {
        "gradient_ratio": layer.gradient_ratio,
        "depth": layer.depth,
        "share_of_steps": layer.vanishing_share if vanishing else layer.weak_share,
    }
    if where is not None:
        evidence["largest_gradient_at"] = where
    cause = _why_small(view)
    if cause.word == "zero at initialisation":  # the scale that holds the gradient back is on its way
        yield finding(view, "vanishing_gradient" if vanishing else "weak_gradient", "info", cause, evidence)
    elif vanishing:
        layers = [other for other in view.layers.values() if other.excluded is None]
        count = sum(other.vanishing_share >= lines.share_of_steps for other in layers)
        many = count >= MANY_LAYERS or 2 * count >= len(layers)
        yield finding(view, "vanishing_gradient", "error" if many else "warning", cause, evidence)
    else:
        clear = layer.gradient_ratio < WEAK_MARGIN * lines.weak_gradient
        yield finding(view, "weak_gradient", "warning" if clear else "info", cause, evidence)


def _why_small(view: View) -> Cause:
    ratio = view.layer.gradient_ratio or 0.0
    told = f"its gradient is {ratio:.1e} of the network's largest"
    cause = underflow(view.layer, above=f"{told}, and ")
    if cause is not None:
        return cause
    scale = view.layer.norm_scale
    if (
        scale is not None
        and scale.numel()
        and float(scale.median()) < SMALL_SCALE
        and bool(view.past.scale_moved.any())
    ):
        return Cause(
            "zero at initialisation",
            f"{told}, as it passes a norm whose scale (gamma) has a median of {float(scale.median()):.1e} and moves",
            "Nothing to mend where the scale was set to zero on purpose (residual branches): the gradient grows with"
            " it.",
            references.WARMUP,
            {"scale": float(scale.median())},
        )
    later = [other for other in view.layers.values() if other.excluded is None and other.depth <= view.layer.depth]
    bounded = [other.name for other in later if other.activation in BOUNDED_ACTIVATIONS]
    if 2 * len(bounded) > len(later):
        return Cause(
            "saturated",
            f"{told}: {len(bounded)} sigmoid or tanh layers lie between it and the loss, and each multiplies by its"
            " slope (at most 0.25 for sigmoid)",
            "Use ReLU or GELU in hidden layers, put a norm before each activation, or add skip connections.",
            references.GLOROT,
            {"bounded_layers": len(bounded)},
        )
    if view.layer.depth >= DEEP and all(other.norm_scale is None for other in later):
        return Cause(
            "depth",
            f"{told}: it shrinks over the {view.layer.depth} layers to the loss, none of which is followed by a norm",
            "Use He initialisation (kaiming_normal_ with nonlinearity='relu'; torch's default is smaller), add norms or"
            " skip connections.",
            references.HE,
            {},
        )
    return Cause(
        "unknown",
        f"{told}; ruled out: a chain of sigmoid or tanh layers, depth without norms",
        "Compare the rms of the weights and activations of this layer with its neighbours': one of them is off scale.",
        references.GLOROT,
        {},
    )


def non_finite_gradient(view: View) -> Iterator[Finding]:
    """NaN or infinity in the gradient of this layer, but not of all."""
    layer = view.layer
    if not layer.non_finite_gradients or _all_non_finite(view.window.layers):
        return
    lost = layer.norms is not None and not bool(layer.norms.isfinite().all())
    most = layer.gradient_rms is not None and not math.isfinite(layer.gradient_rms)
    evidence: Evidence = {"entries": layer.non_finite_gradients}
    yield finding(view, "non_finite_gradient", "error" if lost or most else "warning", _overflow(lost), evidence)


def _all_non_finite(layers: Sequence[LayerWindow]) -> bool:
    watched = [layer for layer in layers if layer.excluded is None]
    return len(watched) > 1 and all(layer.non_finite_gradients for layer in watched)


def _overflow(lost: bool) -> Cause:
    return Cause(
        "overflow",
        "the gradient held NaN or infinity"
        + (", and the weights hold it too: nothing they compute is a number any more" if lost else ""),
        "Go back to the last checkpoint with finite weights and lower the learning rate or clip the gradient norm;"
        " torch.autograd.set_detect_anomaly(True) names the operation that made the first NaN.",
        f"{references.CLIPPING}; {references.MIXED}",
        {},
    )


# -- updates ----------------------------------------------------------------------------------------------------------


def update_too_large(view: View) -> Iterator[Finding]:
    """The typical step changes more of the weights than is safe, and does so after the first window too."""
    past, line = view.past, view.thresholds.update_large
    ratio = view.layer.update_ratio
    if ratio is None or not ratio > line or view.window.index == 0:
        return
    again = past.previous_update_ratio > line
    cause = Cause(
        "reckless updates",
        f"a typical step changes the weights by {ratio:.2g} of their norm"
        + (", as in the window before" if again else ""),
        "Lower the learning rate three- to tenfold or warm it up; clip the gradient norm if single batches cause it."
        if again
        else "Nothing yet: first steps from small weights look like this. If it is still so in the next window, lower"
        " the learning rate.",
        f"{references.CS231N}; {references.WARMUP}",
        {"update_ratio": ratio, "update_ratio_max": view.layer.update_ratio_max or ratio},
    )
    yield finding(view, "update_too_large", "warning" if again else "info", cause, {})


def update_too_small(view: View) -> Iterator[Finding]:
    """The weights hardly move though the schedule and a gradient would have it so."""
    layer, past, line = view.layer, view.past, view.thresholds.update_small
    ratio, rate = layer.update_ratio, layer.learning_rate or 0.0
    some, _ = gradient_seen(layer)
    if ratio is None or not 0 < ratio < line or not bool(some.any()) or view.window.index == 0:
        return
    rising = rate > past.previous_learning_rate
    if rate <= SCHEDULED * past.largest_learning_rate or rising:
        return
    again = 0 < past.previous_update_ratio < line
    weak = layer.gradient_ratio is not None and layer.gradient_ratio < view.thresholds.weak_gradient
    cause = Cause(
        "slow updates",
        f"a typical step at learning rate {rate:g} changes the weights by {ratio:.1e} of their norm (1e-3 is usual)"
        + (f"; its gradient is weak too ({layer.gradient_ratio:.1e} of the largest)" if weak else ""),
        "Mend the weak gradient first."
        if weak
        else "Raise the learning rate, or check that this layer is meant to rest.",
        references.CS231N,
        {"update_ratio": ratio, "learning_rate": rate},
    )
    alarm = again and not weak  # a weak gradient is a finding of its own, and the root of this
    yield finding(view, "update_too_small", "warning" if alarm else "info", cause, {})


# -- weights ----------------------------------------------------------------------------------------------------------


def identical_kernels(view: View) -> Iterator[Finding]:
    """All kernels of the layer are equal, and not all zero (that is a matter of zero kernels)."""
    layer = view.layer
    if not layer.identical or layer.largest is None or not bool((layer.largest > 0).all()):
        return
    stays = view.window.index > view.past.first_window and view.window.optimizer_steps > 0
    stays = stays and (layer.learning_rate or 0.0) > 0  # in a warm-up from zero nothing could part them yet
    cause = Cause(
        "constant initialisation",
        f"all {layer.channels} kernels are bitwise equal"
        + (": they get the same gradient and cannot grow apart" if stays else " before the first step"),
        "Initialise the weight with random values (kaiming_normal_ or xavier_uniform_) to break the symmetry.",
        f"{references.GLOROT}; {references.CS231N}",
        {"kernels": layer.channels},
    )
    yield finding(view, "identical_kernels", "error" if stays else "warning", cause, {})


def sparse_weights(view: View) -> Iterator[Finding]:
    """Most weights are zero or next to it, and a few are large."""
    layer, lines = view.layer, view.thresholds
    if layer.largest is None or not bool((layer.largest > 0).any()):
        return
    zeros, near, gini = layer.weight_sparsity or 0.0, layer.weight_near_zeros or 0.0, layer.gini or 0.0
    if not (zeros > lines.zero_share or near > lines.near_zero_share or gini > lines.gini):
        return
    masked = layer.masked is not None
    lost = len(set(view.report.dead) | set(view.report.zero_kernels))
    told = (
        f"{zeros:.1%} of the weights are exactly zero, {near:.1%} below 1e-2 of their rms (a Gaussian has"
        f" {GAUSSIAN_NEAR_ZERO:.1%}), Gini {gini:.2f} (a Gaussian has {GAUSSIAN_GINI})"
    )
    evidence: Evidence = {"weight_zeros": zeros, "weight_near_zeros": near, "gini": gini}
    if layer.hoyer is not None:
        evidence["hoyer"] = layer.hoyer
    severity: Severity = "info"
    if masked:
        word, verdict, advice = "pruned", "a pruning mask made it so", "Nothing to mend."
    elif lost and (zeros > lines.zero_share or 2 * lost > near * layer.channels):
        severity, word = "warning" if zeros > lines.zero_share else "info", "dead channels"
        verdict = f"{lost} of {layer.channels} channels are dead or zero and take their weights with them"
        advice = "See to those channels first; what they held is capacity lost and can be pruned."
    else:
        word = "heavy tails"
        verdict = "dead or zero channels do not explain it" if lost else "no channel is dead of it"
        verdict += ", so it is what training, weight decay or an L1 term made of the layer"
        advice = "Normal in a trained layer, and no loss: such a layer prunes well by magnitude."
    cause = Cause(word, f"{told}; {verdict}", advice, references.SPARSITY, {"dead_or_zero": lost})
    yield finding(view, "sparse_weights", severity, cause, evidence)


# -- the network ------------------------------------------------------------------------------------------------------


def _network(window: Window, kind: str, severity: Severity, cause: Cause) -> Finding:
    return Finding(
        kind,
        severity,
        None,
        (),
        dict(cause.evidence),
        cause.text,
        cause.advice,
        cause.reference,
        window.index,
        window.samples,
    )


def network_findings(window: Window, history: History, thresholds: Thresholds) -> Iterator[Finding]:
    """What concerns the network as a whole."""
    if window.index > 0:
        yield from _exploding(window, history, thresholds)
        yield from _non_finite(window)
        yield from _flat_loss(window)


def _exploding(window: Window, history: History, thresholds: Thresholds) -> Iterator[Finding]:
    norm = window.gradient_norm
    earlier = history.gradient_norms
    if norm is not None and math.isfinite(norm):
        earlier = earlier[:-1]  # the last entry is this window's
    if norm is None or not math.isfinite(norm) or not earlier or median(earlier) <= 0:
        return
    growth = norm / median(earlier)
    if growth <= thresholds.exploding_growth:
        return
    reckless = [
        layer.name
        for layer in window.layers
        if layer.excluded is None and (layer.update_ratio_max or 0.0) > thresholds.update_large
    ]
    harm = bool(reckless) or any(layer.non_finite_gradients for layer in window.layers)
    cause = Cause(
        "reckless updates" if harm else "unknown",
        f"the gradient norm is {norm:.3g}, {growth:.3g} times the median of the {len(earlier)} windows before"
        + (f", and steps became reckless in {', '.join(reckless[:3])}" if reckless else "")
        + ("" if harm else "; ruled out: reckless or non-finite updates, so it may be the end of a plateau"),
        "Clip the gradient norm (gradient_clip_val=1.0) and lower the learning rate."
        if harm
        else "Watch the next window; clip the gradient norm if it goes on.",
        references.CLIPPING,
        {"gradient_norm": norm, "growth": growth, "largest_gradient_at": window.largest_gradient_at or "unknown"},
    )
    yield _network(window, "exploding_gradient", "warning" if harm else "info", cause)


def _non_finite(window: Window) -> Iterator[Finding]:
    if not _all_non_finite(window.layers):
        return
    watched = [layer for layer in window.layers if layer.excluded is None]
    lost = any(layer.norms is not None and not bool(layer.norms.isfinite().all()) for layer in watched)
    most = any(layer.gradient_rms is not None and not math.isfinite(layer.gradient_rms) for layer in watched)
    entries = sum(layer.non_finite_gradients for layer in watched)
    cause = replace(_overflow(lost), evidence={"entries": entries, "layers": len(watched)})
    yield _network(window, "non_finite_gradient", "error" if lost or most else "warning", cause)


def _flat_loss(window: Window) -> Iterator[Finding]:
    if not loss_is_flat(window.layers):
        return
    cause = Cause(
        "flat loss",
        "no gradient reached any watched layer in this window: the loss does not depend on the weights, or it sits on a"
        " plateau of exactly zero slope",
        "Look for a detach() or no_grad() on the way to the loss, a loss that a margin has clamped to zero, or float16"
        " gradients without loss scaling.",
        references.MIXED,
        {"layers": sum(layer.excluded is None for layer in window.layers)},
    )
    yield _network(window, "starved_channels", "warning", cause)
