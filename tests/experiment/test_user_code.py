"""The user's own degradation: mistakes in it, and changes in its source."""

import json
import logging
import re
import shutil
import sys

import pytest
from conftest import tiny_config

import colddiff
from colddiff.experiment.build import build
from colddiff.experiment.config_files import load_config
from colddiff.experiment.user_code import source_hashes
from colddiff.inference.generate import _settings, folder_of
from colddiff.inference.load import saved_config
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


D = """\
def own(*, num_steps):
    table = [1 - t / num_steps for t in range(num_steps + 1)]
    return Partial(_own, jnp.asarray(table))

def _own(level, x0, t, key):
    BODY
"""
MISTAKES = {  # the body of D or a whole file; the line that the message shows; its hint
    "if": ("if t == 0:\n        return x0\n    return -x0", "if t == 0:", "jnp.where"),
    "called": ("return f(t)\n\ndef f(t):\n    return 1 if t else 0", "return 1 if", "jnp.where"),
    "while": ("while t > 0:\n        t = t - 1", "while t > 0:", "jax.lax.while_loop"),
    "range": ("return sum(0.1 * x0 for _ in range(t))", "return sum", "jax.lax.fori_loop"),
    "list": ("return [1.0, 0.5, 0.2][t] * x0", "return [1.0", r"jnp.asarray\(LIST\)\[t\]"),
    "table": ("return np.arange(9)[t] * x0", "return np.arange", "into a jnp array before"),
    "numpy": ("x0 = np.asarray(x0)", "x0 = np.asarray", "jnp, jax.scipy or jax.image"),
    "math": ("return x0 * math.radians(t)", "return x0 * math", "jnp.deg2rad for math.radians"),
    "int": ("return x0 * (0.5 ** int(t))", "return x0 * (0.5", r"use t or t.astype\(jnp.float32\)"),
    "size": ("return x0 * jnp.ones(t)[0]", "return x0 * jnp.ones", "shape.*choose with jnp.where"),
    "arange": ("return x0 * jnp.arange(t)[0]", "return x0 * jnp.arange", "choose with jnp.where"),
    "slice": ("return x0[:t]", "return x0[:t]", "slice.*choose with jnp.where"),
    "mask": ("x0 = x0[x0 > 0]", "x0 = x0[x0 > 0]", r"use jnp.where\(mask, a, b\)"),
    "in place": ("x0[0] = 0.0", "x0[0] = 0.0", r"use x0 = x0.at\[i\].set\(y\)"),
    "no return": ("x0 = level[t] * x0", "def _own(", "returns None: end the function with `return"),
    "shape": ("return x0[::2]", "def _own(", "without a batch axis, and keeps its size"),
    "dtype": ("return x0.astype(jnp.float16)", "def _own(", r"use xt.astype\(jnp.float32\)"),
    "two": ("return x0, t", "def _own(", "return xt alone"),
    "other shapes": ("return x0 + jnp.ones((3, 3, 1))", "return x0 +", "D.* gets x0, float32"),
    "no identity": ("return 0.9 * x0", "def _own(", "at t = 0; it differs by up to 0.1.*jnp.where"),
    "NaN": ("return x0 / t", "return x0 / t", r"NaN or infinity at t = 0.*jnp.maximum\(t, 1\)"),
    "root": ("low = jnp.sqrt(x0)\n    return jnp.where(t < 5, x0, low)", "low = ", "t = 5.*root"),
    "random": ("return x0 + t * np.random.rand(*x0.shape)", "def _own(", "changes.*jax.random"),
    "levels": ("return x0 + t * 25.0", "def _own(", r"up to 26 at t = 1.*\[-1, 1\]"),
    "arguments": (D.replace("x0, t, key", "x0, t"), "def _own(", "gets x0, .*and key, a typed"),
    "number": (D.replace("jnp.asarray(table)", "num_steps").replace("BODY",
        "return sum(0.1 * x0 for _ in range(level))"), "return sum", "num_steps, out of a Partial"),
    "text": (D.replace("jnp.asarray(table)", "'up'"), "def _own(", "Keep text and other"),
    "no factory": ("def own(x0, t, key):\n    return x0", "def own(", "return.*function D"),
    "no num_steps": ("def own(*, T):\n    return None", "def own(", "settings num_steps=6"),
    "no function": (D.replace("return Partial", "Partial"), "def own(", "returned None"),
    "in the factory": (D.replace("[1 - t", "[x - t"), "table = ", "NameError.*with num_steps=6"),
    "random factory": (D.replace("table = [", "table = [np.random.rand() if t else ")
        .replace("BODY", "return level[t] * x0"), "def _own(", r"default_rng\(0\)"),
    "syntax": ("return x0 +", "return x0 +", "cannot be loaded: SyntaxError"),
}  # fmt: skip
HEADER = """\
import math
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

"""


