"""Data consistency against dense closed forms in float64, and restorers whose answer is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import sample, tiny_config
from jax.tree_util import Partial

from colddiff.degradations import (
    compose,
    desaturate,
    gaussian_blur,
    gaussian_mask,
    gaussian_noise,
    linear,
    pixelate,
    snow,
)
from colddiff.evaluation.evaluate import evaluate, ways_of
from colddiff.experiment.build import build, consistency_steps
from colddiff.experiment.checks import check_numbers
from colddiff.images import truncate_to_8_bit
from colddiff.inference.generate import _settings
from colddiff.inference.run import Run
from colddiff.reporting import report
from colddiff.runtime.errors import UserError
from colddiff.sampling.consistency import (
    EIGHT_BIT_STD,
    PRIOR_STD,
    Measurement,
    consistent,
    project,
)
from colddiff.sampling.samplers import (
    bind_params,
    direct,
    draw_patterns,
    image_keys,
    naive,
    second_order,
    tacos,
    visited,
    walk,
)
from configs import default

N, T, B, MANY = 8, 3, 3, 200
SHAPE = (N, N, 3)
LEVEL = 2 / 255
LAMBDA = (EIGHT_BIT_STD / PRIOR_STD) ** 2

OWN = """
import jax.numpy as jnp

def smear(*, image_size, num_steps):
    def degrade(x0, t, key):
        shifted = jnp.concatenate([x0[:, 1:], x0[:, -1:]], axis=1)
        return jnp.where(t == 0, x0, 0.7 * x0 + 0.2 * shifted + 0.1 * x0[::-1])
    return degrade
"""


@functools.cache
def blur():
    return gaussian_blur(image_size=N, num_steps=T, kernel_size=5, std=1.0, padding="reflect")


def mask():
    std = linear(T, start=1, step=0.5)
    color = (0.2, -0.3, 0.5)
    return gaussian_mask(image_size=N, num_steps=T, std=std, center=(1, N - 1), fade_to=color)


def own(folder):
    """Return a degradation of a user's own file, as a config names it."""
    path = folder / "own.py"
    path.write_text(OWN)
    config = tiny_config()
    config.data.image_size, config.data.channels = N, 3
    with config.unlocked():
        config.degradation = {"name": f"{path}:smear", "num_steps": T}
    return build(config).degrade


LINEAR = {
    "blur": blur,
    "pixelate": lambda: pixelate(image_size=N, num_steps=T),
    "bicubic": lambda: pixelate(image_size=N, num_steps=2, method="bicubic"),
    "mask": mask,
    "desaturate": lambda: desaturate(num_steps=T),
    "compose": lambda: compose(blur(), mask(), desaturate(num_steps=2 * T)),
}


@pytest.fixture
def x0():
    return jax.random.uniform(jax.random.key(0), (B, *SHAPE), minval=-1, maxval=1)


@pytest.fixture
def x0_hat(x0):
    return x0 + 0.3 * jax.random.normal(jax.random.key(1), x0.shape)


KEYS = image_keys(jax.random.key(5), 0, B)


def to_8_bits(x):
    """Return x rounded to 256 levels."""
    return (jnp.round((x + 1) * 127.5) / 127.5 - 1).astype(jnp.float32)


@jax.jit
def measured(degrade, x0, x0_hat, t):
    """Return y, rounded to 8 bits; x̂ after enough steps to converge; and D of it."""
    D = draw_patterns(degrade, KEYS, SHAPE)
    y = to_8_bits(D(x0, t))
    z = project(D, x0_hat, Measurement(y, t), MANY)
    return y, z, D(z, t)


nearest = jax.jit(project)


@jax.jit
def dense(degrade, t, key):
    """Return D's matrix `[n, n]` and its constant `[n]` for one key, column by column."""
    units = jnp.concatenate([jnp.zeros((1, *SHAPE)), jnp.eye(N * N * 3).reshape(-1, *SHAPE)])
    images = jax.vmap(degrade, (0, None, None))(units, t, key).reshape(len(units), -1)
    return (images[1:] - images[:1]).T, images[0]


