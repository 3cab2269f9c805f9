"""Where NaN or infinity began in a window: from the marks that steps left on the device."""

from __future__ import annotations

from lightning_deadkernel.evidence.buffers import marks
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.open_window import Seen
from lightning_deadkernel.observation import NonFinite


def first_non_finite(observer: Observer, seen: Seen, optimizer_steps: int, global_step: int) -> NonFinite | None:
    """The first step with values that were not finite, and the layer in which that began; None where all was finite."""
    facts = {name: one for name, one in observer.reader.facts.items() if one.excluded is None and one.confirmed}
    order = sorted(facts, key=lambda name: facts[name].order)
    backward = {name: _mark(seen, "first", name) for name in order if ("first", name) in seen.segments}
    if observer.window.steps.scaled:  # whose overflows are how it finds its scale
        backward = dict.fromkeys(backward, 0)
    forward = {
        name: max((_mark(seen, "blown", key) for key in one.activations), default=0) for name, one in facts.items()
    }
    bad_loss = 0 if seen.counts.bad_loss is None else marks(seen.counts.bad_loss)
    first = max([bad_loss, *backward.values(), *forward.values()])
    if not first or not order:
        return None
    backwards = seen.counts.backwards
    # the steps of a window have as many backward passes each
    step = global_step - optimizer_steps - (-(marks(first) + 1) * max(1, optimizer_steps) // backwards)
    blown = [name for name in order if forward[name] == first]
    bad = [name for name in backward if backward[name] == first]
    data = seen.counts.bad_data if bad_loss == first else None
    if data in facts and not any(facts[name].order < facts[data].order for name in blown):
        return NonFinite(step, data, "data")
    if blown:
        return NonFinite(step, blown[0], "activation")
    if bad_loss == first:
        read = [name for name in order if any(("blown", key) in seen.segments for key in facts[name].activations)]
        if not read or not seen.counts.bad_loss_read:
            return NonFinite(step, (bad or order)[-1], "unread loss")
        return NonFinite(step, read[-1], "loss")
    if len(bad) < len(backward):
        return NonFinite(step, bad[-1], "backward")
    return NonFinite(step, bad[0], "unknown")


def _mark(seen: Seen, kind: str, key: object) -> int:
    values = seen.segments.get((kind, key))
    return 0 if values is None or not values.numel() else int(values.max())
