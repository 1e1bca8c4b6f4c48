"""Random degradations in two halves: draw a pattern from the key, apply it at any severity."""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

Pattern = Any
Draw = Callable[[jax.Array, tuple[int, int, int]], Pattern]
Apply = Callable[[jax.Array, jax.Array, Pattern], jax.Array]


def from_pattern(draw: Draw, apply: Apply) -> Partial:
    """`D(x0, t, key) = apply(x0, t, draw(key, x0.shape))`.

    Args:
      draw: `(key, shape) -> pattern` for one image of `shape` (H, W, C).
      apply: `(x0, t, pattern) -> xt`; all of D that depends on t. Both best are Partials of their
        tables, as a degradation is.
    """
    return Partial(_draw_and_apply, as_partial(draw), as_partial(apply))


def split(degrade: Callable[..., jax.Array]) -> tuple[Draw, Apply]:
    """`(draw, apply)` of a degradation, to draw once and apply often, or to apply a known pattern.

    One that was not made by `from_pattern` is applied with its key for a pattern.
    """
    if isinstance(degrade, Partial) and degrade.func is _draw_and_apply:
        return degrade.args
    return Partial(_keep_key), as_partial(degrade)


def as_partial(function: Callable) -> Partial:
    """The function as a pytree, which may pass through `jit`."""
    return function if isinstance(function, Partial) else Partial(function)


def _draw_and_apply(
    draw: Draw, apply: Apply, x0: jax.Array, t: jax.Array, key: jax.Array
) -> jax.Array:
    return apply(x0, t, draw(key, x0.shape))


def _keep_key(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    del shape
    return key
