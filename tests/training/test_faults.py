"""Faults: killed processes, damaged files, full disks, bad input."""

import gc
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import types
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import (
    COMPILATION_CACHE,
    TINY_FLAGS,
    run_main,
    run_program,
    start_main,
    tiny_generator_config,
    wait_for,
)
from PIL import Image
from tensorboard_events import read_scalars

import colddiff
from colddiff.data import sources
from colddiff.data.batches import batches
from colddiff.evaluation import inception
from colddiff.experiment import checkpoint
from colddiff.experiment.state import init_state
from colddiff.runtime import files
from colddiff.runtime.devices import create_mesh
from colddiff.runtime.errors import UserError
from colddiff.runtime.lock import alone
from colddiff.training.examples import load_train_images
from colddiff.training.loop import train

STEPS, KILLS, IN_SAVES = 600, 9, 3
FLAGS = (
    *TINY_FLAGS,
    "--mode=train",
    f"--config.train.num_steps={STEPS}",
    "--config.train.checkpoint_every=10",
    "--config.train.log_every=1",
)


def final_state(workdir):
    """Return all saved arrays: parameters, their average, Adam's moments."""
    run = colddiff.load(workdir)
    with checkpoint.open_manager(workdir) as manager:
        like = init_state(run.experiment, create_mesh())
        return jax.tree.leaves(checkpoint.restore_state(manager, like, STEPS))


