"""The notebook of docs/ runs from the first cell to the last, in its own kernel."""

import nbformat
import pytest
from conftest import ROOT, environment
from nbclient import NotebookClient

WORKDIR = "runs/generate_blur_digits"


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "docs" / "generate_digits.ipynb", as_version=4)


def pictures(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in cells]


def test_it_runs_and_shows_pictures(notebook, generator, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    changed = [cell for cell in notebook.cells if WORKDIR in cell.source]
    assert [cell.cell_type for cell in changed] == ["markdown", "code"]
    network = f"import sys\nsys.path.append('{ROOT}/tests')\nimport small\n"
    changed[1].source = network + changed[1].source.replace(WORKDIR, str(generator))
    resources = {"metadata": {"path": str(ROOT / "docs")}}  # where Jupyter opens it
    NotebookClient(notebook, timeout=1200, resources=resources).execute()
    assert pictures(notebook) == [False, False, True, True, True, True]
    assert "step 8, T = 6" in notebook.cells[2].outputs[0].text


def test_it_is_kept_with_its_pictures(notebook):
    assert pictures(notebook) == [False, False, True, True, True, True]
    assert "step 1200, T = 40" in notebook.cells[2].outputs[0].text
