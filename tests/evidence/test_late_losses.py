"""Losses that are looked at late: the first bad one is found wherever it is, and no launch is made before."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_deadkernel.evidence.buffers import PAGES
from lightning_deadkernel.evidence.late_losses import LateLosses

DTYPES = (torch.float16, torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [None, 0, PAGES - 1, PAGES, 3 * PAGES + 5])
def test_the_first_that_is_not_finite_is_found(place: int | None, bad: float) -> None:
    losses = LateLosses()
    for step in range(4 * PAGES):
        large = {torch.float64: 1e300, torch.float32: 1e38, torch.bfloat16: 1e38}.get(DTYPES[step % 4], 6e4)
        value = bad if place is not None and step in (place, place + 7) else large
        losses.append(step, torch.tensor(value, dtype=DTYPES[step % 4]))
    assert losses.first_bad() == place
    assert losses.first_bad() == place


def test_a_loss_is_kept_without_its_graph() -> None:
    losses = LateLosses()
    weight = torch.zeros(3, requires_grad=True)
    losses.append(0, weight.sum())
    assert not losses._kept[0].requires_grad
