"""The weights in a state dict, whatever parts they are kept in; of those that cannot be read, why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from lightning_deadkernel.report.codec import MAX_CHANNELS

_RECURRENT = re.compile(r"weight_(ih|hh|hr)_l\d+(_reverse)?|in_proj_weight")
"""Weights of torch.nn.LSTM, GRU and RNN, whose kernels are the rows of all gates, and of MultiheadAttention."""
_NORMED = "parametrizations.weight.original"


def weights_of(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | str]]:
    """Module name and effective weight, in order; or why there is none."""
    for name, value in tensors.items():
        module, _, last = name.rpartition(".")
        stem = name.rpartition("_")[0]
        if last == "weight" or (last == "weight_orig" and f"{stem}_u" in tensors):  # spectral norm: up to a factor
            yield module or name, unreadable(value) or value
        elif _RECURRENT.fullmatch(last):
            yield name, unreadable(value) or value
        elif last == "weight_orig":
            yield module or name, _together(tensors, name, f"{stem}_mask", _masked)
        elif last in ("weight_v", "weight_g") and f"{stem}_orig" not in tensors:
            if last == "weight_v" or f"{stem}_v" not in tensors:
                yield module or name, _together(tensors, f"{stem}_v", f"{stem}_g", _normed)
        elif name.endswith((f"{_NORMED}0", f"{_NORMED}1")) and (name[-1] == "1" or f"{name[:-1]}1" not in tensors):
            owner = name[: -len(_NORMED) - 1].rstrip(".")
            yield owner or name, _together(tensors, f"{name[:-1]}1", f"{name[:-1]}0", _normed)


def unreadable(tensor: Tensor) -> str | None:
    """Why nothing can be said of a tensor's values, if so."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "it is nested" if tensor.is_nested else f"its layout is {tensor.layout}"
    if tensor.numel() == 0:
        return "it is empty"
    if tensor.is_meta:
        return "it has a shape and no values (device meta)"
    if not tensor.is_floating_point():
        return f"its type is {tensor.dtype}"
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:  # one number may stand for as many as no memory holds
        return f"its {tensor.numel():,} entries are {stored:,} that repeat (an expanded view)"
    if tensor.dim() and len(tensor) > MAX_CHANNELS:
        return f"it has {len(tensor):,} rows, and a report at most {MAX_CHANNELS:,}"
    return None


def _together(
    tensors: Mapping[str, Tensor], first: str, second: str, join: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | str:
    """A weight of two parts; or why there is none."""
    for part in (first, second):
        if part not in tensors:
            return f"there is half of it: {part} is missing"
        why = unreadable(tensors[part])
        if why is not None and not (join is _masked and part == second and "its type" in why):  # masks are of any type
            return f"of {part}, {why}"
    weight, other = tensors[first], tensors[second]
    if weight.dim() != other.dim() or any(n not in (1, m) for n, m in zip(other.shape, weight.shape, strict=True)):
        return f"{first} is of shape {shape_of(weight)}, and {second} of {shape_of(other)}"
    return join(widened(weight), other)


def shape_of(tensor: Tensor) -> str:
    """``"16x3x3x3"``."""
    return "x".join(map(str, tensor.shape))


def widened(weight: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return weight if weight.dtype == torch.float64 else weight.float()


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask.to(weight.dtype)


def _normed(direction: Tensor, size: Tensor) -> Tensor:
    """What `weight_norm` computes: g * v / ||v||, over all axes but those in which g has more than one entry."""
    over = [axis for axis, length in enumerate(size.shape) if length == 1]
    length = torch.linalg.vector_norm(direction, dim=over, keepdim=True) if over else direction.abs()
    effective: Tensor = widened(size) * direction / length.clamp_min(torch.finfo(torch.float32).tiny)
    return effective
