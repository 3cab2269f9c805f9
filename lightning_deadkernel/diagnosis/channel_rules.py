"""What is worth saying of channels: one rule, one function, each giving findings with numbers, cause and advice.

Severities: *info* is worth knowing and normal, *warning* is capacity or speed lost, *error* makes training useless.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_deadkernel.diagnosis import causes, references, signs
from lightning_deadkernel.diagnosis.context import Cause, Evidence, View, finding, windows
from lightning_deadkernel.diagnosis.history import gradient_seen
from lightning_deadkernel.observation import LayerWindow
from lightning_deadkernel.report.records import Finding, Severity
from lightning_deadkernel.report.states import STATE_BITS, STATES, State

FEW_BATCHES = 5
"""One batch is no evidence: in a healthy layer of 1024 units 9 % were silent in one batch of 32, 0 % over ten."""
CHANCE_SHARE = 0.5
"""Healthy He-initialised networks, 20 layers deep and 64 wide, have up to 44 % of a deep layer dead from the first draw
and ordinary drift."""
CHANCE = ("born dead", "faded")
SATURATED_MOST = 0.9
UNDERFLOW_SHARE = 0.5
"""Zeros among the entries of a float16 gradient have other sources as well (inputs that are zero, channels that are
off): only where they are most of it is the type to blame."""


def _since(view: View, channels: Tensor) -> Evidence:
    return {"since_window": int(view.past.since[channels].min())}


def dead_channels(view: View) -> Iterator[Finding]:
    """Channels that never fired behind a gate."""
    dead = view.mask(view.report.dead)
    if not bool(dead.any()):
        return
    whole = bool(dead.all())
    groups = causes.why_dead(view, dead)
    chance = sum(float(where.float().mean()) for where, cause in groups if cause.word in CHANCE)
    for where, cause in groups:
        evidence = _since(view, where)
        if view.window.samples:
            evidence["highest_possible_firing_rate"] = (
                3.0 / view.window.samples
            )  # the 95 % bound of a rate never seen in n
        if not view.layer.exact:
            evidence["seen_on"] = "sampled steps and gradients"
        yield finding(view, "dead_channels", _dead_severity(view, whole, where, cause, chance), cause, evidence, where)


def _dead_severity(view: View, whole: bool, where: Tensor, cause: Cause, chance: float) -> Severity:
    if cause.word == "pruned":
        return "info"
    if whole:
        return "error"
    young = bool((view.past.since[where] == view.window.index).all())
    if cause.word in (*CHANCE, "unknown") and young and view.window.batches < FEW_BATCHES:
        return "info"
    return "info" if cause.word in CHANCE and chance < CHANCE_SHARE else "warning"


def saturated_channels(view: View) -> Iterator[Finding]:
    """Channels stuck on a flat end."""
    layer = view.layer
    where = view.mask(view.report.saturated)
    if not bool(where.any()):
        return
    _, none = gradient_seen(layer)
    share = None if layer.saturated_share is None else float(layer.saturated_share[where].mean())
    silenced = int((none & where).sum())
    told = (
        f"{share:.0%} of their inputs lie on the flat end of {layer.activation}"
        if share is not None
        else f"they never fired and sit on the flat end of {layer.activation}"
    )
    cause = Cause(
        "saturated",
        f"{told}, where the slope is next to zero" + (f"; {silenced} of them have no gradient at all" * bool(silenced)),
        "Put a norm before the activation, scale the initial weights down (Xavier initialisation) or lower the learning"
        " rate.",
        references.GLOROT,
        {"without_gradient": silenced} if share is None else {"saturated_share": share, "without_gradient": silenced},
    )
    stuck = silenced == int(where.sum()) or (share is not None and share >= SATURATED_MOST)
    severity: Severity = "error" if bool(where.all()) and stuck else "warning"
    if layer.depth == 0 and not silenced:  # an output that has made up its mind is meant to saturate
        severity = "info"
    yield finding(view, "saturated_channels", severity, cause, _since(view, where), where)


def starved_channels(view: View) -> Iterator[Finding]:
    """Channels that fire while no gradient reaches them."""
    where = view.mask(view.report.starved)
    if not bool(where.any()) or loss_is_flat(view.window.layers):
        return
    cause = _why_starved(view)
    rare = view.mask(view.report.rare)
    severity: Severity = "error" if bool(where.all()) else "info" if bool((rare | ~where).all()) else "warning"
    yield finding(view, "starved_channels", severity, cause, _since(view, where), where)


def loss_is_flat(layers: Sequence[LayerWindow]) -> bool:
    """Whether no watched layer had any gradient, though all were looked at."""
    watched = [layer for layer in layers if layer.excluded is None]
    return bool(watched) and all(bool(gradient_seen(layer)[1].all()) for layer in watched)


def frozen_weights(view: View) -> Iterator[Finding]:
    """Kernels that have a gradient and did not change in one bit."""
    where = view.mask(view.report.frozen)
    if not bool(where.any()):
        return
    cause = _why_frozen(view, where)
    # a vanishing gradient is a finding of its own, and the root of this one
    vanishing = view.layer.vanishing_share >= view.thresholds.share_of_steps
    few = vanishing or float(where.float().mean()) < 0.5
    small = cause.word == "below resolution" and view.layer.bytes_per_parameter > 2 and few
    evidence: Evidence = {"optimizer_steps": view.window.optimizer_steps}
    yield finding(view, "frozen_weights", "info" if small else "warning", cause, evidence, where)


def zero_kernels(view: View) -> Iterator[Finding]:
    """Kernels that are zero or next to it."""
    where = view.mask(view.report.zero_kernels) & ~_fresh_scale(view)
    if not bool(where.any()):
        return
    for group, cause in causes.why_zero(view, where):
        layer = view.layer
        evidence: Evidence = {}
        if layer.shift is not None:
            evidence["constant_output"] = int((group & (layer.shift > 0)).sum())
        learning = _recovering(view) & group
        if cause.word != "decayed":  # decay itself moves a kernel
            evidence["recoverable"] = int(learning.sum())
        yield finding(view, "zero_kernels", _zero_severity(view, group, cause, learning), cause, evidence, group)


def _fresh_scale(view: View) -> Tensor:
    """(C,) bool: a norm's scale next to zero that has had no time to move, or moves and only passes through."""
    layer, past = view.layer, view.past
    if layer.norm_scale is None or layer.norms is None or layer.largest is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    scale_only = (layer.largest > 0) & (layer.norms >= view.thresholds.zero_kernel * layer.norms.nan_to_num(0.0).amax())
    young = view.window.index - past.first_window < 2 or not (layer.learning_rate or 0.0) > 0
    begun_at_zero = past.first_scale < view.thresholds.norm_scale
    passing = past.scale_moved & ~signs.scale_shrunk(view)
    return scale_only & (passing | (begun_at_zero & (past.scale_moved | torch.full_like(past.scale_moved, young))))


