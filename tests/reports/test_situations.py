"""Every reported situation is answered rightly, by every seed."""

from __future__ import annotations

import lightning as L
import pytest

from helpers.short_runs import SEEDS
from reports import SITUATIONS, gather

gather()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", list(SITUATIONS))
def test_what_is_said_is_true_and_the_root_is_first(name: str, seed: int) -> None:
    L.seed_everything(seed, verbose=False)
    SITUATIONS[name].check()
