"""Why it happened: each cause is told from history and evidence, and says what to do about it.

The first cause that fits a channel is given. Where none does, the cause is "unknown" and says what was ruled out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_deadkernel.diagnosis.context import Cause, View, span, windows
from lightning_deadkernel.diagnosis.references import (
    ADAMW,
    BATCH_NORM,
    CS231N,
    HE,
    LU,
    MEHTA,
    PRUNE_DOCS,
    WARMUP,
)
from lightning_deadkernel.diagnosis.signs import (
    born_dead,
    decayed,
    faded,
    knocked_out,
    pruned,
    shift_negative,
    upstream_dead,
    worn_down,
    zero_at_initialisation,
    zero_now,
)

CAUSES = (
    "zero at initialisation",
    "decayed",
    "knocked out",
    "shift driven negative",
    "upstream dead",
    "born dead",
    "faded",
    "pruned",
    "dead downstream",
    "outgoing zero",
    "flat loss",
    "underflow",
    "not in the optimizer",
    "below resolution",
    "saturated",
    "depth",
    "constant initialisation",
    "reckless updates",
    "slow updates",
    "overflow",
    "dead channels",
    "heavy tails",
    "low activity",
    "recovered",
    "unknown",
)
"""Every word that may begin `Finding.cause`."""

Explain = Callable[[View, Tensor], Cause]


def _pruned(view: View, where: Tensor) -> Cause:
    return Cause(
        "pruned",
        "a pruning mask holds the whole kernel at zero, as was asked for",
        "Nothing to mend. Remove the channels physically to turn the mask into saved memory and time.",
        PRUNE_DOCS,
        {},
    )


def _upstream_dead(view: View, where: Tensor) -> Cause:
    names = ", ".join(view.layer.producers or ())
    return Cause(
        "upstream dead",
        f"every channel of what feeds this layer is dead ({names}), so it sees a constant zero",
        f"Revive {names} first; this layer follows by itself or shows a cause of its own then.",
        LU,
        {"producers": names},
    )


def _zero_at_initialisation(view: View, where: Tensor) -> Cause:
    what = _what_is_zero(view, where)
    return Cause(
        "zero at initialisation",
        f"the {what} was zero before the first step and still is; training did not do it",
        "Initialise these kernels with random values (kaiming_normal_); if the zeros are on purpose, see that a"
        " gradient reaches them: a zero kernel learns only if what follows it lets one through."
        if what == "kernel"
        else "Initialise the norm's scale to one; if the zeros are on purpose (residual branches), see that a gradient"
        " reaches them: a scale of zero learns only where its channel passes on what it makes.",
        HE,
        {"first_norm": _largest(view.past.first_norm[where])},
    )


def _what_is_zero(view: View, where: Tensor) -> str:
    """The kernel itself where that is so for all of them, else the scale of the norm that follows."""
    norms, largest = view.layer.norms, view.layer.largest
    if view.layer.norm_scale is None or norms is None or largest is None:
        return "kernel"
    small = (largest == 0) | (norms < view.thresholds.zero_kernel * norms.nan_to_num(nan=0.0).amax())
    return "kernel" if bool(small[where].all()) else "norm's scale (gamma)"


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else float("nan")


def _decayed(view: View, where: Tensor) -> Cause:
    layer, past = view.layer, view.past
    stop = past.last_gradient[where]
    seen = stop[stop > 0]
    still = bool(seen.numel()) and int(seen.max()) == view.window.index
    if not seen.numel():
        when = "no gradient was seen since training began"
    elif still:
        when = "a gradient still reaches some of them, too weak to hold against the decay"
    else:
        when = f"the last gradient was seen in {windows(seen)}"
    what = _what_is_zero(view, where)
    kernel = what == "kernel" and layer.norms is not None
    now = layer.norms[where] if kernel and layer.norms is not None else past.scale[where]
    first = past.first_norm[where] if kernel else past.first_scale[where]
    coupled = not layer.decoupled_decay
    shape = "through the gradient (L2)" if coupled else "apart from the gradient"
    return Cause(
        "decayed",
        f"{when}, and weight decay {layer.weight_decay:g} applied {shape} has worn the {what}"
        f" down ({'norm ' * kernel}{span(first)} at the start, {span(now)} now)",
        "Use AdamW in place of Adam with weight_decay, or set weight_decay to 0 for norm parameters and lower it for"
        " kernels. What is already gone can be pruned; fold a constant output into what reads it first."
        if coupled
        else "Lower weight_decay, and set it to 0 for norm parameters and biases. What is already gone can be pruned.",
        f"{MEHTA}; {ADAMW}",
        {
            "weight_decay": layer.weight_decay,
            "first_norm" if kernel else "first_scale": _largest(first),
            "norm" if kernel else "scale": _largest(now),
            **({"gradient_stopped_in_window": int(seen.max())} if seen.numel() and not still else {}),
        },
    )


def _knocked_out(view: View, where: Tensor) -> Cause:
    past = view.past
    ratio = past.reckless[where]
    return Cause(
        "knocked out",
        f"fired until {windows(past.last_fired[where])}, when one optimizer step changed the weights by"
        f" {span(ratio)} of their own norm (above {view.thresholds.update_large:g} is reckless)",
        "Lower the learning rate three- to tenfold, or warm it up over the first few hundred steps; clip the gradient"
        " norm if the jump came late in training.",
        f"{WARMUP}; {CS231N}",
        {"last_fired_in_window": int(past.last_fired[where].max()), "update_ratio_max": float(ratio.max())},
    )


def _shift_negative(view: View, where: Tensor) -> Cause:
    layer = view.layer
    assert layer.shift is not None
    normed = layer.norm_scale is not None
    reach = layer.norm_scale if layer.norm_scale is not None else layer.norms
    assert reach is not None
    name, against = ("norm's shift (beta)", "|gamma|") if normed else ("bias", "kernel norm")
    return Cause(
        "shift driven negative",
        f"the {name} is {span(layer.shift[where])} against a {against} of {span(reach[where])}: no usual input lifts"
        " the channel above zero",
        "Set the shift of these channels to 0 to revive them; if it happens again, lower the learning rate or warm it"
        " up.",
        f"{CS231N}; {BATCH_NORM}" if normed else CS231N,
        {"shift": float(layer.shift[where].min()), "reach": float(reach[where].max())},
    )


def _born_dead(view: View, where: Tensor) -> Cause:
    return Cause(
        "born dead",
        "has not fired once since training began at step 0: the draw of the initial weights put it there",
        "Some of this is normal in deep networks without norms. Where it is much: put a norm before the activation,"
        " make the layer wider, or use He initialisation, LeakyReLU or GELU.",
        f"{LU}; {HE}",
        {},
    )


def _faded(view: View, where: Tensor) -> Cause:
    past = view.past
    return Cause(
        "faded",
        f"fired on {span(past.rate[where] * 100, '.2g')} % of samples and positions in"
        f" {windows(past.last_fired[where])} and then on none, with no reckless step seen: the drift of ordinary"
        " training",
        "A few of these are normal, and some come back. If their number grows from window to window, put a norm before"
        " the activation, lower the learning rate, or use LeakyReLU or GELU.",
        f"{LU}; {CS231N}",
        {"last_fired_in_window": int(past.last_fired[where].max()), "last_firing_rate": float(past.rate[where].max())},
    )


def _unknown_dead(view: View, where: Tensor) -> Cause:
    past = view.past
    fired = past.last_fired[where]
    if bool((fired > 0).any()):
        told = f"fired until {windows(fired[fired > 0])} and then stopped"
        rate = past.rate[where][fired > 0]
        rate = rate[rate.isfinite()]
        if rate.numel():
            told += f" (on {span(rate * 100, '.2g')} % of samples and positions by then)"
    else:
        told = "has not fired since it is watched, and the run had begun before that"
    ruled_out = [
        "no reckless update was sampled" if bool((fired > 0).any()) else "",
        "the kernel is not zero" if not bool(zero_now(view)[where].any()) else "no decay explains the zero kernel",
        "the shift is within reach" if view.layer.shift is not None else "",
        "what feeds it is alive" if view.layer.producers else "",
    ]
    return Cause(
        "unknown",
        f"{told}; ruled out: {', '.join(filter(None, ruled_out))}",
        "If their number grows from window to window, lower the learning rate or put a norm before the activation; a"
        " small, steady number costs little.",
        f"{LU}; {CS231N}",
        {"last_fired_in_window": int(fired.max())} if bool((fired > 0).any()) else {},
    )


def _unknown_zero(view: View, where: Tensor) -> Cause:
    ruled_out = (
        "it was not zero at initialisation" if view.past.first_window == 0 else "its initialisation was not seen"
    )
    decay = view.layer.weight_decay
    ruled_out += f", its parameter group has weight decay {decay:g}" + (" but it did not shrink" if decay else "")
    return Cause(
        "unknown",
        f"ruled out: {ruled_out}, no mask holds it",
        "Look for code that writes to the weights, an L1 or group penalty in the loss, or a reckless step.",
        MEHTA,
        {"weight_decay": decay},
    )


def _assign(
    view: View, where: Tensor, rules: Sequence[tuple[Callable[[View], Tensor], Explain]], otherwise: Explain
) -> list[tuple[Tensor, Cause]]:
    """Give each channel the first cause that holds, and group the channels by cause."""
    groups, left = [], where.clone()
    for holds, explain in rules:
        here = left & holds(view)
        if bool(here.any()):
            groups.append((here, explain(view, here)))
            left &= ~here
    if bool(left.any()):
        groups.append((left, otherwise(view, left)))
    return groups


def why_dead(view: View, where: Tensor) -> list[tuple[Tensor, Cause]]:
    """The causes of dead channels: groups of (C,) bool and what explains them."""
    rules: list[tuple[Callable[[View], Tensor], Explain]] = [
        (pruned, _pruned),
        (upstream_dead, _upstream_dead),
        (zero_at_initialisation, _zero_at_initialisation),
        (worn_down, _decayed),
        (knocked_out, _knocked_out),
        (shift_negative, _shift_negative),
        (decayed, _decayed),
        (born_dead, _born_dead),
        (faded, _faded),
    ]
    return _assign(view, where, rules, _unknown_dead)


def why_zero(view: View, where: Tensor) -> list[tuple[Tensor, Cause]]:
    """The causes of zero kernels: groups of (C,) bool and what explains them."""
    rules: list[tuple[Callable[[View], Tensor], Explain]] = [
        (pruned, _pruned),
        (zero_at_initialisation, _zero_at_initialisation),
        (decayed, _decayed),
    ]
    return _assign(view, where, rules, _unknown_zero)
