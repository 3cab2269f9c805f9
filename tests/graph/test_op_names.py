"""Every autograd node of the installed torch is in a table of the reader, or left alone for a reason."""

from __future__ import annotations

from graph.op_names import LEFT_ALONE, known, new, of_torch, reason


def test_no_node_of_this_torch_is_unheard_of() -> None:
    assert new() == []


def test_each_reason_is_that_of_some_node() -> None:
    assert set(LEFT_ALONE) <= {reason(name) for name in of_torch() - known()}
