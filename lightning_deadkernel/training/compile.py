"""`torch.compile`: whether a model is compiled, and one step without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def is_compiled(trainer: Any, model: nn.Module) -> bool:
    """Whether the module that Lightning trains, or any module in it, runs through `torch.compile`."""
    if getattr(model, "_compiler_ctx", None) is not None:  # Lightning's mark of a compiled LightningModule
        return True
    strategy_model = getattr(trainer.strategy, "model", None)
    modules = [*model.modules(), *([strategy_model] if isinstance(strategy_model, nn.Module) else [])]
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in modules
    )


class Stance:
    """`torch.compiler.set_stance("force_eager")` for one step: the graph is visible, and nothing is recompiled."""

    def __init__(self) -> None:
        self._held: Any = None

    def force_eager(self) -> None:
        """Takes the stance, unless it is taken."""
        if self._held is None:
            self._held = torch.compiler.set_stance("force_eager")

    def restore(self) -> None:
        """Gives back the stance that was there before; harmless when none was taken."""
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)

    def __getstate__(self) -> dict[str, Any]:
        return {"_held": None}
