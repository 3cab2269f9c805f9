"""A random network as a short program of ops that one can read, run, and take lines out of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Op:
    """One line: a value made of earlier values, a term of the loss, or a kill."""

    target: str
    """``"v3"``: the value it makes, and the name of its module; ``"loss"``; ``"kill"``."""
    name: str
    args: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [*self.args, *(f"{key}={value!r}" for key, value in self.options.items())]
        call = f"{self.name}({', '.join(given)})"
        return {"loss": f"loss += {call}", "kill": f"kill: {call}"}.get(self.target, f"{self.target} = {call}")


@dataclass(frozen=True)
class Program:
    """A network, what it is trained on, and which of its channels are killed."""

    seed: int
    """Of all parameters, constants and batches; each op draws its own, so that taking one out changes no other."""
    ops: tuple[Op, ...]
    batch_size: int = 4
    dtype: str = "float32"
    channels_last: bool = False

    def __str__(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        head = f"seed {self.seed}: {self.dtype}, batches of {self.batch_size}{layout}"
        return "\n".join([head, *(f"    {op}" for op in self.ops)])

    def having(self, *ops: Op) -> Program:
        """The same with other lines."""
        return replace(self, ops=ops)

    def live(self) -> set[str]:
        """Targets of the lines that the gradient of the loss comes back to."""
        wanted = {"loss"}
        for op in reversed(self.ops):
            if op.target in wanted or ("inplace" in op.name and wanted.intersection(op.args)):
                wanted.update((op.target, *(() if op.name == "halt" else op.args)))
        return wanted
