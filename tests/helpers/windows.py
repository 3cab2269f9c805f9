"""Windows made by hand: a healthy layer of four channels, from which each test departs in what it is about."""

from __future__ import annotations

from typing import Any

import torch

from lightning_deadkernel.diagnosis.diagnose import diagnose
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.problems import find_problems
from lightning_deadkernel.observation import LayerWindow, Window
from lightning_deadkernel.report.records import Finding, LayerReport, Problem
from lightning_deadkernel.thresholds import Thresholds


def each(*values: float | bool) -> torch.Tensor:
    return torch.tensor(values)


def layer(name: str = "conv", channels: int = 4, **changes: Any) -> LayerWindow:
    values: dict[str, Any] = {
        "kind": "Conv2d",
        "depth": 2,
        "activation": "relu",
        "gating": "rectifier",
        "fired": torch.ones(channels, dtype=torch.bool),
        "channel_firing_rate": torch.full((channels,), 0.5),
        "activation_mean": torch.full((channels,), 0.4),
        "gradient": torch.full((channels,), 1e-2),
        "weight_gradient": torch.full((channels,), 1e-2),
        "gradient_rms": 1e-3,
        "gradient_ratio": 0.5,
        "parameters": channels * 10,
        "norms": torch.full((channels,), 1.0),
        "largest": torch.full((channels,), 0.5),
        "shift": torch.zeros(channels),
        "weight_sparsity": 0.0,
        "weight_near_zeros": 0.008,
        "gini": 0.41,
        "hoyer": 0.2,
        "unchanged": torch.zeros(channels, dtype=torch.bool),
        "update_ratio": 1e-3,
        "update_ratio_max": 2e-3,
        "learning_rate": 0.1,
        "producers": None,
        "consumers": (),
        "passes_zero": True,
        "stays_zero": True,
    }
    return LayerWindow(name=name, channels=channels, **(values | changes))


def start(name: str = "conv", channels: int = 4, **changes: Any) -> LayerWindow:
    """The layer at initialisation: weights alone."""
    unseen = dict.fromkeys(
        ("fired", "firing_rate", "activation_mean", "gradient", "weight_gradient", "gradient_rms", "gradient_ratio",
         "unchanged", "update_ratio", "update_ratio_max")
    )  # fmt: skip
    return layer(name, channels, **(unseen | changes))


def window(index: int, *layers: LayerWindow, **changes: Any) -> Window:
    values: dict[str, Any] = {
        "epoch": max(index - 1, 0),
        "global_step": 20 * index,
        "batches": 20 * bool(index),
        "optimizer_steps": 20 * bool(index),
        "sampled_steps": 8 * bool(index),
        "samples": 600 if index else None,
        "gradient_norm": 1.0 if index else None,
    }
    return Window(index=index, layers=list(layers), **(values | changes))


class Run:
    """A training run, told window by window."""

    def __init__(self, **lines: float) -> None:
        self.history = History()
        self.thresholds = Thresholds(**lines)
        self.index = -1
        self.layers: dict[str, LayerReport] = {}
        self.findings: tuple[Finding, ...] = ()

    def next(self, *layers: LayerWindow, **changes: Any) -> Run:
        self.index += 1
        reports, self.findings = diagnose(window(self.index, *layers, **changes), self.history, self.thresholds)
        self.layers = {report.name: report for report in reports}
        self.audited = bool(changes.get("audited"))
        return self

    @property
    def problems(self) -> tuple[Problem, ...]:
        return find_problems(self.findings, self.history.when)

    def report(self, name: str = "conv") -> LayerReport:
        return self.layers[name]

    def of(self, kind: str, name: str | None = "conv") -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind and finding.layer == name]

    def only(self, kind: str, name: str | None = "conv") -> Finding:
        (finding,) = self.of(kind, name)
        return finding


ALL_OFF: dict[str, Any] = {
    "fired": torch.zeros(4, dtype=torch.bool),
    "gradient": torch.zeros(4),
    "weight_gradient": torch.zeros(4),
    "channel_firing_rate": torch.zeros(4),
    "activation_mean": torch.zeros(4),
}


def off(*channels: int) -> dict[str, Any]:
    """These of four channels neither fire nor have a gradient."""
    values = torch.ones(4)
    values[list(channels)] = 0.0
    return {"fired": values > 0, "gradient": values, "weight_gradient": values.clone()}


FIRST_OFF: dict[str, Any] = {
    "fired": each(False, True, True, True),
    "gradient": each(0.0, 1, 1, 1),
    "weight_gradient": each(0.0, 1, 1, 1),
}
NO_GRADIENT: dict[str, Any] = {"gradient": torch.zeros(4), "weight_gradient": torch.zeros(4)}
ZERO: dict[str, Any] = {"norms": each(0.0, 1, 1, 1), "largest": each(0.0, 1, 1, 1)}


def begun(**changes: Any) -> Run:
    return Run().next(start(**changes)).next(layer(**changes))


def alive(name: str = "other") -> Any:
    return layer(name)
