"""Whether reading a saved tensor would run a hook is known without running it, on every release of torch."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_deadkernel.graph.ops import hook_by_reading, peek, unpack_hook


def relu_node(calls: list[str], through: str):
    x = torch.randn(5, requires_grad=True)

    def pack(tensor):
        calls.append("pack")
        return tensor

    def unpack(tensor):
        calls.append("unpack")
        return tensor

    def recomputed(x):
        calls.append("forward")
        return F.relu(x)

    if through == "nothing":
        return F.relu(x).grad_fn
    if through == "checkpoint":
        return checkpoint(recomputed, x, use_reentrant=False).grad_fn
    with save_on_cpu() if through == "save_on_cpu" else saved_tensors_hooks(pack, unpack):
        return F.relu(x).grad_fn


@pytest.mark.parametrize("find", [unpack_hook, hook_by_reading])
@pytest.mark.parametrize(
    ("through", "module", "ran"),
    [
        ("nothing", None, []),
        ("hooks", __name__, ["pack"]),
        ("save_on_cpu", "torch.autograd.graph", []),
        ("checkpoint", "torch.utils.checkpoint", ["forward"]),
    ],
)
def test_a_hook_is_found_by_its_module_and_does_not_run(find, through, module, ran):
    calls: list[str] = []
    node = relu_node(calls, through)
    profiler = sys.getprofile()
    assert find(node, "result") == module
    assert find(node, "result") == module
    assert calls == ran
    assert sys.getprofile() is profiler
    assert (peek(node, "result") is None) == (through != "nothing")


def test_after_a_hook_was_stopped_backward_runs_it_as_ever():
    calls: list[str] = []
    node = relu_node(calls, "hooks")
    assert hook_by_reading(node, "result") == __name__
    assert node(torch.ones(5)).shape == (5,)
    assert calls == ["pack", "unpack"]


def test_what_a_node_did_not_save_has_no_hook():
    assert unpack_hook(relu_node([], "nothing"), "other") is None


@pytest.mark.skipif(torch.__version__ >= (2, 13), reason="this torch shows its hooks, so none is looked for by reading")
def test_a_dispatch_mode_that_sees_the_reading_is_no_hook() -> None:
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    node = torch.randn(3, requires_grad=True).relu().grad_fn
    with Seen():
        assert hook_by_reading(node, "result") is None
