"""Rows of a table, codes or experts that nothing selects.

## What it finds

Rows of an embedding, codes of a codebook, and experts of a mixture that had no gradient in the whole window: nothing
looked them up, or no token was sent to them. Padding does not count.

## Why it matters

Words that the data does not have are normal. Codes and experts that nothing selects are capacity that is paid for and
not used, and as they get no gradient they cannot come back by themselves.

## What to do

Codebooks: set unused codes to encoder outputs of the batch, use moving averages, or fewer codes. Experts: raise the
load-balancing loss or the router's noise. Embeddings: nothing, or a smaller vocabulary.

## Reference

- Dhariwal et al. 2020, Jukebox, section on random restarts of codes, https://arxiv.org/abs/2005.00341
- Shazeer et al. 2017, Outrageously Large Neural Networks, https://arxiv.org/abs/1701.06538
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.rule import Found, rule
from lightning_deadkernel.observation import OF_KERNELS
from lightning_deadkernel.report.records import Severity

ENOUGH_BATCHES = 8
"""Before these many, that a code or an expert was not selected is worth knowing, and no fault."""


@rule("{of} never selected", causes.NEVER_SELECTED, causes.NOT_IN_THE_DATA, noun="row")
def dead_rows(context: WindowContext) -> Iterator[Found]:
    """Rows that are no kernels, without any gradient where others have one."""
    for layer in context.layers:
        observed = layer.observed
        if observed.rows in OF_KERNELS:
            continue
        rows = layer.without_gradient if observed.masked is None else layer.without_gradient & ~observed.masked
        if not bool(rows.any()) or bool(layer.without_gradient.all()):
            continue
        in_the_data = observed.rows == "table"
        severity: Severity = "info" if in_the_data or context.window.batches < ENOUGH_BATCHES else "warning"
        yield Found(layer, severity, _why(layer), layer.since(rows), rows)


def _why(layer: LayerContext) -> Cause:
    if layer.observed.rows == "experts":
        return causes.NEVER_SELECTED.because(
            "no token was sent to these experts in the window",
            "Raise the weight of the load-balancing loss or the router's noise, or use fewer experts.",
            references.EXPERTS,
        )
    if layer.observed.rows == "codes":
        return causes.NEVER_SELECTED.because(
            "these codes were nearest to nothing in the window, so no gradient moves them",
            "Set unused codes to encoder outputs of the batch, update the codebook by moving averages, or use fewer"
            " codes.",
            references.CODES,
        )
    return causes.NOT_IN_THE_DATA.because(
        "these rows were not looked up in the window",
        "Nothing, if the data of a window does not hold every entry; else check how the indices are made.",
        references.EMBEDDING_DOCS,
    )
