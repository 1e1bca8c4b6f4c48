"""Priors against known moments and patterns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import sample

from colddiff.degradations import (
    animorph,
    compose,
    gaussian_blur,
    gaussian_mask,
    gaussian_noise,
    pixelate,
    split,
)
from colddiff.images import from_uint8
from colddiff.runtime.errors import UserError
from colddiff.sampling.priors import Mixture, fit_mixture, gaussian_mixture, pattern
from colddiff.sampling.samplers import image_keys, tacos, times_between

T, SHAPE = 6, (8, 8, 3)
BANK = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)
MASK = gaussian_mask(
    image_size=8, num_steps=T, std=1.0, center="image", fade_to="random", inward=True
)


def draw(prior, count, seed=0):
    return np.asarray(jax.jit(jax.vmap(prior))(image_keys(jax.random.key(seed), 0, count)))


def test_noise_is_a_standard_normal():
    xT = draw(pattern(gaussian_noise(num_steps=T), T=T, shape=SHAPE), 500)
    assert xT.shape == (500, *SHAPE)
    assert np.mean(xT) == pytest.approx(0, abs=4 / np.sqrt(xT.size))
    assert np.std(xT) == pytest.approx(1, rel=0.01)
    flat = xT.reshape(500, -1)
    assert np.abs(np.corrcoef(flat[:, :20].T) - np.eye(20)).max() < 0.2  # independent pixels


def test_a_random_color_is_one_color_for_each_image():
    xT = draw(pattern(MASK, T=T, shape=SHAPE), 2000)
    assert np.ptp(xT, axis=(1, 2)).max() == 0
    colors = xT[:, 0, 0]
    assert np.all(np.abs(colors) <= 0.5) and np.ptp(colors, axis=0).min() > 0.99
    np.testing.assert_allclose(colors.std(axis=0), 1 / np.sqrt(12), rtol=0.05)
    assert np.abs(np.corrcoef(colors.T) - np.eye(3)).max() < 0.1  # 1 for grays


def test_a_bank_gives_its_images():
    xT = draw(pattern(animorph(num_steps=T, bank=jnp.asarray(BANK)), T=T, shape=SHAPE), 100)
    bank = np.asarray(from_uint8(jnp.asarray(BANK)))
    distances = np.abs(xT[:, None] - bank[None]).max(axis=(2, 3, 4))
    assert distances.min(axis=1).max() < 1e-3  # √(1 - ᾱ_T) is not quite 1
    assert set(distances.argmin(axis=1)) == set(range(len(BANK)))


@pytest.mark.parametrize(
    "degrade",
    [gaussian_noise(num_steps=T), MASK, animorph(num_steps=T, bank=jnp.asarray(BANK))],
    ids=["noise", "mask", "animorph"],
)
def test_tacos_goes_on_with_the_pattern_of_xT(degrade):
    """Use R = 0: x0 is then xT without D's pattern, which is 0 if the patterns agree."""
    keys = image_keys(jax.random.key(1), 0, 4)
    xT = jax.vmap(pattern(degrade, T=T, shape=SHAPE))(keys)
    zero = lambda params, xt, t: jnp.zeros_like(xt)  # noqa: E731
    x0 = sample(tacos, zero, degrade, None, xT, keys, times_between(T, T))
    np.testing.assert_allclose(x0, 0, atol=1e-5)
    others = image_keys(jax.random.key(2), 0, 4)
    others = sample(tacos, zero, degrade, None, xT, others, times_between(T, T))
    assert np.abs(others).mean() > 0.1


@pytest.fixture
def mixture():
    """Return two distant Gaussians over 2×2 pixels of 3 channels, with full covariance."""
    rng = np.random.default_rng(1)
    factors = np.tril(rng.normal(0, 0.1, (2, 12, 12))) + 0.1 * np.eye(12)
    means = np.stack([np.full((2, 2, 3), -2.0), rng.uniform(2, 3, (2, 2, 3))])
    return Mixture(np.array([0.3, 0.7]), means, factors)


