"""Activations in the forms that people write. What each does on its off side is all that the oracle is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Form = Callable[[Tensor], Tensor]

JUMP = 0.1


def _top_half(x: Tensor) -> Tensor:
    kept = torch.zeros_like(x, dtype=torch.bool)
    axis = 1 if x.ndim > 2 else -1
    return x * kept.scatter(axis, x.topk(max(1, x.shape[axis] // 2), axis).indices, True)


def _written_over(x: Tensor) -> Tensor:
    out = x.clone()
    out[out < 0] = 0.0
    return out


RECTIFIERS: dict[str, Form] = {
    "relu": F.relu,
    "relu_module": nn.ReLU(),
    "relu_inplace": torch.relu_,
    "relu6": F.relu6,
    "relu6_inplace": nn.ReLU6(inplace=True),
    "clamp_min": lambda x: x.clamp(min=0),
    "clamp_min_inplace": lambda x: x.clamp_(min=0),
    "clamp_0_1": lambda x: x.clamp(0, 1),
    "maximum": lambda x: torch.maximum(x, x.new_zeros(())),
    "maximum_zeros": lambda x: torch.maximum(torch.zeros_like(x), x),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "threshold_jump": lambda x: F.threshold(x, JUMP, 0.0),
    "hardtanh_0_2": lambda x: F.hardtanh(x, 0.0, 2.0),
    "mask_product": lambda x: x * (x > 0),
    "mask_product_float": lambda x: x * (x > 0).to(x.dtype),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where_zeros": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "masked_fill": lambda x: x.masked_fill(x <= 0, 0.0),
    "jump_relu": lambda x: x * (x > JUMP),
    "relu_squared": lambda x: F.relu(x).square(),
    "relu_shifted": lambda x: F.relu(x - JUMP),
    "relu_cubed": lambda x: F.relu(x) ** 3,
    "relu_by_minimum": lambda x: torch.minimum(F.relu(x), x.new_tensor(6.0)),
    "relu_times_itself": lambda x: x * F.relu(x),
    "leaky_relu_without_slope": lambda x: F.leaky_relu(x, 0.0),
    "clip": lambda x: torch.clip(x, 0.0, 3.0),
    "masked_fill_of_a_copy": lambda x: x.clone().masked_fill_(x < 0, 0.0),
    "index_put": _written_over,
    "where_zero_first": lambda x: torch.where(x <= 0, x.new_zeros(()), x),
    "gated_by_sign": lambda x: x * x.sign().clamp(min=0).detach(),
    "log1p_of_relu": lambda x: torch.log1p(F.relu(x)),
}
"""Zero output and zero slope below the line; some pass a gradient at exactly zero."""

OTHERS: dict[str, Form] = {
    "leaky_relu": F.leaky_relu,
    "leaky_relu_inplace": nn.LeakyReLU(inplace=True),
    "leaky_maximum": lambda x: torch.maximum(x, 0.1 * x),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "elu": F.elu,
    "elu_inplace": nn.ELU(inplace=True),
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_written_out": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh_written_out": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "silu_inplace": nn.SiLU(inplace=True),
    "swish_written_out": lambda x: x * torch.sigmoid(x),
    "mish": F.mish,
    "mish_written_out": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "shifted_softplus": lambda x: F.softplus(x) - 0.6931471805599453,
    "sigmoid": torch.sigmoid,
    "sigmoid_inplace": torch.sigmoid_,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "softsign": F.softsign,
    "softsign_written_out": lambda x: x / (1 + x.abs()),
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "sin": torch.sin,
    "snake": lambda x: x + torch.sin(x) ** 2,
    "abs": torch.abs,
    "square": torch.square,
    "signed_relus": lambda x: F.relu(x) - 0.5 * F.relu(-x),
    "relu_and_slope": lambda x: F.relu(x) + 0.1 * torch.minimum(x, x.new_zeros(())),
    "celu_module": nn.CELU(0.5),
    "erf": torch.erf,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "exp_of_minus_square": lambda x: torch.exp(-(x**2)),
    "softplus_steep": lambda x: F.softplus(x, 5.0),
    "sigmoid_less_half": lambda x: torch.sigmoid(x) - 0.5,
    "hard_step_softened": lambda x: torch.clamp(x, -0.5, 0.5) + 0.5,
    "logcosh": lambda x: torch.log(torch.cosh(x.clamp(-9, 9))),
    "half_of_sum_with_abs": lambda x: (x + x.abs()) / 2,  # a relu whose two paths cancel
}
"""A slope somewhere below zero, or flat ends that are not zero."""

MIXED: dict[str, Form] = {
    "top_half": _top_half,
    "softmax": lambda x: torch.softmax(x, 1 if x.ndim > 2 else -1),
}
"""Across channels: what leaves one depends on the others."""
