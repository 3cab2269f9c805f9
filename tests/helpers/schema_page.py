"""Writes the pages of JSON schemas from the records themselves: their fields, type hints and attribute docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from helpers.example_reports import healthy_report
from lightning_deadkernel.analysis.trial.records import ArmOutcome, Overlap, RunOutcome, TrialRecord, Untried
from lightning_deadkernel.analysis.trial.trial import SCHEMA, VERSION
from lightning_deadkernel.observation import Consumer, InputSlice
from lightning_deadkernel.report import codec
from lightning_deadkernel.report.arrays import MOST_CHANNELS, SHORT
from lightning_deadkernel.report.records import (
    ChannelValues,
    Finding,
    LayerReport,
    Neighbours,
    OptimizerDescription,
    Problem,
    ReportRecord,
    RunDescription,
    Savings,
)
from lightning_deadkernel.report.states import BY_NAME, FLAGS, FROZEN_FLAG, STATES, ZERO_KERNEL_FLAG
from lightning_deadkernel.thresholds import INTERVALS, Thresholds

SECTIONS: tuple[tuple[type, str, str], ...] = (
    (ReportRecord, "The report", "report"),
    (LayerReport, "A layer", "layer"),
    (ChannelValues, "The numbers of a layer's channels", "object"),
    (Neighbours, "What stands behind a layer", "object"),
    (Consumer, "A layer that reads another's channels", "consumer"),
    (InputSlice, "The inputs at which it reads them", "slice"),
    (Finding, "A finding", "finding"),
    (Problem, "A problem", "problem"),
    (Savings, "Savings", "savings"),
    (RunDescription, "A run", "run"),
    (OptimizerDescription, "An optimizer", "optimizer"),
)
TRIAL_SECTIONS: tuple[tuple[type, str, str], ...] = (
    (TrialRecord, "The trial", "trial"),
    (ArmOutcome, "An arm", "arm"),
    (RunOutcome, "A training", "training"),
    (Overlap, "Other seeds", "seeds"),
    (Untried, "What was not tried", "suspect"),
)
UNWRITTEN = {"tensors", "codes"}
WORDS: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "true or false", Thresholds: "object"}

HEAD = """# The JSON of a report

<!-- Written by `pytest tests/report/test_schema_page.py --update-golden` from the docstrings of the records. -->

`Report.save("report.json")` writes one strict JSON object (RFC 8259, UTF-8), and `Report.load` reads it back. This page
describes version {version}; version 1, which had no `thresholds`, `run`, `gating` and `title`, still reads.

