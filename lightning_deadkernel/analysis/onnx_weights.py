"""The weights in an ONNX file, named and turned as a PyTorch state dict has them: kernels along the first axis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NORM = ("weight", "bias", "running_mean", "running_var")
"""Inputs of a BatchNormalization after the first; https://onnx.ai/onnx/operators/ has those of all ops."""
RECURRENT = ("weight_ih", "weight_hh")
"""Inputs of LSTM, GRU and RNN after the first: (directions, gates x hidden, inputs) each."""


def state_dict_of(path: Path) -> dict[str, Tensor]:
    """The weights of convolutions, linear layers, recurrences and batch norms, in the order in which they are used.

    A matrix that a product has on its right is (inputs, outputs), and that of a transposed convolution
    (inputs, outputs, ...): both are turned. What has no name of its own goes by that of its node.

    Raises:
        ImportError: if `onnx` is not installed.
    """
    import onnx  # an extra of its own: no other command needs it

    graph = onnx.load(path).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    state: dict[str, Tensor] = {}
    for place, node in enumerate(graph.node):
        given = [
            (position, name, _tensor(onnx.numpy_helper.to_array(arrays[name])))
            for position, name in enumerate(node.input)
            if name in arrays
        ]
        own = next((name for _, name, _ in given if name.endswith(".weight")), "")
        module = own.removesuffix(".weight") or node.name or f"{node.op_type}_{place}"
        state.update((f"{module}.{name}".lstrip("."), value) for name, value in _of_node(node, given))
    return state


def _of_node(node: Any, given: list[tuple[int, str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    for position, _, tensor in given:
        if node.op_type == "BatchNormalization" and 0 < position <= len(NORM):
            yield NORM[position - 1], tensor
        elif node.op_type in ("LSTM", "GRU", "RNN") and 0 < position <= len(RECURRENT):
            for ending, rows in zip(("_l0", "_l0_reverse"), tensor, strict=False):
                yield RECURRENT[position - 1] + ending, rows
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm") and position == 2:
            yield "bias", tensor
        elif node.op_type == "Conv" and position == 1:
            yield "weight", tensor
        elif node.op_type == "ConvTranspose" and position == 1:
            yield "weight", tensor.transpose(0, 1)
        elif node.op_type == "Gemm" and position == 1:
            yield "weight", tensor if settings.get("transB") else tensor.T
        elif node.op_type == "MatMul" and position == 1 and tensor.dim() == 2:
            yield "weight", tensor.T


def _tensor(array: Any) -> Tensor:
    try:
        return torch.from_numpy(array.copy())
    except TypeError:  # bfloat16 and smaller, which numpy has from elsewhere
        return torch.from_numpy(array.astype("float32"))
