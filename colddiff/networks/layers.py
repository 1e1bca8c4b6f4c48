"""What both networks share: the time embedding, the initialiser and the check of the input."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from colddiff.errors import UserError

# U(±1/√fan_in): the kernels of the paper's PyTorch networks begin so. Biases begin at 0 here.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def sinusoidal_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sines, then cosines, of t at `width // 2` frequencies from 1 to 1/10000; `[B, width]`.

    An odd width ends in a zero. (Vaswani et al. 2017, in the form of Ho et al. 2020.)
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) / max(half - 1, 1) * jnp.arange(half, dtype=jnp.float32))
    angles = jnp.outer(t.astype(jnp.float32), frequencies)
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))


def check_input(shape: tuple[int, ...], multipliers: Sequence[int]) -> None:
    """Refuses images that one level for each multiplier, each half of the last, cannot take.

    Raises:
      UserError: `shape` is no batch of square images whose side can be halved so often, or a
        multiplier is no positive integer.
    """
    levels = len(multipliers)
    if not levels or any(not isinstance(m, int) or m < 1 for m in multipliers):
        raise UserError(f"multipliers={multipliers} must be one or more positive integers")
    if len(shape) != 4 or shape[1] != shape[2]:
        raise UserError(f"the network takes square images [B, H, H, C]; got shape {shape}")
    size, unit = shape[1], 2 ** (levels - 1)
    if size % unit:
        below, above = size // unit * unit, -(-size // unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"image_size={size} cannot be halved {levels - 1} times, as a network of {levels} "
            f"multipliers does; it takes multiples of {unit}: use {nearest}, or fewer multipliers"
        )