def config_of(path, code):
    path.write_text(HEADER + code)
    config = tiny_config()
    with config.unlocked():
        config.degradation = {"name": f"{path}:own", "num_steps": 6}
    return config


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_has_its_line_and_a_hint(mistake, tmp_path):
    text, code, hint = MISTAKES[mistake]
    path = tmp_path / "mine.py"
    config = config_of(path, text if "def own" in text else D.replace("BODY", text))
    lines = path.read_text().splitlines()
    [number] = [i for i, line in enumerate(lines, 1) if line.strip().startswith(code)]
    with pytest.raises(UserError) as error:
        build(config)
    message = str(error.value)
    assert f"{path}, line {number}, `{lines[number - 1].strip()}`" in message
    assert re.search(hint, message), message


GOOD = {  # bodies of degradations that leave [-1, 1], or guard what they compute
    "noise": "z = jax.random.normal(key, x0.shape)\n    return jnp.sqrt(level[t]) * x0 + "
    "jnp.sqrt(1 - level[t]) * z",
    "sharper": "return x0 + t / 12 * (x0 - x0.mean())",
    "guarded": "return jnp.where(t == 0, x0, x0 / t)",
    "two calls": "return x0 + (1 - level[t]) * jax.random.uniform(key) * np.random.default_rng(0)"
    ".random(x0.shape).astype(np.float32)",
}


@pytest.mark.parametrize("good", GOOD)
def test_what_may_leave_the_range_is_not_refused(good, tmp_path, caplog):
    """Check that there is no warning either, alone and after noise in a composition."""
    config = config_of(tmp_path / "mine.py", D.replace("BODY", GOOD[good]))
    build(config)
    own = {"name": config.degradation.name}
    noise = {"name": "gaussian_noise", "schedule": "cosine"}
    with config.unlocked():
        config.degradation = {"name": "compose", "num_steps": 6, "parts": (noise, own)}
    build(config)
    assert not caplog.records


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return jnp.where(t == 0, x0, t / 3 * jnp.sqrt((x0 + 1) / 2) - 1)",
            r"NaN or infinity at t = 1\. At .*mine\.py, line 12, `return jnp",
        ),
        ("return x0 * (1 + t)", r"values up to .* At .*mine\.py: return an image on \[-1, 1\]"),
    ],
)
def test_a_part_is_checked_with_what_the_parts_before_it_return(body, message, tmp_path):
    config = config_of(tmp_path / "mine.py", D.replace("BODY", body))
    build(config)
    own, noise = {"name": config.degradation.name}, {"name": "gaussian_noise"}
    with config.unlocked():
        config.degradation = {"name": "compose", "num_steps": 6, "parts": (noise, own)}
    with pytest.raises(UserError, match=message):
        build(config)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return level[jnp.minimum(t, 5)] * x0", "is the same at t = 5 and t = T = 6.* T \\+ 1"),
        ("return x0 + t", "leaves .*: at t = 6 the root mean square of xt is 6.*mine.py, line 11"),
    ],
)
def test_what_may_be_meant_is_only_warned_of(body, message, tmp_path, caplog):
    build(config_of(tmp_path / "mine.py", D.replace("BODY", body)))
    assert re.search(message, caplog.text)


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


@pytest.mark.slow
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


def test_a_run_is_loaded_from_any_folder(tmp_path, monkeypatch):
    """FILE.py is found where the config was, and else among the sources that the run keeps."""
    code, elsewhere, workdir = (tmp_path / name for name in ("code", "elsewhere", "run"))
    code.mkdir()
    elsewhere.mkdir()
    (code / "colddiff_test_helper.py").write_text(HELPER.format(factor=0.5))
    config_file = code / "mine.py"
    config_file.write_text(
        MINE.format(words="some", factor=0.5).replace(
            'return "some"',
            "from conftest import tiny_config\n"
            "    config = tiny_config()\n"
            '    config.degradation = {"name": "mine.py:dim", "num_steps": 6}\n'
            "    return config.unlock()",
        )
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(elsewhere)
    config = load_config(str(config_file), ["--config.train.num_steps=1"])
    assert config.degradation.name == f"{code}/mine.py:dim"
    assert train(config, workdir)
    assert saved_config(workdir).degradation.name == config.degradation.name
    settings = _settings(colddiff.load(workdir))

    shutil.move(code, workdir / "source")
    sys.modules.pop("colddiff_test_helper", None)
    run = colddiff.load(workdir)
    assert run.config.degradation.name == f"{workdir}/source/mine.py:dim"
    assert _settings(run) == settings
    sys.modules.pop("colddiff_test_helper", None)
