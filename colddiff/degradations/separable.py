"""One linear map on both the rows and the columns: `xt = A[t] x0 A[t]ᵀ` per channel.

Repeated blur and pixelation have this form. Their modules make the matrices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.size import ImageSize


def separable(A: Sequence[np.ndarray]) -> Partial:
    """Return `D(x0, t, key) = A[t] x0 A[t]ᵀ`; deterministic, `key` is not used.

    Args:
      A: T + 1 matrices `[H, H]` in float64, the first one the identity. They are rounded to float32
        only here, since products of hundreds of rounded matrices would accumulate errors.
    """
    return Partial(_separable, jnp.asarray(np.stack(A), jnp.float32))


def _separable(A: jax.Array, x0: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
    """Return `A[t] x0 A[t]ᵀ` for `A` `[T + 1, H, H]` and `x0` `[H, H, C]`."""
    del key
    ImageSize(A.shape[1]).check(x0)
    # HIGHEST: rounding to TF32 or bfloat16 would exceed small differences D(x̂, s) - D(x̂, s').
    rows = jnp.einsum("hi,iwc->hwc", A[t], x0, precision=jax.lax.Precision.HIGHEST)
    xt = jnp.einsum("wj,hjc->hwc", A[t], rows, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(t == 0, x0, xt)  # x0 to the bit at t = 0, on every device
