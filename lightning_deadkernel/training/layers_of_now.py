"""Layers that come, change and go in mid-training: what is said of them, and what becomes of their history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.summarize import first_sight
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.layers import FROZEN, LayerTable
from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.training.record import Record


def take_up(
    observer: Observer,
    record: Record,
    trainer: Any,
    before: LayerTable,
    names: Mapping[str, str],
    thresholds: Thresholds,
) -> None:
    """Has the record go on with the layers that the observer has taken up; `names`: what those that stay were called
    -> what they are."""
    known, was = observer.reader.facts, {layer.name: layer for layer in before.layers}
    stayed, when = {now: was[name] for name, now in names.items()}, _moment(trainer)
    since: dict[str, str] = {}
    for name, facts in known.items():
        old = stayed.get(name)
        if facts.excluded is None and (old is None or old.name != name or old.excluded):
            since[name] = _what_happened(when, old, replaced=name in was and name not in names)
        elif facts.is_frozen and (old is None or old.excluded != FROZEN):
            since[name] = f"since {when}"
    came = {name for name, facts in known.items() if name not in stayed and facts.excluded is None}
    if observer.window.steps.sharded:  # to look at whose weights all ranks would have to come here together
        came = set()
    last = max(0, record.next_index - 1)
    record.follow(names, first_sight(observer, came, last, trainer.current_epoch, trainer.global_step), thresholds)
    gone = [layer.name for layer in before.watched if layer.name not in names and layer.name not in known]
    if gone:
        record.gone.append(f"no longer in the model since {when}: {', '.join(gone)}")
    record.since |= since
    say_since(observer, record, trainer)


def say_since(observer: Observer, record: Record, trainer: Any) -> None:
    """Has each layer say since when it is frozen, or watched where that was not from the start."""
    known = observer.reader.facts
    fits = {
        name: text
        for name, text in record.since.items()
        if name in known and known[name].is_frozen == text.startswith("since")
    }
    record.since = {name: f"since {_moment(trainer)}" for name, facts in known.items() if facts.is_frozen} | fits
    for name, facts in known.items():
        facts.since = record.since.get(name)


def _moment(trainer: Any) -> str:
    """Now, by the run's clock."""
    if trainer.global_step == trainer.current_epoch == 0:
        return "initialisation"
    return f"epoch {trainer.current_epoch:,} (step {trainer.global_step:,})"


def _what_happened(when: str, old: Layer | None, replaced: bool) -> str:
    """To a layer that is watched as it is since then: it came, or it was `old` before."""
    if old is None:
        text = "was given a new weight, of which nothing earlier is told" if replaced else "was added"
        return f"watched since {when}, when it {text}"
    return f"watched since {when}, when it was unfrozen" if old.excluded else f"called {old.name} until {when}"
