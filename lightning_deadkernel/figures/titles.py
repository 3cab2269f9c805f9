"""The sentences over the pictures."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_deadkernel.figures.canvas import moment
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import BY_NAME, SHOWN, WORD_OF_CODE, WORDS

BY_GRAVITY = tuple(word.name for word in sorted(SHOWN, key=lambda word: -word.gravity) if word.fault)
"""Which word a title speaks of, when several are true."""


def words_of(layer: LayerReport) -> list[str]:
    """What each channel is shown as."""
    return [WORDS[place] for place in layer.codes.translate(WORD_OF_CODE)]


def past_of(reports: Sequence[Report], name: str) -> list[LayerReport | None]:
    """A layer in every report, None where it was not watched."""
    found = []
    for report in reports:
        layer = next((layer for layer in report.layers if layer.name == name), None)
        found.append(layer if layer is not None and layer.excluded is None else None)
    return found


def _said(word: str) -> str:
    return BY_NAME[word].text


def sick_channels(layer: LayerReport) -> tuple[str, list[int]]:
    """The gravest word true of the layer and the channels it is true of; ``("active", [])`` if none is."""
    words = words_of(layer)
    for word in BY_GRAVITY:
        channels = [channel for channel, said in enumerate(words) if said == word]
        if channels:
            return word, channels
    return "active", []


def since(reports: Sequence[Report], name: str, word: str, channels: Sequence[int]) -> str:
    """Since when: ``"since epoch 3"``, or ``"one by one, from epoch 1 on"``."""
    number = WORDS.index(word)
    past = [layer.codes.translate(WORD_OF_CODE) if layer else b"" for layer in past_of(reports, name)]
    begins = []
    for channel in channels:
        begin = len(past)
        while begin and len(past[begin - 1]) > channel and past[begin - 1][channel] == number:
            begin -= 1
        begins.append(begin)
    first, last = min(begins), max(begins)
    if first == last:
        # states are known from the first window on: one that was there then may have been there before
        return "from the start" if first <= 1 and reports[0].window == 0 else f"since {moment(reports, first)}"
    return f"one by one from {'the start' if first <= 1 and not reports[0].window else moment(reports, first)} on"


def worst_layer(report: Report) -> LayerReport | None:
    """The layer with the gravest word, and of those the one with the largest share; None if all is well."""

    def badness(layer: LayerReport) -> tuple[int, float]:
        word, channels = sick_channels(layer)
        return -BY_GRAVITY.index(word), len(channels) / layer.channels

    sick = [layer for layer in report.watched if sick_channels(layer)[1]]
    return max(sick, key=badness, default=None)


def state_headline(reports: Sequence[Report]) -> str:
    """What the states say: ``"conv2: 6 of 16 kernels dead since epoch 3"``."""
    report = reports[-1]
    layer = worst_layer(report)
    if layer is None:
        if not report.window:
            return f"{report.channels:,} kernels in {len(report.watched):,} layers, before the first step"
        return f"None of {report.channels:,} kernels found dead, saturated, starved or frozen"
    word, channels = sick_channels(layer)
    others = [
        (other.name, here) for other in report.watched if (here := words_of(other).count(word)) and other is not layer
    ]
    said = (
        f"{layer.name}: {len(channels):,} of {layer.channels:,} kernels {_said(word)} "
        f"{since(reports, layer.name, word, channels)}"
    )
    if others:
        total, layers = sum(count for _, count in others), len(others)
        said += f"; {total:,} more in {layers:,} other layer{'s' * (layers > 1)}"
    return said