def _recovering(view: View) -> Tensor:
    """(C,) bool: a gradient reaches the kernel and the kernel has begun to change."""
    layer = view.layer
    some, _ = gradient_seen(layer)
    if layer.weight_gradient is not None:
        some = layer.weight_gradient > 0
    return some if layer.unchanged is None else some & ~layer.unchanged


def _zero_severity(view: View, where: Tensor, cause: Cause, learning: Tensor) -> Severity:
    whole = bool(where.all())
    if cause.word == "pruned":
        return "info"
    if view.window.index == view.past.first_window:
        return (
            "info" if whole else "warning"
        )  # an output layer of zeros is a usual initialisation, a few kernels are not
    if cause.word == "zero at initialisation" and bool((learning == where).all()):
        return "info"
    return "error" if whole and not bool(learning.any()) else "warning"


def dormant_channels(view: View) -> Iterator[Finding]:
    """Channels that are alive and add next to nothing."""
    active = view.mask([c for c, code in enumerate(view.report.codes) if code & STATE_BITS == STATES.index("active")])
    where = view.mask(view.report.dormant) & active
    if not bool(where.any()):
        return
    rare = int(view.mask(view.report.rare)[where].sum())
    cause = Cause(
        "low activity",
        f"they fire, but at or below {view.thresholds.dormant:g} of the layer's mean activation"
        + (f"; {rare} of them on fewer than {view.thresholds.rare:.0%} of samples and positions" if rare else ""),
        "Normal in small numbers. Where the share grows from window to window, re-initialise these channels (ReDo) or"
        " lower the learning rate.",
        references.REDO,
        {"rare": rare},
    )
    yield finding(view, "dormant_channels", "info", cause, {}, where)


def revived_channels(view: View) -> Iterator[Finding]:
    """Channels that were gone in the window before and are back."""
    past, layer = view.past, view.layer
    if past.first_window == view.window.index:
        return
    before, now = past.before & STATE_BITS, past.codes & STATE_BITS
    some, _ = gradient_seen(layer)
    fires = layer.fired if layer.fired is not None else torch.zeros_like(some)

    def were(*states: State) -> Tensor:
        return torch.isin(before, torch.tensor([STATES.index(state) for state in states], dtype=torch.uint8))

    back = (were("dead") & fires) | (were("saturated", "starved", "zero-gradient") & some)
    where = back & torch.isin(now, torch.tensor([STATES.index("active"), STATES.index("frozen")], dtype=torch.uint8))
    if not bool(where.any()):
        return
    since = past.before_since[where]
    told = sorted({STATES[int(number)] for number in before[where]})
    cause = Cause(
        "recovered",
        f"{' or '.join(told)} since {windows(since)}, back in window {view.window.index}",
        "Nothing to mend"
        + ("; channels that come and go point to a learning rate at the high end." if "dead" in told else "."),
        references.REDO,
        {"since_window": int(since.min()), "back_in_window": view.window.index},
    )
    yield finding(view, "revived_channels", "info", cause, {}, where)


