"""The activations that can be read: one decorated reader each, which says all that others must know of it.

A reader is given a live node and makes the `Activation` that this use of the op is, or None where it is none.
Past 300 lines because every activation is one function here, so that adding one touches one file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadkernel.graph.ops import peek, unpack_hook
from lightning_deadkernel.observation import Gating


@dataclass(frozen=True)
class Activation:
    """How to read one live activation node: with the constants that it has in this step."""

    label: str
    kind: Gating
    saved: str
    """Name of the saved tensor, ``"result"`` or ``"self"``; two names joined by ``*`` or ``/``: what they make."""
    output: Callable[[Tensor], Tensor]
    """Saved tensor -> activation h."""
    positive: Callable[[Tensor], Tensor] | None = None
    """Saved tensor -> a tensor that is > 0 exactly where h is, or, of a rectifier, where it is not at its off value;
    None: the saved tensor itself."""
    low: float = -inf
    """Saved values at or below are on the lower flat end; for sigmoid and tanh the image of -5."""
    high: float = inf
    reports_flat_ends: bool = False
    """The share of inputs on a flat end says something of a channel's health."""
    flat_output: float = 0.0
    """\\|h\\| that it tends to far out on its off side."""
    passes_at_zero: bool = False
    """A rectifier that passes the gradient of an input of exactly 0."""
    restored: Callable[[Tensor], Tensor] = lambda saved: saved
    """What the node saved -> the saved tensor that all others are given."""

    @cached_property
    def rectifies(self) -> bool:
        """h is never negative, and is > 0 exactly where the saved tensor is."""
        return self.kind == "rectifier" and self.positive is None

    @cached_property
    def has_flat_ends(self) -> bool:
        """Whether some finite input lies on a flat end that is counted."""
        return self.low > -inf or self.high < inf

    @cached_property
    def is_kept_as_it_is(self) -> bool:
        """All that is read is one saved tensor, as the node keeps it."""
        return len(self.names) == 1 and self.restored is Activation.restored

    @cached_property
    def names(self) -> list[str]:
        """The saved tensors that are read."""
        return self.saved.replace("/", "*").split("*")

    @cached_property
    def _attributes(self) -> list[str]:
        return [f"_saved_{name}" for name in self.names]

    def saved_tensor(self, node: Any) -> Tensor:
        """What the node keeps for backward; the caller has made sure that no unpack hook is set on it."""
        tensors: list[Tensor] = [getattr(node, name).detach() for name in self._attributes]
        if len(tensors) == 1:
            return self.restored(tensors[0].float() if tensors[0].dtype is torch.bool else tensors[0])
        return tensors[0] / tensors[1] if "/" in self.saved else tensors[0] * tensors[1]

    def unreadable(self, node: Any) -> str | None:
        """Why reading would cost or fail: an unpack hook recomputes (checkpoint) or copies (`save_on_cpu`)."""
        hook = next((hook for name in self.names if (hook := unpack_hook(node, name)) is not None), None)
        if hook is None:
            return None
        if hook.startswith("torch.utils.checkpoint"):
            return "activation checkpointing recomputes it"
        return "it is saved through a hook (e.g. save_on_cpu)"


Reader = Callable[[Any], Activation | None]
"""For the same constants it gives the same activation, where it can: one that is not made anew at each step."""

ACTIVATIONS: dict[str, Reader] = {}
"""Node name -> its reader. A reader gives None where this use of the op is not an activation that can be read."""


ELEMENTWISE: dict[str, Reader] = {}
"""The same for functions that are activations where nothing but kernel ops follows them, and parts of norms elsewhere.
"""


def activation(*names: str) -> Callable[[Reader], Reader]:
    """Registers the decorated function as the reader of the nodes of these names (see `ops.canonical`)."""

    def register(reader: Reader) -> Reader:
        ACTIVATIONS.update(dict.fromkeys(names, reader))
        return reader

    return register


def function(*names: str) -> Callable[[Reader], Reader]:
    """Registers the reader of a function of each entry alone that has no off side."""

    def register(reader: Reader) -> Reader:
        ELEMENTWISE.update(dict.fromkeys(names, reader))
        return reader

    return register


def _same(x: Tensor) -> Tensor:
    return x


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


# -- rectifiers --------------------------------------------------------------------------------------------------


@activation("Threshold")
def _threshold(node: Any) -> Activation:
    return _on_above(float(node._saved_threshold))


@lru_cache
def _on_above(threshold: float) -> Activation:
    if threshold == 0:
        return Activation("threshold", "rectifier", "self", F.relu)
    return Activation(
        "threshold", "rectifier", "self", lambda x: torch.where(x > threshold, x, 0.0), positive=lambda x: x - threshold
    )