- Numbers that JSON has no words for are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`; `null` means "not
  observed". In `evidence`, whose values may be text, these three strings always are numbers.
- Readers refuse a file of a newer version, and keys that their version does not have. The version goes up whenever a
  key is added, dropped or changes its meaning; keys that an older version did not have take their defaults.
- Nothing but numbers, text and lists is ever read: no pickle, no code.
- Of a report of more than {most:,} channels, lists of more than {short} numbers (`states`, `flags`, `values`,
  `channels`) are in a file beside the JSON, `<name>.<hash>.npz`, which `numpy.load` opens; the key `arrays` names it.
  In place of such a list stands `{{"array": "12", "length": 50257}}`: the array's key in the file, and how long it is.
  Where some of its numbers are null, `"12.null"` has their places. `Report.load` reads both files, and says so where
  the second is missing.

```json
{{
  "schema": "{schema}",
  "version": {version},
  "window": 3, "epoch": 2, "global_step": 138, "samples": 1437,
  "batches": 46, "optimizer_steps": 46, "sampled_steps": 6,
  "layers": [
    {{
      "name": "conv1", "kind": "Conv2d", "channels": 16, "depth": 1, "activation": "relu",
      "states": {{"dead": [3, 11]}},
      "flags": {{"zero_kernel": [3, 11], "rare": [7]}},
      "firing_rate": 0.42
    }}
  ]
}}
```
"""

TAIL = """## In checkpoints

`codec.pack` gives a `uint8` tensor: zlib over four bytes of length (little-endian), the JSON of the compact report (no
`values`), the codes of all layers (one byte per channel: the state's number, and the flags in the high bits), and the
channels of all findings as bits, lowest first. In that JSON `codes` of a layer and `channels` of a finding are their
lengths in bytes.
"""


def schema_page() -> str:
    """The whole page."""
    blocks = [HEAD.format(schema=codec.SCHEMA, version=codec.VERSION, most=MOST_CHANNELS, short=SHORT)]
    for kind, title, _ in SECTIONS:
        rows = [(name, in_words(hint), text) for name, hint, text in documented(kind)]
        if kind is ReportRecord:
            summary = ", ".join(f"`{name}`" for name in healthy_report().summary())
            rows[:0] = [
                ("schema", "text", f"always `{codec.SCHEMA}`"),
                ("version", "integer", "of this schema"),
                ("arrays", "text", "name of the file beside this one that has the long lists; only where there is one"),
                ("summary", "object", f"the summary scalars, for other programs; not read back: {summary}"),
            ]
        if kind is LayerReport:
            rows += [
                ("states", "object", "state -> indices of its channels; a channel that is in no list is active"),
                ("flags", "object", "flag -> indices of its channels; flags may accompany any state"),
            ]
        blocks.append(f"## {title}\n\n{table(('key', 'type', 'meaning'), rows)}")
        if kind is LayerReport:
            blocks.append(f"### States and flags\n\n{table(('word', 'is a', 'a kernel that'), state_rows())}")
    lines = [(name, f"{getattr(Thresholds(), name):g}", f"`{interval}`") for name, interval in INTERVALS.items()]
    blocks.append(
        f"## Thresholds\n\nThe docstring of `Thresholds` says where each comes from.\n\n"
        f"{table(('key', 'by default', 'lies in'), lines)}"
    )
    return "\n".join([*blocks, TAIL])


TRIAL_HEAD = """# The JSON of a trial

<!-- Written by `pytest tests/report/test_schema_page.py --update-golden` from the docstrings of the records. -->

`lightning-deadkernel why` writes one strict JSON object, `why.json`, and `--format json` prints it; `Trial.to_json`
gives the same. Lists of channels are as in [a report](report_schema.md), which each training has beside it.
"""


def trial_page() -> str:
    """The whole page of a trial's JSON."""
    blocks = [TRIAL_HEAD]
    for kind, title, _ in TRIAL_SECTIONS:
        rows = [(name, in_words(hint), text) for name, hint, text in documented(kind)]
        if kind is TrialRecord:
            rows[:0] = [("schema", "text", f"always `{SCHEMA}`"), ("version", "integer", f"of this schema: {VERSION}")]
        blocks.append(f"## {title}\n\n{table(('key', 'type', 'meaning'), rows)}")
    return "\n".join(blocks)


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, ["---"] * len(headings), *([f"`{name}`", *rest] for name, *rest in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def state_rows() -> list[tuple[str, ...]]:
    states = [(state, "state", BY_NAME[state].meaning) for state in STATES[1:]]
    flags = {"zero_kernel": ZERO_KERNEL_FLAG, "frozen": FROZEN_FLAG}
    return states + [(name, "flag", flags.get(name, BY_NAME.get(name)).meaning) for name in FLAGS]


def documented(kind: type) -> list[tuple[str, Any, str]]:
    """Name, type and docstring of each written field, the inherited ones first."""
    hints, texts = get_type_hints(kind), {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            texts.update(attribute_docstrings(base))
    return [
        (f.name, hints[f.name], texts[f.name])
        for f in fields(kind)
        if f.name not in UNWRITTEN and f.metadata.get("saved", True)
    ]


def attribute_docstrings(kind: type) -> dict[str, str]:
    """Attribute -> the docstring below it, on one line and as Markdown."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            text = " ".join(str(below.value.value).split()).replace("``", "`").replace("\\|", "|").rstrip(".")
            text = re.sub(r"\bNone\b", "null", text)
            found[field.target.id] = re.sub(r"(?<!\\)\|", r"\\|", text)
    return found


def in_words(hint: Any) -> str:
    """A type in the words of JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = list(dict.fromkeys(in_words(argument) for argument in arguments if argument is not type(None)))
        return " or ".join(kinds + ["null"] * (type(None) in arguments))
    if origin is Literal:
        return "text: " + ", ".join(f"`{argument}`" if argument else "empty" for argument in arguments)
    if origin in (list, tuple):
        return f"list of {in_words(arguments[0])}"
    if origin is dict:
        return f"object of {in_words(arguments[1])}"
    sections = (*SECTIONS, *TRIAL_SECTIONS)
    anchors = {kind: title.lower().replace(" ", "-").replace("'", "") for kind, title, _ in sections}
    titles = {kind: f"[{word}](#{anchors[kind]})" for kind, _, word in sections}
    return (WORDS | titles)[hint]
