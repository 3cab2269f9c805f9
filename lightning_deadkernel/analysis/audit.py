"""What the weights in a file tell of a network's kernels, without the model's code and without any data.

Whether a kernel fires cannot be told from weights. What can: that it is zero or next to it, that the scale of the norm
after it has collapsed, that all kernels of a layer are equal, and how sparse the weights are.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.functional.kernels import row_norms
from lightning_deadkernel.functional.sparsity import weight_summary
from lightning_deadkernel.report import markdown
from lightning_deadkernel.report.document import Bullets, Document, Section, Table
from lightning_deadkernel.report.text import count, number, percent, ranges
from lightning_deadkernel.thresholds import Thresholds

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training frameworks keep the state dict in a checkpoint."""
FORMAT, VERSION = "lightning-deadkernel audit", 1


class AuditError(ValueError):
    """The file cannot be audited; the message names it and says why."""


@dataclass(frozen=True)
class LayerAudit:
    """One weight of two or more axes, its kernels being the slices along the first."""

    name: str
    shape: tuple[int, ...]
    zero_kernels: tuple[int, ...]
    """Kernels whose L2 norm is 0, or below `Thresholds.zero_kernel` times the largest of the layer."""
    norm: str | None
    """The batch norm that follows, as far as order or names in the file tell; None where there is none."""
    collapsed_scales: tuple[int, ...]
    """Channels of that norm whose \\|gamma\\| is below `Thresholds.norm_scale`."""
    zeros: float
    """Share of exact zeros among the weights."""
    near_zeros: float
    """Share of \\|w\\| below 1e-2 of the rms; a Gaussian has 0.0080."""
    gini: float
    """Gini index of \\|w\\|; a Gaussian has 0.414."""
    identical: bool
    """All kernels are bitwise equal, there are at least two, and they are not zero."""
    non_finite: int
    """Weights that are NaN or infinite."""

    @property
    def kernels(self) -> int:
        """Number of kernels."""
        return self.shape[0]

    @property
    def constant(self) -> tuple[int, ...]:
        """Kernels whose output does not depend on their input: they are zero, or the scale after them is."""
        return tuple(sorted({*self.zero_kernels, *self.collapsed_scales}))


@dataclass(frozen=True)
class Audit:
    """What a file's weights tell."""

    source: str
    layers: tuple[LayerAudit, ...]
    """In the file's order."""
    skipped: tuple[str, ...] = ()
    """Tensors of two or more axes that were not read, each with the reason."""

    def summary(self) -> dict[str, float]:
        """The network in a few numbers, by the names that `--fail-on` takes."""
        kernels = sum(layer.kernels for layer in self.layers)
        weights = [torch.Size(layer.shape).numel() for layer in self.layers]

        def share(counts: list[int]) -> float:
            return sum(counts) / kernels if kernels else 0.0

        def mean(values: list[float]) -> float:
            return sum(v * n for v, n in zip(values, weights, strict=True)) / sum(weights) if weights else 0.0

        return {
            "dead_fraction": share([len(layer.constant) for layer in self.layers]),
            "zero_kernel_fraction": share([len(layer.zero_kernels) for layer in self.layers]),
            "collapsed_scale_fraction": share([len(layer.collapsed_scales) for layer in self.layers]),
            "weight_sparsity": mean([layer.zeros for layer in self.layers]),
            "near_zero_weights": mean([layer.near_zeros for layer in self.layers]),
            "identical_layers": float(sum(layer.identical for layer in self.layers)),
            "non_finite_weights": float(sum(layer.non_finite for layer in self.layers)),
        }

    def to_json(self) -> str:
        """All of it, indented; NaN becomes null."""
        record = {"format": FORMAT, "version": VERSION, "summary": self.summary(), **asdict(self)}
        return json.dumps(_without_nan(record), indent=2, allow_nan=False) + "\n"

    def document(self) -> Document:
        """Verdict first, then what is worth saying, then all layers."""
        remarks = tuple(self.remarks())
        return Document(
            f"Audit of {self.source}",
            self.verdict(),
            (
                *([Bullets(remarks)] if remarks else []),
                Section("Layers", (self.table(),)),
                *([Section("Not read", (Bullets(self.skipped),))] if self.skipped else []),
            ),
        )

    def to_markdown(self) -> str:
        """The audit as Markdown."""
        return markdown.to_markdown(self.document())

    def verdict(self) -> str:
        """One sentence."""
        kernels = sum(layer.kernels for layer in self.layers)
        seen = f"{count(kernels, 'kernel')} in {count(len(self.layers), 'layer')}"
        constant = sum(len(layer.constant) for layer in self.layers)
        if constant:
            return f"{constant:,} of {seen} give a constant: they are zero, or the scale of their norm is."
        if any(self.remarks()):
            return f"No zero kernel among {seen}, but see below."
        return f"Nothing found in the weights of {seen}. Whether kernels fire, only training can tell."

    def remarks(self) -> list[str]:
        """A line for each thing found in a layer."""
        return [f"{layer.name}: {text}" for layer in self.layers for text in _remarks(layer)]

    def table(self) -> Table:
        """All layers."""
        headings = ("layer", "shape", "zero kernels", "collapsed scales", "zero weights", "near-zero weights", "gini")
        rows = tuple(
            (
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{len(layer.zero_kernels):,}",
                "-" if layer.norm is None else f"{len(layer.collapsed_scales):,}",
                percent(layer.zeros),
                percent(layer.near_zeros),
                number(layer.gini),
            )
            for layer in self.layers
        )
        return Table(headings, rows, (False, False, True, True, True, True, True))


