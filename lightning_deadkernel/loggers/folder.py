"""Where the report's own files go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

FOLDER = "deadkernel"


def _path(value: Any) -> Path | None:
    """A local path, or None: loggers answer with None, with nothing, or (the dummy of `fast_dev_run`) with a method."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        return None
    return None if "://" in os.fspath(value) else Path(value)


def _folder_of_run(logger: Any) -> tuple[Path, bool] | None:
    """The logger's folder and whether it is this run's own; None where it keeps nothing on this machine."""
    version = getattr(logger, "version", None)
    own = isinstance(version, (str, int)) and version != ""
    if (log_dir := _path(getattr(logger, "log_dir", None))) is not None:
        return log_dir, own
    save_dir = _path(getattr(logger, "save_dir", None))
    if save_dir is None:
        return None
    name = getattr(logger, "name", None)
    parts = [str(part) for part in (name, version) if isinstance(part, (str, int)) and part != ""]
    return save_dir.joinpath(*parts), own


def report_folder(loggers: Sequence[Any], default_root_dir: str | os.PathLike[str]) -> Path:
    """A folder for this run's report and pictures; makes it. To be called on rank zero only.

    It is ``<log dir>/deadkernel`` for the first logger that keeps its files in a folder of this run alone
    (`log_dir`, else ``save_dir/name/version``). Where none does, it is the first of ``deadkernel/version_0``,
    ``deadkernel/version_1``, ... that does not exist yet, under the logger's folder or else under `default_root_dir`,
    so that an earlier run's report is never written over.
    """
    places = [place for logger in loggers if (place := _folder_of_run(logger)) is not None]
    for folder, own in places:
        if own:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            return folder / FOLDER
    base = (places[0][0] if places else Path(default_root_dir)) / FOLDER
    base.mkdir(parents=True, exist_ok=True)
    for number in count():
        fresh = base / f"version_{number}"
        try:
            fresh.mkdir()
        except FileExistsError:
            continue
        return fresh
    raise AssertionError("unreachable")