@activation("Hardtanh")
def _hardtanh(node: Any) -> Activation | None:
    return _clipped(float(node._saved_min_val), float(node._saved_max_val), passes_at_zero=False)


@activation("Clamp", "ClampMin")
def _clamp(node: Any) -> Activation | None:
    return _clipped(_number(node._saved_min), _number(getattr(node, "_saved_max", None)))


@lru_cache
def _clipped(low: float | None, high: float | None, passes_at_zero: bool = True) -> Activation | None:
    if low is None:
        return None
    if low and high is None:  # off at a value that is not zero, so that it cannot go without changing the output
        return Activation("clamp", "bounded", "self", lambda x: x.clamp(min=low), lambda x: x - low, low=low)
    if high is None:
        return Activation("relu", "rectifier", "self", F.relu, passes_at_zero=passes_at_zero)
    if low == 0:
        return Activation(
            "relu6" if high == 6 else "clamp",
            "rectifier",
            "self",
            lambda x: x.clamp(low, high),
            high=high,
            reports_flat_ends=True,
            passes_at_zero=passes_at_zero,
        )
    return Activation(
        "hardtanh", "bounded", "self", lambda x: x.clamp(low, high), low=low, high=high, reports_flat_ends=True
    )


@activation("Maximum")
def _maximum(node: Any) -> Activation | None:
    """`torch.maximum(x, 0)`, or of any other tensor without a gradient: off where that is larger."""
    for mine, other in (("self", "other"), ("other", "self")):
        constant, value = peek(node, other), peek(node, mine)
        if constant is None or value is None or constant.requires_grad or not value.requires_grad:
            continue
        return _above(mine, constant.detach())
    return None


def _above(saved: str, floor: Tensor) -> Activation:
    if bool(floor.any()):
        return Activation("maximum", "bounded", saved, lambda x: x.maximum(floor), lambda x: x - floor)
    return Activation("relu", "rectifier", saved, F.relu, passes_at_zero=True)


@activation("Hardshrink", "Softshrink")
def _shrink(node: Any) -> Activation:
    shrink = F.hardshrink if "Hard" in node.name() else F.softshrink
    width = float(node._saved_lambd)
    return Activation(
        shrink.__name__, "rectifier", "self", lambda x: shrink(x, width), positive=lambda x: x.abs() - width
    )


def mask(saved: str, keeps: bool, label: str) -> Reader:
    """A mask that was made without a gradient and keeps or drops entries: what it never lets through is off.

    Args:
        saved: name of the saved mask.
        keeps: whether entries that are not 0 are kept; else they are dropped.
        label: what to call it.
    """
    shown = (lambda x: (x != 0).float()) if keeps else (lambda x: (x == 0).float())
    return lambda node: Activation(label, "rectifier", saved, shown, positive=shown)


SELF_GATED = {"sigmoid": "silu", "softplus": "mish", "tanh": "gelu", "hardsigmoid": "hardswish", "relu6": "hardswish"}


def self_gated(inner: str, kind: Gating) -> Reader:
    """``x * f(x)`` by the label and kind of f: with a rectifier the product is off where f is, else it fades out."""
    label = SELF_GATED.get(inner, f"x * {inner}")
    if kind == "rectifier":
        return lambda node: Activation(label, kind, "self*other", _same, positive=torch.abs)
    return lambda node: Activation(label, "smooth", "self*other", _same)


def largest_of(dim: int) -> Reader:
    """Maxout, for the channels among which the largest is taken, or the smallest: off is what never is."""

    def read(node: Any) -> Activation:
        shape = tuple(map(int, node._saved_self_sym_sizes)) if hasattr(node, "_saved_indices") else ()
        if shape:
            keeps = bool(node._saved_keepdim)
            return Activation(
                "maxout",
                "rectifier",
                "indices",
                _same,
                restored=lambda places: torch.zeros(shape, device=places.device).scatter_(
                    dim, places if keeps else places.unsqueeze(dim), 1.0
                ),
            )
        extreme = torch.amax if "Amax" in node.name() else torch.amin
        wins: Callable[[Tensor], Tensor] = lambda x: (x == extreme(x, dim, keepdim=True)).to(x.dtype)  # noqa: E731
        return Activation("maxout", "rectifier", "self", lambda x: x * wins(x), positive=wins)

    return read


def consumed(saved: str, label: str) -> Reader:
    """What an in-place op left in a tensor, as the kernel op that consumes it saved it: off where it is exactly 0."""
    return lambda node: Activation(label, "rectifier", saved, _same, positive=torch.abs)


# -- leaky -------------------------------------------------------------------------------------------------------


@activation("LeakyRelu")
def _leaky_relu(node: Any) -> Activation:
    return _leaky("leaky_relu", hasattr(node, "_saved_result"), float(node._saved_negative_slope))


