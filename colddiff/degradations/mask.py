"""Gaussian mask (paper: inpainting, section 4.2 and appendix A.2; generation, section 5.3).

A hole with soft edges grows around a point: `xt = G_t x0 + (1 - G_t) c`. G_t is the product of t
masks, each of them 1 minus a Gaussian of height 1, and c is the colour of the hole.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.patterns import checks_input, from_pattern
from colddiff.degradations.schedules import per_step
from colddiff.degradations.size import ImageSize
from colddiff.images import height_width
from colddiff.runtime.errors import UserError

_RANDOM_COLOR = 0.5  # each channel is uniform on [-.5, .5] (section 5.3)


class MaskPattern(NamedTuple):
    """The hole of one image.

    Attributes:
      corner: int32 `[2]`, first row and column of the crop from the larger mask; a random hole is
        centred at `(H, W) - 1 - corner`.
      color: `[C]` or scalar, the colour of the hole, in [-1, 1].
    """

    corner: jax.Array
    color: jax.Array


@checks_input
def gaussian_mask(
    *,
    image_size: int | tuple[int, int],
    num_steps: int,
    std: float | list[float],
    center: str | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]],
    fade_to: float | Sequence[float] | str = 0.0,
    inward: bool = False,
) -> Partial:
    """Return `D(x0, t, key)`, which puts x0 behind t Gaussian masks.

    The key draws the hole's centre and colour if they are random.

    Args:
      image_size: H = W, or (H, W), in pixels.
      num_steps: T.
      std: σ of every step's Gaussian in pixels, one number or a list of T.
      center: 'image' centres the hole at row ⌊(H - 1)/2⌋ and column ⌊(W - 1)/2⌋. With (low, high),
        row and column are H - 1 - offset and W - 1 - offset, each with its own random offset,
        uniform on low..high, within 0..H and 0..W. A pair of pairs, ((low, high), (low, high)), is
        for rows and for columns. For H = W = n, the paper's scores match (1, n - 1); its released
        code uses (0, n).
      fade_to: colour of the hole: a number (gray 0 in the paper), one number for each channel, or
        'random', one colour for each image with every channel uniform on [-.5, .5].
      inward: let the hole grow from the edges to the centre. For t in 1..T, G_t is then 1 minus the
        product of the first T - t masks, so that nothing is left at T.

    Raises:
      UserError: a setting is invalid.
    """
    size = ImageSize(*height_width(image_size))
    if min(size.height, size.width) < 2 or num_steps < 1:
        raise UserError(
            f"image_size={image_size} must be 2 or more, and num_steps={num_steps} 1 or more"
        )
    offsets = (0, 0) if center == "image" else _offsets(center, size)
    y, x = (_distances(n, centred=center == "image") for n in (size.height, size.width))
    r2 = y[:, None] ** 2 + x[None, :] ** 2
    G = [np.ones(r2.shape)]
    for sigma in per_step("std", std, num_steps):
        G.append(G[-1] * -np.expm1(-r2 / (2 * sigma**2)))
    if inward:
        G = [G[0], *(1 - g for g in G[-2::-1])]
    color = None if isinstance(fade_to, str) else jnp.asarray(_color(fade_to), jnp.float32)
    if color is None and fade_to != "random":
        raise UserError(f"fade_to={fade_to!r} must be a number, one for each channel, or 'random'")
    draw = Partial(_draw, jnp.array(offsets), color)
    table = jnp.asarray(np.stack(G), jnp.float32)
    return from_pattern(draw, Partial(_apply, table, size))


def _draw(
    offsets: jax.Array, color: jax.Array | None, key: jax.Array, shape: tuple[int, int, int]
) -> MaskPattern:
    """Draw the corner and the colour; `offsets` is `[2]`, or `[2, 2]` for rows and columns."""
    corner_key, color_key = jax.random.split(key)
    corner = jax.random.randint(corner_key, (2,), offsets[0], offsets[1] + 1)
    if color is None:
        color = jax.random.uniform(
            color_key, shape[-1:], minval=-_RANDOM_COLOR, maxval=_RANDOM_COLOR
        )
    return MaskPattern(corner, color)


def _apply(
    G: jax.Array, image_size: ImageSize, x0: jax.Array, t: jax.Array, pattern: MaskPattern
) -> jax.Array:
    """Return `G_t x0 + (1 - G_t) c`, where G_t is a crop of the larger `G[t]`.

    The crop begins at `pattern.corner`.
    """
    image_size.check(x0)
    if pattern.color.ndim and pattern.color.shape != x0.shape[-1:]:
        raise UserError(
            f"fade_to has {len(pattern.color)} values for images of {x0.shape[-1]} channels; give "
            "one value, or one for each channel"
        )
    mask = jax.lax.dynamic_slice(G, (t, *pattern.corner), (1, *x0.shape[:2]))[0, :, :, None]
    color = jnp.broadcast_to(pattern.color, x0.shape[-1:])[None, None]
    return mask * x0 + (1 - mask) * color


def _distances(n: int, *, centred: bool) -> np.ndarray:
    """Return the distance of each row or column of the larger mask from the hole's centre.

    A centred hole needs n of them. For a random one, the crop of n begins anywhere in 0..n.
    """
    size, middle = (n, (n - 1) // 2) if centred else (2 * n, n - 1)
    return np.arange(size) - middle


def _offsets(center: object, size: ImageSize) -> np.ndarray:
    """Return the smallest and the largest offsets: `[2]`, or `[2, 2]` for rows and columns."""
    sides = size.height, size.width
    try:
        array = np.asarray(center)
    except ValueError:  # lists of unequal lengths
        array = np.array("")
    valid = array.shape in ((2,), (2, 2)) and np.issubdtype(array.dtype, np.integer)
    if valid:
        low, high = np.broadcast_to(array, (2, 2)).T
        valid = np.all((low >= 0) & (low <= high) & (high <= sides))
    if not valid:
        within = f"0..{sides[0]}"
        if sides[0] != sides[1]:
            within += (
                f" for rows and 0..{sides[1]} for columns; ((low, high), (low, high)) sets both"
            )
        raise UserError(
            f"center={center!r} must be 'image', or two integers (low, high), low ≤ high within "
            f"{within}"
        )
    return array.T


def _color(fade_to: object) -> np.ndarray:
    """Return the colour, a scalar or `[C]`; refuse values outside [-1, 1]."""
    try:
        color = np.asarray(fade_to, np.float64)
    except (TypeError, ValueError):
        color = np.array(np.nan)
    if color.ndim > 1 or not np.all(np.abs(color) <= 1):
        raise UserError(f"fade_to={fade_to!r} must lie in [-1, 1], from black to white")
    return color
