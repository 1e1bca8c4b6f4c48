"""Degradations: pure functions `D(x0, t, key) -> xt` of one image.

`x0` is float32 `[H, W, C]` in [-1, 1], `t` an int32 severity in 0..T, `key` a typed PRNG key that
*is* the random pattern: one key, one pattern, at every t. `D(x0, 0, key) == x0` to the bit.
All are jittable, vmappable and differentiable in `x0`; their cost does not grow with t.

A factory makes each one from its settings and returns a `jax.tree_util.Partial`, whose tables
are traced arguments and never constants of the compiled program. `DEGRADATIONS` names them for
the configs. Batching is the caller's `jax.vmap`. A random one is two functions in a row, which
`split` gives: `draw(key, shape) -> pattern` and `apply(x0, t, pattern) -> xt`.

A degradation refuses integer images, NaN, values far outside [-1, 1] and t outside 0..T, wherever
it sees their values: not within `jit`, and under `vmap` only a t that is not mapped (`checked`).

Where images stay in [-1, 1], so does xt, except for bicubic pixelation and the blends.
"""

from collections.abc import Callable

import jax

from colddiff.degradations.blend import animorph, blend_weights, gaussian_noise
from colddiff.degradations.blur import gaussian_blur
from colddiff.degradations.compose import compose
from colddiff.degradations.desaturate import desaturate
from colddiff.degradations.mask import gaussian_mask
from colddiff.degradations.patterns import as_partial, checked, from_pattern, split
from colddiff.degradations.pixelate import pixelate
from colddiff.degradations.schedules import SCHEDULES, exponential, linear
from colddiff.degradations.snow import snow

Degrade = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

DEGRADATIONS: dict[str, Callable[..., Degrade]] = {
    "animorph": animorph,
    "compose": compose,
    "desaturate": desaturate,
    "gaussian_blur": gaussian_blur,
    "gaussian_mask": gaussian_mask,
    "gaussian_noise": gaussian_noise,
    "pixelate": pixelate,
    "snow": snow,
}

__all__ = [
    "DEGRADATIONS",
    "SCHEDULES",
    "Degrade",
    "animorph",
    "as_partial",
    "blend_weights",
    "checked",
    "compose",
    "desaturate",
    "exponential",
    "from_pattern",
    "gaussian_blur",
    "gaussian_mask",
    "gaussian_noise",
    "linear",
    "pixelate",
    "snow",
    "split",
]
