"""The two things the monitor may say aloud during training, as types of their own so that users can filter them."""

from __future__ import annotations


class DeadKernelError(RuntimeError):
    """Raised at a window's end by `on_finding="raise"`, after the report has been saved; names the finding."""


class OptionError(ValueError):
    """An option that the model cannot meet, such as a pattern that matches no layer."""


class DeadKernelWarning(UserWarning):
    """A finding, or something that could not be watched."""


class DeadKernelInternalWarning(DeadKernelWarning):
    """A surprise inside the monitor: what it concerns is no longer watched, training goes on untouched."""
