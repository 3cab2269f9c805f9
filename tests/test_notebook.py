"""The notebook of the docs: it runs, and what it shows is of the kind that is kept in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def shown(notebook: Any) -> list[list[list[str]]]:
    """Of each cell and output, in which forms it comes."""
    return [
        [sorted(output.get("data", {output["output_type"]: None})) for output in cell["outputs"]]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_is_kept_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    kept = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(fresh, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    forms = shown(fresh)
    assert forms == shown(kept), "execute it anew: python docs/screenshots.py notebook"
    assert sum(["image/png", "text/plain"] in cell for cell in forms) == 2
    assert sum(["text/html", "text/plain"] in cell for cell in forms) == 4
    assert "dead" in fresh.cells[3].outputs[0].text
    assert not any(output.get("name") == "stderr" for cell in fresh.cells for output in cell.get("outputs", ()))
