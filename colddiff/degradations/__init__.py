"""Degradations: pure functions `D(x0, t, key) -> xt` of one image.

`x0` is float32 `[H, W, C]` in [-1, 1], and `t` an int32 severity in 0..T. `key` is a typed PRNG
key: the same key gives the same random pattern at every t. `D(x0, 0, key) == x0` to the bit. All
degradations are jittable, vmappable and differentiable in `x0`. Their cost does not grow with t.

A factory makes each degradation from its settings, as a `jax.tree_util.Partial`. Its tables are
traced arguments, never constants of the compiled program. `DEGRADATIONS` names the factories for
the configs. Callers batch with `jax.vmap`. A random degradation is two functions in a row, which
`split` returns: `draw(key, shape) -> pattern` and `apply(x0, t, pattern) -> xt`.

A degradation refuses integer images, NaN, values far outside [-1, 1], a batch, t outside 0..T and
seeds in place of keys. Values cannot be checked within `jit`. Under `vmap` only an unmapped t is
checked (`checked`).

If x0 is in [-1, 1], so is xt, except for bicubic pixelation and the blends.
"""

from collections.abc import Callable

import jax

from colddiff.degradations.blend import animorph, blend_weights, gaussian_noise, is_blend
from colddiff.degradations.blur import gaussian_blur
from colddiff.degradations.compose import compose
from colddiff.degradations.desaturate import desaturate
from colddiff.degradations.mask import gaussian_mask
from colddiff.degradations.patterns import as_key, as_partial, checked, from_pattern, split
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
    "as_key",
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
    "is_blend",
    "linear",
    "pixelate",
    "snow",
    "split",
]
