"""The monitor's part of a checkpoint: plain tensors, lists, strings and numbers, as weights-only loading asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel import ranks
from lightning_deadkernel.history import History
from lightning_deadkernel.observer import Observer
from lightning_deadkernel.report import Report
from lightning_deadkernel.sampling import Series
from lightning_deadkernel.schema import pack as pack_report
from lightning_deadkernel.schema import unpack as unpack_report
from lightning_deadkernel.window import Window

VERSION = 1
COUNTERS = ("batches", "optimizer_steps", "sampled_steps", "skipped_steps")
SERIES = ("ratios", "rms", "updates", "totals", "underflow")


def pack(
    reports: list[Report],
    history: History,
    said: set[tuple[str, str | None]],
    window: Window,
    observer: Observer | None,
) -> dict[str, Any]:
    """Everything that a resumed run needs to go on as if it had not been interrupted."""
    state: dict[str, Any] = {
        "version": VERSION,
        "reports": [pack_report(report) for report in reports],
        "history": history.state_dict(),
        "said": [list(pair) for pair in sorted(said, key=str)],
    }
    if observer is not None:
        state["open"] = _pack_open(window, observer)
    return state


def _pack_open(window: Window, observer: Observer) -> dict[str, Any]:
    """The half-open window, reduced over all ranks, so that it may be taken up by any number of them."""
    ranks.agree(None, observer, counted := _copy_of_counts(window), None)
    observer.evidence.close()
    with ranks.reduced(None, observer.evidence):
        segments = [[kind, key, values.clone()] for (kind, key), values in observer.evidence.segments().items()]
    sampler = observer.sampler
    return {
        "window": {name: getattr(window, name) for name in COUNTERS},
        "samples": counted.samples,
        "index": window.index,
        "segments": [[kind, list(key) if isinstance(key, tuple) else key, values] for kind, key, values in segments],
        "sites": [[list(site), channels] for site, channels in observer.evidence.sites.items()],
        "reached": sorted(observer.reached),
        "backwards": observer.backwards,
        "unread": observer.unread,
        "checksums": {name: values.cpu() for name, values in observer.checksums.items()},
        "layers": [layer.name for layer in sampler.layers],
        "series": {name: _pack_series(getattr(sampler, name)) for name in SERIES},
        "learning_rates": dict(sampler.learning_rates),
        "decays": {name: list(values) for name, values in sampler.decays.items()},
    }


def _copy_of_counts(window: Window) -> Window:
    """So that the exchange of sample counts does not write the global count into one rank's own."""
    return Window(window.index, 0, 0, 0, 0, 0, window.samples)


def _pack_series(series: Series) -> dict[str, Any]:
    return {"rows": [row.cpu() for row in series.rows], "stride": series.stride, "offered": series.offered}


def unpack(state: dict[str, Any]) -> tuple[list[Report], History, set[tuple[str, str | None]]]:
    """Raises:
    ValueError: the state was written by a newer version.
    """
    if state.get("version", 0) > VERSION:
        raise ValueError(f"its version is {state['version']}, and this one reads up to {VERSION}")
    history = History()
    history.load_state_dict(state["history"])
    said = {(str(kind), layer) for kind, layer in state["said"]}
    return [unpack_report(packed) for packed in state["reports"]], history, said


def restore(
    state: dict[str, Any], observer: Observer, window: Window, warn: Callable[[str], None], first_rank: bool
) -> None:
    """Takes up a half-open window. Sums are given to the first rank alone, so that they count once."""
    watched = [layer.name for layer in observer.sampler.layers]
    if state["layers"] != watched:
        warn("the layers are not those of the checkpoint: the open window begins anew.")
        return
    for name in COUNTERS:
        setattr(window, name, state["window"][name])
    window.samples = state["samples"] if first_rank or state["samples"] is None else 0
    known = observer.reader.known
    sites = {tuple(site): channels for site, channels in state["sites"]}
    sites = {site: channels for site, channels in sites.items() if all(name in known for name in site)}
    evidence = observer.evidence
    evidence.arrange(evidence.sources, sites)
    for kind, key, values in state["segments"]:
        key = tuple(key) if isinstance(key, list) else key
        summed = kind in ("non-finite", "sums")
        if (key in sites or key in evidence.sources) and (first_rank or not summed):
            target = evidence.segment(kind, key)
            if target.shape == values.shape:
                target.copy_(values)
                if kind == "sums":
                    evidence.entries[key] = float(values[-1])
    observer.reached = set(state["reached"])
    observer.backwards, observer.unread = state["backwards"], state["unread"]
    observer.checksums = {name: values.to(observer.device) for name, values in state["checksums"].items()}
    sampler = observer.sampler
    for name in SERIES:
        _restore_series(getattr(sampler, name), state["series"][name], observer.device)
    sampler.learning_rates = dict(state["learning_rates"])
    sampler.decays = {name: (float(decay), bool(decoupled)) for name, (decay, decoupled) in state["decays"].items()}


def _restore_series(series: Series, state: dict[str, Any], device: torch.device) -> None:
    rows: list[Tensor] = state["rows"]
    series.rows = [row.to(device) for row in rows]
    series.stride, series.offered = int(state["stride"]), int(state["offered"])
