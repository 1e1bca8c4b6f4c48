"""What the README says runs as it stands there."""

import re

from conftest import ROOT


def test_the_notebook_example_runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    (code,) = (block for block in blocks if "colddiff.load(" in block)
    exec(code.replace("runs/blur_digits", str(trained)), {})
    assert (tmp_path / "restored.png").stat().st_size > 1000


def test_every_file_it_names_exists():
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"\]\(([\w/.]+)\)", text) + re.findall(r"(?:configs|launch)/\w+\.\w+", text)
    assert len(names) > 8
    for name in names:
        assert (ROOT / name).exists(), name
