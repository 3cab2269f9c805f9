"""An ONNX file is audited as the state dict that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_deadkernel.analysis.audit import AuditError, audit, audit_state_dict

onnx = pytest.importorskip("onnx")


def write(path: Path, nodes: list[Any], **weights: Tensor) -> None:
    """A graph of these nodes; an underscore in a name stands for a dot."""
    stored = [onnx.numpy_helper.from_array(w.numpy(), name.replace("_", ".")) for name, w in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], stored)
    onnx.save(onnx.helper.make_model(graph), path)


def node(kind: str, *inputs: str, **settings: Any) -> Any:
    return onnx.helper.make_node(kind, list(inputs), ["out"], **settings)


def test_each_op_is_read_with_its_kernels_along_the_first_axis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "up": nn.ConvTranspose2d(4, 5, 2),
            "gemm": nn.Linear(6, 7),
            "turned": nn.Linear(6, 8),
            "product": nn.Linear(9, 2, bias=False),
            "lstm": nn.LSTM(3, 5, bidirectional=True),
        }
    )
    state = {name.replace(".", "_"): value for name, value in layers.state_dict().items()}
    assert isinstance(layers["conv"], nn.Conv2d)
    with torch.no_grad():
        layers["conv"].weight[2] = 0.0
        state["norm_weight"][1] = 0.0
        layers["up"].weight[:, 3] = 0.0
        layers["gemm"].weight[4] = 0.0
        layers["turned"].weight[5] = 0.0
        layers["product"].weight[1] = 0.0
    nodes = [
        node("Conv", "x", "conv.weight", "conv.bias"),
        node("BatchNormalization", "out", "norm.weight", "norm.bias", "norm.running.mean", "norm.running.var"),
        node("ConvTranspose", "out", "up.weight", "up.bias"),
        node("Gemm", "out", "gemm.weight", "gemm.bias", transB=1),
        node("Gemm", "out", "turned.weight", "turned.bias"),
        node("MatMul", "out", "product", name="product"),
        node("LSTM", "out", "W", "R", name="lstm"),
    ]
    state["turned_weight"] = state["turned_weight"].T.contiguous()
    state["product"] = state.pop("product_weight").T.contiguous()
    for new, old in {"W": "ih", "R": "hh"}.items():
        ends = ("", "_reverse")
        state[new] = torch.stack([state.pop(f"lstm_weight_{old}_l0{end}") for end in ends])
        for end in ends:
            state.pop(f"lstm_bias_{old}_l0{end}")
    state.pop("norm_num_batches_tracked")
    write(tmp_path / "net.onnx", nodes, **state)
    found = audit(tmp_path / "net.onnx")
    zero = {layer.name: layer.zero_kernels for layer in found.layers if layer.zero_kernels}
    assert zero == {"conv": [1, 2], "up": [3], "gemm": [4], "turned": [5], "product": [1]}
    channels = {layer.name: layer.channels for layer in found.layers}
    assert channels["up"] == 5, "a state dict does not tell; the op does"
    expected = {**layers.state_dict(), "up.weight": layers["up"].state_dict()["weight"].transpose(0, 1)}
    assert channels == {layer.name: layer.channels for layer in audit_state_dict(expected, "it").layers}


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="beside the oldest releases, onnx reads no bfloat16")
def test_bfloat16_is_read_and_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    raw = onnx.helper.make_tensor("a.weight", onnx.TensorProto.BFLOAT16, [2, 2], [1.0, 2.0, 0.0, 0.0])
    graph = onnx.helper.make_graph([node("Conv", "x", "a.weight")], "graph", [], [], [raw])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "half.onnx")
    assert audit(tmp_path / "half.onnx")["a"].zero_kernels == [1]
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(AuditError, match="not an ONNX file"):
        audit(tmp_path / "text.onnx")


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(AuditError, match=r"lightning-deadkernel\[onnx\]"):
        audit(tmp_path / "a.onnx")
