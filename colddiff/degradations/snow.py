"""Snowfall (paper: appendix A), after ImageNet-C (Hendrycks and Dietterich 2019).

Flakes are a thresholded random field, blurred along one axis and added to x0 twice, the second time
turned by 180°. Every severity starts from x0, not from the previous result.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.blur import gaussian_kernel
from colddiff.degradations.patterns import checks_input, from_pattern
from colddiff.degradations.size import ImageSize
from colddiff.images import height_width
from colddiff.runtime.errors import UserError

_MEAN, _STD = 0.55, 0.3  # mean and standard deviation of the random field
_ZOOM = 2.5
_TAPS = 11  # length of the motion blur, in pixels


class SnowPattern(NamedTuple):
    """The snow of one image.

    Attributes:
      field: float32 `[H, W]`, whose values above the threshold are flakes.
      vertical: bool, true if the flakes fall vertically, false if horizontally.
    """

    field: jax.Array
    vertical: jax.Array


@checks_input
def snow(
    *,
    image_size: int | tuple[int, int],
    num_steps: int,
    threshold: tuple[float, float],
    motion_std: tuple[float, float],
) -> Partial:
    """Return `D(x0, t, key)`, which adds the key's snow to x0.

    `threshold` and `motion_std` are linear in t.

    Args:
      image_size: H = W, or (H, W), in pixels.
      num_steps: T.
      threshold: the pair (c0 at t = 1, c0 at T). There is snow where the random field
        N(.55, .3²) is at least c0.
      motion_std: the pair (c1 at t = 1, c1 at T), σ of the motion blur in pixels.

    Raises:
      UserError: a setting is invalid.
    """
    sides = height_width(image_size)
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be 1 or more")
    for name, value in (("threshold", threshold), ("motion_std", motion_std)):
        numbers = np.shape(value) == (2,) and all(isinstance(v, int | float) for v in value)
        if not numbers or not np.all(np.isfinite(value)):
            raise UserError(f"{name}={value!r} must be two numbers: at t = 1 and at T")
    if min(motion_std) <= 0:
        raise UserError(f"motion_std={motion_std!r} must be positive")
    c0 = np.linspace(*threshold, num_steps)
    kernels = [gaussian_kernel(_TAPS, c1) for c1 in np.linspace(*motion_std, num_steps)]
    # The first entries are for t = 0, without snow, so that t is the index.
    apply = Partial(
        _apply,
        jnp.asarray([np.inf, *c0], jnp.float32),
        jnp.asarray(np.stack([kernels[0], *kernels]), jnp.float32),
    )
    rows, columns = (jnp.asarray(_zoom_matrix(n), jnp.float32) for n in sides)
    # One table serves both sides of a square.
    draw = Partial(_draw, rows, None if sides[0] == sides[1] else columns)
    return from_pattern(draw, apply)


def _draw(
    rows: jax.Array, columns: jax.Array | None, key: jax.Array, shape: tuple[int, int, int]
) -> SnowPattern:
    """Draw a coarse random field and enlarge it, without the border that would be cut off."""
    del shape
    columns = rows if columns is None else columns
    field_key, direction_key = jax.random.split(key)
    coarse = _MEAN + _STD * jax.random.normal(field_key, (rows.shape[1], columns.shape[1]))
    field = jnp.einsum("hi,wj,ij->hw", rows, columns, coarse, precision=jax.lax.Precision.HIGHEST)
    return SnowPattern(field, jax.random.bernoulli(direction_key))


def _apply(
    c0: jax.Array, kernels: jax.Array, x0: jax.Array, t: jax.Array, pattern: SnowPattern
) -> jax.Array:
    """Return x0 with the flakes of severity t; `c0` is `[T + 1]`, `kernels` `[T + 1, 11]`."""
    ImageSize(*pattern.field.shape).check(x0)
    flakes = jnp.clip(jnp.where(pattern.field < c0[t], 0, pattern.field), 0, 1)
    (high, wide), reach = flakes.shape, _TAPS // 2
    above, beside = (
        jnp.pad(flakes, ((reach, reach), (0, 0))),
        jnp.pad(flakes, ((0, 0), (reach,) * 2)),
    )
    shifted = [(above[i : i + high], beside[:, i : i + wide]) for i in range(_TAPS)]
    flakes = sum(
        kernels[t, i] * jnp.where(pattern.vertical, *pair) for i, pair in enumerate(shifted)
    )
    snowy = jnp.clip((x0 + 1) / 2 + (flakes + flakes[::-1, ::-1])[:, :, None], 0, 1)
    return jnp.where(t == 0, x0, 2 * snowy - 1)


def _zoom_matrix(n: int) -> np.ndarray:
    """Return the matrix `[n, ⌈n / 2.5⌉]` that enlarges values by 2.5, with linear interpolation.

    Corners are aligned. Results beyond n are cut off evenly at both ends.
    """
    few = math.ceil(n / _ZOOM)
    many = round(few * _ZOOM)
    places = np.linspace(0, few - 1, many)[(many - n) // 2 :][:n]
    left = np.minimum(places.astype(int), max(few - 2, 0))
    matrix = np.zeros((n, few))
    matrix[np.arange(n), left] = 1 - (places - left)
    matrix[np.arange(n), np.minimum(left + 1, few - 1)] += places - left
    return matrix
