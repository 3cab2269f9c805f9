"""TensorBoard: histograms from counts, pictures, the report as text, and one custom-scalars chart per statistic."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

from lightning_deadkernel.loggers.adapter import Adapter, CustomChart, compact
from lightning_deadkernel.loggers.scalars import Key


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header chunk of a PNG file (its first)."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height


class TensorBoardAdapter(Adapter, serves="TensorBoardLogger"):
    """`lightning.pytorch.loggers.TensorBoardLogger`."""

    native_histograms = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._descriptions: dict[str, str] = {}
        """Section -> what its tags show."""
        self._described: set[str] = set()
        """Tags that have been written: the first event of a tag describes it."""

    def describe(self, descriptions: Mapping[str, str]) -> None:
        """Shown behind the info button of each card."""
        self._descriptions = dict(descriptions)

    def _value(self, key: Key, **content: Any) -> Any:
        tag, description = self.tagged_with_prefix(key), self._descriptions.get(key[0])
        if description is not None and tag not in self._described:
            self._described.add(tag)
            content["metadata"] = self._records.SummaryMetadata(summary_description=description)
        return self._records.Summary.Value(tag=tag, **content)

    @cached_property
    def _records(self) -> Any:
        """TensorBoard's record classes: this file is imported where TensorBoard is not installed."""
        return import_module("tensorboard.compat.proto.summary_pb2")

    @property
    def writer(self) -> Any:
        """The logger's `SummaryWriter`."""
        return self.logger.experiment

    def charts(self, charts: Sequence[CustomChart]) -> None:
        """Writes the layout of the custom-scalars tab. Its tags are regular expressions matched from the start."""
        layout: dict[str, dict[str, list[Any]]] = {}
        for chart in charts:
            tags = [self.tagged_with_prefix((chart.section, card)) for card in chart.cards or ()]
            every = re.escape(self.tagged_with_prefix((chart.section, ""))) + ".+$"
            lines = ["Multiline", [re.escape(tag) + "$" for tag in tags] or [every]]
            # names, not expressions, and the line first
            shown = ["Margin", [tags[1], tags[0], tags[2]]] if chart.band else lines
            layout.setdefault(chart.category, {})[chart.title] = shown
        self.writer.add_custom_scalars(layout)

    def scalars(self, scalars: Mapping[Key, float], step: int) -> None:
        """All scalars of a window as one event: an event each costs ten times as much."""
        self._write([self._value(key, simple_value=value) for key, value in scalars.items()], step)

    def histograms(self, histograms: Mapping[Key, Tensor], step: int) -> None:
        """Writes the counts as they are; sums are of the buckets' middles."""
        values = []
        for key, counted in histograms.items():
            buckets = compact(counted)
            if buckets is None:
                continue
            edges, counts, middles = buckets.edges, np.array(buckets.counts), buckets.middles()
            histogram = self._records.HistogramProto(
                min=edges[0],
                max=edges[-1],
                num=sum(buckets.counts),
                sum=float(middles @ counts),
                sum_squares=float(middles**2 @ counts),
                bucket_limit=edges[1:],
                bucket=buckets.counts,
            )
            values.append(self._records.Summary.Value(tag=self.tagged_with_prefix(key), histo=histogram))
        self._write(values, step)

    def text(self, key: Key, markdown: str, step: int) -> None:
        """Writes the Markdown, which the text tab renders."""
        self.writer.add_text(self.tagged_with_prefix(key), markdown, step)

    def pictures(self, pictures: Mapping[Key, bytes], step: int) -> None:
        """Writes the PNG files as they are; `SummaryWriter.add_image` would decode and encode them again."""
        for key, png in pictures.items():
            width, height = png_size(png)
            image = self._records.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
            self._write([self._records.Summary.Value(tag=self.tagged_with_prefix(key), image=image)], step)

    def _write(self, values: list[Any], step: int) -> None:
        self.writer._get_file_writer().add_summary(self._records.Summary(value=values), step)
