"""Writes docs/where_it_works.md from the marks `setting(what, evidence, note)` of the tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]

HEAD = """# Where it works

<!-- Written by `pytest tests/test_docs.py --update-golden` from the marks of the tests. -->

Each line is a setting in which a test of this repository trains with and without the monitor, and the tests that do it.
Where the training itself is the subject, weights, buffers, optimizer state and RNG state are compared bit for bit.
*Evidence* says what verdicts rest on there: on activations, or on gradients alone (then no kernel is ever called dead).
"""

NOT_RUN = """## On a GPU

The tests run on the CPU. With `DEADKERNEL_ACCELERATOR=cuda` those of the graph, of what is gathered, of training, of
the random networks and of the zoo train on a GPU; they were run so by hand on one H100 and one H200, with torch 2.11.
On the H200, with release 0.2.0, 200 random networks and 47 architectures were all right, and bit-identical to training
without the monitor where torch itself repeats a training; since then those of the graph, of what is gathered and of the
networks ran on the H100: 940 passed, 21 failed. Of these some make constants on the CPU and cannot run so, and some are
about an index (below). What they found that differs there is read as on the CPU now. A fused recurrence (cuDNN) shows
the gates of an LSTM or GRU by their gradients alone; channels that are picked by an index are followed on the CPU only,
as to compare the index with the step's before would wait for the device; where NaN began is known by the step, and by
the layer if that step was sampled.

## Not run

No test of ours has run in these, and nothing is claimed of them: NCCL, several GPUs, a real `SyncBatchNorm`, FSDP1,
DeepSpeed, tensor parallelism, MPS, XLA. Optimizer frequencies, which Lightning 2 no longer has, are not supported.
"""


def settings_page() -> str:
    """The whole page: a section for each file of tests, headed by what its docstring says."""
    sections = [HEAD]
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        rows: dict[tuple[str, str, str], list[str]] = {}
        for name, mark in _marks(tree):
            rows.setdefault(mark, []).append(name)
        if rows:
            heading = (ast.get_docstring(tree) or "").splitlines()[0].rstrip(".")
            lines = [
                f"| {what} | {evidence} | {note} | {', '.join(f'`{name}`' for name in names)} |"
                for (what, evidence, note), names in rows.items()
            ]
            table = ["| setting | evidence | note | test |", "| --- | --- | --- | --- |", *lines]
            where = path.relative_to(TESTS.parent).as_posix()
            sections.append("\n".join([f"## {heading}", "", f"In `{where}`.", "", *table, ""]))
    return "\n".join([*sections, NOT_RUN])


def _marks(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for function in tree.body:
        for mark in getattr(function, "decorator_list", ()):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.setting":
                assert isinstance(function, ast.FunctionDef)
                said = {word.arg: ast.literal_eval(word.value) for word in mark.keywords}
                what = ast.literal_eval(mark.args[0])
                yield function.name, (what, said.pop("evidence", ""), said.pop("note", ""))
                assert not said, f"{function.name}: a setting has `evidence` and `note`, but got {sorted(said)}."
