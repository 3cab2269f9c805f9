"""Weights that are sharded over ranks (FSDP2): what the graph holds of them, and how to see them whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
"""To ask one of these types for what it does not have takes longer than to look at its type."""


def whole(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor (a DTensor), which every rank must ask for; any other tensor as it is."""
    if type(tensor) in PLAIN:
        return tensor
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def local(tensor: Tensor) -> Tensor:
    """This rank's whole rows of a DTensor sharded over dim 0 (FSDP2); any other tensor as it is."""
    if type(tensor) in PLAIN:
        return tensor
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def is_sharded(tensor: Any) -> bool:
    """Whether this rank holds a part of the tensor alone (a DTensor)."""
    return type(tensor) not in PLAIN and hasattr(tensor, "to_local")


def shard_offset(tensor: Any) -> int:
    """First global row of a DTensor's local shard along dim 0; 0 for any other tensor."""
    if not is_sharded(tensor):
        return 0
    # the private name is that of torch 2.3 to 2.13; imported here, since torch may be built without distributed
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0])


def share(parameter: Any) -> float:
    """This rank's part when squares are added up over all ranks: one over the number of equal copies."""
    world = torch.distributed.get_world_size()
    if not is_sharded(parameter):
        return 1 / world
    mesh = parameter.device_mesh
    parts = 1
    for dimension, placement in enumerate(parameter.placements):
        parts *= mesh.size(dimension) if placement.is_shard() else 1
    return parts / world


def unsharded(model: nn.Module) -> dict[int, nn.Parameter]:
    """id of each parameter that FSDP2 gathers for the forward pass -> the sharded parameter it was gathered from.

    The graph holds the former, the optimizer the latter. These are private names of `torch.distributed.fsdp`; where
    they are others, nothing is found, and the layers are reported as not in the graph.
    """
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        state_of = getattr(module, "_get_fsdp_state", None)
        if state_of is None:
            continue
        state = state_of()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            for parameter in getattr(group, "fsdp_params", ()):
                gathered = getattr(parameter, "_unsharded_param", None)
                if gathered is not None:
                    found[id(gathered)] = parameter.sharded_param
    return found
