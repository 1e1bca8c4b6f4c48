"""Sum over pixels, and repetition of a vector at every pixel: each is the other's gradient.

Images are `[B, N, C]` with N pixels. On the CPU a sum is a matrix product with ones, about ten
times as fast as XLA's reduction. On GPUs and TPUs it is a reduction. Sums are in float32.
Forward-mode derivatives are not defined.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def pixel_sum(x: jax.Array) -> jax.Array:
    """Return the sum over all pixels, `[B, 1, C]`."""

    def product(x: jax.Array) -> jax.Array:
        ones = jnp.ones((x.shape[0], 1, x.shape[1]), x.dtype)
        return jnp.einsum("bmn,bnc->bmc", ones, x, preferred_element_type=jnp.float32)

    def reduction(x: jax.Array) -> jax.Array:
        return x.sum(axis=1, keepdims=True, dtype=jnp.float32)

    return lax.platform_dependent(x, cpu=product, default=reduction).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def spread(x: jax.Array, num_pixels: int) -> jax.Array:
    """Return `x` `[B, 1, C]` repeated at each of N pixels, `[B, N, C]`."""
    return jnp.broadcast_to(x, (x.shape[0], num_pixels, x.shape[2]))


pixel_sum.defvjp(lambda x: (pixel_sum(x), x.shape[1]), lambda n, dy: (spread(dy, n),))
spread.defvjp(lambda x, n: (spread(x, n), None), lambda n, _, dy: (pixel_sum(dy),))


def add(x: jax.Array, vectors: jax.Array) -> jax.Array:
    """Return images `[B, ..., C]` plus one vector for each, `[B, C]`, or one for all, `[C]`."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    each = jnp.broadcast_to(vectors[..., None, :], (x.shape[0], 1, x.shape[-1]))
    return (flat + spread(each, flat.shape[1])).reshape(x.shape)
