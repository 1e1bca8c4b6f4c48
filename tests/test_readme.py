"""The code in the README runs; what the documents name exists; a run has one name everywhere."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, ROOT

from colddiff.experiment.build import build
from colddiff.experiment.config_files import load_config


def python_block(word):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    (code,) = (block for block in blocks if word in block)
    return code


def test_the_notebook_example_runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = python_block("colddiff.load(")
    pretrained = 'colddiff.load_pretrained("blur_digits")'
    assert pretrained in code
    exec(code.replace(pretrained, f"colddiff.load({str(trained)!r})"), {})
    assert (tmp_path / "restored.png").stat().st_size > 1000


def test_your_own_degradation_works_as_shown(tmp_path):
    (tmp_path / "dim_digits.py").write_text(python_block("def get_config("))
    experiment = build(load_config(str(tmp_path / "dim_digits.py")))
    x0 = jnp.ones(experiment.image_shape)
    for t, level in ((0, 1), (5, 0.75), (20, 0)):
        np.testing.assert_allclose(experiment.degrade(x0, t, jax.random.key(0)), level * x0)


def test_every_config_is_in_its_table():
    text = (ROOT / "README.md").read_text()
    named = set()
    for pattern in re.findall(r"`(\w*(?:\{[\w,]+\}\w*)*)`", text.split("## Experiments")[1]):
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        named |= {"".join(choice) for choice in itertools.product(*parts)}
    assert set(CONFIGS) <= named


def test_every_file_it_names_exists():
    names = set(re.findall(r"(?:configs|launch)/\w+\.\w+", (ROOT / "README.md").read_text()))
    assert len(names) > 8
    for name in names:
        assert (ROOT / name).exists(), name


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(path):
    """Return the anchors of a document's headings, as GitHub names them."""
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        file, _, anchor = link.partition("#")
        if file.startswith(("http:", "https:")):
            continue
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_site_has_every_document():
    listed = re.findall(r"^ +- (?:.+: )?(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    own = {path.name for path in DOCUMENTS} - {"README.md", "CONTRIBUTING.md"}
    assert set(listed) == own | {"index.md", "contributing.md", "generate_digits.md"}


def commands():
    """Yield the lines of everything that shows commands, without line breaks inside a command."""
    notebooks = [json.loads(path.read_text()) for path in (ROOT / "docs").glob("*.ipynb")]
    texts = ["".join(cell["source"]) for notebook in notebooks for cell in notebook["cells"]]
    files = [*DOCUMENTS, *(ROOT / "launch").iterdir(), *(ROOT / "configs").glob("*.py")]
    files += (ROOT / "colddiff").rglob("*.py")
    for text in texts + [path.read_text() for path in files]:
        yield from re.sub(r"\\\n\s*", "", text).splitlines()


def test_a_run_has_the_same_name_everywhere():
    """Compare all commands: runs/CONFIG, or a name of its own where flags make another run."""
    made, used = {}, set()
    for line in commands():
        workdirs = re.search(r"--workdir[ =]\S*?\bruns/(\S*\w)", line)
        loaded = re.search(r"colddiff\.load\(\"runs/(\w+)\"\)", line)
        config = re.search(r"--config[ =]\"?(?:configs/)?([\w$]+)", line)
        if workdirs and config:
            flags = re.findall(r"--config\.(?!eval|sampler|prior|severity)\S+", line)
            made.setdefault(workdirs[1], set()).add((config[1], *flags))
        elif workdirs and "launch/demo.sh" not in line:
            used |= set(re.sub("runs/", "", workdirs[1]).split(","))
        elif loaded:
            used.add(loaded[1])
    assert len(made) > len(CONFIGS) and len(used) > 3
    for name, runs in made.items():
        assert len(runs) == 1, (name, runs)
        ((config, *flags),) = runs
        assert flags or name == config, name
    assert used - {"hot_and_cold"} <= set(made)
