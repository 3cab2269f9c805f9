from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_deadkernel.analysis.audit import AuditError, audit, audit_state_dict
from lightning_deadkernel.cli.main import main
from lightning_deadkernel.demo import MLP, DigitsDataModule, SmallCNN
from lightning_deadkernel.report.codec import from_json, to_json
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.thresholds import Thresholds


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
    report = audit(path)
    conv1, conv2, head = report.layers
    assert (conv1.name, conv1.kind, conv1.channels, conv1.evidence) == ("conv1", "16x1x3x3", 16, "weight")
    assert conv1.zero_kernels == [2, 5, 7, 9]
    assert conv1.note == "the scale of norm1, its norm by the file, is next to zero for 2 kernels: 5, 9"
    assert conv1.weight_sparsity == pytest.approx(2 / 16)
    assert (conv2.zero_kernels, head.zero_kernels, head.note) == ([], [], None)
    finding, sparse = report.findings
    assert (sparse.kind, sparse.severity, sparse.cause_word) == ("sparse_weights", "info", "dead channels")
    assert (finding.kind, finding.severity, finding.layer) == ("zero_kernels", "warning", "conv1")
    assert finding.channels == (2, 5, 7, 9)


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


def test_the_thresholds_that_are_given_are_those_that_draw_the_lines(sick: SmallCNN) -> None:
    """The defaults were used whatever was given."""
    strict = Thresholds(near_zero_share=1e-4)
    lax = Thresholds(zero_kernel=1e-9, norm_scale=1e-9)
    kinds = {
        lines: {(finding.kind, finding.layer) for finding in audit_state_dict(state_of(sick), "x", lines).findings}
        for lines in (Thresholds(), strict)
    }
    assert kinds[strict] - kinds[Thresholds()] == {("sparse_weights", layer) for layer in ("conv2", "head")}
    report = audit_state_dict(state_of(sick), "x", lax)
    assert report["conv1"].zero_kernels == [2, 5]
    assert report.thresholds == lax


def test_nothing_is_dead_by_its_weights_alone_and_what_was_not_seen_is_no_number(sick: SmallCNN) -> None:
    report = audit_state_dict(state_of(sick), "x")
    assert report.dead_channels == {}
    assert {state for layer in report.layers for state in layer.states} == {"unknown"}
    summary = report.summary()
    assert summary["zero_kernel_fraction"] == pytest.approx(4 / 58)
    assert summary["weight_sparsity"] == pytest.approx(
        sum(layer.weight_sparsity * layer.parameters for layer in report.layers) / (144 + 4608 + 1280)
    )
    seen = {name for name, value in summary.items() if not math.isnan(value)}
    assert seen == {"zero_kernel_fraction", "weight_sparsity"}


def test_an_audit_is_a_report_that_saves_loads_and_says_what_it_rests_on(tmp_path: Path, sick: SmallCNN) -> None:
    report = audit_state_dict(state_of(sick), "best.ckpt")
    report.save(tmp_path / "audit.json")
    assert Report.load(tmp_path / "audit.json") == report
    assert report.verdict == "conv1: 4 of 16 kernels are zero, or next to it. In all: 1 problem and 1 remark."
    text = report.to_markdown()
    alone = "58 kernels in 3 layers looked at by their weights alone; whether kernels fire, only training can tell"
    assert "# Dead kernels: the weights in best.ckpt; nothing was run" in text
    assert alone in text
    assert "seen in the weights" in text
    for untrue in ("initialisation", "first step", "weight decay", "unknown |"):
        assert untrue not in text.replace("kaiming", "")


def test_identical_kernels_are_found_and_kernels_of_zeros_are_not_called_so() -> None:
    report = audit_state_dict(state_of(MLP(init="constant")), "x")
    identical = [finding.layer for finding in report.findings if finding.kind == "identical_kernels"]
    assert identical == [f"net.linear{i}" for i in range(1, 5)]
    zero = audit_state_dict({"head.weight": torch.zeros(3, 4)}, "x")
    assert [(finding.kind, finding.severity) for finding in zero.findings] == [("zero_kernels", "warning")]
    assert zero["head"].zero_kernels == [0, 1, 2]


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
    report = audit_state_dict(state_of(modules), "x")
    layers = {layer.name: layer for layer in report.layers}
    assert sorted(layers) == ["new", "old", "pruned"]
    assert layers["pruned"].zero_kernels == masked
    assert len(masked) == 3
    assert layers["new"].zero_kernels == [1]
    assert layers["old"].zero_kernels == [3]
    (pruned_finding,) = [found for found in report.findings if found.layer == "pruned"][:1]
    assert (pruned_finding.severity, pruned_finding.cause_word) == ("info", "pruned")


