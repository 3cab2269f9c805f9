"""What was typed to start this fit, and what to type next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from lightning_deadkernel.report.describe import PROGRAM


def why_command(trainer: Any) -> str:
    """The command that tries what did it, where a LightningCLI started this fit from the command line; else empty."""
    words = sys.orig_argv[1:]
    cli = any("SaveConfigCallback" in {kind.__name__ for kind in type(one).__mro__} for one in trainer.callbacks)
    if not cli or "fit" not in words or trainer.world_size > 1:  # of several processes each sees its own command
        return ""
    own = Path(words[0]).name == PROGRAM or words[:2] == ["-m", "lightning_deadkernel"]
    return shlex.join([PROGRAM, "why", *(words[words.index("fit") + 1 :] if own else ["--", "python", *words])])
