"""What the weights in a file tell of a network's kernels, without the model's code and without any data.

Whether a kernel fires cannot be told from weights. What can: that it is zero or next to it, that the scale of the norm
after it has collapsed, that all kernels of a layer are equal, and how sparse the weights are. The file becomes a window
of layers of which nothing but weights was seen, and the diagnosis is that of a training.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_deadkernel.analysis.onnx_weights import state_dict_of
from lightning_deadkernel.analysis.state_dict import shape_of, unreadable, weights_of, widened
from lightning_deadkernel.diagnosis.diagnose import diagnose
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.problems import find_problems
from lightning_deadkernel.errors import printable
from lightning_deadkernel.functional.kernels import row_max, row_norms
from lightning_deadkernel.functional.sparsity import weight_summary
from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.text import count, ranges, shortened
from lightning_deadkernel.thresholds import Thresholds

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "params")
"""Keys under which training frameworks keep the state dict in a checkpoint."""
ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".onnx")
_WEIGHTS_ALONE = ". Save the weights alone, torch.save(model.state_dict(), ...), and audit that"
MOST_NAMED = 5
"""Names in a message."""


class AuditError(ValueError):
    """The file cannot be audited; the message names it and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # names in a file are anyone's: they must not steer a terminal


# -- from a state dict -------------------------------------------------------------------------------------------------


def audit_state_dict(
    state: Mapping[str, Any],
    source: str,
    thresholds: Thresholds | None = None,
    ordered: bool = True,
    epoch: int = 0,
    global_step: int = 0,
) -> Report:
    """Audit the weights of a state dict.

    A weight is a floating point tensor of two or more axes called `weight`; those of `weight_norm` and of
    `torch.nn.utils.prune` are put together from their parts. A state dict does not tell a transposed convolution, whose
    kernels lie along the second axis, from others. A weight that cannot be read is listed with the reason.

    Args:
        state: names to tensors; anything else in it is passed over.
        source: what to call it.
        thresholds: where the lines are drawn.
        ordered: the order is that of the modules' registration, so that a batch norm follows what it normalises; False:
            go by names, conv1 and bn1, or features.0 and features.1.
        epoch: in which the weights were saved.
        global_step: at which the weights were saved.

    Returns:
        The report of window 0, with `audited` set and all kernels in the state "unknown", as nothing was run.

    Raises:
        AuditError: if there is no such weight.
    """
    thresholds = thresholds or Thresholds()
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    weights = dict(weights_of(tensors))
    shapes = {name: weight.shape for name, weight in weights.items() if isinstance(weight, Tensor)}
    layers = []
    for place, (name, weight) in enumerate(weights.items()):
        if name in shapes and len(shapes[name]) < 2:
            continue
        near = (
            list(weights)[place + 1 : place + 2] if ordered else [other for other in weights if _belongs(name, other)]
        )
        # Layer and group norms often begin a block, so that what comes before them in the file does not lead to them.
        norms = [
            o for o in near if f"{o}.running_var" in tensors and name in shapes and shapes.get(o) == shapes[name][:1]
        ]
        layers.append(_layer(name, weight, norms[0] if len(norms) == 1 else None, tensors, thresholds))
    if all(layer.excluded for layer in layers):
        whys = "".join(f"; {layer.name}: {layer.excluded}" for layer in layers[:MOST_NAMED])
        raise AuditError(f"{source}: none of its {len(tensors)} tensors is a weight of two or more axes{whys}")
    layers.sort(key=lambda layer: layer.excluded is not None)
    window = Window(0, epoch, global_step, 0, 0, 0, None, layers=layers, audited=True)
    return report_of(window, source, thresholds)


def report_of(window: Window, source: str, thresholds: Thresholds) -> Report:
    """What there is to say of a window of weights alone."""
    reports, findings = diagnose(window, History(), thresholds)
    return Report(
        window=0,
        epoch=window.epoch,
        global_step=window.global_step,
        samples=None,
        batches=0,
        optimizer_steps=0,
        sampled_steps=0,
        layers=reports,
        findings=findings,
        problems=find_problems(findings, lambda _: "the file was written"),
        notes=window.notes,
        audited=source,
        thresholds=thresholds,
    )


