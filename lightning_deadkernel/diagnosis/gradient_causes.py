"""Causes of missing and small gradients that several rules share."""

from __future__ import annotations

from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.causes import UNDERFLOW, Cause
from lightning_deadkernel.observation import LayerWindow

UNDERFLOW_SHARE = 0.5
"""Zeros among the entries of a float16 gradient have other sources as well (inputs that are zero, channels that are
off): only where they are most of it is the type to blame."""


def underflow(layer: LayerWindow, above: str = "") -> Cause | None:
    """The gradient is too small for float16; None where it is not, or where it is held in another type.

    Args:
        above: what the explanation begins with.
    """
    if layer.underflow_share is None or layer.underflow_share <= UNDERFLOW_SHARE:
        return None
    return UNDERFLOW.because(
        f"{above}{100 * layer.underflow_share:.3g} % of its float16 gradient entries are exactly zero: too small to be"
        " held",
        "Train with precision='16-mixed' (its loss scaling lifts gradients into range) or with bfloat16.",
        references.MIXED,
        {"underflow_share": layer.underflow_share},
    )
