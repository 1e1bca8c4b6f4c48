"""The command line: one command runs everything, and mistakes end with one message."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT, TINY_FLAGS, call_main, run_main, run_program
from PIL import Image

from colddiff import main


def test_one_command_trains_and_evaluates(tmp_path):
    flags = (*TINY_FLAGS, f"--workdir={tmp_path}", "--config.train.num_steps=20")
    done = run_main(*flags, "--config.eval.samplers=('direct', 'tacos')")
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
    rows = [line.split(" |")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows[-4:] == [
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


def test_help_says_what_there_is():
    """-h and --help tell the purpose, every mode, every packaged config and every flag."""
    done = call_main("-h")
    assert done.returncode == 0 and done.stdout == call_main("--help").stdout
    assert done.stdout.startswith("colddiff trains restorers of degraded images")
    for name in (*main._MODES, *CONFIGS):
        assert re.search(rf"^  {name} +\w", done.stdout, re.M), name
    for flag in ("--workdir: ", "--[no]dry_run: ", "--seeds: ", "configs/default.py"):
        assert flag in done.stdout
    quick = "import sys; from colddiff import main; main._help(); sys.exit('jax' in sys.modules)"
    assert run_program("-c", quick).returncode == 0


def test_a_dry_run_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [f"--config={ROOT}/configs/blur_digits.py", *TINY_FLAGS[1:]]
    done = call_main(*flags, "--dry_run", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "1500 training images of digits; read the batch 1 × 8 × 16 × 16 × 1 and" in done.stdout
    count = 3 * 3 * 8 + 8 + (8 * 8 + 8) + 3 * 3 * 8 + 1  # convolution, time, convolution
    assert f"parameters: {count} (small)" in done.stdout
    memory = re.search(r"compiled in \S+ s; memory (\S+) MiB on each device", done.stdout)
    assert float(memory[1]) >= 0
    assert not list(tmp_path.iterdir())
    assert (
        "--dry_run is not used by --mode=degrade"
        in call_main(*flags, "--dry_run", "--mode=degrade", "--workdir=x").stderr
    )


def test_a_run_needs_no_config(trained, tmp_path):
    """Modes of a trained run take its own config, changed by --config.FIELD."""
    run = shutil.copytree(trained, tmp_path / "run")
    flags = (f"--workdir={run}", "--config.eval.num_images=3", "--config.eval.samplers=()")
    done = call_main("--mode=evaluate", *flags, "--config.eval.features=()")
    assert done.returncode == 0, done.stderr
    assert "n = 3" in done.stdout and "Direct" not in done.stdout
    printed = call_main("--print_config", *flags).stdout
    assert "* config.eval.num_images = 3 " in printed
    assert "* config.data.image_size = 16 " in printed
    compare = ("--mode=compare", "--folder=a=no/such")
    assert "no/such holds 0 generated images" in call_main(*compare, f"--workdir={run}").stderr

    error = call_main(*compare, f"--workdir={tmp_path}").stderr
    assert "holds no checkpoint" in error and "can also be given a --config" in error
    assert "--config is needed" in call_main(f"--workdir={run}", "--config.seed=1").stderr


def test_several_runs_are_checked_before_the_first_is_scored(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    before = sorted(run.rglob("*"))
    folders = f"--workdir={run},{tmp_path / 'no'},{tmp_path / 'such'}"
    done = call_main("--mode=evaluate", folders)
    assert done.returncode == 2 and done.stdout == ""
    for name in ("no", "such"):
        assert f"{tmp_path / name} holds no checkpoint" in done.stderr
    assert sorted(run.rglob("*")) == before


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
        (["--stop_after=9"], "--stop_after=9 must be a number and s, m or h"),
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
