"""Makes reports by hand: codes, findings, and whole histories of networks that never ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_deadkernel.functional.histograms import bit_histogram
from lightning_deadkernel.observation import FeatureMaps, WindowTensors
from lightning_deadkernel.report.records import ChannelValues, Finding, LayerReport, Savings
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import FLAGS, STATES

SMALL = (("conv1", "Conv2d", 16, "relu"), ("conv2", "Conv2d", 32, "relu"), ("fc", "Linear", 10, None))


GATINGS: dict[str | None, Any] = {"relu": "rectifier", "sigmoid": "bounded"}


def resnet(blocks: int = 2, wide: int = 64) -> tuple[tuple[str, str, int, str | None], ...]:
    """Layers named and sized like a ResNet's: ResNet-18 by default, 4 800 + 1 000 channels."""
    layers: list[tuple[str, str, int, str | None]] = [("conv1", "Conv2d", wide, "relu")]
    for stage in range(4):
        for block in range(blocks):
            for conv in (1, 2):
                layers.append((f"layer{stage + 1}.{block}.conv{conv}", "Conv2d", wide << stage, "relu"))
            if stage and not block:
                layers.append((f"layer{stage + 1}.{block}.downsample.0", "Conv2d", wide << stage, "relu"))
    return (*layers, ("fc", "Linear", 1000, None))


def plain(depth: int, channels: int, activation: str | None = "relu") -> tuple[tuple[str, str, int, str | None], ...]:
    """A deep net of equal layers."""
    return tuple((f"features.{3 * i}", "Conv2d", channels, activation) for i in range(depth))


def codes(channels: int, marks: Mapping[str, Sequence[int]]) -> bytes:
    """One code per channel from state and flag names -> indices."""
    made = bytearray(channels)
    for word, where in marks.items():
        for channel in where:
            # "frozen" is both: the state of an active channel, and a flag beside any other.
            made[channel] |= (STATES.index(word) if word in STATES else 0) | FLAGS.get(word, 0)
    return bytes(made)


def finding(
    kind: str,
    layer: str | None,
    channels: Sequence[int] = (),
    severity: str = "warning",
    window: int = 1,
    **evidence: float,
) -> Finding:
    return Finding(
        kind=kind,
        severity=severity,  # type: ignore[arg-type]
        layer=layer,
        channels=tuple(channels),
        evidence=dict(evidence),
        cause="shift driven negative: the shift before the activation fell below what the input can outweigh",
        advice="Lower the learning rate, or start from a smaller negative bias.",
        reference="Lu et al. 2019, arXiv 1903.06733",
        window=window,
        samples=60_000,
    )


