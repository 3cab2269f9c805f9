"""What one window says of every kernel, as plain data.

Past 300 lines because it is a list of fields, each with the sentence that the schema's page shows.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from typing_extensions import Self

from lightning_deadkernel.errors import printable
from lightning_deadkernel.observation import OF_KERNELS, Consumer, LayerStatistics, WindowTensors
from lightning_deadkernel.report.states import FLAGS, STATE_BITS, STATES, State, channels_with
from lightning_deadkernel.thresholds import Thresholds

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
TOLD_BY_WEIGHTS = ("zero_kernel_fraction", "weight_sparsity")
"""Those numbers of `ReportRecord.summary` for which nothing need be run."""


def _make_printable(record: object, *words: str) -> None:
    """Sentences name layers, whose names are anyone's: printed, they must not steer a terminal."""
    for word in words:
        object.__setattr__(record, word, printable(getattr(record, word)))


@dataclass(frozen=True)
class Finding:
    """Something worth saying about one layer (or, with `layer=None`, about the whole network)."""

    kind: str
    """One of the kinds of `lightning_deadkernel.diagnosis.rules.KINDS`, e.g. ``"dead_channels"``."""
    severity: Severity
    """How bad it is."""
    layer: str | None
    """The layer it is about; None: the whole network."""
    channels: tuple[int, ...]
    """Channel indices, ascending; empty where the finding is about the whole layer."""
    evidence: dict[str, float | int | str]
    """The numbers it rests on, by name."""
    cause: str
    """``"<word>: <explanation>"``; the word is one of `lightning_deadkernel.diagnosis.rules.CAUSES`."""
    advice: str
    """What to do."""
    reference: str
    """Where this is written up."""
    window: int
    """The window it was found in."""
    samples: int | None
    """Samples it rests on."""
    title: str = ""
    """What was found, in a few words: ``"6 of 16 kernels are dead (decayed)"``; where none is given, the kind."""

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.kind.replace("_", " "))
        _make_printable(self, "title", "cause", "advice", "reference")

    @property
    def headline(self) -> str:
        """The finding in a line: ``"conv2: 6 of 16 kernels are dead (decayed)"``."""
        return printable(f"{'the network' if self.layer is None else self.layer}: {self.title}")

    @property
    def cause_word(self) -> str:
        """The cause's one word, e.g. ``"decayed"``."""
        return self.cause.split(":", 1)[0]


@dataclass(frozen=True)
class Problem:
    """Findings that have one root, told once."""

    title: str
    """What is the matter, in a line."""
    severity: Severity
    """The worst of its findings'."""
    story: str
    """In a sentence or two each: what and why, since when, and what to do."""
    cause: str
    """Of its root."""
    advice: str
    """What to do about the root."""
    reference: str
    """Where this is written up."""
    places: tuple[int, ...]
    """Of its findings among all findings of the report: the root's first, then what follows from it."""
    findings: tuple[Finding, ...] = field(default=(), compare=False, repr=False, metadata={"saved": False})
    """The same, in full."""

    def __post_init__(self) -> None:
        _make_printable(self, "title", "story", "cause", "advice", "reference")


@dataclass(frozen=True)
class Savings:
    """What removing dead and zero-kernel channels would save."""

    channels: int
    """How many would go."""
    parameters: int
    """Weights and biases that would go, those of what reads the channels among them."""
    bytes: int
    """Size of these parameters."""
    unknown_consumers: tuple[str, ...] = ()
    """Layers with removable channels whose consumers the graph does not show: slices of those are not counted."""


@dataclass(frozen=True)
class ChannelValues:
    """Per-channel numbers of the last window. Kept for the latest report only; lists have one value per channel."""

    firing_rate: list[float] | None = None
    """Share of samples and positions with a positive activation, over the sampled steps."""
    sample_rate: list[float] | None = None
    """Share of samples on some position of which the activation is positive, over `LayerReport.rated_samples`; NaN
    where a channel has no activation of its own, None where samples cannot be told from positions."""
    gradient: list[float] | None = None
    """Largest absolute gradient seen in the window."""
    dormant_score: list[float] | None = None
    """ReDo's score, mean activation over the layer's mean of it (Sokar et al. 2023, arXiv 2302.12902)."""
    norms: list[float] | None = None
    """L2 norm of each kernel at the window's end."""
    since: list[int] | None = None
    """Window in which each channel's present state began."""


Entangled = Literal["hidden", "statistics", "other inputs", "not zero", "elsewhere"]
"""See `Neighbours.entangled`."""