def test_a_mixture_has_its_moments(mixture):
    xT = draw(gaussian_mixture(mixture, image_size=8), 20_000)
    few = xT[:, ::4, ::4]
    assert np.array_equal(xT, few.repeat(4, axis=1).repeat(4, axis=2))  # blocks of one colour
    values = few.reshape(len(few), -1)
    second = values.mean(axis=1) > 0
    assert second.mean() == pytest.approx(0.7, abs=0.02)
    for k, own in enumerate((values[~second], values[second])):
        np.testing.assert_allclose(own.mean(axis=0), mixture.means[k].ravel(), atol=0.02)
        covariance = mixture.factors[k] @ mixture.factors[k].T
        np.testing.assert_allclose(np.cov(own.T), covariance, atol=0.02)


def test_noise_breaks_the_symmetry(mixture):
    constant = Mixture(*(x[:1, :1, :1] if x.ndim == 4 else x[:1] for x in mixture))
    constant = constant._replace(factors=np.eye(3)[None] * 0.1)
    smooth = draw(gaussian_mixture(constant, image_size=8), 100)
    rough = draw(gaussian_mixture(constant, image_size=8, noise_std=0.002), 100)
    assert np.ptp(smooth, axis=(1, 2)).max() == 0
    noise = rough - smooth  # equal colours, because the noise has its own key
    assert np.std(noise) == pytest.approx(0.002, rel=0.03)
    assert np.abs(np.corrcoef(noise.reshape(100, -1)[:, :20].T) - np.eye(20)).max() < 0.5
    level = draw(pattern(MASK, T=T, shape=SHAPE, noise_std=0.01), 200)
    assert np.std(level - level.mean(axis=(1, 2), keepdims=True)) == pytest.approx(0.01, rel=0.05)


def test_one_gaussian_is_fitted_by_mean_and_covariance():
    images = np.random.default_rng(2).integers(0, 256, (300, *SHAPE), np.uint8)
    blocks = images.reshape(300, 2, 4, 2, 4, 3) / 127.5 - 1
    values = blocks.mean(axis=(2, 4)).reshape(300, -1)
    found = fit_mixture(images, size=2)
    np.testing.assert_allclose(found.means.ravel(), values.mean(axis=0), atol=1e-6)
    covariance = found.factors[0] @ found.factors[0].T
    np.testing.assert_allclose(covariance, np.cov(values.T, bias=True), atol=2e-6)  # EM adds 1e-6
    assert found.weights == pytest.approx([1])


def test_two_kinds_of_images_are_two_components():
    rng = np.random.default_rng(3)
    dark, bright = rng.integers(0, 50, (60, *SHAPE)), rng.integers(200, 256, (140, *SHAPE))
    images = rng.permutation(np.concatenate([dark, bright])).astype(np.uint8)
    found = fit_mixture(images, size=1, components=2)
    order = np.argsort(found.means[:, 0, 0, 0])
    np.testing.assert_allclose(found.weights[order], [0.3, 0.7], atol=1e-6)
    expected = [dark.mean() / 127.5 - 1, bright.mean() / 127.5 - 1]
    np.testing.assert_allclose(found.means.mean(axis=(1, 2, 3))[order], expected, atol=0.01)


@pytest.mark.parametrize(
    ("degrade", "size"),
    [
        (pixelate(image_size=8, num_steps=2), 2),
        (
            gaussian_blur(
                image_size=8,
                num_steps=2,
                kernel_size=5,
                std=1.0,
                padding="circular",
                mean_at_end=True,
            ),
            1,
        ),
    ],
    ids=["pixelate", "blur"],
)
def test_what_a_mixture_draws_is_as_degraded_as_can_be(degrade, size, mixture):
    """Check that D at T does not change an xT of the mixture."""
    fitted = fit_mixture(BANK, size=size)
    xT = draw(gaussian_mixture(fitted, image_size=8), 4)
    again = jax.vmap(degrade, (0, None, None))(xT, 2, jax.random.key(0))
    np.testing.assert_allclose(again, xT, atol=1e-6)


