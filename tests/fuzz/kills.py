"""Seven ways to kill a channel by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

from fuzz.network import Network
from fuzz.programs import Op

FAR = 100.0


@torch.no_grad()
def kill(net: Network, op: Op) -> None:
    """Does what a kill says to the modules of a network."""
    name, channels = op.args[0], list(op.options["channels"])
    module = net.get_submodule(name)
    if op.name == "shift_far":
        module.bias[channels] = -FAR
    elif op.name == "scale_zero":
        module.weight[channels] = 0.0
        module.bias[channels] = -module.bias[channels].abs() * op.options["shift"]
    else:
        _kill_kernels(net, op, module, channels)


def _kill_kernels(net: Network, op: Op, module: nn.Module, channels: list[int]) -> None:
    kernel = net.kernels[op.args[0]]
    weight, bias = kernel.leaves()[0], getattr(module, "bias", None)
    if op.name == "bias_far":
        if bias is None:
            raise ValueError("it has no bias")
        bias[channels] = -FAR
    elif op.name == "zero_kernel":
        kernel.zero(channels)
        if bias is not None:
            bias[channels] = 0.0
    elif op.name == "negative":
        if bias is None or kernel.axis != 0 or len(kernel.leaves()) > 1:
            raise ValueError("its kernels are not along axis 0, or have no bias")
        weight[channels], bias[channels] = -weight[channels].abs(), -bias[channels].abs() - 0.1
    elif op.name == "unread":
        if kernel.axis != 0 or weight.ndim < 2 or weight.shape[1] <= max(channels):
            raise ValueError("its inputs are not along axis 1")
        weight[:, channels] = 0.0
    elif op.name == "pruned":
        mask = torch.ones_like(weight)
        mask.movedim(kernel.axis, 0)[channels] = 0.0
        prune.custom_from_mask(module, kernel.tensor, mask)
    else:
        raise ValueError(f"no such kill: {op.name!r}")


KERNEL_KILLS = ("bias_far", "zero_kernel", "unread", "pruned", "negative")
NORM_KILLS = ("shift_far", "scale_zero")