@dataclass(frozen=True)
class Neighbours:
    """What stands behind a layer, as the graph shows it."""

    norm: str | None = None
    """Module of the norm that follows, where its scale and shift are each channel's own; None without one."""
    consumers: tuple[Consumer, ...] = ()
    """The layers that read its channels, and at which of their inputs."""
    entangled: Entangled | None = None
    """Why the weights that read a channel whose activation is off cannot change without changing what the network
    computes: ``"hidden"``, the graph does not show all that reads it; ``"statistics"``, other channels depend on it,
    through a norm or the like; ``"other inputs"``, the same weights read other things too; ``"not zero"``, they get
    something else than 0 from it; ``"elsewhere"``, weights are used beside their own op, too. None where they can."""


@dataclass(frozen=True, kw_only=True)
class LayerReport(LayerStatistics):
    """What a window says of one layer."""

    codes: bytes
    """One byte per channel: the state's place in `STATES`, and the flags."""
    evidence: Literal["activation", "sampled activation", "gradient", "weight"] = "activation"
    """What the states rest on."""
    certified_dead: list[int] = field(default_factory=list)
    """Dead channels that no input at all can make fire, with the weights at the window's end: proven from the weights
    and from what stands before the layer. Of other dead channels it is known that they did not fire in the window."""
    certified_batch: int | None = None
    """Values of a channel that a norm may take together (of a batch in training, of a map) up to which that holds;
    null: any number."""
    rated_samples: int | None = None
    """Samples of the sampled steps, on which sample rates rest; None where there are none."""
    values: ChannelValues | None = None
    """Numbers per channel, in the latest report only."""
    neighbours: Neighbours | None = None
    """In the latest report only; None where no graph was seen."""

    def _where(self, state: State) -> list[int]:
        return channels_with(self.codes, STATE_BITS, STATES.index(state))

    def _flagged(self, flag: str) -> list[int]:
        return channels_with(self.codes, FLAGS[flag], FLAGS[flag])

    @property
    def states(self) -> list[str]:
        """One state per channel, the first that matches."""
        return [STATES[code & STATE_BITS] for code in self.codes]

    @property
    def sample_rate(self) -> list[float | None]:
        """Share of samples (not of positions) on which each channel fires; None where that cannot be told."""
        rates = self.values.sample_rate if self.values is not None else None
        return [None if math.isnan(rate) else rate for rate in rates or [math.nan] * self.channels]

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
        return self._flagged("frozen")

    @property
    def zero_gradient(self) -> list[int]:
        """Channels without any gradient in a layer whose activation cannot be read."""
        return self._where("zero-gradient")

    @property
    def unknown(self) -> list[int]:
        """Channels that were not seen, or whose evidence contradicts itself."""
        return self._where("unknown")

    @property
    def dormant(self) -> list[int]:
        """Channels with a ReDo score at or below the threshold."""
        return self._flagged("dormant")

    @property
    def rare(self) -> list[int]:
        """Channels that fire on fewer than 1 % of samples and positions."""
        return self._flagged("rare")

    @property
    def zero_kernels(self) -> list[int]:
        """Channels whose kernel, or whose norm's scale, is zero or next to it."""
        return self._flagged("zero_kernel")


@dataclass(frozen=True)
class OptimizerDescription:
    """One optimizer of the training."""

    name: str
    """Class name, e.g. ``"AdamW"``."""
    settings: dict[str, float | int | str]
    """Of its first parameter group, by the optimizer's own names, as far as they are numbers or text."""
    groups: int = 1
    """Number of parameter groups."""


@dataclass(frozen=True)
class RunDescription:
    """Whose training a report is about."""

    model: str
    """Class name of the LightningModule."""
    optimizers: tuple[OptimizerDescription, ...] = ()
    """In the order in which the training has them."""
    precision: str = "32-true"
    """As Lightning names it."""
    ranks: int = 1
    """Processes that trained together."""
    gradient_clip: float | None = None
    """Norm to which the Trainer scales down the gradients of a step where theirs is larger; None: it does not."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version, of Python, torch, lightning and this package."""
    started: str = ""
    """When the fit began, ISO 8601 with the time zone."""
    ended: str | None = None
    """When the report was made."""


