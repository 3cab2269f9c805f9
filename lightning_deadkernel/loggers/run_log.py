"""One run's logging: every report to every logger, whatever one of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_deadkernel.errors import warn
from lightning_deadkernel.loggers.adapter import Adapter, CustomChart, adapter_of
from lightning_deadkernel.loggers.scalars import (
    DESCRIPTIONS,
    LAYER_SCALARS,
    RANGE,
    SHARES,
    SUMMARY,
    ConstantKeys,
    Key,
    layer_scalars,
    quartile_scalars,
    stage_scalars,
    stages_in,
    summary_scalars,
    within_share,
    worst_layers,
    worst_scalars,
)
from lightning_deadkernel.report.report import Report

SUMMARY_CHARTS = {
    "dead, starved, dormant and zero kernels (share)": (
        "dead_fraction",
        "starved_fraction",
        "dormant_fraction",
        "zero_kernel_fraction",
    ),
    "zeros (share)": ("weight_sparsity", "activation_sparsity"),
    "smallest gradient ratio": ("min_gradient_ratio",),
    "layers with vanishing gradient": ("vanishing_layers",),
}


MOST_STAGES = 6
"""Of a network that has too many layers for curves of each."""


def custom_charts(keys: Sequence[Key], stages: Sequence[str] = ()) -> list[CustomChart]:
    """The summary's charts, one per statistic with all its layers or the worst, and one per statistic and stage."""
    sections = {section for section, _ in keys}
    charts = [CustomChart("deadkernel: the network", title, SUMMARY, cards) for title, cards in SUMMARY_CHARTS.items()]
    charts += [
        CustomChart(
            f"deadkernel: {'the worst layers' if stages else 'layer by layer'}",
            scalar.title,
            f"{SUMMARY}.{scalar.name}",
            None,
        )
        for scalar in LAYER_SCALARS
        if f"{SUMMARY}.{scalar.name}" in sections
    ]
    for scalar in LAYER_SCALARS:
        section = f"{SUMMARY}.{scalar.name}.stages"
        for stage in stages:
            cards = tuple(f"{stage}_{name}" for name in RANGE)
            if (section, cards[0]) in keys:
                charts.append(CustomChart(f"deadkernel: {scalar.title} by stage", stage, section, cards, band=True))
    return charts


