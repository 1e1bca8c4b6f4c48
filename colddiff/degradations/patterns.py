"""The common parts of degradations: random patterns and argument checks.

A random degradation draws a pattern from the key and applies it at any severity. All degradations
refuse invalid images and severities.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.images import check_images
from colddiff.runtime.errors import UserError

Pattern = Any
Draw = Callable[[jax.Array, tuple[int, int, int]], Pattern]
Apply = Callable[[jax.Array, jax.Array, Pattern], jax.Array]


def from_pattern(draw: Draw, apply: Apply) -> Partial:
    """Return `D(x0, t, key) = apply(x0, t, draw(key, x0.shape))`.

    Both functions should be `jax.tree_util.Partial`s that hold their tables as arguments.

    Args:
      draw: `(key, shape) -> pattern` for one image of `shape` (H, W, C).
      apply: `(x0, t, pattern) -> xt`, the whole part of D that depends on t.
    """
    return Partial(_draw_and_apply, as_partial(draw), as_partial(apply))


def split(degrade: Callable[..., jax.Array]) -> tuple[Draw, Apply]:
    """Return `(draw, apply)` of a degradation, to reuse a pattern or to apply a known one.

    For a degradation that `from_pattern` did not make, the pattern is the key. `apply` does not
    check its arguments, even if the degradation is `checked`.
    """
    if isinstance(degrade, Partial) and degrade.func is _check_and_degrade:
        degrade = degrade.args[1]
    if isinstance(degrade, Partial) and degrade.func is _draw_and_apply:
        return degrade.args
    return Partial(_keep_key), as_partial(degrade)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Severities:
    """T as a static argument of a Partial; `jit` would trace a plain number."""

    T: int

    def check(self, t: jax.Array | int) -> None:
        array = t if isinstance(t, jax.core.Tracer) else np.asarray(t)  # a jit would trace jnp's
        valid = array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer)
        if valid and not isinstance(t, jax.core.Tracer):
            valid = 0 <= array <= self.T
        if not valid:
            raise UserError(
                f"t={t} must be one severity in 0..T={self.T}, an integer. To give each image of a "
                "batch its own t, use jax.vmap"
            )


def checked(degrade: Callable[..., jax.Array], num_steps: int) -> Partial:
    """Return D that refuses all but one image of floats around [-1, 1], t in 0..T, and one key.

    An old-style key, uint32 `[2]`, is converted to a typed one.

    Traced values cannot be checked. Within `jit` and `vmap` only shapes and dtypes are checked and,
    under `vmap`, an unmapped t. A traced t outside 0..T silently gives another severity.

    Args:
      degrade: D; a checked one is returned unchanged.
      num_steps: T.
    """
    degrade = as_partial(degrade)
    if degrade.func is _check_and_degrade:
        return degrade
    return Partial(_check_and_degrade, _Severities(num_steps), degrade)


def checks_input(factory: Callable[..., Partial]) -> Callable[..., Partial]:
    """Decorate a factory that takes `num_steps`, so that it returns `checked` degradations."""

    @functools.wraps(factory)
    def make(*, num_steps: int, **settings: Any) -> Partial:
        return checked(factory(num_steps=num_steps, **settings), num_steps)

    return make


def num_steps_of(degrade: Callable[..., jax.Array]) -> int | None:
    """Return T of a `checked` degradation, and None for any other."""
    if isinstance(degrade, Partial) and degrade.func is _check_and_degrade:
        return degrade.args[0].T
    return None


def as_key(key: jax.Array) -> jax.Array:
    """Return one PRNG key, typed: an old-style key, uint32 `[2]`, is converted.

    Raises:
      UserError: `key` is a seed, several keys or something else.
    """
    dtype, shape = getattr(key, "dtype", None), np.shape(key)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return key
        raise UserError(
            f"key must be one PRNG key; got keys of shape {shape}. To degrade a batch use "
            "jax.vmap(degrade, (0, None, 0)); sampling makes a key for each image from one"
        )
    if dtype == np.uint32 and len(shape) == 1:
        return jax.random.wrap_key_data(jnp.asarray(key))
    if isinstance(key, Integral):
        raise UserError(f"key={key} is a seed; make a PRNG key of it with jax.random.key({key})")
    raise UserError(f"key={key} must be a PRNG key; make one with jax.random.key(0)")


def as_partial(function: Callable) -> Partial:
    """Return the function as a pytree, which can be an argument of a jitted function."""
    return function if isinstance(function, Partial) else Partial(function)


def _check_and_degrade(
    severities: _Severities, degrade: Partial, x0: jax.Array, t: jax.Array, key: jax.Array
) -> jax.Array:
    check_images(x0, "x0")
    if x0.ndim != 3:
        convert = "Add the channel axis with x0[..., None]"
        if x0.ndim > 2:
            convert = "For a batch use jax.vmap(degrade, (0, None, 0)), with a key for each image"
        raise UserError(f"this degradation takes one image [H, W, C]; got {x0.shape}. {convert}")
    severities.check(t)
    return degrade(jnp.asarray(x0), jnp.asarray(t, jnp.int32), as_key(key))


def _draw_and_apply(
    draw: Draw, apply: Apply, x0: jax.Array, t: jax.Array, key: jax.Array
) -> jax.Array:
    return apply(x0, t, draw(key, x0.shape))


def _keep_key(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    del shape
    return key
