"""A hole that the user marks in a picture, in place of the random one of `mask.py`.

`xt = m_t x0 + (1 - m_t) c`. The mask m is m_t at the picture's own severity s: 1 where a pixel is
kept, 0 where it is lost. Below s the hole is smaller, as in training: it shrinks from its edges to
its middle, with a soft border.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.patterns import from_pattern
from colddiff.runtime.errors import UserError

_SOFT = 0.5  # width of the border, as a share of the hole's depth


class KnownMask(NamedTuple):
    """The hole of one picture.

    Attributes:
      kept: float32 `[H, W]` in [0, 1], the share of each pixel that is kept at severity `s`.
      depth: float32 `[H, W]` in [0, 1], the distance to the nearest kept pixel, as a share of the
        largest one.
      s: int32, the severity of the picture, 1 or more.
    """

    kept: jax.Array
    depth: jax.Array
    s: jax.Array


def known_mask(*, fade_to: float | Sequence[float]) -> Partial:
    """Return D whose pattern is a `KnownMask`; `split` it, since no key draws a hole.

    Args:
      fade_to: colour c of the hole, a number or one for each channel, in [-1, 1].
    """
    return from_pattern(_cannot_draw, Partial(_apply, jnp.asarray(fade_to, jnp.float32)))


def hole(kept: np.ndarray, s: int) -> KnownMask:
    """Return the pattern of a picture at severity s, for the kept shares `[H, W]` in [0, 1]."""
    depth, rest = np.zeros(kept.shape, np.float32), kept < 0.5
    while rest.any():
        depth += rest
        # A pixel stays in the rest while its four neighbours are in it.
        near = np.pad(rest, 1, mode="edge")
        rest = rest & near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:]
        if rest.all():  # nothing is kept
            break
    depth /= max(1, depth.max())
    return KnownMask(np.asarray(kept, np.float32), depth, np.int32(s))


def _cannot_draw(key: jax.Array, shape: tuple[int, int, int]) -> KnownMask:
    raise UserError("a known mask is not drawn from a key; give the mask with each image")


def _apply(color: jax.Array, x0: jax.Array, t: jax.Array, mask: KnownMask) -> jax.Array:
    """Return `m_t x0 + (1 - m_t) c`; exactly x0 at t = 0, and with m_t = m at t = s."""
    share = jnp.clip(t.astype(jnp.float32) / mask.s, 0, 1)
    lost = jnp.clip((share * (1 + _SOFT) - 1 + mask.depth) / _SOFT, 0, 1)
    m = (1 - (1 - mask.kept) * jnp.where(t > 0, lost, 0))[..., None]
    return m * x0 + (1 - m) * jnp.broadcast_to(color, x0.shape[-1:])[None, None]
