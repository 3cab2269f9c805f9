"""SwanLab: pictures and the report; quartiles in place of histograms, which it does not draw from counts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib import import_module

from lightning_deadkernel.loggers.adapter import Adapter
from lightning_deadkernel.loggers.scalars import Key


class SwanLabAdapter(Adapter, serves="SwanLabLogger", of="swanlab"):
    """`swanlab.integration.pytorch_lightning.SwanLabLogger`."""

    def text(self, key: Key, markdown: str, step: int) -> None:
        """Logs the report as text."""
        self.logger.log_text(self.tag(key), [markdown], step=step)

    def pictures(self, pictures: Mapping[Key, bytes], step: int) -> None:
        """Logs `swanlab.Image`s."""
        image = import_module("PIL.Image")
        for key, png in pictures.items():
            self.logger.log_image(self.tag(key), [image.open(io.BytesIO(png))], step=step)
