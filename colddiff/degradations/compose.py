"""Several degradations, one after the other, at the same severity."""

import jax
from jax.tree_util import Partial

from colddiff.degradations.patterns import (
    Apply,
    Draw,
    Pattern,
    checked,
    from_pattern,
    num_steps_of,
    split,
)
from colddiff.runtime.errors import UserError


def compose(*degradations: Partial) -> Partial:
    """Return `D(x0, t, key)`, which applies degradations of the same T in order, each at t.

    Degradation i (from 0) draws its own pattern from `fold_in(key, i)`.

    Raises:
      UserError: no degradation is given.
    """
    if not degradations:
        raise UserError("compose needs one degradation or more")
    draws, applies = zip(*map(split, degradations), strict=True)
    composed = from_pattern(Partial(_draw, draws), Partial(_apply, applies))
    known = [T for T in map(num_steps_of, degradations) if T is not None]
    return checked(composed, min(known)) if known else composed


def _draw(
    draws: tuple[Draw, ...], key: jax.Array, shape: tuple[int, int, int]
) -> tuple[Pattern, ...]:
    return tuple(draw(jax.random.fold_in(key, i), shape) for i, draw in enumerate(draws))


def _apply(
    applies: tuple[Apply, ...], x0: jax.Array, t: jax.Array, patterns: tuple[Pattern, ...]
) -> jax.Array:
    for apply, pattern in zip(applies, patterns, strict=True):
        x0 = apply(x0, t, pattern)
    return x0
