"""A report as scalars: which there are, under which keys, and how they stay the same from window to window."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import median

from torch import Tensor

from lightning_deadkernel.functional.histograms import histogram_quantiles
from lightning_deadkernel.observation import STATISTICS, Statistic
from lightning_deadkernel.report.records import SEVERITIES, LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.stages import stage_label, stages_of
from lightning_deadkernel.report.states import COUNTED, FROZEN_FLAG, Word

Key = tuple[str, str]
"""(section, card): written ``section + separator + card`` with the logger's own separator."""

SUMMARY = "deadkernel"
"""Section of the summary, of the overview picture and of the report's text. Dashboards sort sections by name: the
per-layer sections are called ``deadkernel.<statistic>`` so that they come after it."""

SHARES = {statistic.name for statistic in STATISTICS if statistic.form == "share"}
"""Statistics that lie between 0 and 1."""
_BIN_OF_ONE = 0x3F80_0000 >> 22
"""Of `bit_histogram`: 1.0 is 0x3F800000 in float32."""

RANGE = ("lowest", "median", "highest")
"""Of the layers of a stage."""
QUARTILES = {"q25": 0.25, "q50": 0.5, "q75": 0.75}


@dataclass(frozen=True)
class LayerScalar:
    """One scalar per layer and window."""

    name: str
    title: str
    of: Callable[[LayerReport], float | None]
    badness: Callable[[float], float] = lambda value: value
    """Larger is worse; ranks the layers when only the worst are logged."""
    description: str = ""
    """In a sentence, for those who see a curve and nothing else."""
    applies: Callable[[LayerReport], bool] = lambda layer: True
    """Whether a layer has this scalar at all, whatever a window shows of it."""

    def value(self, layer: LayerReport) -> float:
        """The scalar; NaN where the window did not show it."""
        value = self.of(layer)
        return math.nan if value is None else float(value)


def _share(word: Word) -> LayerScalar:
    """The share of a layer's kernels that the word is true of."""

    def of(layer: LayerReport) -> float | None:
        return len(getattr(layer, word.attribute)) / layer.channels if layer.channels else None

    name = f"{word.name.replace('-', '_')}_fraction"
    description = f"Share of the layer's kernels each of which {word.meaning}."
    return LayerScalar(name, f"kernels {word.text}", of, float, description, lambda layer: layer.gating in word.logged)


def _which_is_bad(statistic: Statistic) -> str:
    if isinstance(statistic.bad, float):
        return f"about {statistic.bad:g} is healthy"
    return "the larger, the worse" if statistic.bad == "high" else "the smaller, the worse"


def _number(statistic: Statistic) -> LayerScalar:
    return LayerScalar(
        statistic.name,
        statistic.title,
        attrgetter(statistic.name),
        statistic.badness,
        f"{statistic.title[0].upper()}{statistic.title[1:]} of each layer; {_which_is_bad(statistic)}.",
        lambda layer: layer.gating is not None or not statistic.needs_activation,
    )


LAYER_SCALARS: tuple[LayerScalar, ...] = (
    *(_share(word) for word in (*COUNTED, FROZEN_FLAG) if word.logged),
    *(_number(statistic) for statistic in STATISTICS if statistic.logged),
)
"""Every per-layer scalar: logged as ``deadkernel.<name>/<layer>``."""


DESCRIPTIONS: dict[str, str] = {f"{SUMMARY}.{scalar.name}": scalar.description for scalar in LAYER_SCALARS}
"""Section -> what its scalars show."""


def summary_scalars(report: Report) -> dict[Key, float]:
    """``deadkernel/<name>`` -> value, always the same keys."""
    return {(SUMMARY, name): value for name, value in report.summary().items()}


def layer_scalars(report: Report) -> dict[Key, float]:
    """``deadkernel.<statistic>/<layer>`` -> value of each layer that has the statistic; NaN: not seen."""
    return {
        (f"{SUMMARY}.{scalar.name}", layer.name): scalar.value(layer)
        for scalar in LAYER_SCALARS
        for layer in report.watched
        if scalar.applies(layer)
    }


