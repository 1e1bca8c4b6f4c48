"""One linear map on the rows and one on the columns: `xt = A[t] x0 B[t]ᵀ` per channel.

Repeated blur and pixelation have this form. Their modules make the matrices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.size import ImageSize


def separable(A: Sequence[np.ndarray], B: Sequence[np.ndarray] | None = None) -> Partial:
    """Return `D(x0, t, key) = A[t] x0 B[t]ᵀ`; deterministic, `key` is not used.

    Args:
      A: T + 1 matrices `[H, H]` in float64, the first one the identity. They are rounded to float32
        only here, since products of hundreds of rounded matrices would accumulate errors.
      B: the same for the columns, `[W, W]`; None takes A, for square images.
    """
    A, B = (None if M is None else jnp.asarray(np.stack(M), jnp.float32) for M in (A, B))
    return Partial(_separable, A, B)


def _separable(
    A: jax.Array, B: jax.Array | None, x0: jax.Array, t: jax.Array, key: jax.Array
) -> jax.Array:
    """Return `A[t] x0 B[t]ᵀ` for `A` `[T + 1, H, H]`, `B` `[T + 1, W, W]` and `x0` `[H, W, C]`."""
    del key
    B = A if B is None else B
    ImageSize(A.shape[1], B.shape[1]).check(x0)
    # HIGHEST: rounding to TF32 or bfloat16 would exceed small differences D(x̂, s) - D(x̂, s').
    rows = jnp.einsum("hi,iwc->hwc", A[t], x0, precision=jax.lax.Precision.HIGHEST)
    xt = jnp.einsum("wj,hjc->hwc", B[t], rows, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(t == 0, x0, xt)  # x0 to the bit at t = 0, on every device
