"""Comet: native histograms, pictures, the report, and its files as assets."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from torch import Tensor

from lightning_deadkernel.loggers.adapter import Adapter, compact
from lightning_deadkernel.loggers.scalars import Key


class CometAdapter(Adapter, serves="CometLogger"):
    """`lightning.pytorch.loggers.CometLogger`."""

    native_histograms = True
    prefix_joint = "_"

    def histograms(self, histograms: Mapping[Key, Tensor], step: int) -> None:
        """Logs Comet's own histograms, filled with the buckets' middles as often as they were counted."""
        structures = import_module("comet_ml.data_structure")

        for key, counted in histograms.items():
            buckets = compact(counted)
            if buckets is None:
                continue
            histogram = structures.Histogram()
            histogram.add(buckets.middles().tolist(), counts=buckets.counts)
            self.logger.experiment.log_histogram_3d(histogram, name=self.tagged_with_prefix(key), step=step)

    def text(self, key: Key, markdown: str, step: int) -> None:
        """Logs the Markdown as text."""
        self.logger.experiment.log_text(markdown, step=step, metadata={"name": self.tagged_with_prefix(key)})

    def pictures(self, pictures: Mapping[Key, bytes], step: int) -> None:
        """Logs the PNG files as images."""
        for key, png in pictures.items():
            self.logger.experiment.log_image(io.BytesIO(png), name=self.tagged_with_prefix(key), step=step)

    def files(self, folder: Path) -> None:
        """Keeps the folder's files as assets."""
        self.logger.experiment.log_asset_folder(str(folder), log_file_name=True, recursive=True)
