"""The command line: one command runs everything, and mistakes end with one message."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, call_main, run_main, run_program
from PIL import Image


def test_one_command_trains_and_evaluates(tmp_path):
    flags = (*TINY_FLAGS, f"--workdir={tmp_path}", "--config.train.num_steps=20")
    done = run_main(*flags)
    assert done.returncode == 0, done.stderr
    assert "| Sampled (tacos, Algorithm 2) | 6 |" in done.stdout
    folder = Path(done.stdout.split("report and pictures: ")[1].strip())
    assert (folder / "samples.png").exists()
    assert re.search(r"train 20/20  \S+ steps/s  \S+ images/s  ETA 0:00:00  loss ", done.stderr)
    report = json.loads((folder / "report.json").read_text())

    again = run_main(*flags, "--mode=evaluate", "--config.eval.samplers=('direct',)")
    assert again.returncode == 0, again.stderr
    rows = json.loads((folder / "report.json").read_text())["rows"]
    for row, before in zip(rows, report["rows"][:2], strict=True):
        assert row | {"seconds": 0} == before | {"seconds": 0}  # all digits are equal

    other = call_main(*flags, "--config.model.width=16")
    assert other.returncode == 2
    assert "model.width: 8 saved, 16 now" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
def test_a_study_and_a_table_of_several_runs(trained, generator, tmp_path):
    """Give no --config; each run has the one it was trained with."""
    runs = [shutil.copytree(trained, tmp_path / "a"), shutil.copytree(generator, tmp_path / "b")]
    with_comma = shutil.copytree(trained, tmp_path / "c, with a comma")
    done = run_main("--mode=evaluate", "--samplers=direct", f"--workdir={with_comma}")
    assert done.returncode == 0 and "weights EMA of step 8" in done.stdout, done.stderr
    flags = ("--mode=evaluate", "--samplers=direct,tacos", "--steps=2,6")
    done = run_main(*flags, f"--workdir={runs[0]}")
    assert done.returncode == 0, done.stderr
    study = runs[0] / "evaluation" / "0000008"
    assert re.findall(r"\| (\S+)[^|]* \| (\d+) \|", done.stdout) == [
        ("Degraded", "0"),
        ("Direct", "1"),
        ("Sampled", "2"),
        ("Sampled", "6"),
    ]
    name = "study-direct-tacos"
    assert {f"{name}.md", f"{name}.html", f"{name}.json", f"{name}-rmse.png"} <= {
        p.name for p in study.iterdir()
    }

    flags = ("--mode=evaluate", "--samplers=direct", f"--output={tmp_path / 'table'}")
    done = run_main(*flags, f"--workdir={runs[0]},{runs[1]}")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table" / "table.md").read_text()
    assert table in done.stdout
    assert [line.split(" |")[0] for line in table.splitlines()[-4:]] == [
        "| a: Degraded (xT)",
        "| a: Direct",
        "| b: Degraded (xT)",
        "| b: Direct",
    ]
    for run in runs:
        assert (run / "evaluation" / "0000008" / "report-direct.html").exists()
        assert not (run / "evaluation" / "0000008" / "report.html").exists()

    done = run_main("--mode=evaluate", "--samplers=direct", f"--workdir={runs[0]}", "--step=3")
    assert done.returncode == 0 and "weights EMA of step 3" in done.stdout


def test_the_degrade_mode_needs_no_training(tmp_path):
    done = run_main(*TINY_FLAGS, f"--workdir={tmp_path}", "--mode=degrade")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.split("picture: ")[1].strip())
    assert path == tmp_path / "degraded.png" and Image.open(path).width > 5 * 96
    assert [p.name for p in tmp_path.iterdir()] == ["degraded.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir"),
        (["--mode=trian"], "should be one of <train_and_evaluate|train|evaluate|generate|"),
        (["extra"], "unexpected argument 'extra'"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config.train.num_stepz=3"], 'Did you mean "num_steps" instead of "num_stepz"?'),
        (["--config.train.num_steps=many"], "invalid literal for int() with base 10: 'many'"),
        (["--config.degradation.name=fog"], "unknown degradation 'fog'; valid: "),
        (["--config.data.source=folder:no/such"], "no folder no/such"),
        (["--config.data.image_size=30"], "takes multiples of 4: use 28 or 32"),
        (["--mode=evaluate"], "holds no checkpoint; train there first"),
        (["--mode=generate"], "holds no checkpoint; train there first"),
        (["--mode=generate", "--seeds=9-0"], "--seeds='9-0' must be like 0-9999 or 3,7,20-29"),
        (["--mode=compare"], "--mode=compare needs one or more --folder=TITLE=FOLDER"),
        (["--mode=compare", "--folder=a=no/such"], "no/such holds 0 generated images"),
        (["--mode=evaluate", "--steps=5,x"], "--steps: 'x' must be a whole number"),
        (["--mode=evaluate", "--workdir=a,b"], "--config cannot be used with several workdirs"),
        (["--samplers=typo"], "unknown sampler 'typo'; valid: ddim, ddpm, direct"),
        (["--samplers=direct,ddim"], "ddim and ddpm take only blends"),
        (["--steps=5,x"], "--steps: 'x' must be a whole number"),
        (["--steps=21"], "steps=21 must lie in 1..T=20"),
        (["--step=typo"], "--step: 'typo' must be a whole number"),
        (["--step=9"], "--step=9 cannot be used with --mode=train_and_evaluate"),
        (["--step=best"], "--step=best needs a score that ranks the checkpoints"),
        (["--config.eval.counts=(298,)"], "config.eval.counts has [298]; use counts in 2..297"),
        (["--mode=train", "--samplers=direct"], "--samplers is not used by --mode=train, but by"),
        (["--mode=generate", "--steps=5"], "--steps is not used by --mode=generate"),
        (["--mode=degrade", "--seeds=1"], "but by --mode=generate; leave it out"),
        (["--mode=evaluate", "--output=x"], "--output is the folder of the table of several runs"),
        (["--config.eval.features=('vgg',)"], "unknown feature space 'vgg'; valid: classifier,"),
        (["--config.sampler.name=ddim"], "ddim and ddpm take only blends"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_with_one_clear_message(flags, message, tmp_path):
    done = call_main("--config=configs/blur_digits.py", f"--workdir={tmp_path}", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.count("colddiff: ") == 1


def test_a_workdir_that_cannot_be():
    done = run_program(
        "-m", "colddiff.main", "--config=configs/blur_digits.py", "--workdir=/dev/null/x"
    )
    assert done.returncode == 2 and "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_and_workdir_are_needed():
    assert "--config is needed" in call_main("--workdir=x").stderr
    assert "--workdir is needed" in call_main("--config=configs/blur_digits.py").stderr


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    config.train.num_stepz = 3", "{path}:4: AttributeError: "),
        ("    assert not config", "{path}:4: AssertionError"),
        ("    config. = 3", "{path}:4: SyntaxError: "),
        ("    config = 3", "cannot use --config: "),
    ],
)
def test_a_mistake_in_a_config_file_names_its_line(body, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import default\ndef get_config():\n    config = default.get_config()\n"
        f"{body}\n    return config\n"
    )
    done = call_main(f"--config={path}", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"colddiff: {message.format(path=path)}")
