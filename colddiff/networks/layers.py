"""What both networks share: initial parameters, the time embedding, the check of the input."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from colddiff.errors import UserError


def init_params(model: nn.Module, key: jax.Array, *inputs: jax.Array) -> Any:
    """Parameters of a module to begin with, for inputs like these; to be jitted.

    Kernels are uniform on ±1/√fan_in, as those of the paper's PyTorch networks; all others are what
    their modules say: biases 0, scales 1.
    """
    params = model.init(key, *inputs)["params"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    sizes = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    # One draw for all kernels: XLA:CPU takes a tenth of a second to compile each. Flax's own draws
    # are used by nothing, so that jit leaves them out.
    draws = jax.random.uniform(key, (sum(sizes),), minval=-1, maxval=1)
    draws = jnp.split(draws, list(itertools.accumulate(sizes))[:-1])
    return tree.unflatten(
        draw.reshape(leaf.shape) / math.sqrt(size // leaf.shape[-1]) if size else leaf
        for draw, size, (_, leaf) in zip(draws, sizes, leaves, strict=True)
    )


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
