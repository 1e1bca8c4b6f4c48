"""Samplers, which compute x0 from xT with a restorer R and a degradation D.

A sampler is a rule for one step, and `walk` applies it from severity to severity:

    tacos(R, D, x, s, s_next) -> x at severity s_next
    walk(tacos, R, D, xT, times) -> x0

  R: `R(x, s) -> x0_hat` for a batch of images at severity s (`bind_params`).
  D: `D(x0, s) -> x` for a batch, with each image's pattern drawn already (`draw_patterns`).
  x: images at severity s, `[B, H, W, C]`; s and s_next are int32, s_next < s: scalars, or `[B]` if
    each image has its own times.

A rule may remember something from one step to the next (`remembers`). Then it takes its memory as
a further argument, and returns (x, memory).

`direct`, `naive`, `tacos` and its variants take any degradation; `ddim` and `ddpm` take only blends
with noise or another image. For a random degradation, tacos uses D's own pattern (for noise, the
paper's "fixed noise"); ddim estimates it from x at every step ("estimated noise").

Priors draw xT. Networks and metrics are in other modules.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.degradations import Degrade, blend_weights, split
from colddiff.runtime.errors import UserError

Restore = Callable[[object, jax.Array, jax.Array], jax.Array]
BoundRestore = Callable[[jax.Array, jax.Array], jax.Array]
Times = Sequence[int] | np.ndarray | jax.Array
Result = jax.Array | tuple[jax.Array, jax.Array]
Sampler = Callable[..., jax.Array]

_EPSILON = 2**31  # folded into an image's key for ε of ddim; no degradation draws from the result


class BatchDegrade(NamedTuple):
    """The degradation of a batch, `D(x0, s)`, with known patterns.

    Attributes:
      degrade: `D(x0, t, key) -> xt` for one image (`colddiff.degradations`).
      patterns: each image's pattern, drawn from its key.
      keys: `[B]` PRNG keys.
    """

    degrade: Degrade
    patterns: Any
    keys: jax.Array

    def __call__(self, x0: jax.Array, s: jax.Array) -> jax.Array:
        """Return `[B, H, W, C]` images x0 at severity s, one for all or `[B]`."""
        _, apply = split(self.degrade)
        return jax.vmap(apply, (0, 0 if jnp.ndim(s) else None, 0))(x0, s, self.patterns)


def direct(
    R: BoundRestore, D: BatchDegrade, x: jax.Array, s: jax.Array, s_next: jax.Array
) -> jax.Array:
    """Return `R(xT, T)`: Algorithm 1 in one step, because `walk` takes `direct` from T to 0."""
    return naive(R, D, x, s, s_next)


def naive(
    R: BoundRestore, D: BatchDegrade, x: jax.Array, s: jax.Array, s_next: jax.Array
) -> jax.Array:
    """Take a step of Algorithm 1: restore, then degrade again to the next severity."""
    return D(R(x, s), s_next)


def tacos(
    R: BoundRestore, D: BatchDegrade, x: jax.Array, s: jax.Array, s_next: jax.Array
) -> jax.Array:
    """Take a step of Algorithm 2 (transformation agnostic cold sampling).

    To first order in the step, the iterates do not depend on R (section 3.3).
    """
    x0_hat = R(x, s)
    return x - D(x0_hat, s) + D(x0_hat, s_next)


def ddim(
    R: BoundRestore,
    D: BatchDegrade,
    x: jax.Array,
    s: jax.Array,
    s_next: jax.Array,
    *,
    eta: float | jax.Array = 0.0,
) -> jax.Array:
    """Take a step of DDIM (appendices A.6, A.8): `√ᾱ_s' x̂ + √(1 - ᾱ_s' - σ²) ẑ + σ ε`.

    The estimated noise is ẑ = (x - √ᾱ_s x̂) / √(1 - ᾱ_s), and ε ~ N(0, I) is drawn from `D.keys`.

    `eta` is η in 0..1, the ratio of σ to DDPM's: σ² = η² (1 - ᾱ_s') / (1 - ᾱ_s) (1 - ᾱ_s / ᾱ_s').
    η = 0 is DDIM: it is deterministic, and equals Algorithm 2 with ẑ as the pattern.

    Raises:
      UserError: D is not a blend.
    """
    a, b = _weights_at(D, s)  # √ᾱ_s, √(1 - ᾱ_s)
    a_next, b_next = _weights_at(D, s_next)
    x0_hat = R(x, s)
    z_hat = (x - a * x0_hat) / b
    sigma = eta * b_next / b * jnp.sqrt(1 - (a / a_next) ** 2)
    rest = jnp.sqrt(jnp.maximum(b_next**2 - sigma**2, 0))  # rounding may make it negative
    return a_next * x0_hat + rest * z_hat + sigma * _epsilon(D.keys, s, x.shape[1:])


def ddpm(
    R: BoundRestore, D: BatchDegrade, x: jax.Array, s: jax.Array, s_next: jax.Array
) -> jax.Array:
    """Take a step of `ddim` with η = 1 (A.8): σ² is the posterior variance β̃ of Ho et al. 2020."""
    return ddim(R, D, x, s, s_next, eta=1.0)


def tacos_x0(
    R: BoundRestore, D: BatchDegrade, x: jax.Array, s: jax.Array, s_next: jax.Array
) -> jax.Array:
    """Take a step of Algorithm 2; but the last step returns R(x, s), as Algorithm 1 does."""
    x0_hat = R(x, s)
    moved = x - D(x0_hat, s) + D(x0_hat, s_next)
    return jnp.where(_per_image(s_next == 0), x0_hat, moved)


class Memory(NamedTuple):
    """What `second_order` and `momentum` remember of the last step.

    Attributes:
      x0_hat: its estimate of x0, `[B, H, W, C]`.
      h: its size, int32, like s: s - s_next; 0 before the first step.
    """

    x0_hat: jax.Array
    h: jax.Array


def remembers(init: Callable[[jax.Array, jax.Array], Any]) -> Callable[[Sampler], Sampler]:
    """Return a decorator for a rule whose memory begins as `init(xT, s)`, a pytree."""

    def decorate(rule: Sampler) -> Sampler:
        rule.init = init
        return rule

    return decorate


def _nothing(x: jax.Array, s: jax.Array) -> Memory:
    return Memory(jnp.zeros_like(x), jnp.zeros_like(s))


@remembers(_nothing)
def second_order(
    R: BoundRestore,
    D: BatchDegrade,
    x: jax.Array,
    s: jax.Array,
    s_next: jax.Array,
    last: Memory,
) -> tuple[jax.Array, Memory]:
    """Take a step of Algorithm 2 with x̂ extrapolated to the middle of the step.

    It uses `x̂ + ½ (h / h') (x̂ - x̂')`, where x̂' is the estimate of the last step, whose size is h'.
    The first step uses x̂. Multistep solvers of diffusion models are alike (Lu et al. 2022).
    """
    x0_hat, h = R(x, s), s - s_next
    ratio = h.astype(x.dtype) / jnp.maximum(last.h, 1).astype(x.dtype)
    share = jnp.where(last.h > 0, 0.5 * ratio, 0.0)
    ahead = x0_hat + _per_image(share) * (x0_hat - last.x0_hat)
    return x - D(ahead, s) + D(ahead, s_next), Memory(x0_hat, h)


@remembers(_nothing)
def momentum(
    R: BoundRestore,
    D: BatchDegrade,
    x: jax.Array,
    s: jax.Array,
    s_next: jax.Array,
    last: Memory,
    *,
    beta: float | jax.Array = 0.5,
) -> tuple[jax.Array, Memory]:
    """Take a step of Algorithm 2 with the moving average `β m + (1 - β) x̂` of the estimates."""
    x0_hat, h = R(x, s), s - s_next
    average = beta * last.x0_hat + (1 - beta) * x0_hat
    average = jnp.where(_per_image(last.h > 0), average, x0_hat)
    return x - D(average, s) + D(average, s_next), Memory(average, h)


SAMPLERS: dict[str, Sampler] = {
    "direct": direct,
    "naive": naive,
    "tacos": tacos,
    "tacos_x0": tacos_x0,
    "second_order": second_order,
    "momentum": momentum,
    "ddim": ddim,
    "ddpm": ddpm,
}


def walk(
    sampler: Sampler,
    R: BoundRestore,
    D: BatchDegrade,
    xT: jax.Array,
    times: Times,
    iterates_at: Times | None = None,
    count: jax.Array | None = None,
) -> Result:
    """Return x0: apply the sampler's rule from each of `times` to the next.

    Args:
      sampler: one of `SAMPLERS`, or a function with the same arguments.
      R: the restorer of the batch.
      D: the degradation of the batch.
      xT: images at severity `times[0]`, `[B, H, W, C]`.
      times: severities, integers decreasing from the severity of xT to 0 (`times_between`). Fewer
        times give fewer steps. `direct` visits the first and the last only. `[N]` for all images,
        or `[N, B]` with a column for each image (`times_of_each`).
      iterates_at: some of the visited times, which all images must share. If given, the result is
        `(x0, iterates)`, with the iterates at those times, `[len(iterates_at), B, H, W, C]`.
      count: the number of steps to take, which may be traced, so that one program serves every
        number of steps; `len(times) - 1` if None.

    Raises:
      UserError: `times` or `iterates_at` are invalid. Traced ones are not checked.
    """
    if not any(isinstance(a, jax.core.Tracer) for a in (times, iterates_at)):
        times = np.asarray(times)
        check_times(visited(sampler, times), iterates_at)
    times = visited(sampler, jnp.asarray(times, jnp.int32))
    noted_at = jnp.asarray(() if iterates_at is None else iterates_at, jnp.int32)

    init = init_of(sampler)

    def step(x, s, s_next, memory):
        if init is None:
            moved = sampler(R, D, x, s, s_next)
        else:
            moved, memory = sampler(R, D, x, s, s_next, memory)
        # An image that has reached 0 waits for the others.
        return jnp.where(_per_image(s > s_next), moved, x) if s.ndim else moved, memory

    def note(x, s, iterates):
        return jax.vmap(lambda at, old: jnp.where(_per_image(at == s), x, old))(noted_at, iterates)

    def body(i, carry):
        x, memory, iterates = carry
        x, memory = step(x, times[i], times[i + 1], memory)
        return x, memory, note(x, times[i + 1], iterates)

    nothing = jnp.full((len(noted_at), *xT.shape), jnp.nan, xT.dtype)
    memory = None if init is None else init(xT, times[0])
    start = (xT, memory, note(xT, times[0], nothing))
    most = len(times) - 1
    count = most if count is None else jnp.minimum(count, most)
    x0, _, iterates = jax.lax.fori_loop(0, count, body, start)
    return x0 if iterates_at is None else (x0, iterates)


def rule_of(sampler: Sampler) -> Sampler:
    """Return the function of a sampler that may be a Partial of it, with its own arguments."""
    while hasattr(sampler, "func"):
        sampler = sampler.func
    return sampler


def init_of(sampler: Sampler) -> Callable[[jax.Array, jax.Array], Any] | None:
    """Return the `init` of a rule that `remembers`; None for others."""
    return getattr(rule_of(sampler), "init", None)


def bind_params(restore: Restore, params: Any) -> BoundRestore:
    """Return `R(x, s)`, which restores a batch at severity s, one for all images or `[B]`."""
    return lambda x, s: restore(params, x, jnp.full(x.shape[:1], s))


def draw_patterns(degrade: Degrade, keys: jax.Array, shape: tuple[int, int, int]) -> BatchDegrade:
    """Return `D(x0, s)` for a batch of images of `shape`; each pattern is drawn here, once."""
    draw, _ = split(degrade)
    return BatchDegrade(degrade, jax.vmap(lambda key: draw(key, shape))(keys), keys)


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


def times_by_change(change: np.ndarray, steps: int) -> np.ndarray:
    """Return `steps + 1` times decreasing from T to 0 between which D changes equally much; int32.

    The change between two times is the sum of `change` over the severities above the second up to
    the first. Times are as equal in change as integers that all differ allow.

    Args:
      change: how much D changes from t - 1 to t, `[T + 1]`, not negative; `change[0]` is not used.
      steps: number of steps.

    Raises:
      UserError: `steps` is not in 1..T.
    """
    T = len(change) - 1
    times_between(T, steps)  # refuses a wrong number
    # Where D does not change, a little keeps the sums increasing.
    sums = np.cumsum(np.maximum(change, 1e-9 * np.max(change) + 1e-30)[1:])
    reached = np.concatenate([[0.0], sums]) / sums[-1]
    times = np.interp(np.linspace(0, 1, steps + 1), reached, np.arange(T + 1)).round().astype(int)
    times = np.maximum.accumulate(times - np.arange(steps + 1)) + np.arange(steps + 1)
    times = np.minimum(times, T - np.arange(steps, -1, -1))  # room for the later ones
    return times[::-1].astype(np.int32)


def times_of_each(t: np.ndarray, steps: int) -> np.ndarray:
    """Return times from each of the severities t `[B]` to 0, int32 `[N + 1, B]`.

    Column i is `times_between(t[i], steps)`, or every severity of t[i]..0 if there are fewer. The
    columns end with as many zeros as makes them equally long: N is the larger of 1 and the largest
    number of steps.
    """
    columns = [
        times_between(each, min(steps, each)) if each else np.zeros(1) for each in t.tolist()
    ]
    longest = max(2, *map(len, columns))
    return np.stack([np.pad(c, (0, longest - len(c))) for c in columns], 1).astype(np.int32)


def visited(sampler: Sampler, times: Any) -> Any:
    """Return the members of the array `times` that the sampler visits; `direct` visits two."""
    return times[np.array([0, -1])] if rule_of(sampler) is direct else times


def marks_of(sampler: Sampler, times: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the times that the sampler visits, evenly spread."""
    times = visited(sampler, times)
    return times[np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))]


