"""Imports go downwards only, and the maths needs neither data sets nor checkpoints installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = [
    {"errors"},
    {"files"},
    {"compiler", "images", "metrics", "networks", "page", "plots", "progress", "pth", "user_code"},
    {"degradations"},
    {"priors", "samplers"},
    {"data", "devices"},
    {"checksums", "events", "lock", "stop"},
    {"classifier", "inception"},
    {"features"},
    {"build"},
    {"examples"},
    {"state"},
    {"checkpoint"},
    {"inference"},
    {"compare", "evaluate", "generate"},
    {"report"},
    {"train"},
    {"benchmark"},
    {"main"},
]
MATHS = ("degradations", "samplers", "priors", "networks", "metrics", "images")


def layer_of(module):
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def imports_of(path):
    """Names of the colddiff modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "colddiff":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("colddiff."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("colddiff."))


FILES = sorted(p for p in (ROOT / "colddiff").rglob("*.py") if p.parent.name != "__pycache__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path: Path):
    module = path.relative_to(ROOT / "colddiff").with_suffix("").parts[0]
    if module == "__init__":
        return
    for imported in imports_of(path):
        if imported != module:
            assert layer_of(imported) < layer_of(module), f"{module} imports {imported}"


def test_the_maths_imports_without_data_sets_and_checkpoints():
    blocked = ("tensorflow_datasets", "clu", "orbax", "grain", "tensorboardX", "sklearn")
    code = "import sys\n"
    code += "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    code += "".join(f"import colddiff.{name}\n" for name in MATHS)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_prints():
    calls = [
        f"{path}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not calls
