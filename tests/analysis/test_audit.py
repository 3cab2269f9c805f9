from __future__ import annotations

import argparse
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_deadkernel.analysis.audit import AuditError, audit, audit_state_dict
from lightning_deadkernel.cli.main import main
from lightning_deadkernel.demo import MLP, DigitsDataModule, SmallCNN


@pytest.fixture
def sick() -> SmallCNN:
    """Kernels 2 and 5 of conv1 zero, 7 next to it; scales 5 and 9 of its norm collapsed."""
    torch.manual_seed(0)
    model = SmallCNN()
    with torch.no_grad():
        model.conv1.weight[[2, 5]] = 0
        model.conv1.weight[7] *= 1e-5
        model.norm1.weight[5] = 0
        model.norm1.weight[9] = -1e-4
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def assert_found(path: Path) -> None:
    conv1, conv2, head = audit(path).layers
    assert (conv1.name, conv1.shape, conv1.norm) == ("conv1", (16, 1, 3, 3), "norm1")
    assert conv1.zero_kernels == (2, 5, 7)
    assert conv1.collapsed_scales == (5, 9)
    assert conv1.constant == (2, 5, 7, 9)
    assert conv1.zeros == pytest.approx(2 / 16)
    assert (conv2.constant, head.constant, head.norm) == ((), (), None)