def kill_in_training(workdir, text, count, seconds):
    """Train, kill it `seconds` after the text; return whether that was during a save."""
    with start_main(*FLAGS, f"--workdir={workdir}") as process:
        wait_for(process, text, count)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    return any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the workdir of a run that nothing interrupted, the reference for the others."""
    workdir = tmp_path_factory.mktemp("whole")
    done = run_main(*FLAGS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_killed_9_times_and_resumed_is_bit_identical(whole, tmp_path, pytestconfig):
    """Kill at random moments and, at least three times, during a save.

    `--kill-seed=N` repeats the moments.
    """
    killed = tmp_path / "killed"
    seed = pytestconfig.getoption("--kill-seed")
    logging.warning("--kill-seed=%d", seed)
    moments = random.Random(seed)
    kills, in_saves = 0, 0
    while kills < KILLS or in_saves < IN_SAVES:
        saves = kills % 2 == 0
        text, count = ("saving checkpoint", 2) if saves else ("train ", moments.randint(1, 30))
        seconds = moments.uniform(0, 0.05) if saves else moments.uniform(0, 0.2)
        logging.warning("kill %d: %.3f s after %r × %d", kills, seconds, text, count)  # if it fails
        in_saves += kill_in_training(killed, text, count, seconds)
        kills += 1
        assert kills < 2 * KILLS, f"only {in_saves} kills met a save"
    done = run_main(*FLAGS, f"--workdir={killed}")
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stderr
    for a, b in zip(*map(final_state, (whole, killed)), strict=True):
        assert np.array_equal(a, b)
    # A step's loss depends on its batch, so equal losses show that no batch was skipped.
    found, expected = (read_scalars(w / "tensorboard", "train/loss") for w in (killed, whole))
    assert list(expected) == list(range(1, STEPS + 1)) and found == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number, whole, tmp_path):
    stopped = tmp_path / "stopped"
    flags = (*FLAGS, "--config.train.checkpoint_every=1000")
    with start_main(*flags, f"--workdir={stopped}") as process:
        wait_for(process, "train 20/")
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 0, err
    step = int(re.search(r"stopped at step (\d+); run the same command again to resume", err)[1])
    assert f"{number.name}: saving a checkpoint, then ending" in err
    done = run_main(*flags, f"--workdir={stopped}")
    assert done.returncode == 0 and f"resuming from step {step} " in done.stderr, done.stderr
    for a, b in zip(*map(final_state, (whole, stopped)), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.slow
def test_a_signal_while_checkpoints_are_scored_saves_without_scores(tmp_path):
    flags = (
        *FLAGS,
        "--config.degradation.num_steps=200",
        "--config.train.checkpoint_every=20",
        "--config.train.scored=200",
        "--config.train.best=tacos/rmse",
        "--config.eval.batch_size=1",
        "--config.eval.samplers=('tacos',)",
    )
    with start_main(*flags, f"--workdir={tmp_path}") as process:
        wait_for(process, "score degraded (0 sampler steps) 200/200")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert "checkpoint 20 has no scores: a signal interrupted the scoring" in err
    assert "score tacos (200 sampler steps) 200/200" not in err
    assert "stopped at step 20; run the same command again to resume" in err
    assert colddiff.load(tmp_path).step == 20


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path):
    """Send the second signal while the first waits for a step that is being compiled."""
    with start_main(*FLAGS, f"--workdir={tmp_path}") as process:
        wait_for(process, "parameters: ")
        process.send_signal(signal.SIGTERM)
        wait_for(process, "a second signal ends this process at once")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM


def damage(path, how):
    """Cut all files below `path` in half or delete them; or empty or delete the arrays only.

    Arrays are not cut in half, because half of their file may hold all values.
    """
    files = [file for file in path.rglob("*") if file.is_file()]
    if how.startswith("arrays"):
        files = [file for file in files if file.parent.name == "d"]
    for file in files:
        if how.endswith("deleted"):
            file.unlink()
        else:
            kept = 0 if how == "arrays emptied" else file.stat().st_size // 2
            file.write_bytes(file.read_bytes()[:kept])
    if how == "deleted":
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("state", "truncated"),
        *(
            pytest.param(part, how, marks=pytest.mark.slow)
            for part in ("config", "state", "ema_params")
            for how in ("truncated", "deleted")
            if (part, how) != ("state", "truncated")
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(trained, config, part, how, tmp_path, caplog):
    """Check that training resumes from the one before, and moves the damaged one aside."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    damage(workdir / "checkpoints" / "8" / part, how)
    config.train.num_steps = 9
    config.train.lr_schedule = "constant"
    caplog.set_level(logging.INFO)
    assert train(config, workdir)
    said = caplog.text
    assert f"{workdir}/checkpoints/8 cannot be read" in said and "resuming from step 6" in said
    assert f"moved {workdir}/checkpoints/8 to {workdir}/damaged/8" in said
    assert (workdir / "damaged" / "8").is_dir()
    assert colddiff.load(workdir).step == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "how"), [("state", "arrays emptied"), ("ema_params", "arrays deleted")]
)
def test_damaged_arrays_are_passed_over(part, how, tmp_path):
    """Use subprocesses, because orbax's threads log errors after the test."""
    flags = (*TINY_FLAGS, "--mode=train", "--config.train.checkpoint_every=2")
    flags = (*flags, "--config.train.num_steps=4", f"--workdir={tmp_path}")
    assert run_main(*flags).returncode == 0
    damage(tmp_path / "checkpoints" / "4" / part, how)
    done = run_main(*flags)
    assert done.returncode == 0, done.stderr
    assert "checkpoints/4 cannot be read" in done.stderr and "resuming from step 2" in done.stderr
    assert (tmp_path / "damaged" / "4").is_dir() and colddiff.load(tmp_path).step == 4


