"""Times chosen by the change of D, measured on training images."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.tree_util import Partial

from colddiff.evaluation import evaluate
from colddiff.experiment.build import build
from colddiff.images import from_uint8
from colddiff.inference.run import Run
from colddiff.inference.spacing import measure_change
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import times_between


def test_the_change_of_a_known_degradation():
    """D fades x0 to gray as t²: the change is 2 t - 1 times the size of x0, over T²."""
    fade = Partial(lambda x0, t, key: (1 - t**2 / 25) * x0)
    x0 = from_uint8(np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), np.uint8))
    size = float(jnp.sqrt(jnp.mean(x0**2)))
    expected = [0, *((2 * t - 1) * size / 25 for t in range(1, 6))]
    np.testing.assert_allclose(measure_change(fade, x0, 5), expected, rtol=1e-4)


def test_a_run_visits_the_times_of_its_config(tmp_path):
    """Blur changes images most at first, so uneven times are denser near t = 0."""
    config = tiny_config()
    even = Run(build(config), workdir=tmp_path)
    assert even.times(3).tolist() == times_between(6, 3).tolist()
    config.sampler.spacing = "change"
    config.eval.num_images = 4
    experiment = build(config)._replace(restore=lambda params, xt, t: 0.9 * xt)
    run = Run(experiment, workdir=tmp_path)
    times = run.times(3).tolist()
    assert times != times_between(6, 3).tolist() and times[0] == 6 and times[-1] == 0
    assert times[-2] < times_between(6, 3)[-2]
    row = evaluate.evaluate(run, ways=[evaluate.Way("tacos", 3)]).rows[-1]
    assert row.times == times
    xT = 0.1 * jnp.ones((2, 16, 16, 1))
    np.testing.assert_array_equal(run.sample(None, xT, steps=3), run.sample(None, xT, times=times))
    (stored,) = (tmp_path / "spacing").glob("change-*.npz")
    before = stored.stat().st_mtime_ns
    assert Run(experiment, workdir=tmp_path).times(3).tolist() == times
    assert stored.stat().st_mtime_ns == before  # not measured again
    config.sampler.spacing = "log"
    with pytest.raises(UserError, match=r"unknown sampler.spacing 'log'; valid: change, even"):
        build(config)
