"""Example reports for the tests of everything that shows reports: what the diagnosis says of windows made by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.reports import codes
from helpers.windows import layer, start, window
from lightning_deadkernel.diagnosis.diagnose import diagnose
from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.diagnosis.problems import find_problems
from lightning_deadkernel.diagnosis.pruning import savings
from lightning_deadkernel.observation import Consumer, LayerWindow
from lightning_deadkernel.report.records import (
    Finding,
    LayerReport,
    OptimizerDescription,
    RunDescription,
    Savings,
)
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.thresholds import Thresholds

RUN = RunDescription(
    model="SmallNet",
    optimizers=(OptimizerDescription("Adam", {"lr": 1e-3, "weight_decay": 0.01}),),
    precision="32-true",
    gradient_clip=1.0,
    ranks=2,
    versions={"torch": "2.13.0", "lightning": "2.6.6", "lightning-deadkernel": "0.2.0"},
    started="2026-11-25T20:00:00+00:00",
    ended="2026-11-25T20:10:00+00:00",
)


def at(channels: int, where: tuple[int, ...], value: float, otherwise: float) -> Tensor:
    """(C,) one value at the given channels, another elsewhere."""
    values = torch.full((channels,), otherwise)
    values[list(where)] = value
    return values


def off(channels: int, where: tuple[int, ...]) -> dict[str, Any]:
    """Those channels neither fire nor have a gradient."""
    return {
        "fired": at(channels, where, 0, 1).bool(),
        "firing_rate": 0.5 * (1 - len(where) / channels),
        "channel_firing_rate": at(channels, where, 0.0, 0.5),
        "activation_mean": at(channels, where, 0.0, 0.4),
        "gradient": at(channels, where, 0.0, 1e-2),
        "weight_gradient": at(channels, where, 0.0, 1e-2),
    }


def sick_window(index: int) -> list[LayerWindow]:
    """Decaying kernels, dead ones, a layer read by gradient alone whose gradient vanishes, a frozen backbone."""
    make = layer if index else start
    worn = 1e-4**index
    decayed = {
        **off(16, (3, 11)),
        "certified_dead": at(16, (11,), 1, 0).bool(),
        "norms": at(16, (3, 11), worn, 1.0),
        "largest": at(16, (3, 11), 0.5 * worn, 0.5),
        "weight_decay": 0.01,
        "weight_near_zeros": 0.132,
        "channel_firing_rate": at(16, (7,), 0.004, 0.5) * at(16, (3, 11), 0, 1),
        "firing_rate": 0.4213,
        "activation_sparsity": 0.587,
        "gradient_ratio": 0.91,
        "update_ratio": 1.234e-3,
        "update_ratio_max": 2.5e-3,
        "depth": 3,
        "producers": None,
        "consumers": (Consumer("features.3", 288),),
        "parameters": 448,
    }
    knocked_out = {
        **(off(32, (0, 1, 2, 3, 7, 20)) if index > 1 else off(32, ())),
        "gradient_ratio": 0.084,
        "update_ratio": 8.7e-4,
        "update_ratio_max": 0.21 if index == 1 else 1e-3,
        "depth": 2,
        "producers": ("features.0",),
        "consumers": None,
        "parameters": 4640,
    }
    vanishing = {
        **off(64, (12,)),
        "fired": None,
        "firing_rate": None,
        "channel_firing_rate": None,
        "activation_mean": None,
        "kind": "Linear",
        "depth": 1,
        "activation": "unknown",
        "gating": None,
        "note": "its activation is a custom autograd function",
        "gradient_ratio": 3.1e-9,
        "vanishing_share": 1.0,
        "weak_share": 1.0,
        "update_ratio": 4.0e-7,
        "producers": ("features.3",),
        "parameters": 4160,
    }
    head = {"kind": "Linear", "depth": 0, "activation": None, "gating": None, "fired": None, "gradient_ratio": 1.0}
    unread: dict[str, Any] = {"firing_rate": None, "channel_firing_rate": None, "activation_mean": None}
    by_weight = ("kind", "norms", "largest", "identical", "weight_decay", "weight_near_zeros", "parameters")

    def made(name: str, channels: int, values: dict[str, Any]) -> LayerWindow:
        return make(name, channels, **(values if index else {k: v for k, v in values.items() if k in by_weight}))

    return [
        made("features.0", 16, decayed),
        made("features.3", 32, knocked_out),
        made("attention.mix", 64, vanishing),
        made("head", 10, head | unread | {"parameters": 650, "identical": True}),
        LayerWindow(name="backbone.stem", kind="Conv2d", channels=8, excluded="requires_grad=False"),
    ]


def healthy_window(index: int) -> list[LayerWindow]:
    make = layer if index else start
    read = {"firing_rate": 0.5, "depth": 1}
    unread = {"kind": "Linear", "depth": 0, "activation": None, "gating": None, "fired": None, "gradient_ratio": 1.0}
    unread |= {"channel_firing_rate": None, "activation_mean": None}
    return [make("conv", 32, **(read if index else {})), make("head", 10, **(unread if index else {"kind": "Linear"}))]


def _diagnosed(layers: Any, last: int, run: RunDescription | None, notes: tuple[str, ...], **counts: int) -> Report:
    """The report of the last of some windows."""
    history, thresholds = History(), Thresholds()
    for index in range(last + 1):
        seen = window(index, *layers(index), **(counts if index else {}))
        reports, findings = diagnose(seen, history, thresholds)
    return Report(
        window=seen.index,
        epoch=seen.epoch,
        global_step=seen.global_step,
        samples=seen.samples,
        batches=seen.batches,
        optimizer_steps=seen.optimizer_steps,
        sampled_steps=seen.sampled_steps,
        layers=reports,
        findings=findings,
        problems=find_problems(findings, history.when),
        savings=savings(seen, reports),
        notes=notes,
        gradient_norm=seen.gradient_norm,
        thresholds=thresholds,
        run=run,
    )


def sick_report() -> Report:
    """Kernels worn down by decay, others knocked out by a step, a vanishing layer, equal kernels, a frozen backbone."""
    notes = ("The model is compiled: sampled steps ran eagerly.",)
    return _diagnosed(sick_window, 3, RUN, notes, samples=1437, batches=46, optimizer_steps=46, sampled_steps=9)


def healthy_report() -> Report:
    """Nothing to say: 42 kernels in 2 layers over 12,000 samples."""
    return _diagnosed(healthy_window, 1, None, (), samples=12_000, batches=100, optimizer_steps=100, sampled_steps=3)


MALICIOUS = "a|b*c`d_<script>alert(1)</script>\n# [x](y) \x1b[31m"
"""A layer's name that tries to be a table cell, emphasis, code, an element, a heading, a link and a colour."""


def malicious_report() -> Report:
    """A report whose every text is hostile."""
    evil = LayerReport(
        name=MALICIOUS,
        kind=MALICIOUS,
        channels=4,
        depth=0,
        activation=MALICIOUS,
        codes=codes(4, {"dead": (1,)}),
        note=MALICIOUS,
    )
    gone = LayerReport(
        name=MALICIOUS + "2",
        kind="Linear",
        channels=2,
        depth=0,
        activation=None,
        codes=codes(2, {"excluded": (0, 1)}),
        excluded=MALICIOUS,
    )
    finding = Finding(
        "dead_channels",
        "error",
        MALICIOUS,
        (1,),
        {MALICIOUS: MALICIOUS},
        MALICIOUS,
        MALICIOUS,
        MALICIOUS,
        1,
        10,
        MALICIOUS,
    )
    return Report(1, 0, 1, 10, 1, 1, 1, (evil, gone), (finding,), Savings(1, 1, 4, (MALICIOUS,)), (MALICIOUS,))