@pytest.mark.parametrize("item", ["state", "ema_params"])
def test_a_flipped_bit_is_damage(trained, config, item, tmp_path, monkeypatch, caplog):
    """Flip one bit of one number; the file itself can still be read."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    restore = ocp.CheckpointManager.restore

    def flipping(manager, step, args):
        restored = restore(manager, step, args=args)
        if step == 8 and item in restored:
            leaves, tree = jax.tree.flatten(restored[item])
            place = next(i for i, leaf in enumerate(leaves) if leaf.size > 50)
            bits = np.array(leaves[place]).view(np.uint32)
            bits.flat[33] ^= 1 << 3
            leaves[place] = jax.device_put(bits.view(np.float32), leaves[place].sharding)
            items = dict(restored.items()) | {item: jax.tree.unflatten(tree, leaves)}
            return ocp.args.Composite(**items)
        return restored

    monkeypatch.setattr(ocp.CheckpointManager, "restore", flipping)
    config.train.num_steps = 9
    config.train.lr_schedule = "constant"
    damaged = rf"checkpoints/8 is damaged: 1 of the \d+ arrays of its {item} differ from the saved"
    if item == "ema_params":
        with pytest.raises(UserError, match=damaged):
            colddiff.load(workdir)
    caplog.set_level(logging.INFO)
    assert train(config, workdir)
    assert re.search(damaged, caplog.text) and "resuming from step 6" in caplog.text
    assert (workdir / "damaged" / "8").is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_of_a_file_is_damage(config, tmp_path):
    """Flip bits of the largest file of arrays.

    If the file does not decode, orbax leaves reads behind that warn when they are collected.
    """
    config.train.num_steps = 3
    assert train(config, tmp_path / "run")
    arrays = (tmp_path / "run" / "checkpoints" / "3" / "ema_params").rglob("d/*")
    largest = max(arrays, key=lambda path: path.stat().st_size)
    good, chance = largest.read_bytes(), random.Random(0)
    like = colddiff.load(tmp_path / "run").params
    for _ in range(10):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        largest.write_bytes(bytes(bad))
        with checkpoint.open_manager(tmp_path / "run") as manager:
            try:
                found = checkpoint.restore_ema(manager, like, 3)
            except UserError:
                continue
        # The flipped bit is not part of any array.
        assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(like)))
    gc.collect()


def test_a_disk_that_fails_costs_no_checkpoint(trained, config, tmp_path, monkeypatch, caplog):
    workdir = shutil.copytree(trained, tmp_path / "run")
    config.train.num_steps = 9
    config.train.lr_schedule = "constant"
    caplog.set_level(logging.INFO)
    restore, pauses = ocp.CheckpointManager.restore, []
    monkeypatch.setattr(files, "time", types.SimpleNamespace(sleep=pauses.append))

    def failing(count):
        def fail(manager, step, args):
            if step == 8 and len(pauses) < count:
                raise ValueError("UNKNOWN: reading: Input/output error [os_error_code='5']")
            return restore(manager, step, args=args)

        monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)

    failing(99)
    with pytest.raises(UserError, match=r"(?s)checkpoints/8 cannot be read: .*may be undamaged"):
        train(config, workdir)
    assert pauses and not (workdir / "damaged").exists()
    pauses.clear()
    failing(2)
    assert train(config, workdir)
    assert "resuming from step 8" in caplog.text and not (workdir / "damaged").exists()


# Links form a loop, until the files are restored. `sleep` does not wait.
FAILING = """
import shutil, sys, types
from colddiff.runtime import files
pauses, broken, good, count = [], *sys.argv[1:4]
del sys.argv[1:4]
def sleep(seconds):
    pauses.append(seconds)
    if len(pauses) == int(count):
        shutil.rmtree(broken)
        shutil.copytree(good, broken)