@pytest.mark.parametrize("name", [*LINEAR, "own"])
def test_it_is_the_minimiser_and_agrees_with_the_measurement(name, x0, x0_hat, tmp_path):
    """Solve (JᵀJ + λ) d = Jᵀ r in float64, and look at the directions in which D keeps x0."""
    degrade = own(tmp_path) if name == "own" else LINEAR[name]()
    t = jnp.int32(2 if name == "bicubic" else T)
    y, z, again = measured(degrade, x0, x0_hat, t)
    for i in range(B):
        J, constant = (np.asarray(a, np.float64) for a in dense(degrade, t, KEYS[i]))
        flat = np.asarray(x0_hat[i], np.float64).ravel()
        r = np.asarray(y[i], np.float64).ravel() - constant - J @ flat
        expected = flat + np.linalg.solve(J.T @ J + LAMBDA * np.eye(len(J)), J.T @ r)
        # float32 leaves more of the weak directions of a blur.
        atol = 0.03 if name in ("blur", "compose") else 1e-3
        np.testing.assert_allclose(np.ravel(z[i]), expected, atol=atol)
        U, singular, _ = np.linalg.svd(J)
        kept = U[:, singular > 3 * LAMBDA**0.5]  # the noise is below a third of x̂'s typical error
        residual = np.ravel(again[i] - y[i]).astype(np.float64)
        assert np.abs(kept @ (kept.T @ r)).max() > 4 * LEVEL
        assert np.abs(kept @ (kept.T @ residual)).max() < LEVEL / 2


def test_one_step_is_enough_for_a_mask(x0, x0_hat):
    """Compare with x̂ + G r / (G² + λ) for the mask G, whose values spread from 0 to 1."""
    D = draw_patterns(mask(), KEYS, SHAPE)
    y = D(x0, jnp.int32(T))
    one = nearest(D, x0_hat, Measurement(y, jnp.int32(T)), 1)
    G = D(jnp.ones_like(x0), jnp.int32(T)) - D(jnp.zeros_like(x0), jnp.int32(T))
    expected = x0_hat + G * (y - D(x0_hat, jnp.int32(T))) / (G**2 + LAMBDA)
    np.testing.assert_allclose(one, expected, atol=1e-4)
    none = nearest(D, x0_hat, Measurement(y, jnp.int32(T)), 0)
    assert np.array_equal(none, x0_hat)


def test_each_image_has_its_own_severity_and_not_its_neighbours(x0, x0_hat):
    D, times = draw_patterns(blur(), KEYS, SHAPE), jnp.array([3, 1, 2], jnp.int32)
    y = jax.vmap(blur(), (0, 0, 0))(x0, times, KEYS)
    together = nearest(D, x0_hat, Measurement(y, times), 4)
    for i, t in enumerate(times):
        D = draw_patterns(blur(), KEYS[i : i + 1], SHAPE)
        alone = nearest(D, x0_hat[i : i + 1], Measurement(y[i : i + 1], t), 4)
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-5)


def test_the_noise_decides_how_far_it_goes(x0, x0_hat):
    """Compare with (y + λ x̂) / (1 + λ), the minimiser for D = x."""
    keep = Partial(lambda x0, t, key: x0)
    D = draw_patterns(keep, KEYS, SHAPE)
    for noise in (0.02, 0.4):
        weight = (noise / 0.2) ** 2  # λ, for restorers whose error is typically 0.2
        z = nearest(D, x0_hat, Measurement(x0, jnp.int32(T), noise), 3)
        np.testing.assert_allclose(z, (x0 + weight * x0_hat) / (1 + weight), atol=1e-5)


def test_the_residual_of_clipped_values_falls(x0):
    degrade = snow(image_size=N, num_steps=T, threshold=(1.15, 0.5), motion_std=(0.05, 4.0))
    x0 = 0.9 * x0
    D, t = draw_patterns(degrade, KEYS, SHAPE), jnp.int32(T)
    y = D(x0, t)
    x0_hat = 0.5 * x0
    before = np.abs(D(x0_hat, t) - y).mean()
    assert np.abs(np.asarray(y) - np.asarray(x0)).max() > 0.5  # there is snow
    z = nearest(D, x0_hat, Measurement(y, t), 8)
    assert np.abs(D(z, t) - y).mean() < 0.2 * before


def wrong(params, xt, t):
    """Return images far from x0, different at every step."""
    return 0.3 * xt + jnp.sin(3 * params) + t[:, None, None, None] / T


def oracle(params, xt, t):
    return params