def test_a_layer_norm_is_not_taken_for_the_norm_of_what_comes_before_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    with torch.no_grad():
        model[1].weight.zero_()
    with torch.no_grad():
        model[3].weight[2] = 0
    first, second = audit_state_dict(state_of(model), "x").layers
    assert (first.note, first.zero_kernels) == (None, [])
    assert "scale of 3, its norm" in str(second.note)


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
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_()
    state = dict(sorted(block.state_dict().items()))
    layers = audit_state_dict(state, "x", ordered=False).layers
    found = {layer.name: re.sub(r"the scale of (\S+), its.*", r"\1", layer.note or "") for layer in layers}
    stack = {"stack.0": "stack.1", "stack.2": "stack.3"}
    assert found == {"alone": "", "conv10": "bn10", "conv2": "norm2", **stack}


def test_nan_and_infinity_are_found_and_make_no_kernel_zero() -> None:
    weight = torch.randn(4, 3)
    weight[1, 0], weight[2, 2] = float("nan"), float("inf")
    report = audit_state_dict({"a.weight": weight}, "x")
    assert report["a"].zero_kernels == []
    found = [finding for finding in report.findings if finding.kind == "non_finite_weights"]
    assert [(finding.severity, finding.channels) for finding in found] == [("error", (1, 2))]
    assert report.verdict.startswith("a: 2 of 4 kernels are NaN or infinite")
    assert to_json(from_json(Report, to_json(report))) == to_json(report)


def test_sparsity_agrees_with_a_gaussians_known_figures() -> None:
    torch.manual_seed(0)
    (layer,) = audit_state_dict({"a.weight": torch.randn(500, 2000)}, "x").layers
    assert layer.weight_near_zeros == pytest.approx(0.0080, abs=3e-4)
    assert layer.gini == pytest.approx(2**0.5 - 1, abs=2e-3)


def test_integer_weights_are_named_as_not_watched() -> None:
    report = audit_state_dict({"q.weight": torch.ones(2, 2, dtype=torch.int8), "a.weight": torch.randn(2, 2)}, "x")
    assert [layer.name for layer in report.watched] == ["a"]
    assert report["q"].excluded == "its type is torch.int8"
    assert "- `q`: its type is torch.int8" in report.to_markdown()


def test_recurrent_weights_are_read_by_their_own_names() -> None:
    report = audit_state_dict(state_of(nn.ModuleDict({"lstm": nn.LSTM(3, 5), "gru": nn.GRU(3, 2)})), "x")
    shapes = {layer.name: layer.kind for layer in report.layers}
    assert shapes == {
        "lstm.weight_ih_l0": "20x3",
        "lstm.weight_hh_l0": "20x5",
        "gru.weight_ih_l0": "6x3",
        "gru.weight_hh_l0": "6x2",
    }


def test_a_state_dict_is_found_under_any_single_name_and_else_by_key(tmp_path: Path) -> None:
    one, two = {"a.weight": torch.randn(2, 2)}, {"b.weight": torch.randn(3, 2)}
    torch.save({"model_state": one, "epoch": 3, "global_step": 70}, tmp_path / "usual.pt")
    torch.save({"mine": one}, tmp_path / "single.pt")
    torch.save({"mine": one, "ema": {"model": two}, "other": two}, tmp_path / "several.pt")
    usual = audit(tmp_path / "usual.pt")
    assert ([layer.name for layer in usual.layers], usual.epoch, usual.global_step) == (["a"], 3, 70)
    assert [layer.name for layer in audit(tmp_path / "single.pt").layers] == ["a"]
    with pytest.raises(AuditError, match=r"several.*--key: mine, other"):
        audit(tmp_path / "several.pt")
    assert [layer.name for layer in audit(tmp_path / "several.pt", key="ema.model").layers] == ["b"]
    with pytest.raises(AuditError, match="no 'modl' among model"):
        audit(tmp_path / "several.pt", key="ema.modl")
    with pytest.raises(AuditError, match="'ema' is no state dict"):
        audit(tmp_path / "several.pt", key="ema")


