"""Metrics against scikit-image and closed forms, on real images."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from colddiff.data import sources
from colddiff.evaluation import metrics
from colddiff.runtime.errors import UserError


@pytest.fixture
def pair():
    """Return real images, and noisy ones with values outside [0, 1]."""
    x = sources.load("digits", "test", size=32, channels=3, limit=4) / np.float32(255)
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


def gaussian(features):
    return metrics.moments(features).gaussian


def test_moments_stream():
    """Merge parts of any size, far from 0; compare with NumPy on all features."""
    x = np.random.default_rng(3).normal(1e4, 1, (500, 7)) * np.arange(1, 8)
    found = metrics.moments(x[:3])
    for first, last in ((3, 4), (4, 117), (117, 500)):
        found = metrics.merge(found, metrics.moments(x[first:last]))
    assert found.count == 500
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="needs 2 or more images; there are 1"):
        _ = metrics.moments(x[:1]).gaussian


def test_frechet_distance_against_scipy():
    """Compare with |μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^½) by SciPy's matrix root."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 1
    y = rng.normal(size=(150, 12)) @ rng.normal(size=(12, 12))
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(a + b - 2 * root)
    found = metrics.frechet_distance(gaussian(x), gaussian(y))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_in_closed_form():
    """Check (μ_x - μ_y)² + (σ_x - σ_y)² for one feature, and singular covariances."""
    x, y = np.array([[1.0], [3.0], [5.0]]), np.array([[0.0], [7.0]])
    expected = (3 - 3.5) ** 2 + (2 - np.sqrt(24.5)) ** 2
    assert metrics.frechet_distance(*map(gaussian, (x, y))) == pytest.approx(expected)
    few = gaussian(np.random.default_rng(1).normal(size=(3, 20)))  # rank 2
    assert 0 <= metrics.frechet_distance(few, few) < 1e-6
    moved = few._replace(mean=few.mean + 2)
    assert metrics.frechet_distance(few, moved) == pytest.approx(80)


def test_frechet_distance_of_many_features_and_few_images():
    """Use 500 dimensions of rank 100, where rounding of 400 zeros could add up."""
    few = gaussian(np.random.default_rng(2).normal(size=(101, 500)))
    moved = few._replace(mean=few.mean + 0.1)
    assert metrics.frechet_distance(few, moved) == pytest.approx(5, abs=1e-9)
    larger = few._replace(covariance=4 * few.covariance)
    expected = np.trace(few.covariance)  # (2 - 1)²
    assert metrics.frechet_distance(few, larger) == pytest.approx(expected, abs=1e-8)


def test_frechet_distance_of_known_gaussians():
    """Scale Σ_x along its axes, which are not the coordinate axes: |Δμ|² + Σ (√λ - √λ')²."""
    rng = np.random.default_rng(4)
    for dimensions in (3, 40):
        axes = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
        mine, theirs = rng.uniform(0, 5, (2, dimensions))
        theirs[0] = 0  # singular
        step = rng.normal(size=dimensions)
        x = metrics.Gaussian(np.zeros(dimensions), axes * mine @ axes.T)
        y = metrics.Gaussian(step, axes * theirs @ axes.T)
        expected = step @ step + np.sum((np.sqrt(mine) - np.sqrt(theirs)) ** 2)
        assert metrics.frechet_distance(x, y) == pytest.approx(expected, abs=1e-6)
        assert metrics.frechet_distance(y, x) == pytest.approx(expected, abs=1e-6)
        assert metrics.frechet_distance(y, y) <= 1e-6


def kernel(a, b):
    return (a @ b / len(a) + 1) ** 3


def test_kernel_distance_is_the_unbiased_mmd():
    """Compare with the definition, pair by pair, with and without the paired images."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(23, 4)), rng.normal(0.5, 1, (31, 4))
    mean = lambda a, b, keep: np.mean(  # noqa: E731
        [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if keep(i, j)]
    )
    every, other = lambda i, j: True, lambda i, j: i != j
    within = mean(x, x, other) + mean(y, y, other)
    for paired, keep in ((False, every), (True, other)):
        expected = within - 2 * mean(x, y, keep)
        found = metrics.kernel_distance(x, y, paired=paired)
        assert found.value == pytest.approx(expected, rel=1e-12)
        assert metrics.kernel_distance(y, x, paired=paired).value == pytest.approx(expected)
    with pytest.raises(UserError, match="needs 4 or more images; there are 3"):
        metrics.kernel_distance(x, y[:3])


def shifted_gaussians_mmd(shift, d):
    """Return the MMD² of N(shift, I) and N(0, I) in d dimensions, by the kernel's moments."""
    m = shift**2 * d
    xx = 1 + 3 * m / d + 3 * (d + 2 * m + m**2) / d**2 + (m**3 + 6 * m**2 + (3 * d + 6) * m) / d**3
    yy, xy = 1 + 3 / d, 1 + 3 * (d + m) / d**2
    return xx + yy - 2 * xy


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.8, 1.6), (1.0, 0.8, 1.25)])
@pytest.mark.parametrize("paired", [False, True])
def test_kernel_distance_is_unbiased_and_knows_its_error(shift, low, high, paired):
    """Check the mean and the spread over 120 pairs of sets, independent or paired."""
    rng = np.random.default_rng(6)
    values, errors = [], []
    for _ in range(120):
        x, y = rng.normal(size=(2, 40, 5))
        x = y if paired else x
        found = metrics.kernel_distance(x + shift, y, paired=paired)
        values.append(found.value)
        errors.append(found.error)
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - shifted_gaussians_mmd(shift, 5)) < 4 * error + 1e-12
    if not (paired and not shift):  # every value is 0 otherwise
        assert low < np.sqrt(np.mean(np.square(errors))) / np.std(values) < high
