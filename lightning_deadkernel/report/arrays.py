"""The long lists of a large report, in a file beside its JSON: NumPy's `.npz`, which any program reads.

The file's name ends with the hash of its content, and the JSON names it, so that the two always belong together, also
where the writer was killed between them.
"""

from __future__ import annotations

import glob
import hashlib
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_CHANNELS = 50_000
"""Channels up to which a report has all its numbers in its JSON, which then takes six megabytes at most."""
SHORT = 16
"""Lists of so few numbers stay there in any case."""
_ENDING = "[0-9a-f]" * 16 + ".npz"

Arrays = dict[str, Any]
"""Key -> one-dimensional array."""


def moved(values: Sequence[Any], arrays: Arrays) -> dict[str, Any] | None:
    """Puts a list of numbers, None among them, with the arrays; gives what stands for it in the JSON.

    None where the list is short, or holds something else.
    """
    kinds = set(map(type, values))
    if len(values) <= SHORT or not kinds <= {int, float, type(None)}:
        return None
    key = str(len(arrays))
    if type(None) in kinds:
        arrays[f"{key}.null"] = np.array([place for place, value in enumerate(values) if value is None], np.int32)
        values = [math.nan if value is None else value for value in values]
    exact = np.array(values)
    with np.errstate(all="ignore"):  # what does not fit is kept as it is
        half = exact.astype(np.int32 if kinds == {int} else np.float32)
    arrays[key] = half if np.array_equal(half, exact, equal_nan=True) else exact
    return {"array": key, "length": len(values)}


def put_back(value: Any, arrays: Mapping[str, Any]) -> Any:
    """The JSON with its lists again. Raises KeyError for an array that is not there."""
    if isinstance(value, list):
        return [put_back(item, arrays) for item in value] if {dict, list} & set(map(type, value)) else value
    if not isinstance(value, dict):
        return value
    if set(value) != {"array", "length"}:
        return {name: put_back(item, arrays) for name, item in value.items()}
    key = str(value["array"])
    numbers: list[Any] = arrays[key].tolist()
    for place in arrays.get(f"{key}.null", ()):
        numbers[place] = None
    return numbers


def to_file(arrays: Arrays, stem: str) -> tuple[str, bytes]:
    """Name and content of the file beside ``<stem>.json``."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    content = file.getvalue()
    return f"{stem}.{hashlib.sha256(content).hexdigest()[:16]}.npz", content


def pattern(stem: str) -> str:
    """A glob of the names that `to_file` gives."""
    return f"{glob.escape(stem)}.{_ENDING}"


def from_file(name: str, content: bytes) -> Arrays:
    """The arrays of a file.

    Raises:
        ValueError: if it is not the file that `to_file` has named so.
    """
    if name.split(".")[-2:-1] != [hashlib.sha256(content).hexdigest()[:16]]:
        raise ValueError(f"{name} is damaged, or is another file than the one that was written under that name")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} holds no arrays ({error})") from None