def worst_scalars(report: Report, k: int) -> dict[Key, float]:
    """``deadkernel.<statistic>/worst_<rank>`` -> the k worst values of each statistic, whichever layers they are of.

    Ranks and not names, because the layers that are worst at first need not be so later, and keys must not
    change. The report's text and pictures name the layers. NaN where there are fewer than k layers.
    """
    digits, scalars = len(str(k)), {}
    for scalar in LAYER_SCALARS:
        values = [scalar.value(layer) for layer in report.watched if scalar.applies(layer)]
        if not values:
            continue
        seen = sorted((value for value in values if not math.isnan(value)), key=scalar.badness, reverse=True)
        for rank in range(k):
            key = (f"{SUMMARY}.{scalar.name}", f"worst_{rank + 1:0{digits}d}")
            scalars[key] = seen[rank] if rank < len(seen) else math.nan
    return scalars


def stages_in(report: Report, most: int) -> dict[str, list[str]]:
    """The watched layers in at most so many stages: label -> names."""
    groups = stages_of([layer.name for layer in report.watched], most)
    labels = [stage_label(group) for group in groups]
    return {
        label if labels.count(label) == 1 else f"{group[0]} to {group[-1]}": group
        for label, group in zip(labels, groups, strict=True)
    }


def stage_scalars(report: Report, stages: Mapping[str, Sequence[str]]) -> dict[Key, float]:
    """``deadkernel.<statistic>.stages/<stage>_lowest``, ``_median`` and ``_highest`` of its layers; NaN: not seen."""
    layers, scalars = {layer.name: layer for layer in report.watched}, dict[Key, float]()
    for scalar in LAYER_SCALARS:
        for label, names in stages.items():
            of = [layers[name] for name in names if name in layers and scalar.applies(layers[name])]
            if not of:
                continue
            seen = sorted(value for layer in of if not math.isnan(value := scalar.value(layer)))
            for name, value in zip(RANGE, (seen[0], median(seen), seen[-1]) if seen else [math.nan] * 3, strict=True):
                scalars[f"{SUMMARY}.{scalar.name}.stages", f"{label}_{name}"] = value
    return scalars


def worst_layers(report: Report, k: int) -> list[str]:
    """Names of the k layers with most to say: by their worst finding, then by their share of channels not active."""
    severity: dict[str, int] = {}
    for finding in report.findings:
        if finding.layer is not None:
            severity[finding.layer] = max(severity.get(finding.layer, 0), 1 + SEVERITIES.index(finding.severity))

    def badness(layer: LayerReport) -> tuple[int, float]:
        idle = sum(state != "active" for state in layer.states)
        return severity.get(layer.name, 0), idle / max(layer.channels, 1)

    return [layer.name for layer in sorted(report.watched, key=badness, reverse=True)[:k]]


def within_share(counts: Tensor) -> Tensor:
    """Counts of shares, (1024,) int64, with the bin of [1, 1.5) joined to the one below: no share is beyond 1."""
    joined = counts.clone()
    of_one = joined.numpy()  # whose small operations take a third of the time
    of_one[_BIN_OF_ONE - 1] += of_one[_BIN_OF_ONE]
    of_one[_BIN_OF_ONE] = 0
    return joined


def quartile_scalars(histograms: Mapping[str, Mapping[str, Tensor]]) -> dict[Key, float]:
    """``deadkernel.<statistic>_q25/<layer>`` and so on, for loggers that know no histograms."""
    scalars = {}
    for statistic, layers in histograms.items():
        for layer, counts in layers.items():
            within = within_share(counts) if statistic in SHARES else counts
            quartiles = histogram_quantiles(within, list(QUARTILES.values()))
            for name, value in zip(QUARTILES, quartiles, strict=True):
                scalars[(f"{SUMMARY}.{statistic}_{name}", layer)] = value
    return scalars


class ConstantKeys:
    """Holds the keys that each layer has in its first log for good.

    A later window that lacks one gives NaN and one that has more of a known layer gives no more, because a new key
    makes `CSVLogger` write its whole file anew, and a curve that starts late reads as something that has happened: as
    it has where a layer was unfrozen or added.
    """

    def __init__(self) -> None:
        self.keys: list[Key] = []

    def fit(self, scalars: Mapping[Key, float]) -> dict[Key, float]:
        """The scalars under the keys of the calls before, and those of cards that are new."""
        known = {card for _, card in self.keys}
        self.keys += [key for key in scalars if key[1] not in known]
        return {key: scalars.get(key, math.nan) for key in self.keys}