def history(
    layers: Sequence[tuple[str, str, int, str | None]] = SMALL,
    windows: int = 5,
    dies: Mapping[str, Mapping[int, int]] | None = None,
    state: str = "dead",
    revives: Mapping[str, Mapping[int, int]] | None = None,
    gradient: float | None = 1.0,
    shrink: float = 0.8,
    tensors: bool = True,
    seed: int = 0,
) -> list[Report]:
    """One report per window, the first (number 0) at initialisation.

    Args:
        layers: name, kind, channels, activation.
        dies: layer -> channel -> the window since which it is in `state`.
        state: what the channels of `dies` become.
        revives: layer -> channel -> the window since which it is active again.
        gradient: gradient ratio of the last layer; None: no gradient was ever looked at.
        shrink: factor of the gradient ratio from one layer to the one before it.
        tensors: the last report has histograms and the first layer's kernels.
    """
    generator = torch.Generator().manual_seed(seed)
    reports = []
    for window in range(windows + 1):
        made, found = [], []
        for place, (name, kind, channels, activation) in enumerate(layers):
            depth = len(layers) - 1 - place
            gone = [
                c
                for c, since in (dies or {}).get(name, {}).items()
                if since <= window < (revives or {}).get(name, {}).get(c, windows + 1)
            ]
            rare: list[int] = []
            if window:
                drawn = (torch.rand(channels, generator=generator) < 0.01).nonzero().flatten().tolist()
                rare = [channel for channel in drawn if channel not in gone]
            noise = float(torch.randn((), generator=generator))
            ran = window > 0
            rates = torch.rand(channels, generator=generator) * 0.6 + 0.2
            rates[gone] = 0.0
            last = window == windows
            made.append(
                LayerReport(
                    name=name,
                    kind=kind,
                    channels=channels,
                    depth=depth,
                    activation=activation if ran else None,
                    gating=GATINGS.get(activation) if ran else None,
                    codes=codes(channels, {state: gone, "dormant": gone if state == "dead" else (), "rare": rare}),
                    evidence="activation" if activation else "gradient",
                    firing_rate=float(rates.mean()) if ran and activation else None,
                    gradient_ratio=(gradient * shrink**depth * math.exp(0.2 * noise)) if ran and gradient else None,
                    update_ratio=1e-3 * math.exp(0.3 * noise) * 0.97**window if ran else None,
                    update_ratio_max=3e-3 if ran else None,
                    weight_sparsity=0.02 * (place % 3),
                    weight_near_zeros=0.008 + 0.02 * (place % 3),
                    gini=0.41,
                    hoyer=0.2,
                    activation_sparsity=0.5 if ran and activation else None,
                    parameters=channels * 100,
                    values=ChannelValues(
                        firing_rate=rates.tolist() if activation else None,
                        gradient=torch.rand(channels, generator=generator).tolist(),
                        norms=(1 + 0.1 * torch.randn(channels, generator=generator)).tolist(),
                    )
                    if last
                    else None,
                )
            )
            if gone:
                found.append(
                    finding(f"{state}_channels", name, gone, "error" if len(gone) > channels / 2 else "warning", window)
                )
        reports.append(
            Report(
                window=window,
                epoch=max(window - 1, 0),
                global_step=100 * window,
                samples=60_000 if window else None,
                batches=100 if window else 0,
                optimizer_steps=100 if window else 0,
                sampled_steps=4 if window else 0,
                layers=tuple(made),
                findings=tuple(found),
                savings=Savings(2, 1000, 4000) if found else None,
                gradient_norm=1.0,
                tensors=fake_tensors(layers, generator) if tensors and window == windows else None,
            )
        )
    return reports


def fake_tensors(layers: Sequence[tuple[str, str, int, str | None]], generator: torch.Generator) -> WindowTensors:
    """Histograms of Gaussian weights, one in three layers with exact zeros, and first-layer kernels with edges in."""
    histograms: dict[str, dict[str, torch.Tensor]] = {
        "weights": {},
        "gradients": {},
        "firing_rate": {},
        "kernel_norms": {},
    }
    for place, (name, _, channels, activation) in enumerate(layers):
        weights = torch.randn(channels * 50, generator=generator) * 0.05
        if place % 3:
            weights[: len(weights) // 50] = 0.0
        histograms["weights"][name] = bit_histogram(weights)
        histograms["gradients"][name] = bit_histogram(weights * 1e-3)
        histograms["kernel_norms"][name] = bit_histogram(1 + 0.1 * torch.randn(channels, generator=generator))
        if activation:
            histograms["firing_rate"][name] = bit_histogram(torch.rand(channels, generator=generator))
    name, _, channels, _ = layers[0]
    angle = torch.arange(channels).view(-1, 1, 1, 1) * 0.4
    y, x = torch.meshgrid(torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 7), indexing="ij")
    kernels = torch.sin(5 * (x * angle.cos() + y * angle.sin())) * torch.exp(-2 * (x**2 + y**2))
    colours = 0.5 + torch.rand(channels, 3, 1, 1, generator=generator)
    image = torch.rand(3, 32, 32, generator=generator)
    maps = {
        name: FeatureMaps(torch.randn(1, channels, 16, 16, generator=generator).relu(), image)
        for name, _, channels, activation in layers[:2]
        if activation
    }
    return WindowTensors(histograms, name, kernels * colours * 0.2, maps)
