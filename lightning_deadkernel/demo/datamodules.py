"""Real images, held in memory: scikit-learn's digits and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, ...]

DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts the four files."""
UNSIGNED_BYTE = 0x08


class DatasetNotFoundError(FileNotFoundError):
    """A data set is not where it was looked for; the message says where it comes from."""


class BatchedTensors(TensorDataset):
    """A TensorDataset that gathers a whole batch with one indexing per tensor.

    The DataLoader calls `__getitems__` where there is one, so shuffling and Lightning's distributed sampler work as
    usual, while indexing and stacking item by item, two to three times as slow for small images, falls away.
    """

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch at these indices, tensors of shape (len(indices), *)."""
        rows = torch.tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def _already_a_batch(batch: Any) -> Any:
    return batch


@dataclass
class Split:
    """Images, (N, 1, H, W) uint8 or float32 in 0..`largest`, and their labels, (N,) int64."""

    images: Tensor
    labels: Tensor

    def take(self, rows: Tensor) -> Split:
        """The images at these rows."""
        return Split(self.images[rows], self.labels[rows])


class ImageDataModule(L.LightningDataModule):
    """Images in memory, split the same way every time; what the data sets below have in common.

    Batches are images, float32 (N, 1, H, W) in 0..1 unless standardised or flattened, and labels, int64 (N,).

    Args:
        batch_size: Images per batch.
        subset: Train on this many images only, for short runs; None: on all.
        val_size: Images kept from training for validation.
        binarise: Make every pixel 0 or 1, with the threshold in the middle.
        standardise: Subtract the mean and divide by the standard deviation of the training images' pixels.
        flatten: Give images as (N, H * W).
        num_workers: Worker processes; the tensors are in memory, so 0 is the fastest.

    Raises:
        ValueError: If `batch_size`, `subset` or `val_size` is not positive, or if they ask for more than there is.
    """

    largest: float
    """The value of a white pixel in what `read` returns."""

    def __init__(
        self,
        batch_size: int = 64,
        subset: int | None = None,
        val_size: int = 256,
        binarise: bool = False,
        standardise: bool = False,
        flatten: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("subset", subset), ("val_size", val_size)):
            if value is not None and value < 1:
                raise ValueError(f"Expected `{name}` to be a positive int, but got {value}.")
        self.batch_size = batch_size
        self.subset = subset
        self.val_size = val_size
        self.binarise = binarise
        self.standardise = standardise
        self.flatten = flatten
        self.num_workers = num_workers
        self.splits: dict[str, BatchedTensors] = {}

    @abstractmethod
    def read(self) -> tuple[Split, Split]:
        """All images as they are stored: those for training and validation, and those for the test."""

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits and prepares the images; a second call does nothing."""
        if self.splits:
            return
        known, test = self.read()
        wanted = self.val_size + (self.subset or 1)
        if wanted > len(known.labels):
            raise ValueError(
                f"Expected `val_size` and `subset` to fit into {len(known.labels)} images, "
                f"but got {self.val_size} and {self.subset}."
            )
        # A generator of its own: the split must depend neither on the seed of the run nor use up its random numbers.
        order = torch.randperm(len(known.labels), generator=torch.Generator().manual_seed(0))
        val, train = known.take(order[: self.val_size]), known.take(order[self.val_size :][: self.subset])
        mean, deviation = 0.0, 1.0
        if self.standardise:
            pixels = self._scale(train.images)
            mean, deviation = pixels.mean().item(), pixels.std().item()
        for name, split in (("train", train), ("val", val), ("test", test)):
            images = (self._scale(split.images) - mean) / deviation
            self.splits[name] = BatchedTensors(images.flatten(1) if self.flatten else images, split.labels)

    def _scale(self, images: Tensor) -> Tensor:
        unit = images.float() / self.largest
        return (unit > 0.5).float() if self.binarise else unit

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            self.splits[split],
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_already_a_batch,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew in each epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """In fixed order."""
        return self._loader("test")


class DigitsDataModule(ImageDataModule):
    """Scikit-learn's 1797 handwritten digits of 8x8 pixels; they come with its wheel, so nothing is downloaded.

    1797 images: 285 for the test, `val_size` for validation, the rest for training.

    Args:
        batch_size: Images per batch.
        val_size: Images kept from training for validation.
        **options: `subset`, `binarise`, `standardise`, `flatten` and `num_workers` of `ImageDataModule`.
    """

    largest = 16.0
    test_size = 285

    def __init__(self, batch_size: int = 32, val_size: int = 256, **options: bool | int | None) -> None:
        super().__init__(batch_size=batch_size, val_size=val_size, **options)  # type: ignore[arg-type]

    def read(self) -> tuple[Split, Split]:
        """The bundled file, shuffled once: its writers follow one another."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DatasetNotFoundError(
                "The digits come with scikit-learn, which is not installed: pip install 'lightning-deadkernel[demo]'."
            ) from error
        digits = load_digits()
        images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1)
        everything = Split(images, torch.as_tensor(digits.target, dtype=torch.int64))
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
        return everything.take(order[self.test_size :]), everything.take(order[: self.test_size])


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 28x28 pictures of clothes, ten kinds.

    60000 images, of which `val_size` for validation, and 10000 for the test, from the four gzipped IDX files.

    Args:
        root: Folder with train-images-idx3-ubyte.gz and its three companions.
        batch_size: Images per batch.
        val_size: Images kept from training for validation.
        **options: `subset`, `binarise`, `standardise`, `flatten` and `num_workers` of `ImageDataModule`.

    Raises:
        DatasetNotFoundError: At `setup`, if a file is missing; a FileNotFoundError.
    """

    largest = 255.0

    def __init__(
        self,
        root: str = DEBIAN_FASHION_MNIST,
        batch_size: int = 128,
        val_size: int = 5000,
        **options: bool | int | None,
    ) -> None:
        super().__init__(batch_size=batch_size, val_size=val_size, **options)  # type: ignore[arg-type]
        self.root = root

    def read(self) -> tuple[Split, Split]:
        """The four files."""
        return self._read("train"), self._read("t10k")

    def _read(self, prefix: str) -> Split:
        folder = Path(self.root)
        paths = folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"
        for path in paths:
            if not path.is_file():
                raise DatasetNotFoundError(
                    f"Fashion-MNIST: no file {path.name} in the folder root={self.root!r}. Debian's package "
                    f"dataset-fashion-mnist puts the four files under {DEBIAN_FASHION_MNIST} "
                    "(apt-get install dataset-fashion-mnist); elsewhere, set `root` to the folder that has them."
                )
        images, labels = (read_idx(path) for path in paths)
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise ValueError(
                f"{paths[0]} and {paths[1]} do not belong together: {tuple(images.shape)}, {tuple(labels.shape)}."
            )
        return Split(images.unsqueeze(1), labels.long())


def read_idx(path: str | Path) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes: a magic number, the sizes, the values.

    It is the format of the MNIST family, http://yann.lecun.com/exdb/mnist.

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