files.time = types.SimpleNamespace(sleep=sleep)
from small import run
run()
"""


@pytest.mark.slow
def test_a_disk_that_really_fails_costs_no_checkpoint(tmp_path):
    run, good = tmp_path / "run", tmp_path / "good"
    flags = (*TINY_FLAGS, "--mode=train", "--config.train.checkpoint_every=2", f"--workdir={run}")
    assert run_main(*flags, "--config.train.num_steps=4").returncode == 0
    state = run / "checkpoints" / "4" / "state"
    shutil.copytree(state, good)
    for path in list(state.rglob("d/*")):
        path.unlink()
        path.symlink_to(path.name)
    flags = (*flags, "--config.train.num_steps=6")
    done = run_program("-c", FAILING, state, good, 99, *flags)
    assert done.returncode == 2, done.stderr
    assert len(re.findall("colddiff: .*checkpoints/4 cannot be read: .*symbolic", done.stderr)) == 1
    done = run_program("-c", FAILING, state, good, 2, *flags)
    assert done.returncode == 0 and "resuming from step 4" in done.stderr, done.stderr
    assert not (run / "damaged").exists()


def test_a_workdir_is_one_process_s(config, tmp_path):
    """Check that the message names the other process, and that an old file is no lock."""
    (tmp_path / "train.lock").write_text("process 1 on nowhere")
    with alone(tmp_path):
        holder = f"process {os.getpid()} on {socket.gethostname()}, since 20"
        for _ in range(2):
            with pytest.raises(UserError, match=f"{tmp_path} is in use: {holder}"):
                train(config, tmp_path)
        code = "import sys, pathlib, colddiff.runtime.lock as lock\n"
        code += "with lock.alone(pathlib.Path(sys.argv[1])): pass"
        other = run_program("-c", code, tmp_path)
        assert other.returncode == 1 and holder in other.stderr
    assert not list(tmp_path.iterdir())
    with alone(tmp_path):
        pass


@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_damaged_scores_are_passed_over(how, trained, config, tmp_path, caplog):
    """Check that their checkpoint can be loaded, and that a finished run is checked too."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    for step in (8, 6):
        scores = workdir / "checkpoints" / str(step) / "metrics"
        scores.mkdir()
        (scores / "metrics").write_text('{"tacos/rmse": 0.5}')
    damage(scores, how)
    assert colddiff.load(workdir).step == 8
    if how == "truncated":
        message = "checkpoints/6/metrics cannot be read: .*Delete this folder, or resume"
        with pytest.raises(UserError, match=message), checkpoint.open_manager(workdir, best="x/y"):
            pass
    damage(workdir / "checkpoints" / "8" / "state", "truncated")
    caplog.set_level(logging.INFO)
    assert train(config, workdir)
    assert "resuming from step 6" in caplog.text
    assert (workdir / "damaged" / "8").is_dir()
    assert (workdir / "damaged" / "6-scores").is_dir() == (how == "truncated")
    assert colddiff.load(workdir).step == 8


