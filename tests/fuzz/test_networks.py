"""Random networks, trained under the monitor: what it says of each channel, against an oracle that sees no graph."""

from __future__ import annotations

import torch

from fuzz.claims import disagreements
from fuzz.generate import program
from fuzz.shrink import shrunk

SHRUNK = 2
"""Kinds of failure that are shrunk, of a chunk of networks; the others are printed whole."""


def test_what_the_monitor_says_of_random_networks_is_true(seeds: range) -> None:
    torch.set_num_threads(1)
    failures: dict[str, str] = {}
    for seed in seeds:
        made = program(seed)
        for found in disagreements(made):
            if found.kind not in failures:  # the smallest network of each kind, not all that share a root
                small = shrunk(made, found.kind) if len(failures) < SHRUNK else made
                told = next(still for still in disagreements(small) if still.kind == found.kind)
                failures[found.kind] = f"{told}\n{small}"
    assert not failures, "\n\n".join(failures.values())
