"""Writes docs/what_is_read.md from the tables of forms that the tests beside it run with channels killed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from graph import test_activations as plain
from graph import test_inputs_and_uses as uses
from graph import test_kernels as kernels
from graph import test_written_activations as written
from helpers.tiny_nets import between, images, reader_of
from lightning_deadkernel.graph.facts import READ_AS, LayerFacts

Form = Callable[[Tensor], Tensor]

HEAD = """# What is read, and how

<!-- Written by `pytest tests/graph/test_what_is_read.py --update-golden` from the tables of forms in tests/graph. -->

Each form below is run by a test with channels killed by hand, and the report must name exactly these. Nothing is called
dead but behind a *rectifier*, whose output and slope are both exactly zero on its off side.

| kind | on its off side | a channel that is always there, without a gradient, is |
|---|---|---|
| rectifier | output and slope are exactly 0 | dead |
| smooth | both fade out | saturated, and silent while a gradient passes |
| bounded | flat, at a value that need not be 0 | saturated |
| leaky | a small slope, or no off side at all | starved, and silent while a gradient passes |

A layer may meet activations of several kinds: each of its channels is judged by the weakest that it meets itself.
"""

TAIL = """## What no graph shows

- A detached copy of an output (`relu(x) + x.detach()`): such a kernel is called dead though the copy goes on.
- What an `autograd.Function` of one's own does. Its layers are read by their gradient, and the report names it.
- Ops under `torch.compile` and reentrant checkpointing, but for the steps on which activations are looked at eagerly.
"""


def page() -> str:
    """The whole page."""
    activations: dict[str, tuple[Form, str]] = {
        **{name: (form, "dead") for name, form in plain.GATES.items()},
        **{name: (form, state) for name, (form, _, state) in written.FORMS.items()},
        **{name: (form, "dead") for name, form in written.SHRINKS.items()},
        **plain.SOFT,
        **{name: (form, "never off") for name, (form, _) in written.WITHOUT_OFF_SIDE.items()},
    }
    maxouts = {f"maxout: {name}": form for name, form in written.MAXOUTS.items()}
    blocks = [
        HEAD,
        "## Activations\n\nThe slope at exactly 0 is what a kernel of zeros has as its gradient: where there is one,\n"
        "it is silent and may wake, where there is none, it is dead.\n",
        table(
            ("form", "read as", "kind", "a channel far below 0", "slope at exactly 0"),
            [activation_row(name, form, state) for name, (form, state) in activations.items()]
            + [(f"`{name}`", "maxout", "rectifier", "dead, if never the largest", "") for name in maxouts],
        ),
        "## Gated linear units\n\nThe gate is read; its value has no activation of its own, and is judged by its\n"
        "gradient. By `chunk`, `split` or slices, or as two layers:\n",
        table(
            ("form", "read as", "a gate that is off"),
            [
                (f"`{name}`", label, state)
                for name, (_, label, state, *_) in {**written.GATED, **written.PAIRED}.items()
            ],
        ),
        "## Between a kernel and its activation\n\nChannels are followed through all of these to the place where each\n"
        "is in the activation:\n",
        listed("moved or cut", plain.MOVED),
        listed("joined with others", written.JOINED),
        listed("messages between nodes", written.MESSAGES),
        listed("done in place", written.IN_PLACE),
        "\nA norm whose statistics are taken over several channels makes the others hear a kernel that never fires:\n"
        "it is silent while they pass it a gradient, and counts in no savings. Norms of each channel alone change\n"
        "nothing:\n",
        table(
            ("norm", "a channel that it keeps below 0"),
            [(name, state) for name, (_, state) in {**plain.NORMS, **plain.WRITTEN_NORMS}.items()],
        ),
        "## Kernels\n",
        listed("layers and products", [*kernels.KERNELS, *kernels.BIASLESS, *kernels.RAW, *kernels.REWEIGHTED]),
        listed("parameters that meet the data before the first layer", uses.FIRST),
        "\nWeights whose rows are no kernels of one op have rows of their own:\n",
        table(("rows", "how they are read"), [(rows, how) for rows, how in READ_AS.items()]),
        "Findings about whole heads of `nn.MultiheadAttention` name these, of queries, keys and values each. Where\n"
        "queries, keys and values come from linear layers of one's own, heads are not known.\n",
        "## What is not read by activation\n\nThere is gradient evidence alone, and the layer's note says why:\n",
        table(("form", "the layer's note"), [unread_row(name, form) for name, form in unread().items()]),
        TAIL,
    ]
    return "\n".join(blocks)


def unread() -> dict[str, Form]:
    """Forms whose layer is read by its gradient."""
    return {**plain.LOST, **plain.UNREADABLE}


def facts_of(form: Form) -> LayerFacts:
    """What a graph shows of the layer before it."""
    torch.manual_seed(0)
    return reader_of(between(lambda net, x: form(x)), images(4)).facts["conv"]


def slope_at_zero(form: Form) -> float:
    """The gradient of one output by its own input, where all inputs are 0."""
    x = torch.zeros(4, 8, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(form(x * 1)[0, 0, 0, 0], x)
    return float(slope[0, 0, 0, 0])


def activation_row(name: str, form: Form, state: str) -> tuple[str, ...]:
    facts = facts_of(form)
    return f"`{name}`", str(facts.activation), str(facts.gating), state, f"{slope_at_zero(form):.3g}"


def unread_row(name: str, form: Form) -> tuple[str, ...]:
    facts = facts_of(form)
    return f"`{name}`", f"{facts.activation}: {facts.note}"


def listed(title: str, names: Iterable[str]) -> str:
    return f"- {title}: " + ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
