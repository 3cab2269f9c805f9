"""`torch.compile`: whether a model is compiled, and one step without it. All private names of the compiler are here."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

# Checked on torch 2.4 to 2.13: `_compiled_call_impl` is set by `Module.compile`, "OptimizedModule" is the class that
# `torch.compile(module)` returns.


def has_compiled_parts(modules: list[nn.Module]) -> bool:
    """Whether any of these modules, or any in them, runs through `torch.compile`."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for root in modules
        for module in root.modules()
    )


_frame_callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: True)
"""Not None where the compiler looks at the frames that run now (torch 2.13); an older torch does not tell."""


def is_traced() -> bool:
    """Whether the compiler may trace through what runs now."""
    return torch.compiler.is_dynamo_compiling() or _frame_callback() is not None


class Stance:
    """`torch.compiler.set_stance("force_eager")` for one step: the graph is visible, and nothing is recompiled.

    The stance is the process's: where several hold it (two monitors, a fit within a fit), the last gives it back.
    """

    _holders: ClassVar[set[int]] = set()
    _held: ClassVar[Any] = None

    def force_eager(self) -> None:
        """Takes the stance, unless it is taken."""
        if not Stance._holders:
            Stance._held = torch.compiler.set_stance("force_eager")
        Stance._holders.add(id(self))

    def restore(self) -> None:
        """Gives back the stance that was there before; harmless when none was taken."""
        if id(self) not in Stance._holders:
            return
        Stance._holders.remove(id(self))
        if not Stance._holders:
            held, Stance._held = Stance._held, None
            held.__exit__(None, None, None)
