"""Configs by name and by path, changes of their fields, and places of the user's own files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT, tiny_config

from colddiff.experiment.config_files import (
    change,
    describe,
    load_config,
    locate,
    packaged_configs,
    split_arguments,
)
from colddiff.runtime.errors import UserError

OWN = """{imports}

def get_config(text=""):
    config = blur_digits.get_config()
    config.train.num_steps = {steps}
    config.data.source = text or "digits"
    return config
"""


def test_a_packaged_config_by_name_and_a_file_by_path():
    names = packaged_configs()
    assert [*names] == sorted([*CONFIGS, "default"])
    assert names["blur_digits"].startswith("Deblurring of scikit-learn's handwritten digits")
    config = load_config("snow_digits")
    assert config == load_config(f"{ROOT}/configs/snow_digits.py") and config.is_locked
    for name, message in (
        ("snow_digit", "unknown config 'snow_digit'; valid: animorph_celeba, blur_celeba, "),
        ("no/such/blur_mnist.py", "no file .*no/such/blur_mnist.py; .* is called blur_mnist"),
        ("nothing.py", "no file .*nothing.py; check the path"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(name)


def test_a_config_of_ones_own_works_where_the_package_is_installed(tmp_path):
    """Wherever the command runs, and also if the config's folder is called configs."""
    installed = tmp_path / "site-packages"
    shutil.copytree(ROOT / "colddiff", installed / "colddiff")  # as a wheel does, without the link
    for number, (module, folder, cwd) in enumerate(
        [
            ("configs", "mine", "."),
            ("configs", "configs", "work"),
            ("colddiff.configs", "x", "work"),
        ]
    ):
        own = tmp_path / "work" / folder
        own.mkdir(parents=True)
        (own / "helper_beside.py").write_text(f"STEPS = {number}\n")
        imports = f"from {module} import blur_digits\nimport helper_beside"
        (own / "own.py").write_text(OWN.format(imports=imports, steps="helper_beside.STEPS"))
        config = own / "own.py" if cwd == "." else f"{folder}/own.py"
        done = subprocess.run(
            [sys.executable, "-m", "colddiff", f"--config={config}", "--print_config"],
            env=os.environ | {"PYTHONPATH": str(installed)},
            cwd=tmp_path / cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"* config.train.num_steps = {number} " in done.stdout, done.stderr
        assert str(installed / "colddiff" / "configs" / "default.py") in done.stdout


def test_get_config_takes_the_text_after_the_colon(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN.format(imports="from configs import blur_digits", steps=3))
    assert load_config(f"{path}:color_digits").data.source == "color_digits"
    assert load_config(str(path)).data.source == "digits"


def test_fields_are_changed():
    changed = change(
        load_config("blur_digits"),
        [
            *("--config.data.flip", "--noconfig.data.cache", "--config.train.learning_rate", "-1"),
            *("--config.eval.samplers=('direct', 'tacos')", "--config.eval.counts=()"),
            *("--config.prior.name=pattern", "--config.prior.noise_std=0.5"),
            "--config.sampler.eta=1",
            "--config.degradation.std={'schedule': 'linear', 'start': 1.0, 'step': 0.1}",
        ],
    )
    assert changed.data.flip is True and changed.data.cache is False and changed.is_locked
    assert changed.train.learning_rate == -1 and changed.eval.counts == ()
    assert changed.eval.samplers == ("direct", "tacos")
    assert changed.prior.to_dict() == {"name": "pattern", "noise_std": 0.5}
    assert changed.sampler.eta == 1
    assert changed.degradation.std.to_dict() == {"schedule": "linear", "start": 1.0, "step": 0.1}
    for std, expected in (("2.5", 2.5), ("[1.0, 2.0]", (1.0, 2.0))):
        assert change(changed, [f"--config.degradation.std={std}"]).degradation.std == expected


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.num_stepz=3", "flag: 'num_stepz'\nDid you mean"),
        ("--config.trian.num_steps=3", "flag: 'trian'\nDid you mean"),
        ("--config.model.widht=3", 'Did you mean "width" instead of "widht"?'),
        ("--config.nothing.x=3", "no such field for a --config.FIELD flag: 'nothing'"),
        ("--config.train.num_steps={'a': 1}", "invalid literal for int"),
        ("--config.model.width=(1, 2)", "invalid literal for int"),
        ("--config.train.num_steps", "Missing value for flag --config.train.num_steps"),
    ],
)
def test_a_change_that_cannot_be_is_refused(flag, message):
    with pytest.raises(UserError) as error:
        change(load_config("blur_digits"), [flag])
    assert message in str(error.value)


def test_the_arguments_that_change_the_config():
    given = "main --config a --workdir x --config.seed=3 --config.model.width 8 --config.data.flip"
    given += " --noconfig.data.cache --mode=train --config.train.learning_rate -1e-3 --config=b"
    changes, others = split_arguments(given.split())
    assert " ".join(others) == "main --config a --workdir x --mode=train --config=b"
    assert " ".join(changes) == (
        "--config.seed=3 --config.model.width 8 --config.data.flip --noconfig.data.cache "
        "--config.train.learning_rate -1e-3"
    )


def test_the_description_marks_what_differs():
    lines = describe(load_config("blur_digits", ["--config.seed=5"])).splitlines()
    marked = {line.split()[1]: line for line in lines if line.startswith("* config.")}
    assert marked["config.seed"].endswith("# default: 0")
    assert marked["config.model.num_blocks"].endswith("# not in default.py")
    assert "  config.data.image_size = 32" in lines
    assert "* config." not in describe(load_config("default"))


def test_where_a_file_of_ones_own_is_looked_for(tmp_path, monkeypatch):
    def located(name, *folders):
        config = tiny_config()
        with config.unlocked():
            part = {"name": f"{name}:f"}
            config.degradation = {"name": "compose", "num_steps": 6, "parts": (part,)}
        locate(config, folders)
        return config.degradation.parts[0]["name"].removesuffix(":f")

    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside, here / "sub"):
        folder.mkdir()
    for path in (here / "a.py", beside / "a.py", here / "sub" / "b.py", beside / "c.py"):
        path.touch()
    monkeypatch.chdir(here)
    assert located("a.py", beside) == f"{beside}/a.py"  # the config's folder comes first
    assert located("a.py") == f"{here}/a.py"
    assert located("sub/b.py", beside) == f"{here}/sub/b.py"
    assert located("gone/c.py", beside) == f"{beside}/c.py"
    assert located("/gone/c.py", beside) == f"{beside}/c.py"
    assert located("gone.py", beside) == "gone.py"
    assert Path(located("configs/swirl_digits.py")).samefile(ROOT / "configs" / "swirl_digits.py")
