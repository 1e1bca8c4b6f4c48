"""`colddiff.load` and `run.sample`, as a notebook uses them."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import sample, tiny_generator_config
from jax.tree_util import Partial
from PIL import Image
from sklearn.mixture import GaussianMixture

import colddiff
from colddiff.data import sources
from colddiff.degradations import checked
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
        UserError, match=r"xT must be of shape \('B', 16, 16, 1\); got .*batch axis with xT\[None"
    ):
        run.sample(run.params, x0[0])
    with pytest.raises(UserError, match=r"t=-1 must be one severity in 0\.\.T=6"):
        jax.vmap(run.degrade, (0, None, None))(x0, -1, jax.random.key(0))
    with pytest.raises(UserError, match="unknown sampler 'sde'; valid: ddim, ddpm, direct"):
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
    with pytest.raises(UserError, match=r"steps=2.0 must be a whole number, 1\.\.T=6"):
        run.sample(run.params, x0, steps=2.0)
    with pytest.raises(AttributeError):
        run.config.sampler.stepz = 3


GRAY = Image.new("L", (16, 16), 255)
IMAGES = {  # what is given instead of images [2, 16, 16, 1], and the message
    "PIL": (GRAY, r"is of type Image; .* Convert PIL images with colddiff\.images\.from_pil"),
    "a list of PIL": ([GRAY, GRAY], "is of type list; .* Convert PIL images with .*from_pil"),
    "a list of arrays": ([np.zeros((16, 16, 1))], r"is of type list; .* arrays with jnp\.stack"),
    "uint8": (np.zeros((2, 16, 16, 1), np.uint8), r"of type uint8; .*colddiff\.images\.from_uint8"),
    "levels": (np.full((2, 16, 16, 1), 200.0), "absolute values up to 200; .*from_uint8"),
    "NaN": (np.full((2, 16, 16, 1), np.nan), "absolute values up to nan; .*jax_debug_nans"),
    "one image": (
        np.zeros((16, 16, 1)),
        r"got \(16, 16, 1\)\. Add the batch axis with \w+\[None\]",
    ),
    "no channel": (np.zeros((2, 16, 16)), r"Add the channel axis with \w+\[\.\.\., None\]"),
    "neither": (
        np.zeros((16, 16)),
        r"Add the batch and the channel axis with \w+\[None, \.\.\., No",
    ),
    "channels first": (np.zeros((2, 1, 16, 16)), r"channels last with jnp\.moveaxis\(\w+, 1, -1\)"),
    "another size": (np.zeros((2, 8, 8, 1)), r"from_pil\(images, size=16, channels=1\)"),
    "colour": (np.zeros((2, 16, 16, 3)), r"from_pil\(images, size=16, channels=1\)"),
}


def test_what_are_no_images_is_refused_with_the_conversion(run):
    one_image = {"one image", "no channel", "another size", "colour"}  # or not refused by all D
    for what, (images, message) in IMAGES.items():
        with pytest.raises(UserError, match=f"^xT .*{message}"):
            run.sample(run.params, images)
        with pytest.raises(UserError, match=f"^xt .*{message}"):
            run.restore(run.params, images, 1)
        if what not in one_image:
            message = {"neither": "Add the channel axis", "channels first": "use jax.vmap"}.get(
                what, f"^x0 .*{message}"
            )
            with pytest.raises(UserError, match=message):
                run.degrade(images, 1, jax.random.key(0))


def test_images_on_0_to_1_are_warned_of(run, x0, caplog):
    """Bright images on [-1, 1] that do not come near to both ends are not."""
    bright = jnp.clip(x0, 0.1, 1.0)
    run.restore(run.params, bright, 1)
    assert not caplog.records
    run.restore(run.params, (x0 + 1) / 2, 1)
    assert "as if it lay on [0, 1]; images lie on [-1, 1]. If it does, convert it" in caplog.text


def test_keys_severities_and_seeds_are_converted_or_refused(run, x0):
    old, new = jax.random.PRNGKey(3), jax.random.key(3)
    noise = Partial(lambda x0, t, key: x0 + t / 6 * jax.random.normal(key, x0.shape))
    other = dataclasses.replace(
        run,
        experiment=run.experiment._replace(degrade=checked(noise, 6), restore=lambda p, x, t: x),
    )
    found = [other.sample(None, x0, key, sampler=naive, steps=2) for key in (old, new)]
    np.testing.assert_array_equal(*found)
    keys = jnp.stack([old, old + 1, old + 2])
    for t in (3, np.int64(3), jnp.int32(3)):
        xt = jax.vmap(other.degrade, (0, None, 0))(x0, t, keys)
        np.testing.assert_array_equal(xt[0], other.degrade(x0[0], 3, new))
    for call in (lambda key: other.degrade(x0[0], 3, key), lambda key: other.sample(None, x0, key)):
        for key, message in (
            (7, r"key=7 is a seed; make a PRNG key of it with jax\.random\.key\(7\)"),
            (jax.random.split(new), r"key must be one PRNG key; got keys of shape \(2,\)"),
            ("key", r"key=key must be a PRNG key; make one with jax\.random\.key\(0\)"),
        ):
            with pytest.raises(UserError, match=message):
                call(key)
    with pytest.raises(
        UserError, match=r"one image \[H, W, C\]; got \(3, 16, 16, 1\)\. .*jax.vmap"
    ):
        other.degrade(x0, 3, new)
    for t in (3.0, 7, -1, np.array([1, 2]), "3"):
        with pytest.raises(UserError, match=r"t=.* must be one severity in 0\.\.T=6, an integer"):
            other.degrade(x0[0], t, new)
        with pytest.raises(UserError, match=r"t=.* must be one severity in 0\.\.T=6 for each of"):
            run.restore(run.params, x0, t)
    with pytest.raises(UserError, match="must be one severity"):
        jax.jit(other.degrade)(x0[0], 3.0, new)  # traced
    expected = run.experiment.restore(run.params, x0, jnp.full(3, 4))
    for t in (4, [4, 4, 4], np.full(3, 4, np.uint8)):
        np.testing.assert_array_equal(run.restore(run.params, x0, t), expected)


def test_seeds_are_a_list_of_integers(generator):
    run = colddiff.load(generator)
    for seeds in (3, [0.5], [], [-1], jax.random.key(0)):
        with pytest.raises(UserError, match=r"seeds must be integers in 0\.\..*, such as \[0, 1"):
            run.generate(run.params, seeds)


def test_a_run_works_under_jit(run, x0):
    """Check that traced images are checked by shape and dtype alone."""
    sample = jax.jit(lambda xT: run.sample(run.params, xT, steps=2))
    np.testing.assert_allclose(sample(x0), run.sample(run.params, x0, steps=2), atol=APART)
    with pytest.raises(UserError, match="xT is of type uint8"):
        sample(jnp.zeros(x0.shape, jnp.uint8))


def test_a_workdir_may_be_text_with_a_tilde(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.parent))
    assert colddiff.load(f"~/{trained.name}", step=3).workdir == trained