def test_an_image_depends_on_its_key_alone(mixture):
    for prior in (gaussian_mixture(mixture, image_size=8), pattern(MASK, T=T, shape=SHAPE)):
        keys = image_keys(jax.random.key(0), 0, 8)
        together = draw(prior, 8)
        np.testing.assert_allclose(jax.jit(jax.vmap(prior))(keys[3:5]), together[3:5], atol=1e-6)
        np.testing.assert_allclose(jax.jit(prior)(keys[3]), together[3], atol=1e-6)
        assert np.abs(together[3] - together[4]).max() > 0.01


def test_wrong_settings_are_refused(mixture):
    for noise_std in (-0.1, np.nan, np.inf):
        with pytest.raises(UserError, match=f"noise_std={noise_std} of a prior must be finite"):
            gaussian_mixture(mixture, image_size=8, noise_std=noise_std)
        with pytest.raises(UserError, match=f"noise_std={noise_std}"):
            pattern(MASK, T=T, shape=SHAPE, noise_std=noise_std)
    with pytest.raises(UserError, match=r"=\(2, 2\) of a prior must divide the images' 9 pixels"):
        gaussian_mixture(mixture, image_size=9)
    with pytest.raises(UserError, match="size=3 of a prior must divide the images' 8 pixels"):
        fit_mixture(BANK, size=3)
    with pytest.raises(UserError, match="components=0 of a mixture must be 1 or more"):
        fit_mixture(BANK, size=1, components=0)
    with pytest.raises(UserError, match="6 components needs 6 or more images; there are 5"):
        fit_mixture(BANK, size=1, components=6)


def test_the_noise_is_independent_of_what_it_is_added_to(mixture):
    """Check the correlation, which a key used twice would cause."""
    z = draw(pattern(gaussian_noise(num_steps=T), T=T, shape=SHAPE), 500)
    noise = draw(pattern(gaussian_noise(num_steps=T), T=T, shape=SHAPE, noise_std=1.0), 500) - z
    assert abs(np.corrcoef(z.ravel(), noise.ravel())[0, 1]) < 0.02
    values = draw(gaussian_mixture(mixture, image_size=2), 4000).reshape(4000, -1)
    rough = draw(gaussian_mixture(mixture, image_size=2, noise_std=1.0), 4000).reshape(4000, -1)
    second = values.mean(axis=1) > 0
    residual = np.linalg.solve(mixture.factors[1], (values[second] - mixture.means[1].ravel()).T)
    noise = (rough - values)[second].T
    assert np.abs(np.corrcoef(residual, noise)[:12, 12:]).max() < 0.1


def test_what_a_prior_draws_is_independent_of_what_a_degradation_draws():
    """Correlate their draws from one key; D may number its draws, as `compose` does.

    With mean 0 and covariance 1, the mixture's image equals the normal numbers that it drew.
    """
    shape, count = (8, 8, 1), 300
    normal = Mixture(np.ones(1), np.zeros((1, *shape)), np.eye(64)[None])
    values = draw(gaussian_mixture(normal, image_size=8), count)
    noise = draw(gaussian_mixture(normal, image_size=8, noise_std=1.0), count) - values
    color = draw(pattern(MASK, T=T, shape=shape), count)
    color_noise = draw(pattern(MASK, T=T, shape=shape, noise_std=1.0), count) - color

    hot = gaussian_noise(num_steps=T)
    draws = [split(degrade)[0] for degrade in (hot, compose(*[hot] * 4))]
    keys = image_keys(jax.random.key(0), 0, count)
    drawn = [jax.vmap(lambda key, some=some: some(key, shape))(keys) for some in draws]
    for own in (values, noise, color_noise):
        assert np.std(own) == pytest.approx(1, rel=0.02)
        for other in jax.tree.leaves(drawn):
            assert abs(np.corrcoef(own.ravel(), other.ravel())[0, 1]) < 0.03  # 4 standard errors


def test_the_seed_decides_where_em_begins():
    images = np.random.default_rng(4).integers(0, 256, (60, *SHAPE), np.uint8)
    first, same, other = (fit_mixture(images, size=1, components=4, seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(first, same, strict=True))
    assert not np.array_equal(first.means, other.means)
