"""Weights that are sharded over ranks (FSDP2): what the graph holds of them, and how to see them whole."""

from __future__ import annotations

from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor (a DTensor), which every rank must ask for; any other tensor as it is."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


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
