"""Detection of changes in the source of the user's own degradation."""

import json
import logging
import sys

import pytest
from conftest import tiny_config

import colddiff
from colddiff.experiment.build import build
from colddiff.experiment.user_code import source_hashes
from colddiff.inference.generate import _settings, folder_of
from colddiff.runtime.errors import UserError
from colddiff.training.loop import train

HELPER = "def share(t, T):\n    return {factor} * t / T\n"
MINE = '''"""{words}"""
# {words}
import functools

from colddiff_test_helper import share


def get_config():
    return "{words}"


@functools.lru_cache
def dim(*, num_steps):
    """{words}

    in {words} lines
    """

    return lambda x0, t, key: {factor} * share(t, num_steps) * x0 + (1 - share(t, num_steps)) * x0
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return `write(words=..., factor=..., helper=...)`, which writes FILE.py and its import."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def write(words="some", factor=0.5, helper=0.5):
        (folder / "colddiff_test_helper.py").write_text(HELPER.format(factor=helper))
        (folder / "mine.py").write_text(MINE.format(words=words, factor=factor))
        sys.modules.pop("colddiff_test_helper", None)
        config = tiny_config()
        with config.unlocked():
            config.degradation = {"name": f"{folder}/mine.py:dim", "num_steps": 6}
        return config

    yield write
    sys.modules.pop("colddiff_test_helper", None)


def hashes(config):
    build(config)
    return source_hashes(config.degradation.to_dict())


def test_the_source_is_the_file_and_what_it_imports_from_beside(own):
    first = hashes(own())
    assert set(first) == {"mine.py", "colddiff_test_helper.py"}
    assert hashes(own(words="other")) == first  # docstrings, comment and get_config
    changed = hashes(own(factor=0.25))
    assert changed["mine.py"] != first["mine.py"]
    assert changed["colddiff_test_helper.py"] == first["colddiff_test_helper.py"]
    assert hashes(own(helper=0.25)) == first | {
        "colddiff_test_helper.py": hashes(own(helper=0.25))["colddiff_test_helper.py"]
    }
    assert hashes(own(helper=0.25)) != first
    config = own()
    name = config.degradation.name
    with config.unlocked():
        config.degradation = {"name": "compose", "num_steps": 6, "parts": ({"name": name},)}
    assert hashes(config) == first
    assert hashes(tiny_config()) == {}


def test_another_source_is_refused_and_told(own, tmp_path, caplog):
    workdir = tmp_path / "run"
    config = own()
    config.train.num_steps = 3
    assert train(config, workdir)
    began = json.loads((workdir / "source.json").read_text())
    copies = {path.name: path.read_text() for path in (workdir / "source").iterdir()}
    code = tmp_path / "code"
    assert copies == {name: (code / name).read_text() for name in began} and len(copies) == 2
    run = colddiff.load(workdir)
    folder, settings = folder_of(run), _settings(run)
    assert "source" not in caplog.text

    caplog.set_level(logging.WARNING)
    config = own(factor=0.25)
    config.train.num_steps = 6
    with pytest.raises(UserError, match=r"(?s)mine\.py: sha256 .* saved, .* give --accept_source"):
        train(config, workdir)
    changed = colddiff.load(workdir)
    assert f"not the one that {workdir} was trained with" in caplog.text
    assert changed.step == 3 and folder_of(changed) != folder
    assert _settings(changed) != settings

    assert train(config, workdir, accept_source=True)
    assert "resuming with a changed source of the degradation: mine.py" in caplog.text
    assert json.loads((workdir / "source.json").read_text()) != began
    assert (workdir / "source" / "mine.py").read_text() == (code / "mine.py").read_text()
    caplog.clear()
    assert colddiff.load(workdir).step == 6 and "source" not in caplog.text
