"""`colddiff.load` and `run.sample`, as a notebook uses them."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import sample, tiny_generator_config
from jax.tree_util import Partial
from sklearn.mixture import GaussianMixture

import colddiff
from colddiff.data import sources
from colddiff.experiment.build import build
from colddiff.inference.prior import load_prior
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import ddim, image_keys, naive, tacos, times_between

# Two programs, or batches of two sizes, round differently. Sampling amplifies the difference, which
# depends on the processor.
APART = 1e-4


@pytest.fixture
def run(trained):
    return colddiff.load(trained)


@pytest.fixture
def x0(run):
    return jax.random.uniform(jax.random.key(0), (3, *run.experiment.image_shape), minval=-1)


def test_a_loaded_run_samples(run, x0):
    assert run.step == 8 and run.config.degradation.num_steps == 6
    keys = image_keys(jax.random.key(4), 0, 3)
    xT = jax.vmap(run.degrade, (0, None, 0))(x0, 6, keys)
    found = run.sample(run.params, xT, jax.random.key(4))
    expected = sample(tacos, run.restore, run.degrade, run.params, xT, keys, times_between(6, 6))
    np.testing.assert_allclose(found, expected, atol=APART)
    one = run.sample(run.params, xT, sampler="direct")
    np.testing.assert_allclose(one, run.restore(run.params, xT, jnp.full(3, 6)), atol=APART)
    two = run.sample(run.params, xT, steps=2)
    expected = sample(tacos, run.restore, run.degrade, run.params, xT, keys, np.array([6, 3, 0]))
    np.testing.assert_allclose(two, expected, atol=APART)


def test_times_iterates_and_functions_of_ones_own(run, x0):
    """Start below T, and use a sampler function of our own."""
    keys = image_keys(jax.random.key(0), 0, 3)
    x4 = jax.vmap(run.degrade, (0, None, 0))(x0, 4, keys)
    own = lambda R, D, x, s, s_next: D(R(x, s), s_next)  # noqa: E731
    found, iterates = run.sample(run.params, x4, sampler=own, times=[4, 3, 0], iterates_at=[3, 0])
    arguments = (run.restore, run.degrade, run.params, x4, keys, np.array([4, 3, 0]))
    expected, marked = sample(naive, *arguments, [3, 0])
    np.testing.assert_allclose(found, expected, atol=APART)
    np.testing.assert_allclose(iterates, marked, atol=APART)


def test_the_seed_decides_where_the_fit_of_the_prior_begins(tmp_path):
    """Compare with EM of the block means on [-1, 1] by scikit-learn."""
    config = tiny_generator_config()
    config.prior.update({"size": 2, "components": 5})
    config.data.train_split = "test"  # the smaller split
    experiment = build(config)
    images = sources.load("digits", "test", size=16, channels=1)
    values = images.reshape(-1, 2, 8, 2, 8).mean(axis=(2, 4)).reshape(-1, 4) / 127.5 - 1
    fits = []
    for config.seed in (1, 2):
        load_prior(experiment, tmp_path / str(config.seed))
        [path] = (tmp_path / str(config.seed) / "prior").iterdir()
        with np.load(path) as arrays:
            found = arrays["means"].reshape(5, 4)
        fits.append(GaussianMixture(5, random_state=config.seed).fit(values).means_)
        np.testing.assert_allclose(found, fits[-1], atol=1e-3)
    assert np.abs(fits[0] - fits[1]).max() > 0.1  # the two seeds give different fits


def test_batches_of_any_size_on_any_device(run, x0):
    """Use three and four images on four devices, with xT on one of them."""
    four = jax.device_put(jnp.concatenate([x0, x0[:1]]), jax.devices()[2])
    together = run.sample(run.params, four, steps=2)
    np.testing.assert_allclose(together[:3], run.sample(run.params, x0, steps=2), atol=APART)


def test_large_batches_go_in_parts(run, x0, compiled):
    """Check for one program, and for patterns that depend on the place in the large batch."""
    xT, key = jnp.concatenate([x0, x0[::-1], x0, x0]), jax.random.key(4)  # 12 images
    noise = Partial(lambda x0, t, key: x0 + t / 6 * jax.random.normal(key, x0.shape))

    def sample(batch_size, xT):
        config = run.config.copy_and_resolve_references()
        config.eval.batch_size = batch_size
        experiment = run.experiment._replace(config=config, degrade=noise)
        other = dataclasses.replace(run, experiment=experiment)
        return other.sample(run.params, xT, key, steps=2, iterates_at=[3, 0])

    expected, marked = sample(12, xT)
    before = compiled.count("run_sampler")
    found, iterates = sample(3, xT)  # padded to 4, one for each device
    assert not np.allclose(expected[0], expected[6], atol=0.1)  # one image, two patterns
    np.testing.assert_allclose(found, expected, atol=APART)
    np.testing.assert_allclose(iterates, marked, atol=APART)
    np.testing.assert_allclose(sample(3, xT[:9])[0], expected[:9], atol=APART)
    assert compiled.count("run_sampler") == before + 1


def test_a_damaged_checkpoint_is_named(trained, tmp_path):
    for damage in ("missing", "truncated"):
        workdir = shutil.copytree(trained, tmp_path / damage)
        step = workdir / "checkpoints" / "8"
        if damage == "missing":
            shutil.rmtree(step / "config")
        else:
            for path in (step / "ema_params").rglob("*"):
                if path.is_file():
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=f"the checkpoint {step} cannot be read: .*\nDelete it"):
            colddiff.load(workdir)


def test_earlier_checkpoints_can_be_loaded(trained, run):
    early = colddiff.load(str(trained), step=3)
    assert early.step == 3
    assert not np.array_equal(*(jax.tree.leaves(r.params)[0] for r in (early, run)))
    with pytest.raises(UserError, match=r"no checkpoint of step 5; there are \[3, 6, 8\]"):
        colddiff.load(trained, step=5)


def test_a_workdir_without_a_run_is_an_error(tmp_path):
    for workdir in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=f"{workdir} holds no checkpoint; train there first"):
            colddiff.load(workdir)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        colddiff.load(tmp_path)


def test_wrong_arguments_of_sample(run, x0):
    with pytest.raises(
        UserError, match=r"xT must be of shape \('B', 16, 16, 1\); got \(16, 16, 1\)"
    ):
        run.sample(run.params, x0[0])
    for wrong, message in (
        (np.zeros((2, 16, 16, 1), np.uint8), "xT is of type uint8; .*from_uint8"),
        (np.full((2, 16, 16, 1), 200.0), r"xT has absolute values up to 200; images lie on \[-1"),
        (x0.at[1, 0, 0, 0].set(jnp.nan), "xT has absolute values up to nan"),
    ):
        with pytest.raises(UserError, match=message):
            run.sample(run.params, wrong)
    with pytest.raises(UserError, match=r"x0 is of type uint8; .*from_uint8"):
        run.degrade(np.zeros((16, 16, 1), np.uint8), 1, jax.random.key(0))
    with pytest.raises(UserError, match=r"t=-1 must be one severity in 0\.\.T=6"):
        jax.vmap(run.degrade, (0, None, None))(x0, -1, jax.random.key(0))
    with pytest.raises(UserError, match="unknown sampler 'sde'; valid: ddim, ddpm, direct, naive"):
        run.sample(run.params, x0, sampler="sde")
    for sampler in ("ddim", ddim, Partial(ddim, eta=0.5)):
        with pytest.raises(UserError, match=r"ddim and ddpm take only blends.* use tacos$"):
            run.sample(run.params, x0, sampler=sampler)
    with pytest.raises(UserError, match="times must begin at T=6 or below; got"):
        run.sample(run.params, x0, times=[7, 0])
    with pytest.raises(UserError, match=r"iterates_at=.* must be some of the times"):
        run.sample(run.params, x0, iterates_at=[7])
    with pytest.raises(UserError, match=r"iterates_at=\[3\] must be some of the times \[6 0\]"):
        run.sample(run.params, x0, sampler="direct", iterates_at=[3])
    for steps in (0, 9):
        with pytest.raises(UserError, match=rf"steps={steps} must lie in 1\.\.T=6"):
            run.sample(run.params, x0, steps=steps)
    with pytest.raises(AttributeError):
        run.config.sampler.stepz = 3
