"""What a file's weights and the model's code tell together: one pass forward shows what stands before each layer.

Nothing is trained and nothing is written. The pass is that of evaluation: dropout is off, and batch norms use the
statistics in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadkernel.analysis.audit import AuditError, read_state, report_of
from lightning_deadkernel.diagnosis.pruning import savings
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.summarize import first_sight
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.observation import LayerWindow
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import listed
from lightning_deadkernel.thresholds import Thresholds

Forward = Callable[[], Any]
"""Runs the model once; gives what it makes of its input, in whatever containers."""


def audit_model(
    path: str | Path,
    model: nn.Module,
    forward: Forward,
    thresholds: Thresholds | None = None,
    key: str | None = None,
) -> Report:
    """Audit the weights in a file as the weights of a model: kernels that no input can make fire are dead.

    Args:
        path: the file, see `audit.audit`.
        model: takes the weights; its code is run.
        forward: runs the model once on some input.
        thresholds: where the lines are drawn.
        key: see `audit.audit`.

    Raises:
        AuditError: if the file cannot be read, its weights are not the model's, or what that makes has no gradient.
    """
    state, epoch, step = read_state(path, key)
    unused = _load(model, state, str(path))
    model.requires_grad_(True).eval()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        outputs = [value for value in _tensors(forward()) if value.grad_fn is not None]
    if not outputs:
        raise AuditError(f"{path}: what {type(model).__name__} makes of its input does not depend on its weights")
    observer = Observer(model, LayerTable.of(model, None, None))
    total = torch.stack([value.real.float().sum() for value in outputs]).sum()
    observer.reader.read(total.grad_fn)
    facts = observer.reader.facts
    window = first_sight(observer, facts.keys(), 0, epoch, step)
    window.audited, window.layers = True, [_certified(layer, observer) for layer in window.layers]
    window.layers.sort(key=lambda layer: (layer.excluded is not None, facts[layer.name].order))
    window.notes = (
        "the model ran once, in evaluation mode: what is certified holds there",
        *([f"weights in the file that the model has not: {listed(unused)}"] if unused else []),
    )
    report = report_of(window, str(path), thresholds or Thresholds())
    return replace(report, savings=savings(window, report.layers))


def _load(model: nn.Module, state: Mapping[str, Any], source: str) -> list[str]:
    """Loads the weights; gives the names of those that the model has not."""
    own = [name for name, _ in model.named_parameters()]
    prefixes = [key.removesuffix(own[0]) for key in map(str, state) if own and key.endswith(f".{own[0]}")]
    within = [prefix for prefix in prefixes if all(f"{prefix}{name}" in state for name in own)]
    if len(within) == 1 and own[0] not in state:  # of a LightningModule around it, of DDP or of torch.compile
        state = {str(name).removeprefix(within[0]): value for name, value in state.items()}
    try:
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise AuditError(f"{source}: its weights are not those of {type(model).__name__}: {error}") from error
    if lacking := [name for name in missing if name in own]:
        raise AuditError(f"{source}: it has no {listed(lacking)} of {type(model).__name__}")
    return list(unexpected)


def _certified(layer: LayerWindow, observer: Observer) -> LayerWindow:
    facts = observer.reader.facts[layer.name]
    proven, batch = facts.never_open(range(layer.channels))
    certified = torch.zeros(layer.channels, dtype=torch.bool)
    certified[sorted(proven)] = True
    return replace(
        layer,
        excluded=facts.excluded,
        gating=facts.gating,
        certified_dead=certified,
        certified_batch=batch,
        producers=tuple(sorted(facts.producers)) if facts.producers else None,
        consumers=observer.reader.consumers(layer.name),
        passes_zero=facts.passes_zero,
    )


def _tensors(value: Any) -> list[Tensor]:
    """All floating point tensors in lists, dicts and the like."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() or value.is_complex() else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
