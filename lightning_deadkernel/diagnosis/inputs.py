"""The size of what enters the network, where it is the root of what is found."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.context import LayerContext
from lightning_deadkernel.observation import Entering

NEXT_TO_ZERO = 0.1
"""Pictures scaled to [0, 1] have an rms of a third and more, and standardised data of one."""
LARGE = 10.0
"""Weights are drawn so that data of unit rms keeps its size: beyond ten times that, steps and activations outgrow."""
OFF_CENTRE = 3.0
"""Means of so many standard deviations: the mean alone decides on which side of zero a kernel's output lies."""
CONSTANT = 10.0
"""The same where nothing of it need be seen in the layer."""
OUTSIDE = "data, or what is frozen or detached"
"""All that no layer in a graph makes."""


def is_next_to_zero(data: Entering) -> bool:
    """Whether biases outweigh what the weights make of the data."""
    return data.rms < NEXT_TO_ZERO


def is_large(data: Entering) -> bool:
    """Whether weights that are drawn for data of unit size make far more of it."""
    return LARGE < data.rms < math.inf


def is_off_centre(data: Entering) -> bool:
    """Whether the data varies little around a mean that is far from zero."""
    return OFF_CENTRE * data.spread < data.offset < math.inf


def is_all_but_constant(data: Entering) -> bool:
    """The same by so far that it is so whatever the weights are."""
    return CONSTANT * data.spread < data.offset < math.inf


def entrance(layer: LayerContext, holds: Callable[[Entering], bool]) -> LayerContext | None:
    """The layer that data enters, where nothing else feeds this one, with no norm in between, and `holds` is true of
    that data; of several the first, if it is true at all of them."""
    layers = [layer.network.by_name[name] for name in layer.network.entrances.get(layer.name, ())]
    every = [one.observed.entering for one in layers]
    return layers[0] if layers and all(data is not None and holds(data) for data in every) else None


def told(data: Entering, name: str, holds: Callable[[Entering], bool]) -> str:
    """What is off about the data that enters a layer."""
    if holds is is_off_centre:
        return (
            f"what enters {name} ({OUTSIDE}) lies far from zero and varies little (means of {data.offset:.3g},"
            f" standard deviations of {data.spread:.3g}, rms over its features)"
        )
    size = "next to zero" if holds is is_next_to_zero else "large"
    return f"what enters {name} ({OUTSIDE}) is {size} (its rms is {data.rms:.3g}, where about 1 is usual)"


def standardise(name: str) -> str:
    """What to do about data that enters a layer off scale."""
    return f"Scale what enters {name} to a mean of about zero and a standard deviation of about one in each feature"


def off_scale(
    where: LayerContext, holds: Callable[[Entering], bool], before: str, after: str, advice: str = ""
) -> Cause:
    """The cause: what was seen of a layer, what is off about the data that enters at `where`, what follows from it."""
    data = where.observed.entering
    assert data is not None
    hint = " If it is pictures, they may have been divided by 255 twice." if holds is is_next_to_zero else ""
    return causes.OFF_SCALE_INPUTS.because(
        f"{before}{told(data, where.name, holds)}{after}",
        f"{standardise(where.name)}{advice}.{hint}",
        references.EFFICIENT_BACKPROP,
        {"input_rms": data.rms, "input_mean": data.offset, "input_std": data.spread, "measured_at": where.name},
    )


def from_small_inputs(layer: LayerContext, before: str, small: float, line: float) -> Cause | None:
    """The cause of a small gradient, or of the small steps that come of one, if with data of unit size, by which the
    gradient of a layer's weights is multiplied, it would not be below a line."""
    data = layer.observed.entering
    if data is None or not is_next_to_zero(data) or data.rms == 0 or small / data.rms < line:
        return None
    return off_scale(layer, is_next_to_zero, before, ", and the gradient of its weights is as many times smaller")
