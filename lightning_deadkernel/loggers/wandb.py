"""Weights & Biases: native histograms, pictures, the report, and its files as an artifact."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_deadkernel.loggers.adapter import Adapter, compact
from lightning_deadkernel.loggers.scalars import Key


class WandbAdapter(Adapter, serves="WandbLogger"):
    """`lightning.pytorch.loggers.WandbLogger`. Media go through its `log_metrics`, which adds prefix and step."""

    native_histograms = True

    def histograms(self, histograms: Mapping[Key, Tensor], step: int) -> None:
        """Logs `wandb.Histogram`s made from the counts."""
        import numpy as np
        import wandb

        media = {}
        for key, counted in histograms.items():
            buckets = compact(counted)
            if buckets is not None and len(buckets.counts) <= wandb.Histogram.MAX_LENGTH:
                media[self.tag(key)] = wandb.Histogram(np_histogram=(np.array(buckets.counts), np.array(buckets.edges)))
        if media:
            self.logger.log_metrics(media, step=step)

    def text(self, key: Key, markdown: str, step: int) -> None:
        """Logs the report as preformatted text."""
        import wandb

        self.logger.log_metrics({self.tag(key): wandb.Html(f"<pre>{html.escape(markdown)}</pre>")}, step=step)

    def pictures(self, pictures: Mapping[Key, bytes], step: int) -> None:
        """Logs `wandb.Image`s."""
        import wandb
        from PIL import Image

        media = {self.tag(key): wandb.Image(Image.open(io.BytesIO(png))) for key, png in pictures.items()}
        self.logger.log_metrics(media, step=step)

    def files(self, folder: Path) -> None:
        """Logs the folder as an artifact of type ``deadkernel``."""
        import wandb

        artifact = wandb.Artifact(f"deadkernel-{self.logger.experiment.id}", type="deadkernel")
        artifact.add_dir(str(folder))
        self.logger.experiment.log_artifact(artifact)
