"""Metrics against scikit-image and closed forms, on real images."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from colddiff import data, metrics
from colddiff.errors import UserError


@pytest.fixture
def pair():
    """Real images and noisy ones that leave [0, 1]."""
    x = data.load("digits", "test", size=32, channels=3, limit=4) / np.float32(255)
    y = x + np.random.default_rng(0).normal(0, 0.2, x.shape).astype(np.float32)
    return x, y


def test_ssim_agrees_with_scikit_image(pair):
    expected = [
        structural_similarity(
            x.astype(np.float64), y.astype(np.float64), data_range=1, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for x, y in zip(*pair, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(metrics.ssim(*map(jnp.asarray, pair)), expected, atol=1e-5)


def test_ssim_of_equal_images_is_one(pair):
    np.testing.assert_allclose(metrics.ssim(pair[0], pair[0]), 1, atol=1e-6)


def test_rmse_and_psnr_are_of_all_pixels(pair):
    x, y = pair
    mse = float(np.mean(metrics.mean_squared_error(jnp.asarray(x), jnp.asarray(y))))
    assert metrics.rmse(mse) == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-5)
    assert metrics.psnr(mse) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), rel=1e-5)
    assert metrics.psnr(0) == math.inf


def test_ssim_refuses_images_below_its_window():
    with pytest.raises(UserError, match="at least 11 pixels"):
        metrics.ssim(jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 8, 8, 1)))


def test_frechet_distance_against_scipy():
    """|μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^½) with SciPy's general matrix root."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 1
    y = rng.normal(size=(150, 12)) @ rng.normal(size=(12, 12))
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(a + b - 2 * root)
    found = metrics.frechet_distance(metrics.gaussian(x), metrics.gaussian(y))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_in_closed_form():
    """Of one feature it is (μ_x - μ_y)² + (σ_x - σ_y)²; singular covariances are no trouble."""
    x, y = np.array([[1.0], [3.0], [5.0]]), np.array([[0.0], [7.0]])
    expected = (3 - 3.5) ** 2 + (2 - np.sqrt(24.5)) ** 2
    assert metrics.frechet_distance(*map(metrics.gaussian, (x, y))) == pytest.approx(expected)
    few = metrics.gaussian(np.random.default_rng(1).normal(size=(3, 20)))  # of rank 2
    assert 0 <= metrics.frechet_distance(few, few) < 1e-6
    moved = few._replace(mean=few.mean + 2)
    assert metrics.frechet_distance(few, moved) == pytest.approx(80)
