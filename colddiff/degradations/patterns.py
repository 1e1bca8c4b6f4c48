"""The common parts of degradations: random patterns and argument checks.

A random degradation draws a pattern from the key and applies it at any severity. All degradations
refuse invalid images and severities.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
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
        if isinstance(t, jax.core.Tracer):
            return
        if np.ndim(t) or not 0 <= np.asarray(t) <= self.T:  # not jnp: a jit would trace it
            raise UserError(f"t={t} must be one severity in 0..T={self.T}")


def checked(degrade: Callable[..., jax.Array], num_steps: int) -> Partial:
    """Return D that refuses images that are not floats around [-1, 1], and t outside 0..T.

    Traced values cannot be checked. Within `jit` and `vmap` only the images' dtype is checked and,
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


def as_partial(function: Callable) -> Partial:
    """Return the function as a pytree, which can be an argument of a jitted function."""
    return function if isinstance(function, Partial) else Partial(function)


def _check_and_degrade(
    severities: _Severities, degrade: Partial, x0: jax.Array, t: jax.Array, key: jax.Array
) -> jax.Array:
    check_images(x0, "x0")
    severities.check(t)
    return degrade(x0, t, key)


def _draw_and_apply(
    draw: Draw, apply: Apply, x0: jax.Array, t: jax.Array, key: jax.Array
) -> jax.Array:
    return apply(x0, t, draw(key, x0.shape))


def _keep_key(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    del shape
    return key