@functools.partial(jax.jit, static_argnums=(0, 1))
def consistently(sampler, restore, degrade, x0, iterates_at=None):
    """Return the result of a consistent sampler from D(x0, T) through all severities."""
    R, D = bind_params(restore, x0), draw_patterns(degrade, KEYS, SHAPE)
    y, times = D(x0, jnp.int32(T)), visited(sampler, np.arange(T, -1, -1))
    rule = consistent(sampler, Measurement(y, jnp.int32(T)), 8)
    return walk(rule, R, D, y, times, iterates_at)


@pytest.mark.parametrize("sampler", [direct, naive, tacos, second_order])
def test_a_perfect_restorer_still_gives_x0(sampler, x0):
    found = consistently(sampler, oracle, compose(blur(), mask()), x0)
    np.testing.assert_allclose(found, x0, atol=1e-5)


def brighter(R, D, x, s, s_next):
    """Take a step of Algorithm 1 that leaves the measurement, also at 0."""
    return naive(R, D, x, s, s_next) + 0.3


def test_x0_agrees_with_the_measurement_and_is_the_last_iterate(x0):
    degrade = mask()
    D = draw_patterns(degrade, KEYS, SHAPE)
    y = D(x0, jnp.int32(T))
    for sampler in (naive, tacos, second_order, brighter):
        found, iterates = consistently(sampler, wrong, degrade, x0, jnp.array([T, 0]))
        assert np.array_equal(iterates[1], found) and np.array_equal(iterates[0], y)
        assert np.abs(D(found, jnp.int32(T)) - y).max() < LEVEL
        plain = sample(sampler, wrong, degrade, x0, y, KEYS, np.arange(T, -1, -1))
        assert np.abs(D(plain, jnp.int32(T)) - y).max() > 10 * LEVEL
        assert np.abs(found - x0).mean() < 0.8 * np.abs(plain - x0).mean()


def test_algorithm_2_is_consistent_already_for_super_resolution(x0):
    """Area means of area means are area means, so D(x0, T) stays y in every step of tacos."""
    degrade = LINEAR["pixelate"]()
    D, times = draw_patterns(degrade, KEYS, SHAPE), np.arange(T, -1, -1)
    y = D(x0, jnp.int32(T))
    plain, iterates = sample(tacos, wrong, degrade, x0, y, KEYS, times, times)
    for x in iterates:
        np.testing.assert_allclose(D(x, jnp.int32(T)), y, atol=1e-5)
    found = consistently(tacos, wrong, degrade, x0)
    np.testing.assert_allclose(found, plain, atol=1e-4)
    plain = sample(direct, wrong, degrade, x0, y, KEYS, times)
    assert np.abs(consistently(direct, wrong, degrade, x0) - plain).max() > 0.1


@functools.cache
def experiment():
    return build(tiny_config())


def run_with(restore, *, parts=(), **sampler):
    """Return a tiny run with this restorer, other parts of the experiment and sampler settings."""
    config = tiny_config()
    config.sampler.update(sampler)
    return Run(experiment()._replace(restore=restore, config=config, **dict(parts)))


def zeros(params, xt, t):
    return jnp.zeros_like(xt)


def darker(params, xt, t):
    return 0.9 * xt


def halve(x0, t, key):
    """Return half of x0; undoing it doubles the measurement's errors."""
    return jnp.where(t == 0, x0, x0 / 2)


@pytest.mark.parametrize("network_input", [jnp.asarray, truncate_to_8_bit])
def test_truncation_to_8_bits_leaves_no_bias(network_input):
    """Give D(x0, T) as it is, so that it may be truncated, and rounded, as it is in a file."""
    run = run_with(zeros, parts={"degrade": Partial(halve), "network_input": network_input})
    x0 = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32)
    given, file = (
        run.sample(None, y, sampler="direct", consistency=4) - x0
        for y in (x0 / 2, np.asarray(to_8_bits(x0 / 2)))
    )
    assert abs(np.mean(given)) < 0.1 * LEVEL and abs(np.mean(file)) < 0.1 * LEVEL
    std = 2 * EIGHT_BIT_STD
    assert np.std(file) == pytest.approx(std, rel=0.05)
    assert np.std(given) == pytest.approx(0 if network_input is jnp.asarray else std, abs=3e-4)


