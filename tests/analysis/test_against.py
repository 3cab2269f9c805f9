"""What has become of each kernel since an earlier file, against loops over single kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_deadkernel.analysis.against import changes
from lightning_deadkernel.cli.main import main


def pair() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of 8 kernels: 0 is unchanged, 1 has faded to 0, 2 to a twentieth, 3 is back, 4 zero in both, 5 has moved by a
    half, 6 was and is NaN, 7 has changed in one bit."""
    before = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    before[[3, 4]] = 0
    before[6, 0, 0, 0] = torch.nan
    now = before.clone()
    now[1] = 0
    now[2] *= 0.05
    now[3] = 1
    now[5] *= 1.5
    now[7, 0, 0, 0] = torch.nextafter(now[7, 0, 0, 0], torch.tensor(9.0))
    return {"conv.weight": now, "conv.bias": torch.ones(8)}, {"conv.weight": before, "conv.bias": torch.zeros(8)}


def test_each_kernel_is_told_by_what_has_become_of_it() -> None:
    (conv,), left_out = changes(*pair())
    assert (conv.unchanged, conv.faded, conv.back, conv.zero) == ([0], [1, 2], [3], [4])
    # kernels 0, 1, 2, 5 and 7 were not zero: they changed by 0, 1, 0.95, 0.5 and a bit
    assert conv.change == pytest.approx(0.5)
    assert left_out == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_kernels_too_small_and_too_large_to_be_squared_are_told_like_others(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max / 4
    before = torch.tensor([[tiny, tiny], [huge, huge]], dtype=dtype)
    now = before * torch.tensor([[4.0], [0.5]], dtype=dtype)
    (layer,), _ = changes({"weight": now}, {"weight": before})
    assert (layer.unchanged, layer.faded, layer.back, layer.zero) == ([], [], [], [])
    assert layer.change == pytest.approx(0.5), "the lower median of 3 and 0.5"


def test_what_cannot_be_compared_says_why_and_weights_of_parts_are_compared_whole() -> None:
    torch.manual_seed(0)
    normed = parametrizations.weight_norm(nn.Linear(3, 4))
    before = {f"normed.{name}": value.clone() for name, value in normed.state_dict().items()}
    now = {name: value.clone() for name, value in before.items()}
    now["normed.parametrizations.weight.original1"] *= 3.0  # its length says nothing
    here = {"here.weight": torch.ones(2, 2), "shape.weight": torch.ones(2, 3), "code.weight": torch.ones(2, 2).char()}
    layers, left_out = changes(now | here, before | {"shape.weight": torch.ones(3, 2), "code.weight": torch.ones(2, 2)})
    assert [layer.name for layer in layers] == ["normed"]
    assert layers[0].change == pytest.approx(0, abs=1e-6)
    assert dict(left_out) == {
        "here": "only in the later file",
        "shape": "of shape [3, 2] before, [2, 3] now",
        "code": "its type is torch.int8",
    }


def test_audit_against_an_earlier_file_says_so_in_text_markdown_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now, before = pair()
    torch.save({"state_dict": now}, tmp_path / "now.ckpt")
    torch.save(before, tmp_path / "before.pt")
    command = ["audit", str(tmp_path / "now.ckpt"), "--against", str(tmp_path / "before.pt")]
    assert main([*command, "--html", str(tmp_path / "page.html")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 bitwise unchanged, 2 faded to 10% of their norm or less, 1 zero before and back, 1 zero in both." in text
    assert "conv 8 1 2 1 1 50%" in text
    assert "conv: unchanged 0; faded 1-2; back 3; zero 4" in text
    assert "Since the earlier file" in (tmp_path / "page.html").read_text()
    assert main([*command, "--format", "markdown"]) == 0
    assert "## Since the earlier file" in capsys.readouterr().out
    assert main([*command, "--format", "json"]) == 2
    assert "not as json" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "missing.pt")]) == 2
    assert "missing.pt: no such file" in capsys.readouterr().err
