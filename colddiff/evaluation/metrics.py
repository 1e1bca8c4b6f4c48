"""Distances between images, and between sets of images.

Images are on [0, 1], not clamped; `x, y` are float32 `[B, H, W, C]`. RMSE and PSNR of a set are
computed from the mean squared error of the set, not averaged over images. Sets are compared by
features, `[N, D]`. Callers choose the images and the features.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.runtime.errors import UserError

SSIM_WINDOW = 11  # pixels
_SSIM_SIGMA = 1.5
_GROUPS = 20  # groups of images for the jackknife
_C1, _C2 = 0.01**2, 0.03**2  # (K L)² for data range L = 1


def mean_squared_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return each image's mean squared error over pixels and channels; `[B]`."""
    return jnp.mean((x - y) ** 2, axis=(1, 2, 3))


def rmse(mse: float) -> float:
    """Return the root of the mean squared error of all pixels of all images."""
    return math.sqrt(mse)


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB for a peak of 1; infinite for equal images."""
    return -10 * math.log10(mse) if mse > 0 else math.inf


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the structural similarity of each image; `[B]`, 1 for equal images.

    The settings are those of Wang et al. 2004: an 11×11 Gaussian window of σ = 1.5 that stays
    inside the image, K = (.01, .03), data range 1. The result is a mean over positions and
    channels.

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


class Moments(NamedTuple):
    """Count, mean and scatter of N features `[N, D]`; float64.

    Attributes:
      count: N.
      mean: `[D]`.
      scatter: `[D, D]`, the sum of `(f - μ)(f - μ)ᵀ`.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def gaussian(self) -> Gaussian:
        """Return the mean and the covariance, the scatter divided by N - 1.

        Raises:
          UserError: there are fewer than two features.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs 2 or more images; there are {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1))


def moments(features: np.ndarray) -> Moments:
    """Return the moments of features `[N, D]`, N ≥ 1."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    return Moments(len(features), mean, (features - mean).T @ (features - mean))


def merge(x: Moments, y: Moments) -> Moments:
    """Merge two sets of moments without cancellation (Chan et al. 1983)."""
    count = x.count + y.count
    step = y.mean - x.mean
    mean = x.mean + step * (y.count / count)
    between = np.outer(step, step) * (x.count * y.count / count)
    return Moments(count, mean, x.scatter + y.scatter + between)


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians.

    It is `|μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x^½ Σ_y Σ_x^½)^½)`. Roots are computed from
    eigenvalues of symmetric matrices, so they are real even if a covariance is singular. The trace
    of the last root is the sum of the singular values of `Σ_x^½ Σ_y^½`. Roots of the eigenvalues of
    `Σ_x Σ_y` would amplify each rounding error from 1e-16 to 1e-8.
    """
    cross = np.sum(np.linalg.svd(_root(x.covariance) @ _root(y.covariance), compute_uv=False))
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    distance = np.sum((x.mean - y.mean) ** 2) + traces - 2 * cross
    return max(float(distance), 0.0)  # rounding may give less than 0 for equal Gaussians


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return Σ^½ of a symmetric matrix; eigenvalues within rounding of 0 are set to 0."""
    values, vectors = np.linalg.eigh(covariance)
    noise = len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors * np.sqrt(np.where(values > noise, values, 0)) @ vectors.T


class Estimate(NamedTuple):
    """A number with its standard error."""

    value: float
    error: float


def kernel_distance(x: np.ndarray, y: np.ndarray, *, paired: bool = False) -> Estimate:
    """Return the KID of two sets of features: squared MMD with the kernel (a·b / D + 1)³.

    The estimate is unbiased and may be below 0. It uses all pairs; Bińkowski et al. 2018
    average over random subsets. The error is a jackknife estimate over 20 groups of images; for
    equal sets the error is up to √2 times too large.

    Args:
      x: features `[M, D]`.
      y: features `[N, D]`.
      paired: True if x_i was made from y_i; the pair (x_i, y_i) is then left out, because it is not
        independent. False if all features are independent.

    Raises:
      UserError: there are fewer than 4 images in x or y.
    """
    fewest = min(len(x), len(y))
    if fewest < 4:
        raise UserError(f"a kernel distance needs 4 or more images; there are {fewest}")
    groups = min(_GROUPS, fewest // 2)
    x, y = (np.asarray(f, np.float64) / math.sqrt(f.shape[1]) for f in (x, y))
    x_ends, y_ends = (np.linspace(0, len(f), groups + 1).astype(int) for f in (x, y))
    xx, yy = _kernel_sums(x, x, x_ends, x_ends), _kernel_sums(y, y, y_ends, y_ends)
    xx -= np.diag(np.add.reduceat(((x * x).sum(axis=1) + 1) ** 3, x_ends[:-1]))  # i = j
    yy -= np.diag(np.add.reduceat(((y * y).sum(axis=1) + 1) ** 3, y_ends[:-1]))
    xy = _kernel_sums(x, y, x_ends, y_ends)
    pairs = np.outer(np.diff(x_ends), np.diff(y_ends))
    if paired:
        i = np.arange(fewest)
        place = tuple(np.searchsorted(ends, i, "right") - 1 for ends in (x_ends, y_ends))
        np.subtract.at(xy, place, (np.sum(x[i] * y[i], axis=1) + 1) ** 3)
        np.subtract.at(pairs, place, 1)

    def of(kept):
        m, n = np.diff(x_ends)[kept].sum(), np.diff(y_ends)[kept].sum()
        kept = np.ix_(kept, kept)
        within = xx[kept].sum() / (m * (m - 1)) + yy[kept].sum() / (n * (n - 1))
        return within - 2 * xy[kept].sum() / pairs[kept].sum()

    every = np.arange(groups)
    without = np.array([of(np.delete(every, g)) for g in every])
    variance = (groups - 1) / groups * np.sum((without - without.mean()) ** 2)
    return Estimate(float(of(every)), math.sqrt(variance))


def _kernel_sums(
    x: np.ndarray, y: np.ndarray, x_ends: np.ndarray, y_ends: np.ndarray
) -> np.ndarray:
    """Return the sum of k(a, b) over a in a group of x and b in a group of y, for all pairs.

    A block of the kernel matrix is computed at a time, to bound the memory.
    """
    sums = np.empty((len(x_ends) - 1, len(y_ends) - 1))
    for g, h in np.ndindex(*sums.shape):
        a, b = x[x_ends[g] : x_ends[g + 1]], y[y_ends[h] : y_ends[h + 1]]
        sums[g, h] = np.sum((a @ b.T + 1) ** 3)
    return sums


def _window_matrix(n: int) -> np.ndarray:
    """Return float32 `[n - 10, n]`; row i averages pixels with the window that begins at i."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    matrix = np.zeros((n - SSIM_WINDOW + 1, n), np.float32)
    for i in range(len(matrix)):
        matrix[i, i : i + SSIM_WINDOW] = window / window.sum()
    return matrix
