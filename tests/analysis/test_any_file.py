"""Whatever a file holds, `audit` gives a report or an error of its own in words; it takes no gigabytes for it."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_deadkernel.analysis.audit import AuditError, audit, audit_state_dict
from lightning_deadkernel.cli.main import main
from lightning_deadkernel.report.codec import from_json, to_json
from lightning_deadkernel.report.console import print_document
from lightning_deadkernel.report.describe import describe
from lightning_deadkernel.report.report import Report

HUGE = 1 << 20


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "empty": (lambda: torch.empty(3, 0), "it is empty"),
    "empty of 2**40 rows": (lambda: torch.empty(HUGE * HUGE, 0), "it is empty"),
    "expanded to 2**40": (lambda: torch.ones(1, 1).expand(HUGE, HUGE), "1 that repeat"),
    "a row expanded": (lambda: torch.ones(1, 4).expand(3, 4), "its 12 entries are 4 that repeat"),
    "overlapping": (lambda: torch.ones(5).as_strided((3, 3), (1, 1)), "its 9 entries are 5 that repeat"),
    "wider than a report": (lambda: torch.empty((1 << 24) + 1, 1), "and a report at most 16,777,216"),
    "meta": (lambda: torch.empty(3, 4, device="meta"), "no values"),
    "sparse": (lambda: torch.eye(4).to_sparse(), "its layout is torch.sparse_coo"),
    "sparse of 2**40": (lambda: torch.sparse_coo_tensor([[0], [0]], [1.0], (HUGE, HUGE)), "its layout"),
    "compressed": (lambda: torch.eye(4).to_sparse_csr(), "its layout is torch.sparse_csr"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8), "its type is torch.qint8"),
    "complex": (lambda: torch.randn(3, 4, dtype=torch.complex64), "its type is torch.complex64"),
    "integers": (lambda: torch.ones(3, 4, dtype=torch.int64), "its type is torch.int64"),
    "truths": (lambda: torch.ones(3, 4, dtype=torch.bool), "its type is torch.bool"),
    "nested": (nested, "it is nested"),
}
READ: dict[str, Callable[[], Any]] = {
    "plain": lambda: torch.randn(3, 4),
    "convolution": lambda: torch.randn(4, 3, 2, 2),
    "one row": lambda: torch.randn(1, 5),
    "float64": lambda: torch.randn(3, 4, dtype=torch.float64) * 1e200,
    "float8": lambda: torch.randn(3, 4).to(torch.float8_e4m3fn),
    "bfloat16": lambda: torch.randn(3, 4).bfloat16(),
    "NaN": lambda: torch.full((3, 4), torch.nan),
    "infinite": lambda: torch.full((3, 4), -torch.inf),
    "tiny": lambda: torch.full((3, 4), 1e-44),
    "zeros": lambda: torch.zeros(3, 4),
    "transposed": lambda: torch.randn(4, 3).t(),
    "five axes": lambda: torch.randn(2, 1, 2, 1, 2),
}
NEITHER: dict[str, Callable[[], Any]] = {
    "a scalar": lambda: torch.tensor(1.5),
    "a row": lambda: torch.randn(3),
    "a number": lambda: 3,
    "nothing": lambda: None,
    "a list of tensors": lambda: [torch.randn(2, 2), torch.randn(3)],
    "a dictionary": lambda: {"weight": torch.randn(2, 2)},
}
MAKERS = READ | {name: make for name, (make, _) in ODD.items() if name != "wider than a report"} | NEITHER
NAMES = ("weight", "bias", "running_var", "weight_orig", "weight_mask", "weight_u", "weight_v", "weight_g",
         "parametrizations.weight.original", "parametrizations.weight.original0", "parametrizations.weight.original1",
         "weight_ih_l0", "in_proj_weight")  # fmt: skip
MODULES = ("", "conv1.", "bn1.", "0.", "1.", "a\x1b[2Jb.", "\ud800.", "\x9b31m.", "a|b$x$.")
KEYS = st.one_of(
    st.tuples(st.sampled_from(MODULES), st.sampled_from(NAMES)).map("".join),
    st.integers(-2, 3),
    st.text(st.characters(), max_size=5),
)


@st.composite
def states(draw: st.DrawFn) -> dict[Any, Any]:
    keys = draw(st.lists(KEYS, max_size=8, unique=True))
    return {key: MAKERS[draw(st.sampled_from(sorted(MAKERS)))]() for key in keys}


def is_clean(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def checked(audited: Callable[[], Report]) -> None:
    """A report that says and keeps itself, or an error in words."""
    error, report = None, None
    try:
        report = audited()
    except AuditError as refused:
        error = str(refused)
    assert error is None or is_clean(error)
    if report is None:
        return
    assert repr(from_json(Report, to_json(report).encode()).layers) == repr(report.layers)
    assert is_clean(report.to_markdown())
    shown = io.StringIO()
    print_document(describe(report), shown)
    assert is_clean(shown.getvalue())


@given(states(), st.booleans())
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_state_dict_is_a_report_or_an_error_in_words(state: dict[Any, Any], ordered: bool) -> None:
    checked(lambda: audit_state_dict(state, "x", ordered=ordered))


@given(states(), st.sampled_from(["", "state_dict", "model_state", "mine", "net.model", "list", "twice"]), st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_any_file_is_a_report_or_an_error_in_words(
    tmp_path: Path, state: dict[Any, Any], place: str, data: st.DataObject
) -> None:
    path = tmp_path / "file.pt"
    content: Any = state
    for key in reversed(place.split(".")):
        content = [state] if key == "list" else {"a": state, "b": state} if key == "twice" else {key: content}
    torch.save(content if place else state, path)
    if data.draw(st.booleans()):
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    key = data.draw(st.sampled_from([None, "mine", "a", "0", "", ".", "net.model"]))
    checked(lambda: audit(path, key=key))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_cannot_be_read_is_listed_with_the_reason_and_the_others_are_read(kind: str) -> None:
    make, reason = ODD[kind]
    report = audit_state_dict({"odd.weight": make(), "plain.weight": torch.randn(3, 4)}, "x")
    assert [layer.name for layer in report.watched] == ["plain"]
    assert reason in str(report["odd"].excluded)
    with pytest.raises(AuditError, match="none of its 1 tensors is a weight of two or more axes; odd: i"):
        audit_state_dict({"odd.weight": make()}, "x")


@pytest.mark.parametrize("kind", READ)
def test_a_weight_that_can_be_read_is(kind: str) -> None:
    assert [layer.name for layer in audit_state_dict({"a.weight": READ[kind]()}, "x").watched] == ["a"]


PART = torch.ones(3, 4)
HALVES: dict[str, tuple[dict[str, Tensor], str]] = {
    "no mask": ({"a.weight_orig": PART}, "there is half of it: a.weight_mask is missing"),
    "no gain": ({"a.weight_v": PART}, "there is half of it: a.weight_g is missing"),
    "no direction": ({"a.weight_g": PART[:, :1]}, "there is half of it: a.weight_v is missing"),
    "half a parametrization": (
        {"a.parametrizations.weight.original1": PART},
        "there is half of it: a.parametrizations.weight.original0 is missing",
    ),
    "the other half": (
        {"a.parametrizations.weight.original0": PART[:, :1]},
        "there is half of it: a.parametrizations.weight.original1 is missing",
    ),
    "a mask of another shape": (
        {"a.weight_orig": PART, "a.weight_mask": torch.ones(4, 3)},
        "a.weight_orig is of shape 3x4, and a.weight_mask of 4x3",
    ),
    "a gain of another shape": (
        {"a.weight_v": PART, "a.weight_g": torch.ones(3)},
        "a.weight_v is of shape 3x4, and a.weight_g of 3",
    ),
    "a mask of nothing": (
        {"a.weight_orig": PART, "a.weight_mask": torch.empty(3, 4, device="meta")},
        "of a.weight_mask, it has a shape and no values (device meta)",
    ),
}


@pytest.mark.parametrize("case", HALVES)
def test_half_a_weight_is_listed_with_what_is_missing(case: str) -> None:
    state, reason = HALVES[case]
    report = audit_state_dict(state | {"plain.weight": torch.randn(3, 4)}, "x")
    assert report["a"].excluded == reason
    assert [layer.name for layer in report.watched] == ["plain"]


def test_a_spectral_norm_is_read_up_to_its_factor() -> None:
    layer = torch.nn.utils.spectral_norm(torch.nn.Linear(4, 3))
    with torch.no_grad():
        layer.weight_orig[1] = 0
    report = audit_state_dict({f"a.{name}": value for name, value in layer.state_dict().items()}, "x")
    assert [(la.name, la.zero_kernels) for la in report.layers] == [("a", [1])]


def test_a_mask_of_truths_is_a_mask() -> None:
    mask = torch.tensor([[True] * 4, [False] * 4, [True, False, True, True]])
    report = audit_state_dict({"a.weight_orig": PART, "a.weight_mask": mask}, "x")
    assert report["a"].zero_kernels == [1]
    assert report["a"].weight_sparsity == pytest.approx(5 / 12)


def test_a_norms_scale_that_cannot_be_read_is_no_evidence() -> None:
    for scale in (torch.empty(3, device="meta"), torch.zeros(3, dtype=torch.int64), torch.zeros(1).expand(3)):
        state = {"0.weight": torch.randn(3, 4), "1.weight": scale, "1.running_var": torch.ones(3)}
        assert audit_state_dict(state, "x")["0"].zero_kernels == []


def test_files_that_are_no_checkpoints_are_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = io.BytesIO()
    torch.save({"a.weight": torch.ones(200, 300)}, whole)
    files: dict[str, bytes] = {
        "picture.pt": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "pickle.pt": pickle.dumps({"a": 1}, protocol=4),
        "pickle2.pt": pickle.dumps({"a": 1}, protocol=2),
        "text.pt": b"hello",
        "nothing.pt": b"",
        "zeros.pt": bytes(1000),
        "huge_header.safetensors": (1 << 60).to_bytes(8, "little") + b"{}",
        "kind.safetensors": (72).to_bytes(8, "little")
        + b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'.ljust(76),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "hello")
    files["archive.pt"] = archive.getvalue()
    files |= {f"cut{part}.pt": whole.getvalue()[: len(whole.getvalue()) * part // 8] for part in range(1, 8)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AuditError, match=name):
            audit(tmp_path / name)
        assert main(["audit", str(tmp_path / name)]) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        {0: {"a.weight": PART}},
        {"epoch": torch.tensor(3), "model_state": {"a.weight": PART}},
        {"ema": {"model": {"a.weight": PART}}, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}},
        {"module.net": {"a.weight": PART}},
    ],
    ids=["an integer key", "a tensor beside it", "a name within a name", "a dot in the name"],
)
def test_the_state_dict_is_found_wherever_it_is_the_only_one(content: dict[Any, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert [layer.name for layer in audit(tmp_path / "x.pt").layers] == ["a"]


def test_a_key_may_have_a_dot_in_it(tmp_path: Path) -> None:
    torch.save({"module.net": {"model": {"a.weight": PART}}, "b": {"a.weight": PART}}, tmp_path / "x.pt")
    assert audit(tmp_path / "x.pt", key="b").layers
    with pytest.raises(AuditError, match="nothing is under"):
        audit(tmp_path / "x.pt", key="module.other")


def test_a_mapping_that_holds_itself_is_no_endless_search(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["self"] = content
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(AuditError, match="its keys are epoch, self"):
        audit(tmp_path / "x.pt")


def test_names_in_a_file_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x9b31m\u202e\ud800"
    torch.save({f"{hostile}.weight": torch.zeros(3, 4), "b.weight": torch.randn(4, 3)}, tmp_path / "x.pt")
    torch.save({hostile: 1, "epoch": 2}, tmp_path / "keys.pt")
    for arguments in ([], ["--format", "json"], ["--format", "markdown"], ["--key", hostile]):
        for name in ("x.pt", "keys.pt"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                main(["audit", str(tmp_path / name), *arguments])
            shown = capsys.readouterr()
            assert shown.out or shown.err
            assert is_clean(shown.out)
            assert is_clean(shown.err)
    report = audit(tmp_path / "x.pt")
    for ending in ("json", "md", "html"):
        report.save(tmp_path / f"report.{ending}")
        assert is_clean((tmp_path / f"report.{ending}").read_text("utf-8"))
    assert Report.load(tmp_path / "report.json")[hostile].name == hostile
