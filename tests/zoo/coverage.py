"""How much of each model is read, as a table: ``python tests/zoo/coverage.py [part of a name ...]``."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.training import fit, quiet
from lightning_deadkernel import Report
from lightning_deadkernel.errors import DeadKernelWarning
from lightning_deadkernel.report.records import LayerReport
from zoo.architectures import MODELS, Training, build, zoo_importable

KINDS = ("read", "none follows", "attention", "mixed", "unknown", "excluded", "tied", "frozen")
COLUMNS = ("layers", *KINDS, "no row", "warnings")


def kind_of(layer: LayerReport) -> str:
    """One of `KINDS`: how a layer is read."""
    if layer.excluded is not None:
        if "requires_grad" in layer.excluded:
            return "frozen"
        return "tied" if "shares its weight" in layer.excluded else "excluded"
    if layer.activation is None:
        return "none follows"
    if layer.activation != "unknown":
        return layer.activation if layer.activation in ("attention", "mixed") else "read"
    return "unknown"


def why(layer: LayerReport) -> str:
    """The reason that a report gives, numbers and other layers' names left out."""
    text = layer.excluded or layer.note or "no reason given"
    return re.sub(r"\d+ of \d+ kernels had no gradient.*", "", text).strip("; ")


def without_a_row(training: Training, report: Report) -> list[str]:
    """Trained parameters of two or more axes, not vectors by shape, that belong to no listed layer and to no note.

    A tied one is listed under one of its names.
    """
    tied: dict[int, list[str]] = {}
    for name, parameter in training.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).extend((name, name.rpartition(".")[0]))
    names = {layer.name for layer in report.layers} | {layer.name.rpartition(".")[0] for layer in report.layers}
    notes = " ".join(report.notes)
    return [
        name
        for name, parameter in training.named_parameters()
        if parameter.requires_grad
        and parameter.numel() > max(parameter.shape, default=0)
        and not names.intersection(tied[id(parameter)])
        and name not in notes
    ]


def measure(name: str) -> tuple[Counter[str], list[tuple[str, str, str]]]:
    """How many layers of a model are of each kind; and (kind, reason, layer) for all that are not simply read."""
    training, batches = build(name)
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(StringIO()):
        warnings.simplefilter("always")
        report: Any = fit(training, batches, monitor=quiet()).report
    row = Counter(kind_of(layer) for layer in report.layers)
    row["layers"] = len(report.layers)
    reasons = [
        (kind_of(layer), why(layer), f"{name}: {layer.name} ({layer.kind})")
        for layer in report.layers
        if kind_of(layer) not in ("read", "none follows", "frozen")
    ]
    for parameter in without_a_row(training, report):
        owner = type(training.get_submodule(parameter.rpartition(".")[0])).__name__
        reasons.append(("no row", owner, f"{name}: {parameter}"))
        row["no row"] += 1
    for warning in caught:
        if issubclass(warning.category, DeadKernelWarning):
            reasons.append(("warning", str(warning.message), name))
            row["warnings"] += 1
    return row, reasons


def main(wanted: list[str]) -> None:
    """Prints a line for each model whose name contains one of `wanted`, then the reasons by how much they cost."""
    total: Counter[str] = Counter()
    costs: dict[tuple[str, str], list[str]] = {}
    print("| model | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
    with zoo_importable():
        for name in MODELS:
            if wanted and not any(part in name for part in wanted):
                continue
            row, reasons = measure(name)
            total.update(row)
            print(f"| {name} | " + " | ".join(str(row[column]) for column in COLUMNS) + " |", flush=True)
            for kind, reason, layer in reasons:
                costs.setdefault((kind, reason), []).append(layer)
    print("| all | " + " | ".join(str(total[column]) for column in COLUMNS) + " |")
    for (kind, reason), layers in sorted(costs.items(), key=lambda item: -len(item[1])):
        models = Counter(layer.split(":")[0] for layer in layers)
        print(f"\n{len(layers)} {kind}: {reason}\n   {dict(models.most_common(6))}\n   e.g. {layers[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