class Trap:
    """Loading it runs code."""

    def __init__(self, runs: Callable[..., Any], *given: Any) -> None:
        self.reduced = runs, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def test_what_lies_beside_the_weights_is_left_out_and_its_code_is_not_run(tmp_path: Path) -> None:
    weights, ran = {"a.weight": torch.ones(2, 2)}, tmp_path / "ran"
    beside = {
        "args": argparse.Namespace(path=tmp_path, best=np.float64(0.5), array=np.ones(3)),
        "trap": Trap(shutil.copyfile, __file__, ran),
        "builtin": Trap(exec, f"open({str(ran)!r}, 'w')"),
        "trapped": [Trap(shutil.copyfile, __file__, ran)],
        Trap(shutil.copyfile, __file__, ran): 1,
    }
    torch.save({"state_dict": weights, "hyper_parameters": beside, "epoch": 2}, tmp_path / "beside.ckpt")
    report = audit(tmp_path / "beside.ckpt")
    assert ([layer.name for layer in report.layers], report.epoch) == (["a"], 2)
    torch.save({**weights, "b.weight": Trap(shutil.copyfile, __file__, ran)}, tmp_path / "among.ckpt")
    with pytest.raises(AuditError, match=r"would run code for shutil\.copyfile"):
        audit(tmp_path / "among.ckpt")
    assert not ran.exists()


def test_what_cannot_be_audited_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"a.weight": torch.ones(2, 2)}
    torch.save(
        {"state_dict": weights, "metrics": Trap(dict, [(1, 2)]), "hook": Trap(os.getcwd)}, tmp_path / "code.ckpt"
    )
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    (tmp_path / "sharded").mkdir()
    for name in ("meta.pt", "__0_0.distcp"):
        (tmp_path / "sharded" / name).touch()
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    torch.save({"epoch": 1, "note": "x"}, tmp_path / "empty.ckpt")
    torch.save({"bias": torch.ones(3)}, tmp_path / "bias.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(weights, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:200])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "nothing.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    reasons = {
        "code.ckpt": "would run code for",
        "module.pt": "holds a torch.nn.modules.linear.Linear, not a state dict",
        "script.pt": "is a TorchScript archive",
        "pointer.safetensors": "git lfs pull",
        "empty.ckpt": "its keys are epoch, note",
        "bias.pt": "none of its 1 tensors is a weight",
        "list.pt": "holds a list, not a state dict",
        "cut.pt": "damaged",
        "text.pt": "damaged",
        "nothing.pt": "damaged",
        "text.safetensors": "not a whole safetensors file",
        "missing.pt": "no such file",
        ".": r"is a folder; name one of its files, such as bias\.pt, ",
        "sharded": "is a folder. A sharded checkpoint must be made one file first",
    }
    for name, reason in reasons.items():
        with pytest.raises(AuditError, match=reason):
            audit(tmp_path / name)
        assert main(["audit", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert re.search(reason, error)
        assert "Traceback" not in error


def test_the_command_prints_a_table_json_or_markdown(
    tmp_path: Path, sick: SmallCNN, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "weights.pt")
    torch.save(sick.state_dict(), path)
    assert main(["audit", path]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "conv1: 4 of 16 kernels are zero, or next to it." in table
    assert "If it should not be, train with DeadKernelMonitor from the start" in table
    assert "conv1 16x1x3x3 16 4" in table
    assert main(["audit", path, "--format=json"]) == 0
    assert capsys.readouterr().out == to_json(audit(path))
    assert main(["audit", path, "--format=markdown"]) == 0
    assert capsys.readouterr().out == audit(path).to_markdown()


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (["zero_kernel_fraction=0.1"], 0),
        (["zero_kernel_fraction=0.05"], 1),
        (["zero_kernels=0"], 1),
        (["identical_kernels=0", "non_finite_weights=0"], 0),
        (["zero_kernel_fraction=0.1", "weight_sparsity=0"], 1),
        (["zero_kernel_fracton=0.1"], 2),
        (["dead_fraction=0.1"], 2),
        (["dead_channels=0"], 2),
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
        assert "an audit, which sees weights alone" in error
        assert "zero_kernel_fraction" in error


@pytest.mark.parametrize("limit", ["dead_fraction", "dead_fraction=much", "dead_fraction=nan"])
def test_a_limit_without_a_number_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["audit", "x.pt", "--fail-on", limit])
    assert end.value.code == 2
    assert limit in capsys.readouterr().err
