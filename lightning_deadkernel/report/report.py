"""The report: the records of one window with their formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from lightning_deadkernel.report.codec import from_json, to_json
from lightning_deadkernel.report.html import to_html
from lightning_deadkernel.report.markdown import to_markdown
from lightning_deadkernel.report.records import ReportRecord


@dataclass(frozen=True)
class Report(ReportRecord):
    """What one window says of the whole network; it reads back from its own JSON."""

    def to_markdown(self) -> str:
        """The report as Markdown: the verdict, what was watched, the findings, the layers, what was not watched."""
        return to_markdown(self)

    def save(self, path: str | os.PathLike[str], pictures: Mapping[str, bytes] | None = None) -> None:
        """Write the report to `path`, in the format its ending names: `.json`, `.md` or `.html`.

        The file appears whole or not at all; missing folders are made. `tensors` are never saved, and only `.json`
        reads back, by `Report.load`.

        Args:
            path: the file to write.
            pictures: title -> PNG, shown in `.html` only.

        Raises:
            ValueError: for any other ending.
            ImportError: for `.html` where jinja2 is not installed.
        """
        target = Path(path)
        ending = target.suffix.lower()
        if ending == ".json":
            text = to_json(self)
        elif ending == ".md":
            text = self.to_markdown()
        elif ending == ".html":
            text = to_html(self, pictures or {})
        else:
            raise ValueError(f"Expected a path that ends in .json, .md or .html, but got {str(path)!r}.")
        write_atomically(target, text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Report:
        """Read a report that `save` wrote as JSON.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is not a report, is damaged, or was written by a newer version; the message names the
                file and the place in it.
        """
        return from_json(Report, Path(path).read_bytes(), source=str(path))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system; and not by `tempfile`, whose files only
    # their owner may read.
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
