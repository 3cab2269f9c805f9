"""Floats of all kinds for tests: drawn from a seed, never from the global generator."""

from __future__ import annotations

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0]
SEEDS = st.integers(0, 2**31)
twin = settings(max_examples=60, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(dtype: torch.dtype) -> float:
    """Smallest denormal."""
    return {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149, torch.float64: 5e-324}[dtype]


def mixed(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Gaussian values, a third of them replaced by zeros of both signs, infinities, NaNs and denormals."""
    g = generator(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    special = torch.tensor([*SPECIAL, tiny(dtype), -tiny(dtype)], dtype=dtype)
    drawn = special[torch.randint(len(special), shape, generator=g)]
    # per channel of dimension 1 or not at all, so that channels without any positive value are common
    negative = torch.where(torch.rand(shape, generator=g) < 0.5, -x.abs(), -0.0)
    x = torch.where(torch.rand((1, *shape[1:2], *[1] * (len(shape) - 2)), generator=g) < 0.4, negative.to(dtype), x)
    return torch.where(torch.rand(shape, generator=g) < 0.03, drawn, x)
