"""The report: the records of one window, with the forms in which to look at them."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lightning_deadkernel.errors import printable
from lightning_deadkernel.observation import STATISTICS
from lightning_deadkernel.report import sentences
from lightning_deadkernel.report.arrays import pattern
from lightning_deadkernel.report.codec import from_json, to_files
from lightning_deadkernel.report.console import renderable
from lightning_deadkernel.report.describe import describe, describe_briefly
from lightning_deadkernel.report.html import to_html, to_notebook
from lightning_deadkernel.report.markdown import to_markdown
from lightning_deadkernel.report.plot import Plot, plot
from lightning_deadkernel.report.records import ChannelValues, ReportRecord
from lightning_deadkernel.report.states import COUNTED, FLAGS

_BEGAN = time.monotonic()
"""When this process did, or soon after."""

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType


@dataclass(frozen=True, repr=False)
class Report(ReportRecord):
    """What one window says of the whole network; it reads back from its own JSON."""

    @property
    def verdict(self) -> str:
        """The report in one line: the worst finding, or that nothing was found and on how many kernels."""
        return printable(sentences.verdict(self))

    def to_markdown(self, narrow: bool = False) -> str:
        """The report as Markdown: the verdict, what was watched, the findings, the layers, what was not watched.

        Args:
            narrow: for a dashboard: the table of layers has those with something to say, and few columns.
        """
        return to_markdown(describe(self, each_kernel=False, narrow=narrow))

    def to_dataframe(self) -> DataFrame:
        """One row a layer: its name and kind, a count for each state and flag, and every statistic.

        Raises:
            ImportError: where pandas is not installed.
        """
        return _frame(
            [
                {
                    "layer": layer.name,
                    "kind": layer.kind,
                    "channels": layer.channels,
                    "depth": layer.depth,
                    "activation": layer.activation,
                    "evidence": layer.evidence,
                    "excluded": layer.excluded,
                    **{word.attribute: len(getattr(layer, word.attribute)) for word in COUNTED},
                    "certified_dead": len(layer.certified_dead),
                    **{shown.name: getattr(layer, shown.name) for shown in STATISTICS},
                }
                for layer in self.layers
            ]
        )

    def channels_dataframe(self) -> DataFrame:
        """One row a channel: its layer, index, state and flags, and what was measured of it in the latest window.

        Raises:
            ImportError: where pandas is not installed.
        """
        measures = [measure.name for measure in fields(ChannelValues)]
        rows: list[dict[str, object]] = []
        for layer in self.layers:
            values = {name: getattr(layer.values, name, None) for name in measures}
            certified = set(layer.certified_dead)
            for channel, (state, code) in enumerate(zip(layer.states, layer.codes, strict=True)):
                rows.append(
                    {
                        "layer": layer.name,
                        "channel": channel,
                        "state": state,
                        "certified_dead": channel in certified,
                        **{flag: bool(code & bit) for flag, bit in FLAGS.items()},
                        **{name: known[channel] if known is not None else None for name, known in values.items()},
                    }
                )
        return _frame(rows)

    def plot(self, kind: str = "overview") -> Plot:
        """One picture of this window: ``figure, axes = report.plot()``; a notebook's cell that ends in it shows it.

        Feature maps, weights and the first layer's kernels are there in the latest report of a training only;
        `DeadKernelMonitor.plot` draws all windows.

        Args:
            kind: ``"overview"``, ``"kernel_map"``, ``"life_lines"``, ``"gradient_flow"``, ``"update_ratios"``,
                ``"weights"``, ``"first_layer_kernels"``, ``"first_feature_maps"`` or ``"worst_feature_maps"``.

        Raises:
            ValueError: if there is no such kind, or the report has nothing for it.
            ImportError: where matplotlib is not installed.
        """
        return plot([self], kind)

    def save(self, path: str | os.PathLike[str], pictures: Mapping[str, bytes] | None = None) -> None:
        """Write the report to `path`, in the format its ending names: `.json`, `.md` or `.html`.

        The file appears whole or not at all; missing folders are made. `tensors` are never saved, and only `.json`
        reads back, by `Report.load`. The long lists of a report of more than 50,000 channels are in a file beside its
        `.json`, ``<name>.<hash>.npz``, which is to go where that goes.

        Args:
            path: the file to write.
            pictures: title -> PNG, or SVG that becomes a part of the page as it is; shown in `.html` only.

        Raises:
            ValueError: for any other ending.
        """
        target = Path(path)
        ending = target.suffix.lower()
        if ending == ".json":
            text, beside = to_files(self, target.stem)
            for name, content in beside.items():
                write_atomically(target.with_name(name), content)
            write_atomically(target, text)
            for old in target.parent.glob(pattern(target.stem)):  # of the report that was here before
                if old.name not in beside:
                    old.unlink(missing_ok=True)
            _remove_leftovers(target, pattern(target.stem))
        elif ending == ".md":
            write_atomically(target, self.to_markdown())
        elif ending == ".html":
            write_atomically(target, to_html(describe(self, pictures)))
        else:
            raise ValueError(f"Expected a path that ends in .json, .md or .html, but got {str(path)!r}.")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Report:
        """Read a report that `save` wrote as JSON.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is not a report, is damaged, was written by a newer version, or the file with its long
                lists is not beside it; the message names the file and the place in it.
        """
        source, text = Path(path), Path(path).read_bytes()

        def beside(name: str) -> bytes:
            try:
                return source.with_name(name).read_bytes()
            except FileNotFoundError:
                raise ValueError(
                    f"its numbers per channel are in {name}, which is not beside it; copy both files"
                ) from None

        try:
            return from_json(Report, text, str(path), beside)
        except ValueError:
            if source.read_bytes() == text:  # else it was written anew between reading the two files
                raise
            return Report.load(path)

    def __str__(self) -> str:
        return "\n".join(map(printable, (sentences.moment(self), self.verdict, sentences.watched_and_not(self))))

    def __repr__(self) -> str:
        return f"<Report of {printable(sentences.moment(self))}: {self.verdict}>"

    def __rich__(self) -> RenderableType:
        return renderable(describe_briefly(self))

    def _repr_html_(self) -> str:
        return to_notebook(describe(self))


def a_report(given: object) -> Report:
    """What a user gave as a report.

    Raises:
        TypeError: if it is none, such as the None of a monitor before its first window has ended.
    """
    if not isinstance(given, Report):
        raise TypeError(f"Expected `report` to be a Report, as a monitor has it after a window, but got {given!r}.")
    return given


def _frame(rows: list[dict[str, object]]) -> DataFrame:
    try:
        from pandas import DataFrame
    except ModuleNotFoundError as error:
        raise ImportError("Data frames need pandas: pip install 'lightning-deadkernel[dataframe]'.") from error
    return DataFrame(rows)


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
    _remove_leftovers(path, glob.escape(path.name))


def _remove_leftovers(written: Path, names: str) -> None:
    """Removes what writers that were killed have left unfinished beside a file that has just been written.

    Args:
        written: the file, whose time tells the time of its file system.
        names: a glob of the files that they wrote; what is younger than this process may be another's that still does.
    """
    with suppress(OSError):
        began = written.stat().st_mtime - (time.monotonic() - _BEGAN)
        for left in written.parent.glob(f".{names}.{'[0-9a-f]' * 32}.tmp"):
            if left.stat().st_mtime < began:
                left.unlink()