def _remarks(layer: LayerAudit) -> Iterator[str]:
    of = f"of {count(layer.kernels, 'kernel')}"
    if layer.non_finite:
        yield f"{count(layer.non_finite, 'weight')} NaN or infinite"
    if layer.zero_kernels:
        yield f"{len(layer.zero_kernels)} {of} zero or next to it: {ranges(layer.zero_kernels)}"
    if layer.collapsed_scales:
        yield (
            f"the scale of {layer.norm}, its norm by the file, is next to zero for {len(layer.collapsed_scales)}"
            f" {of}: {ranges(layer.collapsed_scales)}"
        )
    if layer.identical:
        yield f"all {layer.kernels} kernels are equal: constant initialisation, they cannot learn different things"
    lines = Thresholds()
    if layer.zeros > lines.zero_share or layer.near_zeros > lines.near_zero_share or layer.gini > lines.gini:
        yield (
            f"sparse weights: {percent(layer.zeros)} exactly zero, {percent(layer.near_zeros)} near"
            f" zero (a Gaussian has 0.8 %), Gini {layer.gini:.2f} (a Gaussian has 0.41)"
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


# -- from a state dict -------------------------------------------------------------------------------------------------


def audit_state_dict(
    state: Mapping[str, Any], source: str, thresholds: Thresholds | None = None, ordered: bool = True
) -> Audit:
    """Audit the weights of a state dict.

    A weight is a floating point tensor of two or more axes called `weight`; those of `weight_norm` and of
    `torch.nn.utils.prune` are put together from their parts. A state dict does not tell a transposed convolution, whose
    kernels lie along the second axis, from others.

    Args:
        state: Names to tensors; anything else in it is passed over.
        source: What to call it.
        thresholds: Where a kernel or a scale counts as zero.
        ordered: The order is that of the modules' registration, so that a batch norm follows what it normalises; False:
            go by names, conv1 and bn1, or features.0 and features.1.

    Raises:
        AuditError: If there is no such weight.
    """
    thresholds = thresholds or Thresholds()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    weights = dict(_weights(tensors))
    names = list(weights)
    layers, skipped = [], []
    for place, (name, weight) in enumerate(weights.items()):
        if weight.dim() < 2:
            continue
        if not weight.is_floating_point() or weight.numel() == 0:
            what = "it is empty" if weight.numel() == 0 else f"its type is {weight.dtype}"
            skipped.append(f"{name}: {what}")
            continue
        near = names[place + 1 : place + 2] if ordered else [other for other in names if _belongs(name, other)]
        # Layer and group norms often begin a block, so that what comes before them in the file does not lead to them.
        norms = [o for o in near if f"{o}.running_var" in tensors and weights[o].shape == weight.shape[:1]]
        norm = norms[0] if len(norms) == 1 else None
        scale = None if norm is None else weights[norm]
        layers.append(_layer(name, weight.float(), norm, scale, thresholds))
    if not layers:
        raise AuditError(f"{source}: none of its {len(tensors)} tensors is a weight of two or more axes")
    return Audit(source, tuple(layers), tuple(skipped))


def _belongs(layer: str, norm: str) -> bool:
    """Whether a norm of that name is the layer's: conv1 and bn1 (or norm1), or n and n + 1 within one Sequential."""
    (block, _, last), (other_block, _, other) = layer.rpartition("."), norm.rpartition(".")
    if block != other_block:
        return False
    if last.isdigit():
        return other.isdigit() and int(other) == int(last) + 1
    numbers = [re.sub(r"^\D*", "", text) for text in (last, other)]
    return numbers[0] == numbers[1] and re.fullmatch(r"\D*(bn|norm)\d*", other.lower()) is not None


def _weights(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Module name and effective weight, in order."""
    for name, value in tensors.items():
        module, _, last = name.rpartition(".")
        if last == "weight":
            yield module or name, value
        elif last == "weight_orig" and (mask := tensors.get(f"{name[:-5]}_mask")) is not None:
            yield module or name, value * mask
        elif last == "weight_v" and (size := tensors.get(f"{name[:-2]}_g")) is not None:
            yield module or name, _normed(value, size)
        elif name.endswith("parametrizations.weight.original1"):
            size = tensors[f"{name[:-1]}0"]
            module = name.removesuffix("parametrizations.weight.original1").rstrip(".")
            if size.dim() == value.dim():
                yield module or name, _normed(value, size)


def _normed(direction: Tensor, size: Tensor) -> Tensor:
    """What `weight_norm` computes: g * v / ||v||, over all axes but those in which g has more than one entry."""
    over = [axis for axis, length in enumerate(size.shape) if length == 1]
    length = torch.linalg.vector_norm(direction.float(), dim=over, keepdim=True)
    effective: Tensor = size * direction / length.clamp_min(torch.finfo(torch.float32).tiny)
    return effective


def _layer(name: str, weight: Tensor, norm: str | None, scale: Tensor | None, lines: Thresholds) -> LayerAudit:
    rows = weight.flatten(1)
    finite = rows.isfinite()
    norms = row_norms(rows.where(finite, 0.0))
    # A NaN in a kernel says nothing of the kernel being zero.
    zero = ((norms == 0) | (norms < lines.zero_kernel * norms.max())) & finite.all(1)
    collapsed = torch.zeros_like(zero) if scale is None else scale.float().abs() < lines.norm_scale
    summary = weight_summary(weight)
    return LayerAudit(
        name=name,
        shape=tuple(weight.shape),
        zero_kernels=tuple(zero.nonzero().flatten().tolist()),
        norm=norm,
        collapsed_scales=tuple(collapsed.nonzero().flatten().tolist()),
        zeros=float(summary.zeros),
        near_zeros=float(summary.near_zeros),
        gini=float(summary.gini),
        identical=len(rows) > 1 and bool((rows == rows[0]).all()) and bool(rows.any()),
        non_finite=int((~finite).sum()),
    )


# -- from a file -------------------------------------------------------------------------------------------------------


def audit(path: str | Path, thresholds: Thresholds | None = None) -> Audit:
    """Audit a Lightning checkpoint, a saved state dict, or a `.safetensors` file. No code in the file is run.

    Raises:
        AuditError: If the file is not there, is damaged, holds more than tensors and plain values, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        raise AuditError(
            f"{path} is a folder. A sharded checkpoint must be made one file first:"
            " python -m lightning.pytorch.utilities.consolidate_checkpoint FOLDER"
        )
    if not path.is_file():
        raise AuditError(f"{path}: no such file")
    # A .safetensors file keeps its tensors by name, not in the order they were given.
    sorted_by_name = path.suffix == ".safetensors"
    state = _load_safetensors(path) if sorted_by_name else _load_torch(path)
    return audit_state_dict(state, str(path), thresholds, ordered=not sorted_by_name)


def _load_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise AuditError(f"{path}: reading it needs safetensors: pip install 'lightning-deadkernel[cli]'") from error
    try:
        tensors: Mapping[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AuditError(f"{path} is not a whole safetensors file: {error}") from error
    return tensors


def _load_torch(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        if needs is None:
            raise AuditError(f"{path} is not a checkpoint that PyTorch can read, or it is damaged") from error
        raise AuditError(
            f"{path} holds more than weights: loading it would run code for {needs[1]}, so it is refused."
            " Save the weights alone, torch.save(model.state_dict(), ...), and audit that"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise AuditError(f"{path} is not a checkpoint that PyTorch can read, or it is damaged") from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise AuditError(f"{path} holds a {type(content).__name__}, not a state dict")
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner
    raise AuditError(f"{path} holds no state dict; its keys are {', '.join(map(str, list(content)[:10])) or 'none'}")