def _belongs(layer: str, norm: str) -> bool:
    """Whether a norm of that name is the layer's: conv1 and bn1 (or norm1), or n and n + 1 within one Sequential."""
    (block, _, last), (other_block, _, other) = layer.rpartition("."), norm.rpartition(".")
    if block != other_block:
        return False
    if last.isdigit():
        return other.isdigit() and int(other) == int(last) + 1
    numbers = [re.sub(r"^\D*", "", text) for text in (last, other)]
    return numbers[0] == numbers[1] and re.fullmatch(r"\D*(bn|norm)\d*", other.lower()) is not None


def _layer(
    name: str, weight: Tensor | str, norm: str | None, tensors: Mapping[str, Tensor], thresholds: Thresholds
) -> LayerWindow:
    """What there is to see of one layer."""
    if isinstance(weight, str):
        return LayerWindow(name=name, kind="", channels=0, excluded=weight)
    try:
        return _read(name, weight, norm, tensors, thresholds)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # a type that PyTorch keeps and cannot convert
        return LayerWindow(name=name, kind=shape_of(weight), channels=0, excluded=f"it cannot be read ({error})")


def _read(
    name: str, weight: Tensor, norm: str | None, tensors: Mapping[str, Tensor], thresholds: Thresholds
) -> LayerWindow:
    channels, wide = len(weight), widened(weight)
    rows, summary = wide.flatten(1), weight_summary(wide)
    scale, shift, mask = (
        tensor if tensor is not None and tensor.shape == shape and tensor.layout == torch.strided else None
        for tensor, shape in (
            (tensors.get(f"{norm}.weight"), (channels,)),
            (tensors.get(f"{norm or name}.bias"), (channels,)),
            (tensors.get(f"{name}.weight_mask"), weight.shape),
        )
    )
    scale = None if norm is None or scale is None or unreadable(scale) else scale.float().abs()
    return LayerWindow(
        name=name,
        kind=shape_of(weight),
        channels=channels,
        note=_note(norm, scale, thresholds),
        weight_sparsity=float(summary.zeros),
        weight_near_zeros=float(summary.near_zeros),
        gini=float(summary.gini),
        hoyer=float(summary.hoyer),
        parameters=weight.numel(),
        bytes_per_parameter=weight.element_size(),
        norms=row_norms(rows).where(rows.isfinite().all(1), torch.nan),
        largest=row_max(rows),
        input_largest=row_max(wide.movedim(1, 0).flatten(1)) if wide.shape[1] > 1 else None,
        norm_scale=scale,
        shift=None if shift is None or unreadable(shift) else shift.float(),
        masked=None if mask is None or mask.is_meta else ~mask.flatten(1).bool().any(1),
        identical=channels > 1 and bool((rows == rows[0]).all()),
    )


def _note(norm: str | None, scale: Tensor | None, thresholds: Thresholds) -> str | None:
    """Which norm's scale made kernels count as zero: that it follows this layer is only what the file suggests."""
    if norm is None or scale is None:
        return None
    collapsed = (scale < thresholds.norm_scale).nonzero().flatten().tolist()
    if not collapsed:
        return None
    some = count(len(collapsed), "kernel")
    return f"the scale of {norm}, its norm by the file, is next to zero for {some}: {ranges(collapsed)}"


# -- from a file -------------------------------------------------------------------------------------------------------


def audit(path: str | Path, thresholds: Thresholds | None = None, key: str | None = None) -> Report:
    """Audit a Lightning checkpoint, a saved state dict, a `.safetensors` or an `.onnx` file. No code in it is run.

    Objects beside the weights (hyperparameters, states of callbacks) are left out.

    Args:
        path: the file.
        thresholds: where the lines are drawn.
        key: where in a checkpoint the state dict is, such as ``"ema.model"``; None: look under the usual names.

    Raises:
        AuditError: if the file is not there, is damaged, or no weights can be taken from it without running code.
    """
    state, epoch, step = read_state(path, key)
    # A .safetensors file keeps its tensors by name, not in the order they were given.
    ordered = Path(path).suffix.lower() != ".safetensors"
    return audit_state_dict(state, str(path), thresholds, ordered, epoch, step)


