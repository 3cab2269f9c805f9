"""How many networks are tried, and how they are spread over the workers."""

from __future__ import annotations

import pytest

NETWORKS = 200
CHUNK = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--networks", type=int, default=NETWORKS, help="number of random networks in tests/fuzz")
    parser.addoption("--first-network", type=int, default=0, help="seed of the first of them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-network", 0)
        last = first + metafunc.config.getoption("--networks", NETWORKS)
        chunks = [range(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)]
        metafunc.parametrize("seeds", chunks, ids=[f"{chunk[0]}-{chunk[-1]}" for chunk in chunks])
