"""Several processes: all agree on what was seen before a verdict, and no collective is skipped on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_deadkernel.evidence import ChannelEvidence
from lightning_deadkernel.observer import Observer
from lightning_deadkernel.window import Window


def is_distributed() -> bool:
    """Whether there are other ranks to agree with."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def agree(trainer: Any, observer: Observer, window: Window, broken: str | None) -> str | None:
    """One exchange at a window's end: what is broken, excluded and known on any rank becomes so on all.

    Returns:
        Why the watch has failed, on whichever rank; None where all is well.
    """
    if not is_distributed():
        return broken
    mine = {
        "broken": broken,
        "excluded": {layer.name: layer.excluded for layer in observer.table.layers if layer.excluded},
        "sites": observer.sites_known(),
        "reached": sorted(observer.reached),
        "samples": window.samples,
        "unread": observer.unread,
    }
    theirs: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(theirs, mine)
    failed: str | None = next((other["broken"] for other in theirs if other["broken"]), None)
    if failed is not None:
        return failed
    for layer in observer.table.layers:
        layer.excluded = layer.excluded or next(
            (other["excluded"][layer.name] for other in theirs if layer.name in other["excluded"]), None
        )
    observer.agree_on_sites(sorted({site for other in theirs for site in other["sites"]}))
    observer.reached.update(*(other["reached"] for other in theirs))
    observer.unread = max(other["unread"] for other in theirs)
    counts = [other["samples"] for other in theirs]
    window.samples = None if None in counts else sum(counts)
    return None


@contextmanager
def reduced(trainer: Any, evidence: ChannelEvidence) -> Iterator[None]:
    """Within: `evidence` holds what all ranks saw together."""
    if not is_distributed():
        yield
        return
    evidence.sync()
    try:
        yield
    finally:
        evidence.unsync()
