"""Small networks and real images to try the monitor on; `configs/` trains them.

The classes are ordinary Lightning ones and work from any LightningCLI by their class path, e.g.
``lightning_deadkernel.demo.SmallCNN``.
"""

from lightning_deadkernel.demo.datamodules import (
    DatasetNotFoundError,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageDataModule,
)
from lightning_deadkernel.demo.models import MLP, ImageClassifier, PlainCNN, SmallCNN

__all__ = [
    "MLP",
    "DatasetNotFoundError",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageClassifier",
    "ImageDataModule",
    "PlainCNN",
    "SmallCNN",
]
