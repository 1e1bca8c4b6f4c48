"""The severity head: its training, its file and its estimates; the restorer stays the same."""

import json

import jax
import numpy as np
import pytest
from conftest import call_main, tiny_config
from ml_collections import ConfigDict

import colddiff
from colddiff.evaluation.evaluate import load_test_images
from colddiff.experiment.build import build
from colddiff.inference.run import Run
from colddiff.inference.severity import posterior
from colddiff.runtime.errors import UserError
from colddiff.training import loop, severity

T = 3


def pixelation() -> ConfigDict:
    """Return a tiny config of pixelation, with one training step and a short training of a head."""
    config = tiny_config()
    config.degradation = ConfigDict(dict(name="pixelate", num_steps=T, method="area"))
    config.train.num_steps = 1
    config.severity.update(num_steps=150, batch_size=16, learning_rate=1e-2, width=4)
    return config


def pixelation_without_head() -> ConfigDict:
    config = pixelation()
    config.severity.num_steps = 0
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return the workdir of a run with a head; do not write to it."""
    workdir = tmp_path_factory.mktemp("severity")
    assert loop.train(pixelation(), workdir)
    return workdir


def pixelated(images: np.ndarray, t: int) -> np.ndarray:
    """Return block means of 2^t pixels a side, rounded to 8 bits, as floats on [-1, 1]."""
    B, H, W, C = images.shape
    n = 2**t
    means = images.reshape(B, H // n, n, W // n, n, C).astype(np.float64).mean((2, 4))
    rounded = means.round().repeat(n, axis=1).repeat(n, axis=2)
    return (rounded / 127.5 - 1).astype(np.float32)


def test_it_tells_pixelation_of_images_that_it_has_not_seen(workdir):
    run = colddiff.load(workdir)
    images = load_test_images(run.config, 32)
    for t in range(T + 1):
        found, std = run.severity(pixelated(images, t))
        assert found.dtype == np.int32 and std.dtype == np.float32 and found.shape == std.shape
        assert np.mean(found == t) > 0.9, t
        assert np.median(std) < 0.3
    scores = json.loads((workdir / "severity.json").read_text())
    assert scores["within_5_percent"] > 0.9 and scores["median_error"] == 0
    assert (workdir / "severity.png").is_file()


def test_an_estimate_is_an_image_s_own_whatever_its_batch_and_its_size(workdir):
    run = colddiff.load(workdir)
    images = pixelated(load_test_images(run.config, 8), 2)
    whole = run.severity(images)
    for part in (slice(0, 1), slice(3, 8)):
        for a, b in zip(run.severity(images[part]), whole, strict=True):
            np.testing.assert_array_equal(a, b[part])
    wide = images.repeat(2, axis=1).repeat(2, axis=2)[:, :, :24]  # blocks of 8 pixels
    assert np.median(run.severity(wide)[0]) == 3
    assert run.severity(images[:0])[0].shape == (0,)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((16, 16, 1), np.float32), r"of shape \('B', 'H', 'W', 1\); got \(16, 16, 1\)"),
        (np.zeros((1, 16, 16, 3), np.float32), r"got \(1, 16, 16, 3\)"),
        (np.zeros((1, 16, 7, 1), np.float32), r"of 16×7 pixels .* takes 8 pixels a side or more"),
        (np.zeros((1, 16, 16, 1), np.uint8), r"of type uint8; it must be floats on \[-1, 1\]"),
    ],
)
def test_other_images_are_refused(workdir, images, message):
    with pytest.raises(UserError, match=message):
        colddiff.load(workdir).severity(images)


@pytest.mark.slow
def test_a_run_without_a_head_is_told_the_command_and_the_command_works(tmp_path):
    """Delete the section from the saved config, as configs of earlier versions lack it."""
    workdir = tmp_path / "run"
    loop.train(pixelation_without_head(), workdir)
    path = workdir / "config.json"
    saved = json.loads(path.read_text())
    del saved["severity"]
    path.write_text(json.dumps(saved))
    images = np.zeros((1, 16, 16, 1), np.float32)
    with pytest.raises(UserError, match=r"no severity head, severity\.npz\. Give t, or") as error:
        colddiff.load(workdir).severity(images)
    command = str(error.value).splitlines()[-1].split()
    assert command[:3] == ["python", "-m", "colddiff"]
    quick = "--config.severity.num_steps=1"
    assert command.pop() == "--config.severity.num_steps=1000"
    params = colddiff.load(workdir).params
    done = call_main(*command[3:], quick, "--config.severity.batch_size=4")
    assert done.returncode == 0, done.stderr
    run = colddiff.load(workdir)
    assert run.severity(images)[0] in range(T + 1)
    jax.tree.map(np.testing.assert_array_equal, run.params, params)


def test_the_restorer_is_the_same_with_and_without_a_head(workdir, tmp_path):
    loop.train(pixelation_without_head(), tmp_path)
    with_head, without = colddiff.load(workdir).params, colddiff.load(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, with_head, without)


def test_a_head_is_trained_again_only_if_it_would_be_another(workdir, monkeypatch):
    trainings = []
    monkeypatch.setattr(severity, "_train", lambda *_: trainings.append(1))  # as if stopped
    same = pixelation()
    same.eval.pictures, same.data.threads = 2, 1
    assert loop.train(same, workdir)
    assert not trainings
    other = pixelation()
    other.severity.num_steps = 151
    assert not loop.train(other, workdir)
    assert trainings


def test_a_head_of_another_degradation_is_refused(workdir):
    config = pixelation()
    config.degradation.num_steps = 2
    run = Run(build(config), workdir=workdir)
    message = r"trained for other images .*\n  degradation.num_steps: 3 saved, 2 now\n.*\n  python"
    with pytest.raises(UserError, match=message):
        run.severity(np.zeros((1, 16, 16, 1), np.float32))


def test_the_posterior_s_median_and_standard_deviation():
    logits = np.random.default_rng(0).normal(0, 3, (50, 12)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    draws = [np.repeat(np.arange(12), np.round(1e5 * row).astype(int)) for row in p]
    t, std = jax.jit(posterior)(logits)
    np.testing.assert_array_equal(t, [np.median(draw) for draw in draws])
    np.testing.assert_allclose(std, [draw.std() for draw in draws], rtol=1e-3)


def test_the_scores_of_estimates():
    true, t, std = np.array([0, 10, 20, 40]), np.array([0, 11, 17, 40]), np.array([0, 2, 1, 0])
    scores = severity.scores_of(true, t, std, 40)
    assert scores == {
        "median_error": 0.5,
        "mean_error": 1.0,
        "within_5_percent": 0.75,
        "mean_std": 0.75,
        "calibration": pytest.approx(2**0.5),
    }
