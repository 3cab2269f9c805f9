"""Layers all of whose kernels are equal.

## What it finds

Layers whose kernels are bitwise the same, and not zero: a constant initialisation. At initialisation it is a warning;
where steps did not part them, an error.

## Why it matters

Equal kernels compute the same, get the same gradient and stay equal: a layer of any width works as one kernel.

## What to do

Initialise the weight with random values (`kaiming_normal_`, `xavier_uniform_`).

## Reference

- Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks,
  https://proceedings.mlr.press/v9/glorot10a.html
- CS231n course notes, Neural Networks Part 2, https://cs231n.github.io/neural-networks-2/
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.context import WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.report.records import Severity

USUAL = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, (nn.Linear, _ConvNd))}
"""Other modules may start from equal rows on purpose (the decays of a state space model, the spreads of weights that
are drawn at each step), and get different gradients for each."""


@rule("all kernels are identical", causes.CONSTANT_INITIALISATION, at_initialisation=True, in_files=True)
def identical_kernels(context: WindowContext) -> Iterator[Found]:
    """Layers of equal kernels; those of zeros are a matter of zero kernels."""
    for layer in context.layers:
        observed = layer.observed
        if not observed.identical or observed.largest is None or not bool((observed.largest > 0).all()):
            continue
        # in a warm-up from a learning rate of zero nothing could part them yet
        could_part = context.window.optimizer_steps > 0 and (observed.learning_rate or 0.0) > 0
        stays = could_part and not layer.is_first_window
        cause = causes.CONSTANT_INITIALISATION.because(
            f"all {observed.channels} kernels are bitwise equal"
            + (": they get the same gradient and cannot grow apart" if stays else "")
            + ("" if stays or context.window.audited else " before the first step"),
            "Initialise the weight with random values (kaiming_normal_ or xavier_uniform_) to break the symmetry.",
            f"{references.GLOROT}; {references.CS231N}",
            {"kernels": observed.channels},
        )
        severity: Severity = "error" if stays else "warning" if observed.kind in USUAL else "info"
        yield Found(layer, severity, cause)
