"""What the monitor may say aloud, as types of their own so that users can filter them."""

from __future__ import annotations

import warnings


def printable(text: str) -> str:
    """Text on one line without control characters; they are shown as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)


class DeadKernelError(RuntimeError):
    """Raised at a window's end by `on_finding="raise"`, after the report has been saved; names the finding."""


class OptionError(ValueError):
    """An option that the model cannot meet, such as a pattern that matches no layer."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class DeadKernelWarning(UserWarning):
    """A finding, or something that could not be watched."""


class DeadKernelInternalWarning(DeadKernelWarning):
    """A surprise inside the monitor: what it concerns is no longer watched, training goes on untouched."""


def warn(text: str, category: type[DeadKernelWarning] = DeadKernelWarning) -> None:
    """Warns as usual, but for the path and line of this package's source in front, which tell a user nothing."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, kind, *_: f"{kind.__name__}: {message}\n"
    try:
        warnings.warn(printable(text), category, stacklevel=2)
    finally:
        warnings.formatwarning = before