def test_the_config_and_the_argument_switch_it_on():
    xT = jax.random.uniform(jax.random.key(0), (2, 16, 16, 1), minval=-1)
    run = run_with(darker)
    plain, given = run.sample(None, xT), run.sample(None, xT, consistency=5)
    assert np.array_equal(run.sample(None, xT, consistency=0), plain)
    assert np.abs(plain - given).max() > 0.1
    by_config = run_with(darker, consistency=5)
    assert np.array_equal(by_config.sample(None, xT), given)
    assert np.array_equal(by_config.sample(None, xT, consistency=0), plain)
    noisy = run_with(darker, consistency=5, noise_std=100.0)
    np.testing.assert_allclose(noisy.sample(None, xT), plain, atol=1e-2)
    earlier = run_with(darker)  # a config of an earlier version
    with earlier.config.unlocked():
        del earlier.config.sampler.consistency, earlier.config.sampler.noise_std
    check_numbers(earlier.config)
    assert np.array_equal(earlier.sample(None, xT), plain)
    assert np.array_equal(earlier.sample(None, xT, consistency=5), given)


def test_blends_stay_as_they_are():
    run = run_with(darker, parts={"degrade": gaussian_noise(num_steps=6)})
    xT = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    plain, found = (run.sample(None, xT, steps=2, consistency=n) for n in (0, 8))
    assert np.array_equal(plain, found)


def test_wrong_settings_are_refused():
    run, xT = run_with(zeros), np.zeros((1, 16, 16, 1), np.float32)
    for steps in (-1, 2.5, "8"):
        with pytest.raises(UserError, match=f"consistency={steps} must be a whole number of steps"):
            run.sample(None, xT, consistency=steps)
    elsewhere = Partial(
        lambda x0, t, key: jax.pure_callback(
            lambda x: x, jax.ShapeDtypeStruct(x0.shape, x0.dtype), x0, vmap_method="sequential"
        )
    )
    run = run_with(zeros, parts={"degrade": elsewhere})
    with pytest.raises(UserError, match=r"JAX can differentiate; gaussian_blur fails: .*allback"):
        run.sample(None, xT, consistency=1)
    for field, value in (("consistency", -1), ("noise_std", 0.0)):
        with pytest.raises(UserError, match=rf"config.sampler.{field}={value} must be "):
            check_numbers(run_with(zeros, **{field: value}).config)


@pytest.mark.slow
def test_rows_of_scores_with_and_without(tmp_path):
    """Write a study; the config's own number of steps is 3, and the default is 8."""
    run = run_with(darker)
    ways = ways_of(run.experiment, ("direct+consistency", "tacos", "tacos+consistency"), (1, 2))
    assert [tuple(way) for way in ways] == [
        ("direct+consistency", 1),
        *(("tacos", n) for n in (1, 2)),
        *(("tacos+consistency", n) for n in (1, 2)),
    ]
    assert consistency_steps(run.config, "tacos") == 0
    assert consistency_steps(run.config, "tacos+consistency") == 32
    run = dataclasses.replace(run_with(darker, consistency=3), workdir=tmp_path)
    run.config.eval.num_images = 8
    run.config.eval.features = ()
    found = evaluate(run, ways=[ways[0], ways[2], ways[4]])
    assert [row.consistency for row in found.rows] == [0, 3, 0, 3]
    assert found.rows[3].rmse < 0.9 * found.rows[2].rmse
    folder = report.write(found, run, name="study-tacos-consistency")
    for file in ("study-tacos-consistency.md", "study-tacos-consistency.html"):
        assert "Sampled (tacos, Algorithm 2) + consistency" in (folder / file).read_text()
    assert set(report.scores_of(found)) >= {"tacos/rmse", "tacos+consistency/rmse"}
    with pytest.raises(UserError, match="unknown sampler 'sde'; valid: ddim"):
        ways_of(run.experiment, ("sde+consistency",))


def test_generated_images_of_earlier_versions_keep_their_folder():
    settings = {n: _settings(run_with(zeros, consistency=n))["sampler"] for n in (0, 8)}
    assert settings[0] == {"name": "tacos", "steps": 0}
    assert settings[8] == settings[0] | {"consistency": 8, "noise_std": EIGHT_BIT_STD}
    assert default.get_config().sampler.noise_std == EIGHT_BIT_STD
