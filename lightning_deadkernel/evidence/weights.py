"""What the weights of layers say when a window ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.functional.histograms import bit_histograms
from lightning_deadkernel.functional.kernels import SMALL, by_rows, row_max, row_norms
from lightning_deadkernel.functional.sparsity import weight_summaries
from lightning_deadkernel.graph.facts import LayerFacts
from lightning_deadkernel.graph.sharding import whole
from lightning_deadkernel.observation import WindowTensors

Draft = dict[str, Any]
"""The fields of a `LayerWindow` on its way."""


def read_weights(described: Sequence[tuple[Draft, LayerFacts]], tensors: WindowTensors | None) -> None:
    """Statistics of the weights; those of all small layers at once."""
    kernels: list[tuple[Draft, LayerFacts]] = []
    for entry, facts in described:
        layer = facts.layer
        entry["bytes_per_parameter"] = layer.main.element_size()
        extras = [facts.scale, facts.source.parameter if facts.source else None]
        owned = {id(p): p.numel() for p in (layer.bias, *extras) if p is not None}
        entry["parameters"] = layer.own(layer.main).numel() + sum(owned.values())
        if layer.is_looked_up:
            padding = getattr(layer.module, "padding_idx", None)
            if padding is not None:
                entry["masked"] = torch.arange(layer.channels) == padding
        elif layer.main.numel() > SMALL:  # one at a time, as a weight may have to be made
            _read_kernels([(entry, facts)], tensors)
        else:
            kernels.append((entry, facts))
    _read_kernels(kernels, tensors)


def _read_kernels(described: Sequence[tuple[Draft, LayerFacts]], tensors: WindowTensors | None) -> None:
    weights = [whole(facts.layer.weight()) for _, facts in described]
    rows = [facts.layer.rows(weight) for (_, facts), weight in zip(described, weights, strict=True)]
    norms = [found.cpu() for found in by_rows(row_norms, rows)]
    largest = [found.cpu() for found in by_rows(row_max, rows)]
    owned = [facts.layer.own(weight) for (_, facts), weight in zip(described, weights, strict=True)]
    summaries = weight_summaries(owned)
    for place, (entry, facts) in enumerate(described):
        layer, weight, summary, source = facts.layer, weights[place], summaries[place], facts.source
        entry["norms"], entry["largest"] = norms[place], largest[place]
        if facts.scale is not None:
            entry["norm_scale"] = on_host(whole(facts.scale.detach()).abs())
        # where the kernel itself is the source (its norm has no shift, there are several), its bias is still added
        shift = source.parameter if source is not None and source.parameter is not None else layer.bias
        if shift is not None:
            entry["shift"] = on_host(whole(shift.detach()))
        entry["weight_sparsity"], entry["weight_near_zeros"] = summary.zeros, summary.near_zeros
        entry["gini"], entry["hoyer"] = summary.gini, summary.hoyer
        if weight.ndim >= 2:
            entry["input_largest"] = on_host(row_max(layer.columns(weight)))
        entry["identical"] = _are_identical(rows[place])
        mask = layer.mask()
        if mask is not None:
            entry["masked"] = (layer.rows(mask) == 0).all(1).cpu()
    if tensors is not None and described:
        names = [entry["name"] for entry, _ in described]
        counts = [summary.histogram for summary in summaries]
        tensors.histograms.setdefault("weights", {}).update(zip(names, counts, strict=True))
        tensors.histograms.setdefault("kernel_norms", {}).update(zip(names, bit_histograms(norms), strict=True))


def _are_identical(rows: Tensor) -> bool:
    """Whether all kernels are equal; two rows tell almost always, and only if they are equal the rest is compared."""
    return len(rows) > 1 and torch.equal(rows[0], rows[1]) and bool((rows == rows[:1]).all())


def on_host(values: Tensor) -> Tensor:
    """On the CPU, in at least float32."""
    return values.to("cpu", torch.promote_types(values.dtype, torch.float32))
