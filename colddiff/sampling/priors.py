"""Priors, which draw xT when there is no image to restore (paper, section 5).

A prior is a pure function `prior(key) -> xT` for one image, float32 `[H, W, C]` around [-1, 1]. It
is a `jax.tree_util.Partial`, like a degradation. Prior and degradation take the same key of an
image, so Algorithm 2 continues with the noise, colour or image that `pattern` draws.

This module fits mixtures. Callers load the images and store the fit.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations import Degrade, as_partial
from colddiff.degradations.size import ImageSize
from colddiff.runtime.errors import UserError

Prior = Callable[[jax.Array], jax.Array]

_LARGEST_SIZE = 32  # a mixture's covariance has (size² C)² entries
_OWN = 2**31 + 1  # folded into an image's key for the prior; no degradation draws from the result


class Mixture(NamedTuple):
    """A mixture of K Gaussians over images of size × size pixels; float32.

    Attributes:
      weights: `[K]`, summing to 1.
      means: `[K, size, size, C]`.
      factors: `[K, D, D]`, D = size² C, lower triangular: the covariances are `L Lᵀ`.
    """

    weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray


def pattern(
    degrade: Degrade, *, T: int, shape: tuple[int, int, int], noise_std: float = 0.0
) -> Partial:
    """Return the prior `D(0, T, key)`, for a degradation that leaves nothing of an image at T.

    xT is Gaussian noise for `gaussian_noise` (section 5.1), a random colour for a `gaussian_mask`
    that closes inward with `fade_to='random'`, and an image of the bank for `animorph` (section
    5.3).

    Args:
      degrade: D.
      T: the largest severity of D.
      shape: (H, W, C).
      noise_std: standard deviation of Gaussian noise added to every pixel.

    Raises:
      UserError: `noise_std` is negative or not finite.
    """
    return Partial(
        _pattern, as_partial(degrade), jnp.zeros(shape), jnp.int32(T), _checked(noise_std)
    )


def gaussian_mixture(mixture: Mixture, *, image_size: int, noise_std: float = 0.0) -> Partial:
    """Return the prior that draws `size`² pixels from a mixture and shows each as one block.

    With size = 1 the image is constant, and the mixture is over channel means (section 5.2). For
    super-resolution (section 5.3), size is the side that pixelation leaves at T.

    Args:
      mixture: Gaussians, such as `fit_mixture` returns.
      image_size: H = W, in pixels, a multiple of the mixture's size.
      noise_std: standard deviation of Gaussian noise added to every pixel; .002 breaks the symmetry
        of a constant image (section 5.2), 0 keeps it.

    Raises:
      UserError: the sizes do not fit, or `noise_std` is negative or not finite.
    """
    check_size(mixture.means.shape[1], image_size)
    tables = Mixture(*(jnp.asarray(x, jnp.float32) for x in mixture))
    return Partial(_gaussian_mixture, tables, ImageSize(image_size), _checked(noise_std))


def fit_mixture(
    images: Iterable[np.ndarray], *, size: int, components: int = 1, seed: int = 0
) -> Mixture:
    """Fit a mixture of full-covariance Gaussians to images' block means, by scikit-learn's EM.

    Args:
      images: uint8 `[H, W, C]` each, with H = W a multiple of `size`.
      size: blocks a side; 1 gives the mean of each channel.
      components: K.
      seed: seed of EM's initialisation.

    Raises:
      UserError: the sizes do not fit, `components` is below 1, or there are too few images.
    """
    from sklearn.mixture import GaussianMixture

    if components < 1:
        raise UserError(f"components={components} of a mixture must be 1 or more")
    blocks = np.stack([block_means(image, size) for image in images]) / 127.5 - 1
    values = blocks.reshape(len(blocks), -1)
    if len(values) < max(components, 2):
        needed = max(components, 2)
        raise UserError(
            f"a mixture of {components} components needs {needed} or more images; there are "
            f"{len(values)}"
        )
    found = GaussianMixture(components, covariance_type="full", random_state=seed).fit(values)
    means = found.means_.reshape(components, *blocks.shape[1:])
    arrays = (found.weights_, means, np.linalg.cholesky(found.covariances_))
    return Mixture(*(array.astype(np.float32) for array in arrays))


def _pattern(
    degrade: Degrade, nothing: jax.Array, T: jax.Array, noise_std: jax.Array, key: jax.Array
) -> jax.Array:
    noise = jax.random.normal(jax.random.fold_in(key, _OWN), nothing.shape)
    return degrade(nothing, T, key) + noise_std * noise


def _gaussian_mixture(
    mixture: Mixture, image_size: ImageSize, noise_std: jax.Array, key: jax.Array
) -> jax.Array:
    component_key, value_key, noise_key = jax.random.split(jax.random.fold_in(key, _OWN), 3)
    k = jax.random.categorical(component_key, jnp.log(mixture.weights))
    mean, L = mixture.means[k], mixture.factors[k]
    z = jax.random.normal(value_key, (len(L),))
    few = mean + jnp.dot(L, z, precision=jax.lax.Precision.HIGHEST).reshape(mean.shape)
    block = image_size.pixels // mean.shape[0]
    xT = few.repeat(block, axis=0).repeat(block, axis=1)
    return xT + noise_std * jax.random.normal(noise_key, xT.shape)


def block_means(image: np.ndarray, size: int) -> np.ndarray:
    """Return the means over size × size blocks of an image `[H, W, C]`; float64 `[size, size, C]`.

    Raises:
      UserError: as for `check_size`.
    """
    high, wide, channels = image.shape
    check_size(size, high)
    blocks = image.reshape(size, high // size, size, wide // size, channels)
    return blocks.mean(axis=(1, 3), dtype=np.float64)


def check_size(size: int, image_size: int) -> None:
    """Check that images of `image_size` pixels a side have `size` × `size` blocks.

    Raises:
      UserError: `size` does not divide `image_size`, or is not in 1..32.
    """
    if not 1 <= size <= _LARGEST_SIZE or image_size % size:
        raise UserError(
            f"size={size} of a prior must divide the images' {image_size} pixels, and be at most "
            f"{_LARGEST_SIZE}"
        )


def _checked(noise_std: float) -> jax.Array:
    if not 0 <= noise_std < math.inf:
        raise UserError(f"noise_std={noise_std} of a prior must be finite, 0 or more")
    return jnp.float32(noise_std)
