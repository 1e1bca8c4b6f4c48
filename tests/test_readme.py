"""The code in the README runs, and the README names existing configs and files."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
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
    exec(code.replace("runs/blur_digits", str(trained)), {})
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
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"\]\(([\w/.]+)\)", text) + re.findall(r"(?:configs|launch)/\w+\.\w+", text)
    assert len(names) > 8
    for name in set(names):
        assert (ROOT / name).exists(), name
