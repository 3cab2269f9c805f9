"""Several processes: nothing is exchanged during a step. At a window's end every rank calls `exchange`, also one whose
watch has failed, and only if it has failed on none does any further exchange follow.
"""

from __future__ import annotations

from typing import Any

import torch


def world_size(trainer: Any) -> int:
    """Ranks that train together. A trainer of its own beside others in `torch.distributed` has one."""
    distributed = torch.distributed
    several = trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if several else 1


def exchange(world: int, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank has to tell, by rank: plain data."""
    if world == 1:
        return [mine]
    theirs: list[Any] = [None] * world
    torch.distributed.all_gather_object(theirs, mine)
    return theirs