class RunLog:
    """Writes reports to all loggers of one run. To be used on rank zero only.

    What a logger raises is warned about once and costs that call alone.

    Args:
        loggers: Lightning's loggers, `trainer.loggers`; may be empty.
        layers: True: every per-layer scalar; False: the summary alone; an int k: the same as True for a network that
            has at most k layers when it is first logged, and of a larger one, of each statistic the k worst values, as
            ``deadkernel.<statistic>/worst_<rank>``, the range of each stage, as
            ``deadkernel.<statistic>.stages/<stage>_lowest`` and so on, and the histograms of the k worst layers of that
            window.
        histograms: whether to log them (as quartiles where the logger knows no histograms).

    """

    def __init__(self, loggers: Sequence[Any], *, layers: bool | int = True, histograms: bool = True) -> None:
        self.layers = layers
        self._stages: dict[str, list[str]] | None = None
        """Of a network with more layers than have curves of their own; empty where each has; None: not known yet."""
        self.with_histograms = histograms
        self._loggers = list(loggers)
        self._made: dict[int, Adapter] = {}
        """Place of a logger -> its adapter, where one could be made."""
        self._scalars, self._quartiles = ConstantKeys(), ConstantKeys()
        self._written: set[tuple[int, str]] = set()
        """Places of loggers, and what is written to each only once."""
        self._named: set[int] = set()
        """Places of those that have raised, and have been warned of."""

    def scalars(self, report: Report, step: int) -> None:
        """The window's scalars, and quartiles where the logger knows no histograms.

        They start with the first window: at initialisation (window 0) nothing has run yet, and which statistics a layer
        has is not known before its activation has been seen.

        Args:
            report: the window's report.
            step: the x-axis, in the unit that the run's own metrics have.
        """
        if report.window == 0:
            return
        found = summary_scalars(report)
        stages = self._stages_of(report)
        if stages:
            found |= worst_scalars(report, self.layers) | stage_scalars(report, stages)
        elif self.layers:
            found |= layer_scalars(report)
        scalars, quartiles = self._scalars.fit(found), {}
        if (
            self.with_histograms
            and self.layers
            and not stages
            and not all(a.native_histograms for a in self._adapters().values())
        ):
            quartiles = self._quartiles.fit(quartile_scalars(report.tensors.histograms if report.tensors else {}))
        self._each(lambda adapter: adapter.charts(custom_charts(list(scalars), list(stages))), once="charts")
        self._each(lambda adapter: adapter.describe(self._descriptions(stages)), once="descriptions")
        self._each(lambda adapter: adapter.scalars(scalars if adapter.native_histograms else scalars | quartiles, step))

    def histograms(self, report: Report, step: int) -> None:
        """The histograms among the report's `tensors`."""
        if not self.with_histograms or report.tensors is None:
            return
        names = {layer.name for layer in report.watched}
        if self._stages_of(report):
            names = set(worst_layers(report, self.layers))
        shown = {
            (f"{SUMMARY}.histograms.{statistic}", layer): within_share(counts) if statistic in SHARES else counts
            for statistic, layers in report.tensors.histograms.items()
            for layer, counts in layers.items()
            if layer in names
        }
        if shown:
            self._each(lambda adapter: adapter.histograms(shown, step))

    def text(self, markdown: str, step: int) -> None:
        """The report in words."""
        self._each(lambda adapter: adapter.text((SUMMARY, "report"), markdown, step))

    def pictures(self, pictures: Mapping[str, bytes], step: int) -> None:
        """PNG files by name, as of `figures.draw_all`; ``"overview"`` is put beside the summary."""
        named = {_picture_key(name): png for name, png in pictures.items()}
        self._each(lambda adapter: adapter.pictures(named, step))

    def files(self, folder: Path) -> None:
        """Keeps the report's folder with the run where the logger can; called once, at the end of fit."""
        self._each(lambda adapter: adapter.files(folder))

    def _stages_of(self, report: Report) -> dict[str, list[str]]:
        if self._stages is None:
            bounded = self.layers is not True and 0 < self.layers < len(report.watched)
            self._stages = stages_in(report, MOST_STAGES) if bounded else {}
        return self._stages

    def _descriptions(self, stages: Mapping[str, Sequence[str]]) -> dict[str, str]:
        if not stages:
            return DESCRIPTIONS
        how = "`log_layers=True` logs every layer by its name"
        worst = f" Here the {self.layers} worst, whichever layers they are of; {how}."
        ranges = f" Here the lowest, the median and the highest of a stage's layers; {how}."
        return {section: text + worst for section, text in DESCRIPTIONS.items()} | {
            f"{section}.stages": text + ranges for section, text in DESCRIPTIONS.items()
        }

    def _adapters(self) -> dict[int, Adapter]:
        for place, logger in enumerate(self._loggers):
            if place not in self._made:
                with self._walled(place):
                    self._made[place] = adapter_of(logger)
        return self._made

    def _each(self, write: Callable[[Adapter], None], once: str = "") -> None:
        for place, adapter in self._adapters().items():
            if (place, once) not in self._written:
                with self._walled(place):
                    write(adapter)
                    self._written |= {(place, once)} if once else set()

    @contextmanager
    def _walled(self, place: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, it must not end the training
            if place not in self._named:
                self._named.add(place)
                warn(
                    f"{type(self._loggers[place]).__name__} raised {type(error).__name__}: {error}. Training and the "
                    "other loggers go on; what comes next is logged to it again."
                )


def _picture_key(name: str) -> Key:
    return (SUMMARY, name) if name == "overview" else (f"{SUMMARY}.figures", name)
