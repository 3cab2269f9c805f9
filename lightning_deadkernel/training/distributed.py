"""Several processes: all agree on what was seen before a verdict, and no collective is skipped on one rank.

Nothing is exchanged during a step. At a window's end every rank calls `agree`, also one whose watch has failed, and
only if it has failed on none does any further exchange follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_deadkernel.evidence.channel_evidence import ChannelEvidence
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.observation import Window


def world_size(trainer: Any) -> int:
    """Ranks that train together. A trainer of its own beside others in `torch.distributed` has one."""
    distributed = torch.distributed
    several = trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if several else 1


def agree(world: int, observer: Observer | None, window: Window, broken: str | None) -> str | None:
    """One exchange at a window's end: what is broken, excluded and known on any rank becomes so on all.

    Returns:
        Why the watch has failed, on whichever rank; None where all is well.
    """
    if observer is None:
        broken = broken or "it is not set up"
    if world == 1:
        return broken
    theirs: list[Any] = [None] * world
    torch.distributed.all_gather_object(theirs, {"broken": broken} | _known(observer, window))
    failed: str | None = next((other["broken"] for other in theirs if other["broken"]), None)
    if failed is not None or observer is None:
        return failed
    for name, facts in observer.reader.facts.items():
        reason = next((other["excluded"][name] for other in theirs if name in other["excluded"]), None)
        if reason is not None and facts.excluded is None:
            facts.exclude(reason)
    observer.agree_on_sites(sorted({site for other in theirs for site in other["sites"]}))
    observer.reached.update(*(other["reached"] for other in theirs))
    observer.unread = max(other["unread"] for other in theirs)
    observer.backwards = max(other["backwards"] for other in theirs)
    counts = [other["samples"] for other in theirs]
    window.samples = None if None in counts else sum(counts)
    return None


def _known(observer: Observer | None, window: Window) -> dict[str, Any]:
    if observer is None:
        return {}
    return {
        "excluded": {name: facts.excluded for name, facts in observer.reader.facts.items() if facts.excluded},
        "sites": observer.sites_known(),
        "reached": sorted(observer.reached),
        "samples": window.samples,
        "unread": observer.unread,
        "backwards": observer.backwards,
    }


@contextmanager
def reduced(world: int, evidence: ChannelEvidence) -> Iterator[None]:
    """Within: `evidence` holds what all ranks saw together."""
    if world == 1:
        yield
        return
    evidence.sync()
    try:
        yield
    finally:
        evidence.unsync()
