"""The IDX format of the MNIST family: a magic number, the sizes, then the values (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes.

    Returns:
        uint8 tensor of the shape that the file states, e.g. (60000, 28, 28).

    Raises:
        ValueError: If the file is not gzip, not IDX, of another element type, or shorter or longer than it states.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = bytearray(file.read())
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}.") from error
    if len(content) < 4 or content[0] or content[1]:
        raise ValueError(f"{path} is not an IDX file: it begins with {bytes(content[:4])!r}.")
    element, dimensions = content[2], content[3]
    if element != UNSIGNED_BYTE:
        raise ValueError(f"{path} has elements of IDX type {element:#04x}; only unsigned bytes (0x08) are read.")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path} ends within its header of {dimensions} dimensions.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path} states {shape}, {math.prod(shape)} values, but has {len(content) - start}.")
    return torch.frombuffer(content, dtype=torch.uint8)[start:].reshape(shape)
