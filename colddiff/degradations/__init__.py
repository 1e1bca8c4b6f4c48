"""Degradations: pure functions `D(x0, t, key) -> xt` of one image.

`x0` is float32 `[H, W, C]` in [-1, 1], `t` an int32 severity in 0..T, `key` a typed PRNG key that
*is* the random pattern: one key, one pattern, at every t. `D(x0, 0, key) == x0` to the bit.
All are jittable, vmappable and differentiable in `x0`; their cost does not grow with t.

A factory makes each one from its settings and returns a `jax.tree_util.Partial`, whose tables
are traced arguments and never constants of the compiled program. `DEGRADATIONS` names them for
the configs. Batching is the caller's `jax.vmap`.
"""

from collections.abc import Callable

import jax

from colddiff.degradations.blur import gaussian_blur
from colddiff.degradations.schedules import SCHEDULES, exponential, linear

Degrade = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

DEGRADATIONS: dict[str, Callable[..., Degrade]] = {
    "gaussian_blur": gaussian_blur,
}

__all__ = ["DEGRADATIONS", "SCHEDULES", "Degrade", "exponential", "gaussian_blur", "linear"]