def test_files_of_somebody_else_are_left(config, tmp_path):
    """Use a folder of the user's as workdir, by mistake."""
    (tmp_path / "data.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"data.json was not written by colddiff; use another"):
        train(config, tmp_path)
    assert (tmp_path / "data.json").read_text() == '{"mine": 1}'


def test_without_a_good_checkpoint_nothing_is_touched(trained, config, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    for step in (3, 6, 8):
        damage(workdir / "checkpoints" / str(step) / "state", "truncated")
    before = sorted(workdir.rglob("*"))
    config.train.num_steps = 9
    with pytest.raises(UserError, match="checkpoints/8 cannot be read"):
        train(config, workdir)
    assert {p for p in before if "checkpoints" in p.parts} <= set(workdir.rglob("*"))
    assert not (workdir / "damaged").exists()


def test_a_diverged_run_names_the_step_and_keeps_its_images(config, tmp_path):
    """Compare with the batch of that step; no later checkpoint is saved."""
    config.train.learning_rate = 1e30
    config.train.log_every, config.train.checkpoint_every = 4, 1
    with pytest.raises(UserError, match="the training diverged at step") as error:
        train(config, tmp_path)
    step = int(re.search(r"at step (\d+)", str(error.value))[1])
    with np.load(tmp_path / "diverged" / f"{step:07d}.npz") as kept:
        images = load_train_images(config)
        [expected] = batches(images, 8, seed=config.seed, start=step - 1, stop=step)
        np.testing.assert_array_equal(kept["images"], expected)
    assert Image.open(tmp_path / "diverged" / f"{step:07d}.png").width > 16
    with checkpoint.open_manager(tmp_path) as manager:
        assert (manager.latest_step() or 0) == step - 1


def test_other_images_are_refused(config, tmp_path):
    """Replace an image by another of the same name before the run resumes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        Image.new("L", (16, 16), i).save(folder / f"{i:02d}.png")
    config.data.source, config.eval.num_images = f"folder:{folder}", 0
    assert train(config, tmp_path / "run")
    config.train.num_steps = 9
    config.train.lr_schedule = "constant"
    Image.effect_noise((16, 16), 50).save(folder / "07.png")
    with pytest.raises(
        UserError,
        match=r"(?s)not those that .* began with:.* saved, .* now\n.*or delete .*data.json to",
    ):
        train(config, tmp_path / "run")
    assert colddiff.load(tmp_path / "run").step == 8
    (tmp_path / "run" / "data.json").unlink()
    assert train(config, tmp_path / "run")


def test_a_prior_of_other_images_is_fitted_anew(tmp_path):
    """Change the images and delete `data.json`, as the message says."""
    folder, workdir = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    means, mixtures = [], set()
    for level in (50, 200):
        for i in range(20):
            Image.new("L", (16, 16), level + i).save(folder / f"{i:02d}.png")
        config = tiny_generator_config()
        config.data.source, config.eval.num_images = f"folder:{folder}", 0
        config.train.num_steps = 3 if level == 50 else 4
        config.train.lr_schedule = "constant"
        assert train(config, workdir)
        assert colddiff.load(workdir).prior is not None
        [path] = set((workdir / "prior").iterdir()) - mixtures
        mixtures.add(path)
        with np.load(path) as arrays:
            means.append(arrays["means"].item())
        (workdir / "data.json").unlink()
    train_images = sources.load(f"folder:{folder}", "train", size=16, channels=1)
    assert means[1] == pytest.approx(train_images.mean() / 127.5 - 1, abs=1e-6)
    assert means[0] < 0 < means[1]


@pytest.fixture
def small_disk(tmp_path):
    """Yield a file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# With quotas, or over a network, a file system may not report how full it is.
NO_FORESIGHT = """
import shutil
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40)
from small import run
run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_is_said_and_earlier_checkpoints_stay(foreseen, small_disk):
    flags = (*FLAGS, "--config.train.checkpoints_kept=1000", "--config.train.checkpoint_every=5")
    program = ["-m", "small"] if foreseen else ["-c", NO_FORESIGHT]
    done = run_program(*program, *flags, f"--workdir={small_disk}")
    assert done.returncode == 2, done.stderr
    assert len(re.findall("colddiff: .*no space left", done.stderr, re.I)) == 1, done.stderr
    if foreseen:
        assert "colddiff: cannot write a checkpoint" in done.stderr
        assert "Traceback" not in done.stderr
    with checkpoint.open_manager(small_disk) as manager:
        last = manager.latest_step()
    assert last >= 5 and colddiff.load(small_disk).step == last


def write_bad_inputs(folder):
    """Write files whose content does not match their names."""
    (folder / "images" / "a").mkdir(parents=True)
    for name in ("0.png", "1.png"):
        (folder / "images" / name).write_text("no image")
        (folder / "images" / "a" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "syntax.py").write_text("def get_config():\n    return = 3\n")
    (folder / "fails.py").write_text("def dim(*, num_steps):\n    raise KeyError('x')\n")
    cache = folder / "cache"
    cache.mkdir()
    (cache / inception.FILE).write_bytes(b"PK\x03\x04 no weights")


MALFORMED = {  # flags, message
    "flag": (["--workdr=x"], "Unknown command line flag 'workdr'"),
    "mode": (["--mode=trian"], "should be one of <train_and_evaluate|train|"),
    "argument": (["extra"], "unexpected argument 'extra'"),
    "steps": (["--mode=evaluate", "--steps=5,x"], "--steps: 'x' must be a whole number"),
    "step": (["--mode=evaluate", "--step=99"], "has no checkpoint of step 99; there are [4]"),
    "seeds": (["--mode=generate", "--seeds=9-0"], "--seeds='9-0' must be like 0-9999"),
    "hosts": (["--num_hosts=2"], "--num_hosts and --host need --coordinator"),
    "config file": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "config syntax": (["--config={bad}/syntax.py"], "syntax.py:2: SyntaxError"),
    "config field": (["--config.train.num_stepz=3"], 'Did you mean "num_steps"'),
    "config type": (["--config.train.num_steps=many"], "invalid literal for int()"),
    "config number": (["--config.train.batch_size=0"], "config.train.batch_size=0 must"),
    "config name": (["--config.degradation.name=fog"], "unknown degradation 'fog'; valid: "),
    "config function": (["--config.degradation.name={bad}/fails.py:dim"], "fails.py"),
    "config mesh": (["--config.mesh.fsdp=3"], "config.mesh.fsdp=3 must divide the 1 devices"),
    "another run": (
        ["--config.seed=7"],
        "holds a run with another config:\n  seed: 0 saved, 7 now",
    ),
    "image size": (["--mode=degrade", "--config.data.image_size=31"], "takes multiples of 2"),
    "no folder": (["--mode=degrade", "--config.data.source=folder:no/such"], "no folder no/such"),
    "images": (
        ["--mode=degrade", "--config.data.source=folder:{bad}/images"],
        "images can be read",
    ),
    "generated": (["--mode=compare", "--folder=a={bad}/images/a"], "images/a/0.png"),
    "weights": (["--mode=evaluate", "--config.eval.features=('inception',)"], inception.FILE),
    "workdir": (["--workdir=/dev/null/x"], "Not a directory"),
    "bucket": (["--workdir=gs://bucket/run"], "must be a folder, not a URL; mount the bucket"),
}


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("short")
    done = run_main(*SHORT, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


SHORT = (*TINY_FLAGS, "--config.train.num_steps=4")


def contents(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_input_ends_clearly_and_changes_nothing(what, short_run, tmp_path, monkeypatch):
    flags, message = MALFORMED[what]
    write_bad_inputs(tmp_path)
    monkeypatch.setenv("COLDDIFF_CACHE", str(tmp_path / "cache"))
    before = contents(short_run)
    flags = [flag.replace("{bad}", str(tmp_path)) for flag in flags]
    done = run_main(*SHORT, f"--workdir={short_run}", *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("colddiff: ") == 1
    assert contents(short_run) == before


@pytest.mark.slow
def test_a_run_given_malformed_input_goes_on(short_run, tmp_path):
    """Resume the run of the tests above, which left its files unchanged."""
    flags = (*SHORT, "--mode=train", "--config.train.num_steps=6")
    workdir = shutil.copytree(short_run, tmp_path / "run")
    done = run_main(*flags, f"--workdir={workdir}")
    assert done.returncode == 0 and "resuming from step 4" in done.stderr, done.stderr


# Python's audit hook reports all files it writes, but not checkpoints' arrays, written in C++.
WATCHED = """
import os, sys
sys.dont_write_bytecode = True
def tell(event, args):
    makes = {"os.mkdir": args[:1], "os.rename": args[:2], "os.link": args[1:2],
             "os.symlink": args[1:2], "os.remove": args[:1], "os.rmdir": args[:1]}
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        makes[event] = args[:1]
    for path in makes.get(event, ()):
        if not isinstance(path, int):
            sys.__stderr__.write(f"written: {os.path.realpath(os.fsdecode(path))}\\n")
sys.addaudithook(tell)
from small import run
run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train_and_evaluate", "generate", "compare", "degrade"])
def test_what_a_run_writes_is_in_its_workdir(mode, generator, tmp_path, monkeypatch):
    """Allow the caches too; use texts in the config that name other folders."""
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    monkeypatch.setenv("COLDDIFF_CACHE", str(cache))
    for variable in ("TMPDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    own = tmp_path / "of_mine.py"
    own.write_text(
        "def dim(*, num_steps, **rest):\n    return lambda x0, t, key: x0 * (1 - t / num_steps)\n"
    )
    flags = [*TINY_FLAGS, f"--config.degradation.name={own}:dim"]
    flags += ["--config.train.num_steps=4", "--config.train.sample_every=2"]
    flags += ["--config.train.scored=8", "--config.eval.features=('pca', 'pixels')"]
    flags += [f"--config.data.source=folder:{tmp_path}/images/../images"]
    if mode == "generate":
        shutil.copytree(generator, workdir)
        flags = ["--seeds=0-3"]
    if mode == "compare":
        flags.append(f"--folder=../../title={tmp_path}/images")
    (tmp_path / "images").mkdir()
    for i in range(40):
        Image.new("L", (16, 16), 5 * i).save(tmp_path / "images" / f"{i:02d}.png")
    done = run_program("-c", WATCHED, *flags, f"--mode={mode}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    written = {Path(line) for line in re.findall("written: (.*)", done.stderr)}
    caches = (cache, tmp_path / "temporary", Path(COMPILATION_CACHE))
    places = [path.resolve() for path in (workdir, *caches, Path("/dev"), Path("/proc"))]
    assert any(path.is_relative_to(places[0]) for path in written)
    assert [p for p in written if not any(p.is_relative_to(place) for place in places)] == []
