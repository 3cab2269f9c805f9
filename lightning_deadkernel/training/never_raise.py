"""The wall between the monitor and the training."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

from lightning_deadkernel.errors import DeadKernelError, DeadKernelInternalWarning, DeadKernelWarning, warn
from lightning_deadkernel.training.compile import is_traced

Method = TypeVar("Method", bound=Callable[..., None])


def never_raise(method: Method) -> Method:
    """For a method of a `Run`: whatever goes wrong in it does not touch the training. One warning, and this rank's
    watch ends: from then on the method does nothing.
    """

    @functools.cache
    def untraced() -> Callable[..., None]:
        kept: Callable[..., None] = torch.compiler.disable(method)  # type: ignore[no-untyped-call]
        return kept

    @functools.wraps(method)
    def walled(run: Any, *args: Any, **kwargs: Any) -> None:
        if not run.watching:
            return
        try:
            # A compiled `training_step` that optimizes by hand would have the compiler trace through the monitor. To
            # keep it out where it does not look anyway would take tens of microseconds a step, to ask a few.
            (untraced() if run.by_hand and is_traced() else method)(run, *args, **kwargs)
        except (DeadKernelError, DeadKernelWarning):  # the user's own wish: a warning is raised under an "error" filter
            raise
        except Exception as error:  # the monitor's own fault, whatever it is, is never the training's
            run.fail(method.__name__, error)

    return cast("Method", walled)


@contextmanager
def collector_waits() -> Iterator[None]:
    """No garbage is collected within: of what a window's end and its pictures make, nearly all goes without that, and
    every pass over all objects of a training takes as long as dozens of layers.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warn_internal(text: str) -> None:
    """Says what the monitor has lost, and that the training has not."""
    warn(f"DeadKernelMonitor {text} Training goes on.", DeadKernelInternalWarning)
