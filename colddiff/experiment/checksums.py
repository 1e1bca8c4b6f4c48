"""Checksums of arrays, computed where they lie: on any number of devices and hosts, the same."""

from typing import Any

import jax
import jax.numpy as jnp

from colddiff.runtime.devices import to_host


def checksums(tree: Any) -> dict[str, int]:
    """Return 32 bits for each array of a pytree, by its path; all hosts must ask.

    Any damage changes them, but for one in 2³² cases. They do not depend on the sharding: each word
    is mixed with its place, and sums of integers have no order.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = to_host(_sums([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(path): int(n) for (path, _), n in zip(leaves, sums, strict=True)}


@jax.jit
def _sums(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(array) for array in arrays])


def _sum(x: jax.Array) -> jax.Array:
    """Return the sum of the words, each mixed with its place as MurmurHash3 ends."""
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    h = words ^ (place * jnp.uint32(0x9E3779B9))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)
