"""What each kind of logger can take; this base is every logger's: scalars, and quartiles in place of histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from lightning_deadkernel.errors import printable
from lightning_deadkernel.functional.histograms import filled_bins
from lightning_deadkernel.loggers.scalars import Key

_SMALLEST_EDGE = 2.0**-126
"""Values below the smallest normal float32 are counted in the bin of zero, and shown as zero."""


class CustomChart(NamedTuple):
    """One chart that shows several scalars together."""

    category: str
    title: str
    section: str
    cards: tuple[str, ...] | None
    """None: every card of the section."""
    band: bool = False
    """Its three cards are the lower end, the line, and the upper end of a band."""


class CompactBuckets(NamedTuple):
    """A histogram by its edges, runs of empty buckets merged into one."""

    edges: list[float]
    """Ascending; one more than counts."""
    counts: list[int]

    def middles(self) -> Any:
        """The middle of each bucket: an array of float64."""
        edges = np.array(self.edges)
        return (edges[:-1] + edges[1:]) / 2


def compact(counts: Tensor) -> CompactBuckets | None:
    """Bit-histogram counts, (1024,) int64, as a short list of buckets; None where nothing finite was counted."""
    edges, found, _ = filled_bins(counts)
    if not len(found):
        return None
    kept = found > 0  # as the first and the last are
    kept[:-1] |= kept[1:]  # of a run of empty buckets the last, up to its end
    ends = [float(edges[0]), *edges[1:][kept].tolist()]
    return CompactBuckets([0.0 if abs(end) <= _SMALLEST_EDGE else end for end in ends], found[kept].tolist())


_LIGHTNING = ("lightning", "pytorch_lightning")


class Adapter:
    """Writes to one logger whose kind is not known: scalars only.

    A subclass names the loggers that it is for: ``class WandbAdapter(Adapter, serves="WandbLogger")``, and with ``of``
    the package that has them where it is not Lightning. Names and not classes, because the package may not be there.

    Attributes:
        known: (package, class name) of a logger -> its adapter.
        native_histograms: False: quartiles are logged as scalars instead.
        prefix_joint: what the logger puts between its prefix and a tag.

    """

    known: ClassVar[dict[tuple[str, str], type[Adapter]]] = {}
    native_histograms: ClassVar[bool] = False
    prefix_joint: ClassVar[str] = "-"

    def __init_subclass__(cls, serves: str | None = None, of: str | None = None) -> None:
        super().__init_subclass__()
        if serves is not None:
            Adapter.known.update({(package, serves): cls for package in ((of,) if of else _LIGHTNING)})

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        separator = getattr(logger, "group_separator", "/")
        self.separator: str = separator if isinstance(separator, str) else "/"
        self._tags: dict[Key, str] = {}

    def tag(self, key: Key) -> str:
        """The key with the logger's own separator, and without what files and terminals cannot take."""
        if key not in self._tags:
            self._tags[key] = printable(self.separator.join(key))
        return self._tags[key]

    def tagged_with_prefix(self, key: Key) -> str:
        """`tag`, behind the logger's own prefix: for what does not go through `log_metrics`, which adds it."""
        prefix = getattr(self.logger, "_prefix", None)
        return f"{prefix}{self.prefix_joint}{self.tag(key)}" if isinstance(prefix, str) and prefix else self.tag(key)

    def scalars(self, scalars: Mapping[Key, float], step: int) -> None:
        """All scalars of a window in one call."""
        self.logger.log_metrics({self.tag(key): value for key, value in scalars.items()}, step=step)

    def charts(self, charts: Sequence[CustomChart]) -> None:
        """Which scalars belong into one chart; called once."""

    def describe(self, descriptions: Mapping[str, str]) -> None:
        """What the scalars and histograms of each section show; called once, before the first of them."""

    def histograms(self, histograms: Mapping[Key, Tensor], step: int) -> None:
        """Histograms, each (1024,) int64 counts in the bins of `histograms.bit_histogram`."""

    def text(self, key: Key, markdown: str, step: int) -> None:
        """The report in words."""

    def pictures(self, pictures: Mapping[Key, bytes], step: int) -> None:
        """PNG files."""

    def files(self, folder: Path) -> None:
        """Keeps a folder of files with the run."""


def adapter_of(logger: Any) -> Adapter:
    """The adapter for the logger's own type or the nearest base of it; the base `Adapter` for an unknown one."""
    for base in type(logger).__mro__:
        adapter = Adapter.known.get((base.__module__.partition(".")[0], base.__name__))
        if adapter is not None:
            return adapter(logger)
    return Adapter(logger)
