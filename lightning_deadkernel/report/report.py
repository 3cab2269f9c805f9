"""The report: what one window says of every kernel, as plain data that reads back from its own JSON."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal
from uuid import uuid4

from torch import Tensor

State = Literal["active", "dead", "saturated", "silent", "starved", "frozen", "zero-gradient", "excluded"]
STATES: tuple[State, ...] = (
    "active",
    "dead",
    "saturated",
    "silent",
    "starved",
    "frozen",
    "zero-gradient",
    "excluded",
)
"""Every state of a channel; its place here is its number in `LayerReport.codes`."""

STATE_BITS = 0b0000_1111
DORMANT, RARE, ZERO_KERNEL, FROZEN = 0b0001_0000, 0b0010_0000, 0b0100_0000, 0b1000_0000
"""Flags that may accompany any state, in the high bits of a code."""
FLAGS: dict[str, int] = {"dormant": DORMANT, "rare": RARE, "zero_kernel": ZERO_KERNEL, "frozen": FROZEN}
"""Flag name -> its bit in `LayerReport.codes`."""

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """Something worth saying about one layer (or, with `layer=None`, about the whole network)."""

    kind: str
    """One of the kinds of `lightning_deadkernel.diagnosis.diagnose.KINDS`, e.g. ``"dead_channels"``."""
    severity: Severity
    layer: str | None
    channels: tuple[int, ...]
    """Channel indices, ascending; empty where the finding is about the whole layer."""
    evidence: dict[str, float | int | str]
    """The numbers it rests on, by name."""
    cause: str
    """``"<word>: <explanation>"``; the word is one of `lightning_deadkernel.diagnosis.diagnose.CAUSES`."""
    advice: str
    reference: str
    window: int
    samples: int | None

    @property
    def cause_word(self) -> str:
        """The cause's one word, e.g. ``"decayed"``."""
        return self.cause.split(":", 1)[0]


@cache
def _masked(bits: int) -> bytes:
    return bytes(code & bits for code in range(256))


def channels_with(codes: bytes, bits: int, value: int) -> list[int]:
    """Channels whose code has this value under a mask of bits; next to no time where there is none."""
    found = codes.translate(_masked(bits))
    return [channel for channel, held in enumerate(found) if held == value] if value in found else []


@dataclass(frozen=True)
class Savings:
    """What removing dead and zero-kernel channels would save."""

    channels: int
    parameters: int
    bytes: int
    unknown_consumers: tuple[str, ...] = ()
    """Layers with removable channels whose consumers the graph does not show: slices of those are not counted."""


@dataclass(frozen=True)
class ChannelValues:
    """Per-channel numbers of the last window. Kept for the latest report only; lists have one value per channel."""

    firing_rate: list[float] | None = None
    gradient: list[float] | None = None
    dormant_score: list[float] | None = None
    norms: list[float] | None = None


@dataclass(frozen=True)
class LayerReport:
    """What a window says of one layer."""

    name: str
    kind: str
    channels: int
    depth: int
    activation: str | None
    codes: bytes
    """One byte per channel: the state's place in `STATES`, and the flags."""
    excluded: str | None = None
    note: str | None = None
    evidence: Literal["activation", "sampled activation", "gradient", "weight"] = "activation"
    """What the states rest on."""
    firing_rate: float | None = None
    """Mean over the channels of the share of samples and positions with a positive activation."""
    gradient_ratio: float | None = None
    """R_l = rms(grad_l) / max_p rms(grad_p), median over the window's sampled steps."""
    update_ratio: float | None = None
    """||dW|| / ||W|| of an optimizer step, median over the window's sampled steps that measured this layer."""
    update_ratio_max: float | None = None
    weight_sparsity: float | None = None
    """Share of exact zeros among the weights."""
    weight_near_zeros: float | None = None
    """Share of near zeros, \\|w\\| < 1e-2 rms, among the weights; a Gaussian has 0.0080."""
    gini: float | None = None
    hoyer: float | None = None
    activation_sparsity: float | None = None
    """Share of exact zeros in the activation."""
    parameters: int = 0
    values: ChannelValues | None = None

    def _where(self, state: State) -> list[int]:
        return channels_with(self.codes, STATE_BITS, STATES.index(state))

    def _flagged(self, flag: int) -> list[int]:
        return channels_with(self.codes, flag, flag)

    @property
    def states(self) -> list[str]:
        """One state per channel, the first that matches."""
        return [STATES[code & STATE_BITS] for code in self.codes]

    @property
    def dead(self) -> list[int]:
        """Channels that never fired behind a gate."""
        return self._where("dead")

    @property
    def saturated(self) -> list[int]:
        """Channels stuck on the flat end of a smooth or bounded activation."""
        return self._where("saturated")

    @property
    def silent(self) -> list[int]:
        """Channels that never fired but whose gradient passes."""
        return self._where("silent")

    @property
    def starved(self) -> list[int]:
        """Channels that fire while no gradient reaches them."""
        return self._where("starved")

    @property
    def frozen(self) -> list[int]:
        """Channels that fire, have a gradient, and did not change in one bit though the learning rate was positive."""
        return self._flagged(FROZEN)

    @property
    def zero_gradient(self) -> list[int]:
        """Channels without any gradient in a layer whose activation cannot be read."""
        return self._where("zero-gradient")

    @property
    def dormant(self) -> list[int]:
        """Channels with a ReDo score at or below the threshold."""
        return self._flagged(DORMANT)

    @property
    def rare(self) -> list[int]:
        """Channels that fire on fewer than 1 % of samples and positions."""
        return self._flagged(RARE)

    @property
    def zero_kernels(self) -> list[int]:
        """Channels whose kernel, or whose norm's scale, is zero or next to it."""
        return self._flagged(ZERO_KERNEL)


