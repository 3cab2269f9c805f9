"""The wall between the monitor and the training."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from lightning_deadkernel.errors import DeadKernelError, DeadKernelInternalWarning

_looks_on = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: True)
"""Not None where the compiler looks at the frames that run now; an older torch does not tell."""

Hook = TypeVar("Hook", bound=Callable[..., None])


def guarded(hook: Hook) -> Hook:
    """Whatever goes wrong in a hook of the monitor does not touch the training: one warning, and the watch ends."""

    @functools.cache
    def untraced() -> Callable[..., None]:
        kept: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
        return kept

    @functools.wraps(hook)
    def run(monitor: Any, *args: Any, **kwargs: Any) -> None:
        try:
            # A compiled `training_step` that optimizes by hand would have the compiler trace through the monitor. To
            # keep it out where it does not look anyway would take tens of microseconds a step.
            traced = torch.compiler.is_dynamo_compiling() or _looks_on() is not None
            (untraced() if traced else hook)(monitor, *args, **kwargs)
        except DeadKernelError:  # the user's own wish
            raise
        except Exception as error:  # the monitor's own fault, whatever it is, is never the training's
            monitor._give_up(hook.__name__, error)

    return cast("Hook", run)


def alarm(text: str) -> None:
    """Says what the monitor has lost, and that the training has not."""
    warnings.warn(f"DeadKernelMonitor {text} Training goes on.", DeadKernelInternalWarning, stacklevel=4)
