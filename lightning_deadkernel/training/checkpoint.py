"""The monitor's part of a checkpoint: plain tensors, lists, strings and numbers, as weights-only loading asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.observation import Window
from lightning_deadkernel.report.codec import pack as pack_report
from lightning_deadkernel.report.codec import unpack as unpack_report
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.training import distributed as ranks

VERSION = 1
COUNTERS = ("batches", "optimizer_steps", "sampled_steps", "skipped_steps")
SERIES = ("norms", "updates", "underflow")


def pack(
    reports: list[Report], history: History, said: set[tuple[str, str | None]], packed: dict[int, Tensor]
) -> dict[str, Any]:
    """What all closed windows left, for a resumed run to go on as if it had not been interrupted.

    Args:
        reports: one per closed window.
        history: what the diagnosis remembers.
        said: what need not be said again.
        packed: window -> its packed report, kept from one checkpoint to the next: a long run has hundreds of them.
    """
    for report in reports:
        if report.window not in packed:
            packed[report.window] = pack_report(report)
    return {
        "version": VERSION,
        "reports": [packed[report.window] for report in reports],
        "history": history.state_dict(),
        "said": [list(pair) for pair in sorted(said, key=str)],
    }


def pack_open(window: Window, observer: Observer | None, world: int, broken: str | None) -> dict[str, Any] | None:
    """The half-open window, reduced over all ranks, so that it may be taken up by any number of them.

    Every rank must call it. None where the watch has failed on any.
    """
    if ranks.agree(world, observer, counted := _copy_of_counts(window), broken) is not None or observer is None:
        return None
    observer.evidence.close()
    with ranks.reduced(world, observer.evidence):
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
        "layers": [[layer.name, layer.channels] for layer in sampler.layers],
        "parameters": list(sampler.names),
        "series": {name: sampler.pack_series(name) for name in SERIES},
        "learning_rates": dict(sampler.learning_rates),
        "decays": {name: list(values) for name, values in sampler.decays.items()},
        "turns": dict(sampler.turns),
    }


def _copy_of_counts(window: Window) -> Window:
    """So that the exchange of sample counts does not write the global count into one rank's own."""
    return Window(window.index, 0, 0, 0, 0, 0, window.samples)


def unpack(state: dict[str, Any]) -> tuple[list[Report], History, set[tuple[str, str | None]]]:
    """Raises:
    ValueError: the state was written by a newer version.
    """
    if state.get("version", 0) > VERSION:
        raise ValueError(f"its version is {state['version']}, and this one reads up to {VERSION}")
    history = History()
    history.load_state_dict(state["history"])
    said = {(str(kind), layer) for kind, layer in state["said"]}
    return [unpack_report(Report, packed) for packed in state["reports"]], history, said


def take_up(
    history: History,
    state: dict[str, Any] | None,
    observer: Observer,
    window: Window,
    warn: Callable[[str], None],
    first_rank: bool,
) -> None:
    """At the start of training: fits the history to the model, and takes up a half-open window if there was one."""
    lost = history.restrict({layer.name: layer.channels for layer in observer.reader.watched})
    if lost:
        warn(f"the history of {', '.join(lost)} does not fit the model any more and begins anew.")
    if state is not None:
        _restore(state, observer, window, warn, first_rank)


def _restore(
    state: dict[str, Any], observer: Observer, window: Window, warn: Callable[[str], None], first_rank: bool
) -> None:
    """Takes up a half-open window. Sums are given to the first rank alone, so that they count once."""
    sampler = observer.sampler
    same = state["layers"] == [[layer.name, layer.channels] for layer in sampler.layers]
    if not same or state["parameters"] != sampler.names:
        if state["window"]["batches"]:
            warn("the layers are not those of the checkpoint: the open window begins anew.")
        return
    for name in COUNTERS:
        setattr(window, name, state["window"][name])
    window.samples = state["samples"] if first_rank or state["samples"] is None else 0
    _restore_evidence(state, observer, first_rank)
    observer.reached = set(state["reached"])
    observer.backwards, observer.unread = state["backwards"], state["unread"]
    observer.checksums = {name: values.to(observer.device) for name, values in state["checksums"].items()}
    for name in SERIES:
        sampler.restore_series(name, state["series"][name], first_rank)
    sampler.learning_rates = dict(state["learning_rates"])
    sampler.decays = {name: (float(decay), bool(decoupled)) for name, (decay, decoupled) in state["decays"].items()}
    sampler.turns = {name: int(count) for name, count in state["turns"].items()}


def _restore_evidence(state: dict[str, Any], observer: Observer, first_rank: bool) -> None:
    facts, evidence = observer.reader.facts, observer.evidence
    sites = {tuple(site): channels for site, channels in state["sites"]}
    evidence.arrange(
        evidence.sources,
        {site: channels for site, channels in sites.items() if all(name in facts for name in site)},
    )
    for kind, key, values in state["segments"]:
        key = tuple(key) if isinstance(key, list) else key
        summed = kind == "sums"
        if (key in evidence.sites or key in evidence.sources) and (first_rank or not summed):
            target = evidence.segment(kind, key)
            if target.shape == values.shape:
                target.copy_(values)
                if kind == "sums":
                    evidence.entries[key] = float(values[-1])
