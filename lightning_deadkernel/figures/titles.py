"""The sentences over the pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning_deadkernel.figures.canvas import moment
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import BY_NAME, SHOWN, WORD_OF_CODE, WORDS

FAULTS = tuple(word.name for word in sorted(SHOWN, key=lambda word: -word.gravity) if word.fault)
"""The words that a title may speak of, the worst first: of several that are true it takes the first."""


HARMLESS = tuple(word.name for word in SHOWN if word.gravity <= BY_NAME["rare"].gravity)
"""What a kernel that fires and learns is shown as."""


def words_of(layer: LayerReport) -> list[str]:
    """What each channel is shown as."""
    return [WORDS[place] for place in layer.codes.translate(WORD_OF_CODE)]


def pasts_of(reports: Sequence[Report], names: Collection[str]) -> dict[str, list[LayerReport | None]]:
    """Each of these layers in every report, None where it was not watched or had another number of channels.

    A layer may be replaced; and which axis of a weight holds the channels is known only once the graph was seen.
    """
    watched = [{layer.name: layer for layer in report.layers if layer.excluded is None} for report in reports]
    pasts = {}
    for name in names:
        past = [layers.get(name) for layers in watched]
        latest = next((layer.channels for layer in reversed(past) if layer), None)
        pasts[name] = [layer if layer and layer.channels == latest else None for layer in past]
    return pasts


def past_of(reports: Sequence[Report], name: str) -> list[LayerReport | None]:
    """A layer in every report, None where it was not watched."""
    return pasts_of(reports, [name])[name]


def unhealthy(layer: LayerReport) -> tuple[str, list[int]]:
    """The worst word true of the layer and the channels it is true of; ``("active", [])`` if none is a fault."""
    places = layer.codes.translate(WORD_OF_CODE)
    for fault in FAULTS:
        if (place := WORDS.index(fault)) in places:
            return fault, [channel for channel, shown in enumerate(places) if shown == place]
    return "active", []


def since(reports: Sequence[Report], name: str, word: str, channels: Sequence[int]) -> str:
    """Since when: ``"since epoch 3"``, or ``"one by one from epoch 1 on"``.

    Of a long run not every window is there: ``"since epoch 2 to epoch 3"`` where it began between two that are, and
    ``"since epoch 3 or before"`` where there is none before.
    """
    number = WORDS.index(word)
    past = [layer.codes.translate(WORD_OF_CODE) if layer else b"" for layer in past_of(reports, name)]
    begins = []
    for channel in channels:
        begin = len(past)
        while begin and len(past[begin - 1]) > channel and past[begin - 1][channel] == number:
            begin -= 1
        begins.append(begin)
    first, last = min(begins), max(begins)
    # states are known from the first window on: one that was there then may have been there before
    from_start = reports[first].window <= 1 and reports[0].window == 0
    start = "the start" if from_start else moment(reports, first)
    if not from_start and first and reports[first].window - reports[first - 1].window > 1:
        start = f"{moment(reports, first - 1)} to {start}"
    if first == 0 and reports[0].window > 1:
        start += " or before"
    if first == last:
        return "from the start" if from_start else f"since {start}"
    return f"one by one from {start} on"


def worst_layer(report: Report, among: Collection[str] | None = None) -> LayerReport | None:
    """The layer with the worst word, and of those the one with the largest share; None if all is well.

    Args:
        report: what to look through.
        among: names of the layers to look at; None: all.
    """
    layers = [layer for layer in report.watched if among is None or layer.name in among]
    found = {layer.name: unhealthy(layer) for layer in layers}

    def badness(layer: LayerReport) -> tuple[int, float]:
        word, channels = found[layer.name]
        return BY_NAME[word].gravity, len(channels) / layer.channels

    return max((layer for layer in layers if found[layer.name][1]), key=badness, default=None)


def layer_headline(reports: Sequence[Report], name: str) -> str:
    """What the states say of one layer: ``"conv2: 6 of 16 kernels dead since epoch 3"``."""
    layer = reports[-1][name]
    word, channels = unhealthy(layer)
    if not channels:
        return f"{name}: none of {layer.channels:,} kernels found {_worst_words()}"
    when = since(reports, name, word, channels)
    return f"{name}: {len(channels):,} of {layer.channels:,} kernels {BY_NAME[word].text} {when}"


def _worst_words() -> str:
    worst = [BY_NAME[fault].text for fault in FAULTS[:4]]
    return f"{', '.join(worst[:-1])} or {worst[-1]}"


def state_headline(reports: Sequence[Report]) -> str:
    """What the states say: ``"conv2: 6 of 16 kernels dead since epoch 3"``."""
    report = reports[-1]
    layer = worst_layer(report)
    if layer is None:
        if not report.window:
            return f"{report.channels:,} kernels in {len(report.watched):,} layers, before the first step"
        return f"None of {report.channels:,} kernels found {_worst_words()}"
    word, _ = unhealthy(layer)
    place = bytes([WORDS.index(word)])
    counts = [other.codes.translate(WORD_OF_CODE).count(place) for other in report.watched if other is not layer]
    others = [count for count in counts if count]
    text = layer_headline(reports, layer.name)
    if others:
        text += f"; {sum(others):,} more in {len(others):,} other layer{'s' * (len(others) > 1)}"
    return text
