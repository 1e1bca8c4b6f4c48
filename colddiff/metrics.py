"""Distances between images, and between sets of images.

Images are on [0, 1], not clamped; `x, y` are float32 `[B, H, W, C]`. RMSE and PSNR of a whole set
come from its mean squared error: a mean of per-image RMSEs would be another number. Sets are
compared by features, `[N, D]`. Which images, and which features, is decided by callers.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.errors import UserError

SSIM_WINDOW = 11  # pixels
_SSIM_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K L)² for data range L = 1


def mean_squared_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Of each image, over pixels and channels; `[B]`."""
    return jnp.mean((x - y) ** 2, axis=(1, 2, 3))


def rmse(mse: float) -> float:
    """Root of the mean squared error of all pixels of all images."""
    return math.sqrt(mse)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for equal images."""
    return -10 * math.log10(mse) if mse > 0 else math.inf


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """Structural similarity of each image; `[B]`, 1 for equal ones.

    Wang et al. 2004 with their settings: 11×11 Gaussian window of σ = 1.5 kept inside the image,
    K = (.01, .03), data range 1; the mean over places and channels.

    Raises:
      UserError: the images are smaller than the window.
    """
    if min(x.shape[1:3]) < SSIM_WINDOW:
        raise UserError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side; got {x.shape}")
    rows, columns = _window_matrix(x.shape[1]), _window_matrix(x.shape[2])

    def window_mean(z):
        # HIGHEST: variances are differences of nearly equal numbers.
        return jnp.einsum("hi,wj,bijc->bhwc", rows, columns, z, precision=jax.lax.Precision.HIGHEST)

    mean_x, mean_y = window_mean(x), window_mean(y)
    var_x = window_mean(x * x) - mean_x**2
    var_y = window_mean(y * y) - mean_y**2
    cov = window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * cov + _C2) / (var_x + var_y + _C2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


class Gaussian(NamedTuple):
    """Mean `[D]` and covariance `[D, D]` of features; float64."""

    mean: np.ndarray
    covariance: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian of features `[N, D]`, N ≥ 2; the covariance is divided by N - 1."""
    features = np.asarray(features, np.float64)
    return Gaussian(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """`|μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x^½ Σ_y Σ_x^½)^½)`, the squared 2-Wasserstein distance.

    By symmetric eigenvalues, so that no complex number arises where a covariance is singular.
    """
    values, vectors = np.linalg.eigh(x.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ y.covariance @ root)
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    cross = np.sum(np.sqrt(np.maximum(product, 0)))
    distance = np.sum((x.mean - y.mean) ** 2) + traces - 2 * cross
    return max(float(distance), 0.0)  # rounding may take equal ones below


def _window_matrix(n: int) -> np.ndarray:
    """Row i averages n pixels with the window that begins at pixel i; float32 `[n - 10, n]`."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    matrix = np.zeros((n - SSIM_WINDOW + 1, n), np.float32)
    for i in range(len(matrix)):
        matrix[i, i : i + SSIM_WINDOW] = window / window.sum()
    return matrix
