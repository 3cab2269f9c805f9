"""MLflow: quartiles in place of histograms; pictures, the report and its files as artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from lightning_deadkernel.loggers.adapter import Adapter
from lightning_deadkernel.loggers.scalars import Key

_METRICS_PER_BATCH = 1000
"""Most metrics that one `log_batch` request may hold, https://mlflow.org/docs/latest/rest-api.html#log-batch."""


class MLFlowAdapter(Adapter, serves="MLFlowLogger"):
    """`lightning.pytorch.loggers.MLFlowLogger`. Artifacts of a window are in ``deadkernel/step_<step>``."""

    def scalars(self, scalars: Mapping[Key, float], step: int) -> None:
        """Logs in batches of the largest size that MLflow takes."""
        rest = iter(scalars.items())
        while batch := dict(islice(rest, _METRICS_PER_BATCH)):
            super().scalars(batch, step)

    def _place(self, step: int) -> str:
        return f"deadkernel/step_{step:08d}"

    def text(self, key: Key, markdown: str, step: int) -> None:
        """Keeps the report as a Markdown file."""
        self.logger.experiment.log_text(self.logger.run_id, markdown, f"{self._place(step)}/{key[1]}.md")

    def pictures(self, pictures: Mapping[Key, bytes], step: int) -> None:
        """Keeps the PNG files."""
        with tempfile.TemporaryDirectory() as folder:
            for (_, name), png in pictures.items():
                Path(folder, f"{name}.png").write_bytes(png)
            self.logger.experiment.log_artifacts(self.logger.run_id, folder, self._place(step))

    def files(self, folder: Path) -> None:
        """Keeps the folder as the artifact folder ``deadkernel``."""
        self.logger.experiment.log_artifacts(self.logger.run_id, str(folder), "deadkernel")
