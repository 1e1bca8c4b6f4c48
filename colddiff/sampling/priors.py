"""Priors, which draw xT when there is no image to restore (paper, section 5).

A prior is a pure function `prior(key) -> xT` for one image, float32 `[H, W, C]` around [-1, 1]. It
is a `jax.tree_util.Partial`, like a degradation. Prior and degradation take the same key of an
image, so Algorithm 2 continues with the noise, colour or image that `pattern` draws.

This module fits mixtures. Callers load the images and store the fit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations import Degrade, as_partial
from colddiff.degradations.size import ImageSize
from colddiff.images import height_width
from colddiff.runtime.errors import UserError

Prior = Callable[[jax.Array], jax.Array]

_LARGEST_SIZE = 32  # a mixture's covariance has (size² C)² entries
_OWN = 2**31 + 1  # folded into an image's key for the prior; no degradation draws from the result


class Mixture(NamedTuple):
    """A mixture of K Gaussians over images of h × w blocks; float32.

    Attributes:
      weights: `[K]`, summing to 1.
      means: `[K, h, w, C]`.
      factors: `[K, D, D]`, D = h w C, lower triangular: the covariances are `L Lᵀ`.
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


def gaussian_mixture(
    mixture: Mixture, *, image_size: int | tuple[int, int], noise_std: float = 0.0
) -> Partial:
    """Return the prior that draws h × w pixels from a mixture and shows each as one block.

    With one block the image is constant, and the mixture is over channel means (section 5.2). For
    super-resolution (section 5.3), h × w is the size that pixelation leaves at T.

    Args:
      mixture: Gaussians, such as `fit_mixture` returns.
      image_size: H = W, or (H, W), in pixels, multiples of h and w.
      noise_std: standard deviation of Gaussian noise added to every pixel; .002 breaks the symmetry
        of a constant image (section 5.2), 0 keeps it.

    Raises:
      UserError: the sizes do not fit, or `noise_std` is negative or not finite.
    """
    check_size(mixture.means.shape[1:3], image_size)
    tables = Mixture(*(jnp.asarray(x, jnp.float32) for x in mixture))
    size = ImageSize(*height_width(image_size))
    return Partial(_gaussian_mixture, tables, size, _checked(noise_std))


def fit_mixture(
    images: Iterable[np.ndarray],
    *,
    size: int | tuple[int, int],
    components: int = 1,
    seed: int = 0,
) -> Mixture:
    """Fit a mixture of full-covariance Gaussians to images' block means, by scikit-learn's EM.

    Args:
      images: `[H, W, C]` each, uint8 or float32 on [-1, 1], with sides that `size` divides.
      size: h = w, or (h, w), in blocks; 1 gives the mean of each channel.
      components: K.
      seed: seed of EM's initialisation.

    Raises:
      UserError: the sizes do not fit, `components` is below 1, or there are too few images.
    """
    from sklearn.mixture import GaussianMixture

    if components < 1:
        raise UserError(f"components={components} of a mixture must be 1 or more")
    blocks = np.stack([_blocks(image, size) for image in images])
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
    high, wide = image_size.height // mean.shape[0], image_size.width // mean.shape[1]
    xT = few.repeat(high, axis=0).repeat(wide, axis=1)
    return xT + noise_std * jax.random.normal(noise_key, xT.shape)


def block_means(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Return the means over h × w blocks of an image `[H, W, C]`; float64 `[h, w, C]`.

    Raises:
      UserError: as for `check_size`.
    """
    high, wide, channels = image.shape
    check_size(size, (high, wide))
    h, w = height_width(size)
    return image.reshape(h, high // h, w, wide // w, channels).mean(axis=(1, 3), dtype=np.float64)


def check_size(size: int | tuple[int, int], image_size: int | tuple[int, int]) -> None:
    """Check that images of H × W pixels have h × w blocks of equal size.

    Args:
      size: h = w, or (h, w), in blocks.
      image_size: H = W, or (H, W), in pixels.

    Raises:
      UserError: h does not divide H, w does not divide W, or one is not in 1..32.
    """
    numbers = size if isinstance(size, Sequence) else (size, size)
    sides = height_width(image_size)
    if len(numbers) != 2 or not all(
        1 <= n <= _LARGEST_SIZE and side % n == 0 for n, side in zip(numbers, sides, strict=True)
    ):
        pixels = sides[0] if sides[0] == sides[1] else f"{sides[0]} × {sides[1]}"
        raise UserError(
            f"size={size} of a prior must divide the images' {pixels} pixels, and be at most "
            f"{_LARGEST_SIZE}; it is the number of blocks a side, or (rows, columns) of them"
        )


def _blocks(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Return the `block_means` of an image of a data source, on [-1, 1]."""
    means = block_means(image, size)
    return means / 127.5 - 1 if image.dtype == np.uint8 else means


def _checked(noise_std: float) -> jax.Array:
    if not 0 <= noise_std < math.inf:
        raise UserError(f"noise_std={noise_std} of a prior must be finite, 0 or more")
    return jnp.float32(noise_std)