@dataclass(frozen=True)
class ReportRecord:
    """What one window says of the whole network, as plain data."""

    window: int
    """0: the state at initialisation, before the first optimizer step. Windows count from 1."""
    epoch: int
    """Epoch in which the window ended."""
    global_step: int
    """Optimizer steps of the whole training so far."""
    samples: int | None
    """Samples the verdicts rest on, over all ranks; None where a batch's size cannot be told."""
    batches: int
    """Batches in the window."""
    optimizer_steps: int
    """Optimizer steps in the window."""
    sampled_steps: int
    """Steps on which the costlier statistics were taken."""
    layers: tuple[LayerReport, ...]
    """In forward order; excluded layers last."""
    findings: tuple[Finding, ...] = ()
    """Errors first, then warnings, then infos; forward order within."""
    savings: Savings | None = None
    """What removing dead and zero kernels would save."""
    notes: tuple[str, ...] = ()
    """What could not be watched, and why."""
    gradient_norm: float | None = None
    """L2 norm of all gradients, median over the sampled steps."""
    non_finite_batches: int = 0
    """Batches some gradient of which was NaN or infinite: the states rest on the others."""
    skipped_steps: int = 0
    """Sampled optimizer steps skipped for overflow in mixed precision."""
    first_epoch: int | None = None
    """Epoch in which the window began, where it was an earlier one than that in which it ended."""
    audited: str | None = None
    """Name of the file whose weights alone were looked at; None for a window of training."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """The lines that the diagnosis drew."""
    run: RunDescription | None = field(default=None, compare=False)
    """Whose training it is; None in an audit, and in reports of the first version. Not part of what makes two equal."""
    problems: tuple[Problem, ...] = ()
    """What to do something about, the worst first: findings above info, put together by their root."""
    tensors: WindowTensors | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        # files and checkpoints keep each finding once
        known = [problem for problem in self.problems if all(place < len(self.findings) for place in problem.places)]
        filled = (replace(one, findings=tuple(self.findings[place] for place in one.places)) for one in known)
        object.__setattr__(self, "problems", tuple(filled))

    def __getitem__(self, name: str) -> LayerReport:
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = [layer.name for layer in self.layers]
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.3) or names[:3]
        raise KeyError(f"no layer named {name!r}; near names: {', '.join(map(repr, near))}")

    @cached_property
    def watched(self) -> tuple[LayerReport, ...]:
        """The layers that are not excluded."""
        return tuple(layer for layer in self.layers if layer.excluded is None)

    @cached_property
    def of_kernels(self) -> tuple[LayerReport, ...]:
        """The watched layers whose channels are kernels, and no rows of a table and no experts."""
        return tuple(layer for layer in self.watched if layer.rows in OF_KERNELS)

    @cached_property
    def channels(self) -> int:
        """Number of watched kernels."""
        return sum(layer.channels for layer in self.of_kernels)

    @property
    def dead_channels(self) -> dict[str, list[int]]:
        """Layer name -> indices of its dead channels, layers without any left out."""
        return {layer.name: layer.dead for layer in self.watched if layer.dead}

    @property
    def dead_fraction(self) -> float:
        """Dead channels over all watched channels; 0.0 when nothing is watched."""
        return self._fraction([len(layer.dead) for layer in self.of_kernels])

    def _fraction(self, counts: Sequence[int]) -> float:
        return sum(counts) / self.channels if self.channels else 0.0

    def _weighted(self, values: Sequence[tuple[float | None, int]]) -> float:
        seen = [(value, weight) for value, weight in values if value is not None]
        total = sum(weight for _, weight in seen)
        return sum(value * weight for value, weight in seen) / total if total else math.nan

    def summary(self) -> dict[str, float]:
        """The summary scalars by name, without prefix. The keys are always the same; NaN: not observed.

        Of an audit, which sees weights alone, that is all but what weights tell.
        """
        watched = self.watched
        ratios = [layer.gradient_ratio for layer in watched if layer.gradient_ratio is not None]
        vanishing = {finding.layer for finding in self.findings if finding.kind == "vanishing_gradient"}
        summary = {
            "dead_fraction": self.dead_fraction,
            "dead_channels": float(sum(len(layer.dead) for layer in watched)),
            "zero_kernel_fraction": self._fraction([len(layer.zero_kernels) for layer in self.of_kernels]),
            "starved_fraction": self._fraction([len(layer.starved) for layer in self.of_kernels]),
            "dormant_fraction": self._fraction([len(layer.dormant) for layer in self.of_kernels]),
            "weight_sparsity": self._weighted([(layer.weight_sparsity, layer.parameters) for layer in watched]),
            "activation_sparsity": self._weighted([(layer.activation_sparsity, layer.channels) for layer in watched]),
            "min_gradient_ratio": min(ratios, default=math.nan),
            "vanishing_layers": float(len(vanishing)),
        }
        if self.audited is not None:
            return {name: value if name in TOLD_BY_WEIGHTS else math.nan for name, value in summary.items()}
        return summary

    def compact(self) -> Self:
        """The same report without per-channel `values`, `neighbours` and `tensors`: what a history of many windows
        keeps."""
        layers = tuple(replace(layer, values=None, neighbours=None) for layer in self.layers)
        return replace(self, layers=layers, tensors=None)
