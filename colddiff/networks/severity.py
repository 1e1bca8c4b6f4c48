"""A small network that estimates the severity t of degraded images: logits of p(t | xt).

Degradations change the energy of an image's details: blur takes the highest frequencies first,
pixelation sets the differences within blocks to exactly zero, desaturation those between channels.
So the network gets the logarithms of these energies beside the features of its convolutions.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from colddiff.networks.layers import Conv, Dense
from colddiff.networks.pixels import pixel_sum
from colddiff.runtime.errors import UserError

_HIDDEN = 128
_MODES = 4
_NARROW = 0.2  # smallest standard deviation of a mode, in severities
_FAINT = 1e-5  # added to variances of pixels; rounding to 8 bits has a variance of 5e-6
_ZERO = 1e-8  # added to energies, so that their logarithms are finite


class SeverityHead(nn.Module):
    """Energies at several scales, four convolutions with a mean over pixels, two dense layers.

    It takes any size from 2^`levels` pixels a side, and any number of channels.

    Attributes:
      num_steps: T, the largest severity.
      levels: number of scales, each of half the size, at which energies are measured.
      width: channels of the first convolution; the later ones have twice as many.
    """

    num_steps: int
    levels: int
    width: int = 32

    @nn.compact
    def __call__(self, xt: jax.Array) -> jax.Array:
        """Return logits over t = 0..T, `[B, T + 1]`, for images `[B, H, W, C]` on [-1, 1].

        Raises:
          UserError: the images are smaller than 2^levels pixels a side.
        """
        check_size(xt.shape, self.levels)
        mean = _mean(xt)
        centred = xt - mean[:, None, None]
        std = jnp.sqrt(_mean(centred**2) + _FAINT)
        # Divided by their contrast, even faint images have a visible shape.
        h = jnp.concatenate([xt, centred / std[:, None, None]], axis=-1)
        h = Conv(self.width, 3, jnp.float32)(h)
        features = [mean, jnp.log(std), *_energies(xt, self.levels), _log_mean_square(h)]
        h = nn.gelu(h)
        for _ in range(3):
            h = nn.gelu(Conv(2 * self.width, 3, jnp.float32, strides=2)(h))
            features.append(_mean(h))
        h = nn.gelu(Dense(_HIDDEN, jnp.float32)(jnp.concatenate(features, axis=-1)))
        return _mixture(Dense(3 * _MODES, jnp.float32, name="modes")(h), self.num_steps)


def _mixture(outputs: jax.Array, T: int) -> jax.Array:
    """Return the logits, `[B, T + 1]`, of a mixture of normal distributions cut to 0..T.

    Neighbouring severities get similar probabilities, and T may be large. At first the modes are
    spread evenly over 0..T.

    Args:
      outputs: weights, means and widths of the modes, `[B, 3 · _MODES]`.
      T: the largest severity.
    """
    weight, mean, width = jnp.split(outputs[:, None], 3, axis=-1)
    mean = T * (mean + (jnp.arange(_MODES) + 0.5)[None, None] / _MODES)
    width = _NARROW + T / _MODES * jnp.exp(width)
    distance = (jnp.arange(T + 1.0)[None, :, None] - mean) / width
    return jax.nn.logsumexp(weight - jnp.log(width) - distance**2 / 2, axis=-1)


def levels_of(size: tuple[int, int]) -> int:
    """Return the number of scales for training images of `size` (H, W): the last has 2..3 pixels.

    The shorter side counts.
    """
    return max(1, int(math.log2(min(size))) - 1)


def check_size(shape: tuple[int, ...], levels: int) -> None:
    """Refuse images `[B, H, W, C]` that are too small.

    Raises:
      UserError: a side has fewer than 2^levels pixels.
    """
    if min(shape[1:3]) < 2**levels:
        raise UserError(
            f"the severity of images of {shape[1]}×{shape[2]} pixels cannot be estimated; this "
            f"head takes {2**levels} pixels a side or more. Give t instead"
        )


def _energies(x: jax.Array, levels: int) -> list[jax.Array]:
    """Return log energies of details at each level, `[B, C']` each.

    At each level these are the three Haar bands of 2×2 blocks, and the second differences along
    both axes. Each level is the block means of the level before. Of colour images, the differences
    from the channels' mean are measured as well.
    """
    if x.shape[-1] > 1:
        x = jnp.concatenate([x, x - x.mean(axis=-1, keepdims=True)], axis=-1)
    found = []
    for _ in range(levels):
        H, W = (side // 2 * 2 for side in x.shape[1:3])
        if min(H, W) > 2:
            down = x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]
            right = x[:, :, 2:] - 2 * x[:, :, 1:-1] + x[:, :, :-2]
            found += [_log_mean_square(down), _log_mean_square(right)]
        a, b = x[:, :H:2, :W:2], x[:, :H:2, 1:W:2]
        c, d = x[:, 1:H:2, :W:2], x[:, 1:H:2, 1:W:2]
        bands = (a + b - c - d, a - b + c - d, a - b - c + d)
        found += [_log_mean_square(band / 2) for band in bands]
        x = (a + b + c + d) / 4
    return found


def _log_mean_square(x: jax.Array) -> jax.Array:
    """Return the logarithm of the mean square over pixels, scaled to a few units, `[B, C]`."""
    return jnp.log(_mean(x**2) + _ZERO) / 4


def _mean(x: jax.Array) -> jax.Array:
    """Return the mean over pixels of `[B, H, W, C]`, `[B, C]`."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    return pixel_sum(flat)[:, 0] / flat.shape[1]
