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
    SHARES,
    SUMMARY,
    ConstantKeys,
    Key,
    layer_scalars,
    quartile_scalars,
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


def custom_charts(keys: Sequence[Key]) -> list[CustomChart]:
    """The summary's charts, then one chart per statistic with all its layers."""
    sections = {section for section, _ in keys}
    charts = [CustomChart("deadkernel: the network", title, SUMMARY, cards) for title, cards in SUMMARY_CHARTS.items()]
    charts += [
        CustomChart("deadkernel: layer by layer", scalar.title, f"{SUMMARY}.{scalar.name}", None)
        for scalar in LAYER_SCALARS
        if f"{SUMMARY}.{scalar.name}" in sections
    ]
    return charts


class RunLog:
    """Writes reports to all loggers of one run. To be used on rank zero only.

    What a logger raises is warned about once and costs that call alone.

    Args:
        loggers: Lightning's loggers, `trainer.loggers`; may be empty.
        layers: True: every per-layer scalar; False: the summary alone; an int k: of each statistic the k worst values,
            as ``deadkernel.<statistic>/worst_<rank>``, and the histograms of the k worst layers of that window.
        histograms: whether to log them (as quartiles where the logger knows no histograms).

    """

    def __init__(self, loggers: Sequence[Any], *, layers: bool | int = True, histograms: bool = True) -> None:
        self.layers = layers
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
        if self.layers is True:
            found |= layer_scalars(report)
        elif self.layers:
            found |= worst_scalars(report, self.layers)
        scalars, quartiles = self._scalars.fit(found), {}
        if (
            self.with_histograms
            and self.layers is True
            and not all(a.native_histograms for a in self._adapters().values())
        ):
            quartiles = self._quartiles.fit(quartile_scalars(report.tensors.histograms if report.tensors else {}))
        self._each(lambda adapter: adapter.charts(custom_charts(list(scalars))), once="charts")
        self._each(lambda adapter: adapter.describe(DESCRIPTIONS), once="descriptions")
        self._each(lambda adapter: adapter.scalars(scalars if adapter.native_histograms else scalars | quartiles, step))

    def histograms(self, report: Report, step: int) -> None:
        """The histograms among the report's `tensors`."""
        if not self.with_histograms or report.tensors is None:
            return
        names = {layer.name for layer in report.watched}
        if self.layers is not True and self.layers:
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
