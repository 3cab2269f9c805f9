"""What becomes of kernels without a gradient if the optimizer goes on as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadkernel.functional.permanence import Decay
from lightning_deadkernel.graph.facts import LayerFacts
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.observation import Prospect
from lightning_deadkernel.thresholds import Thresholds

Groups = Mapping[int, tuple[Any, dict[str, Any]]]
"""id of a parameter -> the optimizer that holds it, and its group."""


def groups_of(optimizers: Sequence[Any]) -> Groups:
    """Where each parameter is held."""
    held = ((optimizer, group) for optimizer in optimizers for group in optimizer.param_groups)
    return {id(p): (optimizer, group) for optimizer, group in held for p in group["params"]}


@torch.no_grad()
def prospect(entry: Mapping[str, Any], facts: LayerFacts, groups: Groups, thresholds: Thresholds) -> Prospect | None:
    """What decay makes of the channels that did not fire and whose gradient is zero; None where that is not known.

    A channel opens where its scale (that of the kernel, or of the norm behind it) lifts some input above its shift.
    Where decay takes the same share of both, what is shut stays shut; where it takes more of one, a scale may win
    against a shift below zero, and a shift above zero against a scale.

    Args:
        entry: the layer's window so far.
        facts: of the layer.
        groups: see `groups_of`.
        thresholds: below which share of the layer's largest norm a kernel is next to zero.
    """
    layer, gradient, norms = facts.layer, entry.get("gradient"), entry.get("norms")
    kernel = _rule(layer.main, groups)
    if kernel is None or gradient is None or norms is None or layer.reparametrized or facts.penalised:
        return None
    own = entry.get("weight_gradient")
    quiet = ~entry["fired"] & (gradient == 0) & (True if own is None else own == 0)
    channels: list[int] = quiet.nonzero().flatten().tolist()
    if not channels or not bool(norms.isfinite().all()):
        return None
    shifted = facts.source.parameter if facts.source is not None and facts.source.parameter is not None else layer.bias
    rules = [None if one is None else _rule(one, groups) for one in (facts.scale, shifted)]
    scale = kernel if facts.scale is None else rules[0]
    values = torch.zeros(layer.channels) if shifted is None else entry["shift"]
    opens = {channel: _opens(float(values[channel]), scale, rules[1]) for channel in channels}
    returning = [channel for channel, may in opens.items() if may]
    return Prospect(
        tuple(channels),
        _moves(kernel, scale, rules[1]),
        _coasts(layer.main, lambda values: layer.rows(values)[channels], groups)
        or any(
            _coasts(one, lambda values: _of(values, channels, layer), groups)
            for one in (facts.scale, shifted)
            if one is not None
        ),
        _fades_in(layer, channels, kernel, thresholds.zero_kernel * float(norms.max()), groups),
        None if None in opens.values() else tuple(returning),
        _earliest(returning, values, facts, scale, rules[1]),
    )


def _rule(parameter: nn.Parameter, groups: Groups) -> Decay | None:
    held = groups.get(id(parameter))
    if held is None:
        return Decay("none", 0.0, 0.0)
    stands = not held[1]["lr"] and held[1].get("weight_decay")  # at one end of a schedule, which may raise it again
    return None if stands else Decay.of(*held)


def _of(values: Tensor, channels: list[int], layer: Layer) -> Tensor:
    """Those of some channels, where each has one."""
    return values[channels] if len(values) == layer.channels else values


def _moves(*rules: Decay | None) -> bool:
    return any(rule is not None and rule.kind != "none" for rule in rules)


def _remembered(parameter: nn.Parameter, groups: Groups, name: str) -> Tensor | None:
    """What its optimizer keeps of it under this name; None where it keeps nothing."""
    held = groups.get(id(parameter))
    return None if held is None else held[0].state.get(parameter, {}).get(name)


def _coasts(parameter: nn.Parameter, of: Callable[[Tensor], Tensor], groups: Groups) -> bool:
    """Whether the next step changes some bit of a part of a parameter by momentum alone."""
    momentum = _remembered(parameter, groups, "momentum_buffer")
    squares = None
    if momentum is None:
        momentum, squares = (_remembered(parameter, groups, name) for name in ("exp_avg", "exp_avg_sq"))
        if momentum is None or squares is None:
            return False
    group, values = groups[id(parameter)][1], of(parameter.detach())
    size = of(momentum).double().abs() / (1.0 if squares is None else of(squares).double().sqrt() + group["eps"])
    return bool((float(group["lr"]) * size > torch.finfo(values.dtype).eps / 2 * values.double().abs()).any())


def _opens(shift: float, scale: Decay | None, of_shift: Decay | None) -> bool | None:
    """Whether decay may open a channel that is shut now; None: not known."""
    if scale is None or (of_shift is None and shift):
        return None
    if not shift or of_shift is None:
        return None if scale.kind == "adam" else False
    return scale.is_slower(of_shift) if shift < 0 else of_shift.is_slower(scale)


def _fades_in(layer: Layer, channels: list[int], rule: Decay, target: float, groups: Groups) -> int | None:
    """Steps until the last of some kernels has a norm of no more than the target; None: not known, or never."""
    rows = layer.rows(layer.main)[channels].double().cpu()
    if not target:
        return None
    if rule.kind == "adam":  # entry by entry
        squares = _remembered(layer.main, groups, "exp_avg_sq")
        taken = int(groups[id(layer.main)][0].state.get(layer.main, {}).get("step", 0))
        square = 0.0 if squares is None else float(layer.rows(squares)[channels].max())
        return rule.steps_until(float(rows.abs().max()), target / math.sqrt(rows.shape[1]), square=square, taken=taken)
    norms, buffers = rows.norm(dim=1), _remembered(layer.main, groups, "momentum_buffer")
    along = torch.zeros_like(norms)
    if buffers is not None:
        along = (layer.rows(buffers)[channels].double().cpu() * rows).sum(1) / norms.clamp(min=1e-300)
    dates = [rule.steps_until(*one) for one in zip(norms.tolist(), [target] * len(norms), along.tolist(), strict=True)]
    return None if None in dates else max(date for date in dates if date is not None)


def _earliest(
    returning: Collection[int], shifts: Tensor, facts: LayerFacts, scale: Decay | None, of_shift: Decay | None
) -> int | None:
    """Steps before which no input can open any of those channels; None: not known."""
    found = []
    for channel in returning:
        shift, reach = float(shifts[channel]), facts.reach(channel)
        if reach is None or not shift < 0 or scale is None or of_shift is None or not 0 < reach < -shift:
            return None
        # |shift| times what decay leaves of it, against the reach times what it leaves of the scale
        ratio = of_shift.per_step() / scale.per_step()
        found.append(math.ceil(math.log(reach / -shift) / math.log(ratio)))
    return min(found, default=None)