@dataclass(frozen=True)
class WindowTensors:
    """What pictures and histograms need of the latest window. Never saved; only the latest live report has it."""

    histograms: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """statistic (``"weights"``, ``"gradients"``, ``"firing_rate"``, ``"kernel_norms"``) -> layer -> (1024,) int64
    counts in half-octave float-bit bins, see `statistics.histogram_edges`."""
    first_layer: str | None = None
    first_kernels: Tensor | None = None
    """(C, I, H, W) float32 weights of the first convolution with two spatial axes."""


@dataclass(frozen=True)
class Report:
    """What one window says of the whole network."""

    window: int
    """0: the state at initialisation, before the first optimizer step. Windows count from 1."""
    epoch: int
    global_step: int
    samples: int | None
    """Samples the verdicts rest on, over all ranks; None where a batch's size cannot be told."""
    batches: int
    optimizer_steps: int
    sampled_steps: int
    layers: tuple[LayerReport, ...]
    """In forward order; excluded layers last."""
    findings: tuple[Finding, ...] = ()
    """Errors first, then warnings, then infos; forward order within."""
    savings: Savings | None = None
    notes: tuple[str, ...] = ()
    """What could not be watched, and why."""
    gradient_norm: float | None = None
    skipped_steps: int = 0
    audited: str | None = None
    """Name of the file whose weights alone were looked at; None for a window of training."""
    tensors: WindowTensors | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> LayerReport:
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = [layer.name for layer in self.layers]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        raise KeyError(f"no layer named {name!r}; near names: {', '.join(map(repr, near))}")

    @property
    def watched(self) -> tuple[LayerReport, ...]:
        """The layers that are not excluded."""
        return tuple(layer for layer in self.layers if layer.excluded is None)

    @property
    def channels(self) -> int:
        """Number of watched kernels."""
        return sum(layer.channels for layer in self.watched)

    @property
    def dead_channels(self) -> dict[str, list[int]]:
        """Layer name -> indices of its dead channels, layers without any left out."""
        return {layer.name: layer.dead for layer in self.watched if layer.dead}

    @property
    def dead_fraction(self) -> float:
        """Dead channels over all watched channels; 0.0 when nothing is watched."""
        return self._fraction([len(layer.dead) for layer in self.watched])

    def _fraction(self, counts: Sequence[int]) -> float:
        return sum(counts) / self.channels if self.channels else 0.0

    def _weighted(self, values: Sequence[tuple[float | None, int]]) -> float:
        seen = [(value, weight) for value, weight in values if value is not None]
        total = sum(weight for _, weight in seen)
        return sum(value * weight for value, weight in seen) / total if total else math.nan

    def summary(self) -> dict[str, float]:
        """The summary scalars by name, without prefix. The keys are always the same; NaN: not observed."""
        watched = self.watched
        ratios = [layer.gradient_ratio for layer in watched if layer.gradient_ratio is not None]
        vanishing = {finding.layer for finding in self.findings if finding.kind == "vanishing_gradient"}
        return {
            "dead_fraction": self.dead_fraction,
            "dead_channels": float(sum(len(layer.dead) for layer in watched)),
            "zero_kernel_fraction": self._fraction([len(layer.zero_kernels) for layer in watched]),
            "starved_fraction": self._fraction([len(layer.starved) for layer in watched]),
            "dormant_fraction": self._fraction([len(layer.dormant) for layer in watched]),
            "weight_sparsity": self._weighted([(layer.weight_sparsity, layer.parameters) for layer in watched]),
            "activation_sparsity": self._weighted([(layer.activation_sparsity, layer.channels) for layer in watched]),
            "min_gradient_ratio": min(ratios, default=math.nan),
            "vanishing_layers": float(len(vanishing)),
        }

    def compact(self) -> Report:
        """The same report without per-channel `values` and `tensors`: what a history of many windows keeps."""
        return replace(self, layers=tuple(replace(layer, values=None) for layer in self.layers), tensors=None)

    def to_markdown(self) -> str:
        """The report as Markdown: the verdict, what was watched, the findings, the layers, what was not watched."""
        from lightning_deadkernel.report.markdown import to_markdown

        return to_markdown(self)

    def save(self, path: str | os.PathLike[str], pictures: Mapping[str, bytes] | None = None) -> None:
        """Write the report to `path`, in the format its ending names: `.json`, `.md` or `.html`.

        The file appears whole or not at all; missing folders are made. `tensors` are never saved, and only `.json`
        reads back, by `Report.load`.

        Args:
            path: the file to write.
            pictures: title -> PNG, shown in `.html` only.

        Raises:
            ValueError: for any other ending.
            ImportError: for `.html` where jinja2 is not installed.
        """
        target = Path(path)
        ending = target.suffix.lower()
        if ending == ".json":
            from lightning_deadkernel.report.codec import to_json

            text = to_json(self)
        elif ending == ".md":
            text = self.to_markdown()
        elif ending == ".html":
            from lightning_deadkernel.report.html import to_html

            text = to_html(self, pictures or {})
        else:
            raise ValueError(f"Expected a path that ends in .json, .md or .html, but got {str(path)!r}.")
        write_atomically(target, text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Report:
        """Read a report that `save` wrote as JSON.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is not a report, is damaged, or was written by a newer version; the message names the
                file and the place in it.
        """
        from lightning_deadkernel.report.codec import from_json

        return from_json(Path(path).read_bytes(), source=str(path))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system; and not by `tempfile`, whose files only
    # their owner may read.
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
