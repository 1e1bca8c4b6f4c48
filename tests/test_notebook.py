"""The notebooks of docs/ run from the first cell to the last, in their own kernels."""

from typing import NamedTuple

import nbformat
import pytest
from conftest import ROOT, environment
from nbclient import NotebookClient


class Kept(NamedTuple):
    """A notebook: the run that it loads, the fixture to test it with, and what it shows."""

    name: str
    workdir: str
    fixture: str
    shows: str
    tested: str
    pictures: list[bool]


NOTEBOOKS = [
    Kept(
        "generate_digits",
        "runs/generate_blur_digits",
        "generator",
        "step 1200, T = 40",
        "step 8, T = 6",
        [False, False, True, True, True, True],
    ),
    Kept(
        "restore",
        "runs/blur_digits",
        "trained",
        "step 400, T = 20",
        "step 8, T = 6",
        [False, False, False, True, False, True],
    ),
]
NAMES = [kept.name for kept in NOTEBOOKS]


def read(name):
    return nbformat.read(ROOT / "docs" / f"{name}.ipynb", as_version=4)


def pictures(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("kept", NOTEBOOKS, ids=NAMES)
def test_it_runs_and_shows_pictures(kept, request, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = read(kept.name)
    load = f'colddiff.load("{kept.workdir}")'
    [changed] = [cell for cell in notebook.cells if load in cell.source]
    network = f"import sys\nsys.path.append('{ROOT}/tests')\nimport small\n"
    workdir = str(request.getfixturevalue(kept.fixture))
    changed.source = network + changed.source.replace(kept.workdir, workdir)
    resources = {"metadata": {"path": str(ROOT / "docs")}}  # where Jupyter opens it
    NotebookClient(notebook, timeout=1200, resources=resources).execute()
    assert pictures(notebook) == kept.pictures
    assert kept.tested in changed.outputs[0].text


@pytest.mark.parametrize("kept", NOTEBOOKS, ids=NAMES)
def test_it_is_kept_with_its_pictures(kept):
    notebook = read(kept.name)
    assert pictures(notebook) == kept.pictures
    [text] = [cell.outputs[0].text for cell in notebook.cells if "colddiff.load(" in cell.source]
    assert kept.shows in text