def test_a_state_dict_a_lightning_checkpoint_and_safetensors_tell_the_same(tmp_path: Path, sick: SmallCNN) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch.save(sick.state_dict(), tmp_path / "weights.pt")
    safetensors.save_file(state_of(sick), tmp_path / "weights.safetensors")
    trainer = L.Trainer(accelerator="cpu", max_steps=0, logger=False, enable_progress_bar=False)
    trainer.fit(sick, datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    for name in ("weights.pt", "weights.safetensors", "run.ckpt"):
        assert_found(tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_type_is_read(tmp_path: Path, sick: SmallCNN, dtype: torch.dtype) -> None:
    torch.save({"model": sick.to(dtype).state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    assert_found(tmp_path / "weights.pt")


def test_the_summary_counts_a_kernel_once_and_weighs_layers_by_their_size(sick: SmallCNN) -> None:
    summary = audit_state_dict(state_of(sick), "x").summary()
    assert summary["dead_fraction"] == pytest.approx(4 / 58)
    assert summary["zero_kernel_fraction"] == pytest.approx(3 / 58)
    assert summary["collapsed_scale_fraction"] == pytest.approx(2 / 58)
    assert summary["weight_sparsity"] == pytest.approx(18 / (144 + 4608 + 1280))
    assert summary["identical_layers"] == summary["non_finite_weights"] == 0


def test_identical_kernels_are_found_and_kernels_of_zeros_are_not_called_so() -> None:
    layers = {layer.name: layer for layer in audit_state_dict(state_of(MLP(init="constant")), "x").layers}
    assert [name for name, layer in layers.items() if layer.identical] == [f"net.linear{i}" for i in range(1, 5)]
    (zero,) = audit_state_dict({"head.weight": torch.zeros(3, 4)}, "x").layers
    assert not zero.identical
    assert zero.zero_kernels == (0, 1, 2)


def test_weights_made_of_parts_are_put_together() -> None:
    torch.manual_seed(0)
    pruned = prune.ln_structured(nn.Conv2d(3, 8, 3), "weight", amount=3, n=2, dim=0)
    masked = (pruned.weight.flatten(1).norm(dim=1) == 0).nonzero().flatten().tolist()
    new = parametrizations.weight_norm(nn.Linear(4, 5))
    old = nn.utils.weight_norm(nn.Linear(4, 5))
    with torch.no_grad():
        new.parametrizations.weight.original0[1] = 0
        old.weight_g[3] = 0
    modules = nn.ModuleDict({"pruned": pruned, "new": new, "old": old})
    layers = {layer.name: layer for layer in audit_state_dict(state_of(modules), "x").layers}
    assert sorted(layers) == ["new", "old", "pruned"]
    assert list(layers["pruned"].zero_kernels) == masked
    assert len(masked) == 3
    assert layers["new"].zero_kernels == (1,)
    assert layers["old"].zero_kernels == (3,)


def test_a_layer_norm_is_not_taken_for_the_norm_of_what_comes_before_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    with torch.no_grad():
        model[1].weight.zero_()
    first, second = audit_state_dict(state_of(model), "x").layers
    assert (first.norm, first.collapsed_scales) == (None, ())
    assert second.norm == "3"


def test_norms_are_found_by_name_where_the_file_is_sorted_by_name() -> None:
    block = nn.ModuleDict(
        {
            "conv10": nn.Conv2d(1, 4, 1),
            "bn10": nn.BatchNorm2d(4),
            "conv2": nn.Conv2d(4, 4, 1),
            "norm2": nn.BatchNorm2d(4),
            "alone": nn.Conv2d(4, 4, 1),
            "stack": nn.Sequential(*[nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)] * 2),
        }
    )
    state = dict(sorted(block.state_dict().items()))
    layers = audit_state_dict(state, "x", ordered=False).layers
    found = {layer.name: layer.norm for layer in layers}
    stack = {"stack.0": "stack.1", "stack.2": "stack.3"}
    assert found == {"alone": None, "conv10": "bn10", "conv2": "norm2", **stack}


def test_nan_and_infinity_are_counted_and_make_no_kernel_zero() -> None:
    weight = torch.randn(4, 3)
    weight[1, 0], weight[2, 2] = float("nan"), float("inf")
    result = audit_state_dict({"a.weight": weight}, "x")
    assert result.layers[0].non_finite == 2
    assert result.layers[0].zero_kernels == ()
    assert "NaN" not in json.dumps(json.loads(result.to_json()))


def test_sparsity_agrees_with_a_gaussians_known_figures() -> None:
    torch.manual_seed(0)
    (layer,) = audit_state_dict({"a.weight": torch.randn(500, 2000)}, "x").layers
    assert layer.near_zeros == pytest.approx(0.0080, abs=3e-4)
    assert layer.gini == pytest.approx(2**0.5 - 1, abs=2e-3)


def test_integer_weights_are_named_as_not_read() -> None:
    result = audit_state_dict({"a.weight": torch.ones(2, 2), "q.weight": torch.ones(2, 2, dtype=torch.int8)}, "x")
    assert [layer.name for layer in result.layers] == ["a"]
    assert result.skipped == ("q: its type is torch.int8",)
    assert "q: its type is torch.int8" in result.to_markdown()


class Opaque:
    pass


def test_what_cannot_be_audited_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"a.weight": torch.ones(2, 2)}
    torch.save({"state_dict": weights, "hyper_parameters": argparse.Namespace(a=1)}, tmp_path / "code.ckpt")
    torch.save({"epoch": 1, "note": "x"}, tmp_path / "empty.ckpt")
    torch.save({"bias": torch.ones(3)}, tmp_path / "bias.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(weights, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:200])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "nothing.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    reasons = {
        "code.ckpt": "would run code for argparse.Namespace",
        "empty.ckpt": "its keys are epoch, note",
        "bias.pt": "none of its 1 tensors is a weight",
        "list.pt": "holds a list, not a state dict",
        "cut.pt": "damaged",
        "text.pt": "damaged",
        "nothing.pt": "damaged",
        "text.safetensors": "not a whole safetensors file",
        "missing.pt": "no such file",
        ".": "is a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(AuditError, match=reason):
            audit(tmp_path / name)
        assert main(["audit", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert "Traceback" not in error


def test_the_command_prints_a_table_json_or_markdown(
    tmp_path: Path, sick: SmallCNN, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "weights.pt")
    torch.save(sick.state_dict(), path)
    assert main(["audit", path]) == 0
    table = capsys.readouterr().out
    assert "4 of 58 kernels in 3 layers give a constant" in table
    assert "3 of 16 kernels zero or next to it: 2, 5, 7" in table
    assert main(["audit", path, "--format=json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["layers"][0]["zero_kernels"] == [2, 5, 7]
    assert record["summary"]["dead_fraction"] == pytest.approx(4 / 58)
    assert main(["audit", path, "--format=markdown"]) == 0
    text = capsys.readouterr().out
    assert "| `conv1` | 16x1x3x3 | 3 | 2 |" in text
    assert "norm1" in text


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (["dead_fraction=0.1"], 0),
        (["dead_fraction=0.05"], 1),
        (["dead_fraction=0.1", "weight_sparsity=0"], 1),
        (["dead_fracton=0.1"], 2),
    ],
)
def test_fail_on_decides_the_exit_status(
    limits: list[str], status: int, tmp_path: Path, sick: SmallCNN, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(sick.state_dict(), tmp_path / "weights.pt")
    options = [word for limit in limits for word in ("--fail-on", limit)]
    assert main(["audit", str(tmp_path / "weights.pt"), *options]) == status
    error = capsys.readouterr().err
    if status:
        assert limits[-1].partition("=")[0] in error
    if status == 2:
        assert "dead_fraction" in error


@pytest.mark.parametrize("limit", ["dead_fraction", "dead_fraction=much", "dead_fraction=nan"])
def test_a_limit_without_a_number_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["audit", "x.pt", "--fail-on", limit])
    assert end.value.code == 2
    assert limit in capsys.readouterr().err