def _why_starved(view: View) -> Cause:
    """Why no gradient comes back to channels that fire."""
    layer = view.layer
    names = [consumer.layer for consumer in layer.consumers or ()]
    if names and all(view.wholly_dead(name) for name in names):
        told = ", ".join(names)
        return Cause(
            "dead downstream",
            f"every channel of what reads this layer is dead ({told}), so no gradient comes back",
            f"Revive {told}; this layer is sound and learns again as soon as something listens.",
            references.LU,
            {"consumers": told},
        )
    cause = underflow(layer)
    if cause is not None:
        return cause
    shut = [name for name in names if _wholly_zero(view, name)]
    if names and len(shut) == len(names):
        told = ", ".join(names)
        return Cause(
            "outgoing zero",
            f"fires, yet its gradient is exactly zero: every kernel of what reads it is zero, or the norm's scale"
            f" (gamma) after it is ({told})",
            f"See to the zero kernels of {told} first; this layer is sound and learns again as soon as they let a"
            " gradient through.",
            references.MEHTA,
            {"consumers": told},
        )
    if names:
        told = ", ".join(names)
        return Cause(
            "outgoing zero",
            f"fires, and {told} is not dead, yet its gradient is exactly zero: the weights that read it are zero, or"
            " what reads it is off whenever it fires",
            f"Look at the input slices of {told} for these channels: give them small random values, or release what"
            " holds them at zero.",
            references.CS231N,
            {"consumers": told},
        )
    return Cause(
        "unknown",
        "the channels fire, yet their gradient is exactly zero; the graph does not show what reads them; ruled out: a"
        " flat loss, since other layers have gradients",
        "Look for a detach(), a zero loss weight or zero outgoing weights between this layer and the loss.",
        references.CS231N,
        {},
    )


def _wholly_zero(view: View, name: str) -> bool:
    report = view.reports.get(name)
    return report is not None and report.channels > 0 and len(report.zero_kernels) == report.channels


def underflow(layer: LayerWindow, above: str = "") -> Cause | None:
    """The gradient is too small for float16; None where it is not, or where it is held in another type.

    Args:
        above: what the explanation begins with.
    """
    if layer.underflow_share is None or layer.underflow_share <= UNDERFLOW_SHARE:
        return None
    return Cause(
        "underflow",
        f"{above}{100 * layer.underflow_share:.3g} % of its float16 gradient entries are exactly zero: too small to be"
        " held",
        "Train with precision='16-mixed' (its loss scaling lifts gradients into range) or with bfloat16.",
        references.MIXED,
        {"underflow_share": layer.underflow_share},
    )


def _why_frozen(view: View, where: Tensor) -> Cause:
    """Why kernels with a gradient did not change."""
    layer = view.layer
    if not layer.in_optimizer:
        return Cause(
            "not in the optimizer",
            "a gradient reaches the weight, but no optimizer holds it, so no step can change it",
            "Pass the parameter to the optimizer in configure_optimizers, or set requires_grad=False if it is frozen on"
            " purpose (that saves its backward pass as well).",
            references.OPTIM_DOCS,
            {},
        )
    gradient = layer.weight_gradient if layer.weight_gradient is not None else layer.gradient
    assert gradient is not None
    rate, size = layer.learning_rate or 0.0, float(gradient[where].max())
    largest = float(layer.largest[where].max()) if layer.largest is not None else float("nan")
    epsilon = 2.0**-8 if layer.bytes_per_parameter == 2 else 2.0**-24
    evidence: dict[str, float | int | str] = {
        "learning_rate": rate,
        "largest_gradient": size,
        "largest_weight": largest,
        "bytes_per_parameter": layer.bytes_per_parameter,
    }
    if layer.bytes_per_parameter == 2 or rate * size < epsilon * largest:
        return Cause(
            "below resolution",
            f"steps at learning rate {rate:g} on gradients up to {size:.1e} round away in weights of up to"
            f" {largest:.2g} held in {layer.bytes_per_parameter} bytes",
            "Keep float32 master weights (precision='bf16-mixed' in place of 'bf16-true')."
            if layer.bytes_per_parameter == 2
            else "Raise the gradient of this layer (a norm, a shorter way to the loss) or its learning rate.",
            references.MIXED,
            evidence,
        )
    return Cause(
        "unknown",
        "ruled out: missing from the optimizer, learning rate zero, a pruning mask, steps below the weights'"
        " resolution",
        "Look for code that writes the weights back after each step, for a gradient zeroed in a hook before the step,"
        " or for an optimizer that does not step in this phase.",
        references.OPTIM_DOCS,
        evidence,
    )
