"""Desaturation (paper: colourisation, appendix A): colours fade to gray, evenly in t."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from colddiff.degradations.patterns import checks_input
from colddiff.runtime.errors import UserError


@checks_input
def desaturate(*, num_steps: int) -> Partial:
    """Return `D(x0, t, key) = g + (1 - t/T)(x0 - g)`, where g is the mean of the channels.

    It is deterministic; `key` is not used.

    Args:
      num_steps: T; at T the image is gray.

    Raises:
      UserError: `num_steps` is below 1, or, when called, the image has no colours.
    """
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be 1 or more")
    return Partial(_desaturate, jnp.linspace(1.0, 0.0, num_steps + 1))


def _desaturate(saturation: jax.Array, x0: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
    del key
    if x0.shape[-1] < 2:
        raise UserError(f"desaturate needs images with colours; got one of shape {x0.shape}")
    gray = jnp.mean(x0, axis=-1, keepdims=True)
    return jnp.where(t == 0, x0, gray + saturation[t] * (x0 - gray))
