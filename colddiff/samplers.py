"""Samplers: ways to walk from xT back to x0 with a restorer R and a degradation D.

Each is a plain function of `restore`, `degrade` and the state of the walk, on `lax.fori_loop`:

    sampler(restore, degrade, params, xT, keys, times, iterates_at=None) -> x0

  restore: `R(params, xt, t) -> x0_hat` for a batch, `xt` `[B, H, W, C]`, `t` int32 `[B]`.
  degrade: `D(x0, t, key) -> xt` for one image (`colddiff.degradations`).
  xT: where to start, `[B, H, W, C]`.
  keys: `[B]` PRNG keys, one pattern of D for each image (`image_keys`).
  times: decreasing integers from the severity of xT down to 0 (`times_between`). Leaving some
    out is how to take fewer steps.
  iterates_at: some of `times` (for `direct`, of the first and last); if given, the result is
    `(x0, iterates)`, `iterates` `[len(iterates_at), B, H, W, C]` the walk's images at those times.

Where xT comes from lives elsewhere, and so do networks and metrics.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.degradations import Degrade, split
from colddiff.errors import UserError

Restore = Callable[[object, jax.Array, jax.Array], jax.Array]
Times = Sequence[int] | np.ndarray | jax.Array
Result = jax.Array | tuple[jax.Array, jax.Array]
Sampler = Callable[..., Result]


def direct(
    restore: Restore,
    degrade: Degrade,
    params: object,
    xT: jax.Array,
    keys: jax.Array,
    times: Times,
    iterates_at: Times | None = None,
) -> Result:
    """`R(xT, T)`: one step, whatever lies between the first and the last of `times`."""
    ends = jnp.stack([jnp.asarray(times[0]), jnp.asarray(times[-1])])
    return naive(restore, degrade, params, xT, keys, ends, iterates_at)


def naive(
    restore: Restore,
    degrade: Degrade,
    params: object,
    xT: jax.Array,
    keys: jax.Array,
    times: Times,
    iterates_at: Times | None = None,
) -> Result:
    """Algorithm 1: restore, then degrade again to the next severity."""
    D = _with_patterns(degrade, keys, xT.shape[1:])

    def step(x, s, s_next):
        x0_hat = _restore(restore, params, x, s)
        return D(x0_hat, s_next)

    return _walk(step, xT, times, iterates_at)


def tacos(
    restore: Restore,
    degrade: Degrade,
    params: object,
    xT: jax.Array,
    keys: jax.Array,
    times: Times,
    iterates_at: Times | None = None,
) -> Result:
    """Algorithm 2 (transformation agnostic cold sampling): `x ← x - D(x̂, s) + D(x̂, s')`.

    To first order in the step its iterates do not depend on R at all (section 3.3).
    """
    D = _with_patterns(degrade, keys, xT.shape[1:])

    def step(x, s, s_next):
        x0_hat = _restore(restore, params, x, s)
        return x - D(x0_hat, s) + D(x0_hat, s_next)

    return _walk(step, xT, times, iterates_at)


SAMPLERS: dict[str, Sampler] = {"direct": direct, "naive": naive, "tacos": tacos}


def image_keys(key: jax.Array, first: jax.Array | int, count: int) -> jax.Array:
    """Keys `[count]` of the images numbered `first`, `first + 1`, ...: `fold_in(key, number)`.

    So an image depends on its number alone, never on its batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def times_between(T: int, steps: int) -> np.ndarray:
    """`steps + 1` decreasing times from T to 0, spread as evenly as integers allow; int32.

    Raises:
      UserError: `steps` is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise UserError(f"steps={steps} must lie in 1..T={T}")
    return np.round(np.linspace(T, 0, steps + 1)).astype(np.int32)


def check_times(times: Times, iterates_at: Times | None = None) -> None:
    """Refuses times that do not decrease to 0, or iterates wanted at other times.

    Raises:
      UserError: says what is wrong.
    """
    steps = np.asarray(times)
    integers = steps.ndim == 1 and np.issubdtype(steps.dtype, np.integer)
    if not integers or len(steps) < 2 or steps[-1] != 0 or np.any(np.diff(steps) >= 0):
        raise UserError(f"times must be two or more integers decreasing to 0; got {times}")
    if iterates_at is not None and not np.isin(iterates_at, steps).all():
        raise UserError(f"iterates_at={iterates_at} must be some of the times {times}")


def _walk(
    step: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    xT: jax.Array,
    times: Times,
    iterates_at: Times | None,
) -> Result:
    """`x ← step(x, s, s')` over consecutive `times`, noting x at the times `iterates_at`."""
    if not any(isinstance(a, jax.core.Tracer) for a in (times, iterates_at)):
        check_times(times, iterates_at)
    times = jnp.asarray(times, jnp.int32)
    noted_at = jnp.asarray(() if iterates_at is None else iterates_at, jnp.int32)

    def note(x, s, iterates):
        return jax.vmap(lambda at, old: jnp.where(at == s, x, old))(noted_at, iterates)

    def body(i, carry):
        x, iterates = carry
        x = step(x, times[i], times[i + 1])
        return x, note(x, times[i + 1], iterates)

    nothing = jnp.full((len(noted_at), *xT.shape), jnp.nan, xT.dtype)
    start = (xT, note(xT, times[0], nothing))
    x0, iterates = jax.lax.fori_loop(0, len(times) - 1, body, start)
    return x0 if iterates_at is None else (x0, iterates)


def _restore(restore: Restore, params: object, x: jax.Array, s: jax.Array) -> jax.Array:
    """`x0_hat`, with the one severity s given to each image."""
    return restore(params, x, jnp.full(x.shape[:1], s))


def _with_patterns(
    degrade: Degrade, keys: jax.Array, shape: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`D(x0, s)` for a batch at one severity; every image's pattern is drawn here, once."""
    draw, apply = split(degrade)
    patterns = jax.vmap(lambda key: draw(key, shape))(keys)
    return lambda x0, s: jax.vmap(apply, (0, None, 0))(x0, s, patterns)
