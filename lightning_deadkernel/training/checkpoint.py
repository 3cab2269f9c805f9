"""What a checkpoint holds, in few pieces: each tensor of its own costs `torch.save` as much as a layer's step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PLACE = "<tensor>"


def joined(state: Any) -> dict[str, Any]:
    """Plain data as one JSON text, and its tensors, on the CPU, one behind another, one piece for each dtype.

    Args:
        state: dicts with strings as keys, lists, strings, numbers, None and tensors.
    """
    parts: dict[torch.dtype, list[Tensor]] = {}
    sizes: dict[torch.dtype, int] = {}

    def place(value: Any) -> dict[str, Any]:
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected plain data and tensors, but got {type(value).__name__}.")
        dtype, shape = value.dtype, value.shape
        start = sizes.get(dtype, 0)
        sizes[dtype] = start + shape.numel()
        parts.setdefault(dtype, []).append(value if len(shape) == 1 else value.reshape(-1))
        return {PLACE: [str(dtype), start, shape]}

    text = json.dumps(state, default=place)
    return {"text": text, "tensors": {str(dtype): torch.cat(pieces).cpu() for dtype, pieces in parts.items()}}


def parted(state: Any) -> Any:
    """What was given to `joined`, its tensors views of the pieces; what another release wrote comes back as it is."""
    if not isinstance(state, Mapping) or state.keys() != {"text", "tensors"}:
        return state

    def restored(value: dict[str, Any]) -> Any:
        if value.keys() != {PLACE}:
            return value
        kind, start, shape = value[PLACE]
        whole: Tensor = state["tensors"][kind]
        size = torch.Size(shape).numel()
        return whole[start : start + size].view(shape)

    return json.loads(state["text"], object_hook=restored)