def check_times(times: Times, iterates_at: Times | None = None) -> None:
    """Refuse times that do not decrease to 0, and `iterates_at` that are not among them.

    Args:
      times: `[N]`, or `[N, B]`, where each column decreases until it is 0 and then stays 0.
      iterates_at: some of the times, only for times `[N]`; or None.

    Raises:
      UserError: `times` or `iterates_at` are invalid.
    """
    steps = np.asarray(times)
    integers = steps.ndim in (1, 2) and np.issubdtype(steps.dtype, np.integer)
    if not integers or len(steps) < 2 or np.any(steps[-1] != 0) or not _decrease(steps):
        raise UserError(f"times must be two or more integers decreasing to 0; got {times}")
    if iterates_at is not None and (steps.ndim > 1 or not np.isin(iterates_at, steps).all()):
        raise UserError(f"iterates_at={iterates_at} must be some of the times {times}")


def _decrease(times: np.ndarray) -> bool:
    """Return whether times `[N]` decrease, and whether columns of `[N, B]` do until they are 0."""
    falls = np.diff(times, axis=0) < 0
    return bool(np.all(falls if times.ndim == 1 else falls | (times[:-1] == 0) & (times[1:] == 0)))


def _per_image(values: jax.Array) -> jax.Array:
    """Return one value for each image, `[B]`, as `[B, 1, 1, 1]`; a scalar is returned unchanged."""
    return values.reshape(-1, 1, 1, 1) if values.ndim else values


def _weights_at(D: BatchDegrade, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `(√ᾱ_s, √(1 - ᾱ_s))` of a blend, to multiply images `[B, H, W, C]` with."""
    a, b = jnp.moveaxis(blend_weights(D.degrade)[s], -1, 0)
    return _per_image(a), _per_image(b)


def _epsilon(keys: jax.Array, s: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Return ε ~ N(0, I) of the step from s, independent of every pattern; `[B, H, W, C]`."""

    def draw(key, s):
        own = jax.random.fold_in(jax.random.fold_in(key, _EPSILON), s)
        return jax.random.normal(own, shape)

    return jax.vmap(draw)(keys, jnp.broadcast_to(s, keys.shape))
