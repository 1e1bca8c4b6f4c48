"""Samplers, which compute x0 from xT with a restorer R and a degradation D.

Each is a plain function that loops with `lax.fori_loop`:

    sampler(restore, degrade, params, xT, keys, times, iterates_at=None) -> x0

`direct`, `naive` and `tacos` take any degradation; `ddim` and `ddpm` take only blends with noise or
another image. For a random degradation, tacos uses the pattern that `keys` give (for noise, the
paper's "fixed noise"); ddim estimates it from x at every step ("estimated noise").

  restore: `R(params, xt, t) -> x0_hat` for a batch, `xt` `[B, H, W, C]`, `t` int32 `[B]`.
  degrade: `D(x0, t, key) -> xt` for one image (`colddiff.degradations`).
  params: parameters of R.
  xT: images at severity `times[0]`, `[B, H, W, C]`.
  keys: `[B]` PRNG keys, one pattern of D for each image (`image_keys`).
  times: severities, integers decreasing from the severity of xT to 0 (`times_between`). Fewer times
    give fewer sampler steps.
  iterates_at: some of `times` (for `direct`, of the first and last). If given, the result is
    `(x0, iterates)`, with the iterates at those times, `[len(iterates_at), B, H, W, C]`.

Priors draw xT. Networks and metrics are in other modules.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.degradations import Degrade, blend_weights, split
from colddiff.runtime.errors import UserError

Restore = Callable[[object, jax.Array, jax.Array], jax.Array]
Times = Sequence[int] | np.ndarray | jax.Array
Result = jax.Array | tuple[jax.Array, jax.Array]
Sampler = Callable[..., Result]

_EPSILON = 2**31  # folded into an image's key, gives ε of ddim a key that no degradation draws from


def direct(
    restore: Restore,
    degrade: Degrade,
    params: object,
    xT: jax.Array,
    keys: jax.Array,
    times: Times,
    iterates_at: Times | None = None,
) -> Result:
    """Return `R(xT, T)`: one step from the first to the last of `times`."""
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
    """Run Algorithm 1: restore, then degrade again to the next severity."""
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
    """Run Algorithm 2 (transformation agnostic cold sampling): `x ← x - D(x̂, s) + D(x̂, s')`.

    To first order in the step its iterates do not depend on R at all (section 3.3).
    """
    D = _with_patterns(degrade, keys, xT.shape[1:])

    def step(x, s, s_next):
        x0_hat = _restore(restore, params, x, s)
        return x - D(x0_hat, s) + D(x0_hat, s_next)

    return _walk(step, xT, times, iterates_at)


def ddim(
    restore: Restore,
    degrade: Degrade,
    params: object,
    xT: jax.Array,
    keys: jax.Array,
    times: Times,
    iterates_at: Times | None = None,
    *,
    eta: float | jax.Array = 0.0,
) -> Result:
    """Run DDIM (appendices A.6, A.8): `x ← √ᾱ_s' x̂ + √(1 - ᾱ_s' - σ²) ẑ + σ ε`.

    The estimated noise is ẑ = (x - √ᾱ_s x̂) / √(1 - ᾱ_s), and ε ~ N(0, I) is drawn from `keys`.

    Args:
      restore: R.
      degrade: D, a blend `√ᾱ_t x0 + √(1 - ᾱ_t) z`.
      params: parameters of R.
      xT: images at severity `times[0]`, `[B, H, W, C]`.
      keys: `[B]` PRNG keys of ε.
      times: severities, decreasing to 0.
      iterates_at: some of `times`, at which iterates are returned too.
      eta: η in 0..1, the ratio of σ to DDPM's: σ² = η² (1 - ᾱ_s') / (1 - ᾱ_s) (1 - ᾱ_s / ᾱ_s').
        η = 0 is DDIM: it is deterministic, and equals Algorithm 2 with ẑ as the pattern.

    Raises:
      UserError: `degrade` is not a blend.
    """
    weights = blend_weights(degrade)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _EPSILON)

    def step(x, s, s_next):
        a, b = weights[s]  # √ᾱ_s, √(1 - ᾱ_s)
        a_next, b_next = weights[s_next]
        x0_hat = _restore(restore, params, x, s)
        z_hat = (x - a * x0_hat) / b
        sigma = eta * b_next / b * jnp.sqrt(1 - (a / a_next) ** 2)
        epsilon = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, s), x.shape[1:]))
        rest = jnp.sqrt(jnp.maximum(b_next**2 - sigma**2, 0))  # rounding may take it below 0
        return a_next * x0_hat + rest * z_hat + sigma * epsilon(keys)

    return _walk(step, xT, times, iterates_at)


def ddpm(
    restore: Restore,
    degrade: Degrade,
    params: object,
    xT: jax.Array,
    keys: jax.Array,
    times: Times,
    iterates_at: Times | None = None,
) -> Result:
    """Run `ddim` with η = 1 (appendix A.8): σ² is the posterior variance β̃ of Ho et al. 2020."""
    return ddim(restore, degrade, params, xT, keys, times, iterates_at, eta=1.0)


SAMPLERS: dict[str, Sampler] = {
    "direct": direct,
    "naive": naive,
    "tacos": tacos,
    "ddim": ddim,
    "ddpm": ddpm,
}


def image_keys(key: jax.Array, first: jax.Array | int, count: int) -> jax.Array:
    """Return keys `[count]`, `fold_in(key, number)` for image numbers `first`, `first + 1`, ...

    An image therefore depends on its number alone, never on its batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def times_between(T: int, steps: int) -> np.ndarray:
    """Return `steps + 1` times decreasing from T to 0, as evenly as integers allow; int32.

    Raises:
      UserError: `steps` is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise UserError(f"steps={steps} must lie in 1..T={T}")
    return np.round(np.linspace(T, 0, steps + 1)).astype(np.int32)


def marks_of(sampler: Sampler, times: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the times, evenly spread; for `direct` the first and the last."""
    if getattr(sampler, "func", sampler) is direct:
        times = times[[0, -1]]
    return times[np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))]


def check_times(times: Times, iterates_at: Times | None = None) -> None:
    """Refuse times that do not decrease to 0, and `iterates_at` that are not among them.

    Raises:
      UserError: `times` or `iterates_at` are invalid.
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
    """Run `x ← step(x, s, s')` over consecutive `times`; store x at the times `iterates_at`."""
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
    """Return `x0_hat` for a batch whose images all have severity s."""
    return restore(params, x, jnp.full(x.shape[:1], s))


def _with_patterns(
    degrade: Degrade, keys: jax.Array, shape: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return `D(x0, s)` for a batch at one severity. Each image's pattern is drawn here, once."""
    draw, apply = split(degrade)
    patterns = jax.vmap(lambda key: draw(key, shape))(keys)
    return lambda x0, s: jax.vmap(apply, (0, None, 0))(x0, s, patterns)
