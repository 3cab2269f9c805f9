"""What the project's own files claim of each other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CUDA = ("nvidia-", "cuda-", "triton")
"""What torch pins for itself, and constraints.txt leaves out."""


def pins(name: str) -> list[Requirement]:
    """What one of the files of constraints pins."""
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line.partition(" #")[0]) for line in lines if not line.startswith("#")]


def required(lines: Iterable[str], extras: Iterable[str], own: dict[str, list[str]], seen: set[str]) -> set[str]:
    """All packages that these requirements install here; `own` has the requirements of this package's extras."""
    found: set[str] = set()
    for line in lines:
        needed = Requirement(line)
        if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = canonicalize_name(needed.name)
        if name == "lightning-deadkernel":
            found |= required([line for extra in needed.extras for line in own[extra]], (), own, seen)
        elif not name.startswith(CUDA) and (key := f"{name}{sorted(needed.extras)}") not in seen:
            seen.add(key)
            found |= {name} | required(metadata.requires(name) or (), needed.extras, own, seen)
    return found


def test_the_constraints_pin_all_that_the_extras_install_and_nothing_else() -> None:
    here = [pin for pin in pins("constraints.txt") if pin.marker is None or pin.marker.evaluate()]
    pinned = {canonicalize_name(pin.name): pin for pin in here}
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    try:
        needed = required(
            [*project["dependencies"], *(line for of in extras.values() for line in of)], (), extras, set()
        )
    except metadata.PackageNotFoundError as missing:
        pytest.skip(f"not every extra is installed: {missing}")
    others = [name for name, pin in pinned.items() if name in needed and metadata.version(name) not in pin.specifier]
    if others:
        pytest.skip(f"other versions are installed: {', '.join(others)}")
    assert set(pinned) == needed


def test_the_lowest_constraints_pin_the_oldest_releases_that_are_promised() -> None:
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = [
        Requirement(line) for line in [*project["dependencies"], *extras["cli"], *extras["plots"], *extras["demo"]]
    ]
    lowest = {canonicalize_name(pin.name): pin.specifier for pin in pins("constraints-lowest.txt")}
    for needed in promised:
        if needed.name != "lightning-deadkernel":
            (floor,) = needed.specifier
            assert floor.operator == ">="
            assert floor.version in lowest[canonicalize_name(needed.name)], needed.name


def test_the_source_distribution_takes_along_every_file_that_tests_read() -> None:
    included = (ROOT / "pyproject.toml").read_text().partition("sdist]")[2].partition("]\n")[0]
    for name in (
        "docs",
        ".ci",
        "configs",
        "tests",
        "README.md",
        "constraints.txt",
        "constraints-lowest.txt",
        "CONTRIBUTING.md",
        "SECURITY.md",
        ".github",
    ):
        assert (ROOT / name).exists()
        assert f'"/{name}"' in included


def test_the_workflow_and_the_guide_call_the_script_that_continuous_integration_is() -> None:
    assert "run: bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "`bash .ci/run`" in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_lane_of_the_guide_selects_by_marks_that_are_declared() -> None:
    declared = set(re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    named = set(re.findall(r"not (\w+)", " ".join(re.findall(r'-m "([^"]+)"', (ROOT / "CONTRIBUTING.md").read_text()))))
    assert named == {"slow", "ddp", "browser"} <= declared
