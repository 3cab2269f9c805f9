"""What the first layer makes of a training sample."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_deadkernel.figures.canvas import Panel
from lightning_deadkernel.figures.feature_maps import draw_kept, kept_layers
from lightning_deadkernel.figures.registry import picture
from lightning_deadkernel.report.report import Report


@picture(2)
def first_feature_maps(reports: Sequence[Report]) -> Panel | None:
    """What the first layer makes of one training sample: which maps do not fire on this one only, and which on none.

    None where no live report has them.
    """
    kept = kept_layers(reports[-1])
    return draw_kept(reports[-1], kept[0]) if kept else None
