"""What all tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # each worker would otherwise start a thread per core for its tiny tensors, and they would wait for one another
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

if os.environ.get("DEADKERNEL_ACCELERATOR", "cpu") != "cpu":
    # two trainings of the same network are equal to the last bit only where every sum is taken in the same order
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # the oracles compare with full precision

# no deadline: on a busy machine an example may take any time, and a test that fails for that says nothing
settings.register_profile("deadkernel", deadline=None)
settings.load_profile("deadkernel")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew from what tests make")
    parser.addoption("--all-seeds", action="store_true", help="train recipes and situations with five seeds each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all-seeds"):
        left_out = [item for item in items if item.get_closest_marker("seeds")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("seeds")]


@pytest.fixture(autouse=True)
def _log_levels_are_restored() -> Iterator[None]:
    """What a test silences, the next may want to hear."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: the text is that of golden/NAME beside the test; --update-golden writes it there."""

    def check(name: str, text: str) -> None:
        path = request.path.parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; if it should, run with --update-golden"

    return check
