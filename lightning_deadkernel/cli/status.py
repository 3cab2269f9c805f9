"""What all commands share: their name, how they end, and which of them train."""

from __future__ import annotations

import sys

from lightning_deadkernel.errors import printable

PROGRAM = "lightning-deadkernel"
TRAINER_COMMANDS = {
    "fit": "train any LightningModule on any LightningDataModule, with the monitor in place",
    "validate": "run one validation epoch; the monitor, which watches training, has nothing to do",
    "test": "run one test epoch; the monitor, which watches training, has nothing to do",
}

EXIT_FOUND, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130
"""1: something was found that the user had asked to fail on; 2: it could not be done; 130: Ctrl-C, as in shells."""


class CommandError(Exception):
    """What the user asked for cannot be done; the message says why."""


def failed(message: str, status: int = EXIT_ERROR) -> int:
    """Says why on standard error, in a line."""
    print(printable(f"{PROGRAM}: error: {message}"), file=sys.stderr)
    return status