@activation("RreluWithNoise")
def _rrelu(node: Any) -> Activation:
    return _leaky("rrelu", hasattr(node, "_saved_result"), 0.01)


@lru_cache
def _leaky(label: str, in_place: bool, slope: float) -> Activation:
    kind: Gating = "rectifier" if slope == 0 else "leaky"
    if in_place:
        return Activation(label, kind, "result", _same)
    return Activation(label, kind, "self", lambda x: F.leaky_relu(x, slope))


@activation("PreluKernel")
def _prelu(node: Any) -> Activation:
    slopes = node._saved_weight.detach()
    return Activation("prelu", "leaky", "self", lambda x: torch.where(x > 0, x, x * slopes))


# -- smooth ------------------------------------------------------------------------------------------------------


@activation("Elu")
def _elu(node: Any) -> Activation:
    scale = float(getattr(node, "_saved_scale", 1.0))
    alpha = float(getattr(node, "_saved_alpha", 1.0))
    label = "selu" if scale != 1 else "elu"
    if hasattr(node, "_saved_result"):
        return Activation(label, "smooth", "result", _same, flat_output=scale * alpha)
    return Activation(label, "smooth", "self", lambda x: F.elu(x, alpha) * scale, flat_output=scale * alpha)


@activation("Celu")
def _celu(node: Any) -> Activation:
    alpha = float(node._saved_alpha)
    return Activation("celu", "smooth", "self", lambda x: F.celu(x, alpha), flat_output=alpha)


# -- bounded -----------------------------------------------------------------------------------------------------


@activation("Softplus")
def _softplus(node: Any) -> Activation:
    """Positive everywhere, so that only its flat end tells an off channel: slope and output are next to zero there.

    Smooth and not bounded, since many nets work in its tail on purpose (a small variance, a step size).
    """
    beta = float(node._saved_beta)
    return Activation(
        "softplus",
        "smooth",
        "self",
        lambda x: F.softplus(x, beta),
        F.softplus,
        low=-5.0 / beta,
        reports_flat_ends=True,
    )


# -- functions without an off side -------------------------------------------------------------------------------


@function("Pow")
def _power(node: Any) -> Activation:
    return Activation("square" if node._saved_exponent == 2 else "power", "leaky", "self", torch.abs, torch.abs)


# -- without constants -------------------------------------------------------------------------------------------

SIGMOID_AT_5 = 0.9933071490757153
TANH_AT_5 = 0.9999092042625951


def _always(found: Activation) -> Reader:
    return lambda node: found


def _smooth(label: str, output: Callable[[Tensor], Tensor]) -> Activation:
    return Activation(label, "smooth", "self", output)


def _flat(label: str, saved: str, output: Callable[[Tensor], Tensor], low: float, high: float, **of: Any) -> Activation:
    return Activation(label, "bounded", saved, output, low=low, high=high, reports_flat_ends=True, **of)


def _without_off_side(label: str, saved: str, output: Callable[[Tensor], Tensor]) -> Activation:
    return Activation(label, "leaky", saved, output, None if output is _same else output)


ACTIVATIONS |= {
    name: _always(found)
    for name, found in {
        "Relu": Activation("relu", "rectifier", "result", _same),
        "Gelu": _smooth("gelu", F.gelu),
        "Silu": _smooth("silu", F.silu),
        "Mish": _smooth("mish", F.mish),
        "Hardswish": _smooth("hardswish", F.hardswish),
        "Sigmoid": _flat("sigmoid", "result", _same, 1 - SIGMOID_AT_5, SIGMOID_AT_5),
        "Tanh": _flat("tanh", "result", _same, -TANH_AT_5, TANH_AT_5),
        "Hardsigmoid": _flat("hardsigmoid", "self", F.hardsigmoid, -3.0, 3.0, positive=F.hardsigmoid),
        "LogSigmoid": _flat("logsigmoid", "self", F.logsigmoid, -inf, 5.0, positive=lambda x: F.softplus(-x)),
        # read at the half that gates
        "Glu": _flat("glu", "self", torch.sigmoid, -5.0, 5.0, positive=torch.sigmoid),
    }.items()
}
ELEMENTWISE |= {
    name: _always(found)
    for name, found in {
        "Sin": _without_off_side("sin", "self", torch.sin),
        "Cos": _without_off_side("cos", "self", torch.cos),
        "Exp": _without_off_side("exp", "result", _same),
        "Abs": _without_off_side("abs", "self", torch.abs),
        "Square": _without_off_side("square", "self", torch.abs),
        # of two functions of the same channel: x * x, x * sin(x)
        "Mul": Activation("square", "leaky", "self*other", _same, torch.abs),
        # x / (1 + |x|) and the like
        "Div": Activation("softsign", "smooth", "self/other", _same),
    }.items()
}
