"""What the worst layer makes of a training sample."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_deadkernel.figures.canvas import Panel
from lightning_deadkernel.figures.feature_maps import draw_kept, kept_layers
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.figures.titles import worst_layer
from lightning_deadkernel.report.report import Report


@picture(3)
def worst_feature_maps(reports: Sequence[Report]) -> Panel | None:
    """What the layer that is worst off makes of the same sample; None where that is the first, or all is well."""
    kept = kept_layers(reports[-1])
    worst = worst_layer(reports[-1], kept)
    return draw_kept(reports[-1], worst.name) if worst is not None and worst.name != kept[0] else None
