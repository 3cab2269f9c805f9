"""What a checkpoint and the model's code prove together."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_deadkernel.analysis.audit import AuditError
from lightning_deadkernel.analysis.audit_model import audit_model
from lightning_deadkernel.cli.main import main

CODE = """
import torch
from torch import nn
import lightning as L

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 3, 8, 8)
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.unit, self.out = nn.Conv2d(6, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return self.out(torch.relu(self.unit(y)).mean((2, 3)))

def alone():
    return Net()

def with_batch():
    net = nn.Sequential(nn.Sigmoid(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    return net, torch.randn(2, 3, requires_grad=True)

def wrong():
    return 3

def broken():
    raise RuntimeError("no data")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    return tmp_path


def weights(code: Path) -> Path:
    import own_code  # type: ignore[import-not-found]

    net = own_code.Net()
    with torch.no_grad():
        net.conv.weight[0] = 0.0  # zero, and its norm's shift above zero: a constant, and no rectifier is shut
        net.norm.bias[:3] = torch.tensor([1.0, -0.5, -0.5])
        net.norm.weight[1] = 0.0  # no input passes, and the shift is below zero
        net.unit.weight.abs_()
        net.unit.weight[2] = -net.unit.weight[2].abs()  # reads a rectifier
        net.unit.bias[2:] = -1.0
    torch.save(net.state_dict(), code / "net.pt")
    return code / "net.pt"


def test_a_checkpoint_alone_gives_certificates_where_its_model_is_known(code: Path, capsys: Any) -> None:
    path = weights(code)
    assert main(["audit", str(path), "--model", "own_code:alone", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert {name: layer["certified_dead"] for name, layer in layers.items()} == {"conv": [1], "unit": [2], "out": []}
    assert layers["conv"]["states"]["dead"] == [1]
    assert layers["conv"]["activation"] == "relu"
    assert layers["conv"]["kind"] == "Conv2d"
    dead = [finding for finding in report["findings"] if finding["kind"] == "dead_channels"]
    assert [(finding["layer"], finding["channels"]) for finding in dead] == [("conv", [1]), ("unit", [2])]
    assert report["savings"]["channels"] == 2


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net."])
def test_weights_that_lie_under_a_prefix_are_those_of_the_model(prefix: str, code: Path, capsys: Any) -> None:
    state = {f"{prefix}{name}": value for name, value in torch.load(weights(code)).items()}
    told = []
    for name, content in {"net.pt": None, "within.pt": state | {"loss.weight": torch.ones(3)}}.items():
        if content is not None:
            torch.save(content, name)
        assert main(["audit", name, "--model", "own_code:alone", "--format", "json"]) == 0
        told.append(json.loads(capsys.readouterr().out)["layers"])
    assert told[0] == told[1]
    torch.save(state | {f"ema.{name}": value for name, value in state.items()}, "two.pt")
    assert main(["audit", "two.pt", "--model", "own_code:alone"]) == 2
    assert "it has no conv.weight" in capsys.readouterr().err


def test_limits_on_dead_kernels_can_be_set_where_a_model_is_given_only(code: Path, capsys: Any) -> None:
    path = str(weights(code))
    assert main(["audit", path, "--model", "own_code:alone", "--fail-on", "dead_channels=0"]) == 1
    printed = capsys.readouterr().out
    assert "and its model; nothing was trained" in " ".join(printed.split())
    assert "1 of 6 kernels is dead" in printed
    assert "All of them are certified: no input at all can make them fire with these weights" in " ".join(
        printed.split()
    )
    assert main(["audit", path, "--fail-on", "dead_channels=0"]) == 2
    assert "knows no 'dead_channels'" in capsys.readouterr().err


def test_a_factory_may_give_a_batch_with_any_module(code: Path, capsys: Any) -> None:
    import own_code

    net, _ = own_code.with_batch()
    with torch.no_grad():
        net[1].weight.fill_(1.0)
        net[1].bias.copy_(torch.tensor([-3.1, -2.9, 0.0, 1.0]))
    torch.save(net.state_dict(), "seq.pt")
    assert main(["audit", "seq.pt", "--model", "own_code:with_batch", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["certified_dead"] == [0]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("own_code", "expected package.module:factory or a config file"),
        ("own_code:missing", "has no attribute 'missing'"),
        ("no_such_package:f", "No module named"),
        ("own_code:wrong", "expected a module, or a module and a batch, but got int"),
        ("own_code:with_batch", "it has no 1.weight, 1.bias, 3.weight, 3.bias of Sequential"),
        ("own_code:broken", "RuntimeError: no data"),
        ("none.yaml", "no such file"),
    ],
)
def test_what_is_no_model_of_the_weights_is_said(code: Path, named: str, says: str, capsys: Any) -> None:
    assert main(["audit", str(weights(code)), "--model", named]) == 2
    assert says in capsys.readouterr().err


def test_the_config_of_a_training_gives_its_model_and_a_batch(tmp_path: Path, capsys: Any) -> None:
    config = Path(__file__).parents[2] / "configs" / "zero_kernels.yaml"
    assert main(["audit", str(_checkpoint_of(config, tmp_path)), "--model", str(config), "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert any(layer["certified_dead"] for layer in report["layers"])


def _checkpoint_of(config: Path, folder: Path) -> Path:
    from lightning_deadkernel.cli.model import model_of

    model, _ = model_of(str(config))
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight[0] = 0.0
        if first.bias is not None:
            first.bias[0] = 0.0
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias[0] = -1.0
                module.weight[0] = 0.0
    torch.save({"state_dict": model.state_dict(), "epoch": 3, "global_step": 70}, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_neither_the_weights_nor_the_random_numbers_are_touched(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 1))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    before, random = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    audit_model(tmp_path / "net.pt", net, lambda: net(torch.randn(2, 3)))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_output_without_a_gradient_is_an_error(tmp_path: Path) -> None:
    net = nn.Linear(3, 1)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(AuditError, match="does not depend on its weights"):
        audit_model(tmp_path / "net.pt", net, lambda: net(torch.randn(2, 3)).detach())
    with pytest.raises(AuditError, match="its weights are not those of Linear"):
        audit_model(tmp_path / "net.pt", nn.Linear(2, 1), lambda: None)
