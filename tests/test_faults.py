"""Real processes, killed for real."""

import logging
import random
import re
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY_FLAGS, command, environment, run_main

from colddiff import checkpoint, inference
from colddiff.devices import create_mesh
from colddiff.state import init_state

STEPS = 60
FLAGS = (
    "--config=configs/blur_digits.py",
    "--mode=train",
    "--config.train.batch_size=8",
    f"--config.train.num_steps={STEPS}",
    "--config.train.checkpoint_every=5",
    "--config.train.log_every=1",
    "--config.train.sample_every=0",
)


def final_state(workdir):
    """All that is saved at the end: parameters, their average, Adam's moments."""
    run = inference.load(workdir)
    with checkpoint.open_manager(workdir) as manager:
        like = init_state(run.experiment, create_mesh())
        return jax.tree.leaves(checkpoint.restore_state(manager, like, STEPS))


def train_until_killed(workdir, step, seconds):
    """Starts or continues training, and kills it `seconds` after it has logged `step`."""
    with subprocess.Popen(
        command(*FLAGS, f"--workdir={workdir}"),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        reached = -1
        while reached < step:
            line = process.stderr.readline()
            assert line, "it ended before it was killed"
            reached = int((re.findall(rf"train (\d+)/{STEPS}", line) or [-1])[0])
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_bit_identical(tmp_path):
    done = run_main(*FLAGS, f"--workdir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    moments = random.Random(time.time_ns())
    for low, high in ((1, 19), (21, 34), (41, 54)):
        step, seconds = moments.randint(low, high), moments.uniform(0, 0.3)
        logging.warning("killing %.3f s after step %d", seconds, step)  # shown if the test fails
        train_until_killed(tmp_path / "killed", step, seconds)
    done = run_main(*FLAGS, f"--workdir={tmp_path / 'killed'}")
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    for a, b in zip(*(final_state(tmp_path / w) for w in ("whole", "killed")), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.slow
def test_one_device_and_four_train_the_same(tmp_path):
    curves = []
    for devices in (1, 4):
        flags = (*TINY_FLAGS, "--mode=train", "--config.train.num_steps=20")
        done = run_main(
            *flags,
            "--config.train.log_every=2",
            f"--workdir={tmp_path / str(devices)}",
            devices=devices,
        )
        assert done.returncode == 0, done.stderr
        curves.append([float(x) for x in re.findall(r"loss (\S+)", done.stderr)])
    assert len(curves[0]) == 10 and curves[0][0] > 2 * curves[0][-1]
    np.testing.assert_allclose(*curves, atol=3e-4)
