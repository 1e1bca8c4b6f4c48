"""Real processes, killed for real."""

import random
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY_FLAGS, command, environment, run_main

from colddiff import inference

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


def parameters(workdir):
    return jax.tree.leaves(inference.load(workdir).params)


def train_until_killed(workdir, seconds):
    """Starts or continues training, kills it `seconds` after its first step; its last log line."""
    with subprocess.Popen(
        command(*FLAGS, f"--workdir={workdir}"),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if "train " in line and f"/{STEPS}" in line:
                break
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        said = [line, *process.stderr]
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        return said


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_bit_identical(tmp_path):
    done = run_main(*FLAGS, f"--workdir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    moments = random.Random(time.time_ns())
    for _ in range(3):
        # A third of the steps at most, so that each run is killed on its way.
        train_until_killed(tmp_path / "killed", moments.uniform(0, 1.5))
    done = run_main(*FLAGS, f"--workdir={tmp_path / 'killed'}")
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    for a, b in zip(*(parameters(tmp_path / w) for w in ("whole", "killed")), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.slow
def test_one_device_and_four_train_the_same(tmp_path):
    for devices in (1, 4):
        flags = (*TINY_FLAGS, "--mode=train", "--config.train.num_steps=10")
        done = run_main(*flags, f"--workdir={tmp_path / str(devices)}", devices=devices)
        assert done.returncode == 0, done.stderr
    for a, b in zip(*(parameters(tmp_path / d) for d in ("1", "4")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
