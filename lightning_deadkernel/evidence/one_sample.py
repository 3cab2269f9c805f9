"""What the network makes of one training sample, copied from the activations that a window's last step kept anyway."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.nn.functional import adaptive_max_pool2d

from lightning_deadkernel.graph.facts import ActivationKey
from lightning_deadkernel.graph.ops import peek
from lightning_deadkernel.graph.reader import StepMap
from lightning_deadkernel.observation import FeatureMaps

MOST_ENTRIES = 2**22
"""Of all maps that are copied."""
FINEST = 128
"""Positions along each side of a map; larger ones are copied by the largest value of each region, so that a map is
dark in the copy if and only if it is."""
SAMPLES = 64
"""Of a layer without positions, of which one sample is a single number per unit."""


@torch.no_grad()
def take_sample(
    nodes: list[Any],
    found: StepMap,
    channels: Mapping[ActivationKey, int],
    pending: Collection[ActivationKey],
    rows: int | None,
) -> dict[ActivationKey, FeatureMaps]:
    """The maps of the first activation, and of those with channels that have not fired in the window. On the device
    that they are on; nothing waits for it."""
    kept: dict[ActivationKey, FeatureMaps] = {}
    image = peek(nodes[found.image], "input") if found.image is not None else None
    room = MOST_ENTRIES
    for place, (key, read) in enumerate(found.reads):
        if key in kept or (place and key not in pending) or len(read.part.channels) != channels[key]:
            continue
        try:
            activation = read.live(nodes[read.node])
            saved = activation.saved_tensor(nodes[read.node])
            if not read.fits(saved):
                continue
            values = activation.output(saved)
            own = read.own(values)
            along = read.samples_along(values.shape, rows)
            if along is None or not own.shape[along]:
                continue
            maps = read.by_channel(values, along, 1 if own.ndim > 2 else SAMPLES)
        except Exception:  # a layer that cannot be read is given up where it is read for its states
            continue
        if maps.ndim == 4 and max(maps.shape[2:]) > FINEST:
            maps = adaptive_max_pool2d(maps, [min(side, FINEST) for side in maps.shape[2:]])
        if maps.numel() > room:
            continue
        room -= maps.numel()
        seen = image is not None and maps.ndim > 2 and image.shape[0] == own.shape[along]
        kept[key] = FeatureMaps(maps.clone(), image[0].detach().clone() if seen and image is not None else None)
    return kept
