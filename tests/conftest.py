"""What all tests share."""

from __future__ import annotations

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # each worker would otherwise start a thread per core for its tiny tensors, and they would wait for one another
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