def read_state(path: str | Path, key: str | None = None) -> tuple[Mapping[str, Any], int, int]:
    """The state dict in a file, and the epoch and step in which it was written, or 0. Arguments and errors: `audit`."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if files and not any(path.glob("*.distcp")):
            raise AuditError(f"{path} is a folder; name one of its files, such as {_listed(files)}")
        raise AuditError(
            f"{path} is a folder. A sharded checkpoint must be made one file first:"
            " python -m lightning.pytorch.utilities.consolidate_checkpoint FOLDER"
        )
    if not path.is_file():
        raise AuditError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(20) == b"version https://git-":
            raise AuditError(f"{path} is a pointer of Git LFS: fetch the file itself by git lfs pull")
    loaders: dict[str, Callable[[Path], Any]] = {".safetensors": _load_safetensors, ".onnx": _load_onnx}
    content = loaders.get(path.suffix.lower(), _load_torch)(path)
    epoch, step = (_count(content, name) for name in ("epoch", "global_step"))
    state = _state_dict(content, path) if key is None else _under(content, key, path)
    for name, value in state.items():
        if isinstance(value, _LeftOut) and "weight" in str(name):
            raise _needs_code(path, type(value).__name__)
    return state, epoch, step


def _load_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise AuditError(f"{path}: reading it needs safetensors: pip install 'lightning-deadkernel[cli]'") from error
    try:
        tensors: Mapping[str, Any] = load_file(path)
    except Exception as error:  # of whatever kind: the file is anyone's
        raise AuditError(f"{path} is not a whole safetensors file: {error}") from error
    return tensors


def _load_onnx(path: Path) -> Mapping[str, Any]:
    try:
        return state_dict_of(path)
    except ImportError as error:
        raise AuditError(f"{path}: reading it needs onnx: pip install 'lightning-deadkernel[onnx]'") from error
    except Exception as error:  # of whatever kind: the file is anyone's
        raise AuditError(f"{path} is not an ONNX file that can be read, or it is damaged") from error


class _LeftOut:
    """Stands for an object of any class but tensors and plain values: it keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _load_torch(path: Path) -> Any:
    """What a file holds, with all but its tensors and plain values left out."""
    foreign: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with torch.serialization.safe_globals([(type(name, (_LeftOut,), {}), name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever kind: the file is anyone's
        if needs := re.findall(r"GLOBAL (\S+)", str(error)) or foreign:
            raise _needs_code(path, needs[0]) from error
        if "torchscript" in str(error):
            raise AuditError(f"{path} is a TorchScript archive{_WEIGHTS_ALONE}") from error
        raise AuditError(f"{path} is not a checkpoint that PyTorch can read, or it is damaged") from error


def _needs_code(path: Path, name: str) -> AuditError:
    return AuditError(
        f"{path} holds more than weights: loading it would run code for {name}, so it is refused{_WEIGHTS_ALONE}"
    )


def _state_dict(content: Any, path: Path) -> Mapping[str, Any]:
    """What lies under a usual name, the content itself, or what lies under the only name that it may be."""
    if not isinstance(content, Mapping):
        raise AuditError(f"{path} holds a {type(content).__name__}, not a state dict{_WEIGHTS_ALONE}")
    places = {str(key): inner for key, inner in content.items() if _has_tensors(inner)}
    usual = [key for key in WRAPPERS if key in places]
    if not usual and _has_tensors(content):
        return content
    if not places:
        places = {
            f"{key}.{name}": inner[name]
            for key, inner in content.items()
            for name in WRAPPERS
            if isinstance(inner, Mapping) and _has_tensors(inner.get(name))
        }
    if not places:
        raise AuditError(f"{path} holds no state dict; its keys are {_listed(content) or 'none'}{_WEIGHTS_ALONE}")
    if not usual and len(places) > 1:
        raise AuditError(f"{path} holds several that may be the state dict; name one by --key: {_listed(places)}")
    found: Mapping[str, Any] = places[(usual or list(places))[0]]
    return found


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(shortened(str(name), 40) for name in list(names)[:10])


def _under(content: Any, key: str, path: Path) -> Mapping[str, Any]:
    rest = key
    while rest and isinstance(content, Mapping):
        part = rest if rest in content else rest.split(".")[0]
        if part not in content:
            break
        content, rest = content[part], rest[len(part) + 1 :]
    if rest:
        there = _listed(content) if isinstance(content, Mapping) else "no names"
        raise AuditError(f"{path}: nothing is under {key!r}: there is no {rest.split('.')[0]!r} among {there}")
    if not _has_tensors(content):
        raise AuditError(f"{path}: what is under {key!r} is no state dict")
    state: Mapping[str, Any] = content
    return state


def _has_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())


def _count(content: Any, name: str) -> int:
    value = content.get(name) if isinstance(content, Mapping) else None
    return value if type(value) is int and value >= 0 else 0
