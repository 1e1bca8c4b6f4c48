"""Blends with another image: `xt = √ᾱ_t x0 + √(1 - ᾱ_t) z`.

z is Gaussian noise (hot diffusion; paper, section 5.1) or an image of another data set
(animorphosis; section 5.3). This module draws z from a key. Callers load the other data set.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.patterns import checks_input, from_pattern, split
from colddiff.degradations.schedules import cosine_alpha_bar
from colddiff.images import to_model_range
from colddiff.runtime.errors import UserError, unknown_name

_ALPHA_BARS = {"cosine": cosine_alpha_bar}


@checks_input
def gaussian_noise(*, num_steps: int, schedule: str = "cosine") -> Partial:
    """Return `D(x0, t, key)`, which blends x0 with noise z ~ N(0, I) drawn from the key.

    xt can lie outside [-1, 1].

    Args:
      num_steps: T.
      schedule: schedule of ᾱ: 'cosine' (`schedules.cosine_alpha_bar`).

    Raises:
      UserError: a setting is invalid.
    """
    return from_pattern(jax.random.normal, Partial(_blend, _weights(num_steps, schedule)))


@checks_input
def animorph(
    *, num_steps: int, bank: jax.Array, schedule: str = "cosine", bank_size: int | None = None
) -> Partial:
    """Return `D(x0, t, key)`, which blends x0 with an image that the key picks.

    xt lies in [-√2, √2]: the weights' squares sum to 1, as for noise, so the weights sum to at most
    √2. Where x0 and z are both dark or both bright, the blend may be darker or brighter than both.

    Args:
      num_steps: T.
      bank: the images `[N, H, W, C]`, uint8 or float32 on [-1, 1], with the size and channels of
        x0. They are replicated, or split over devices along N.
      schedule: as for `gaussian_noise`.
      bank_size: number of images to pick from, the first of the bank (None: all). The others are
        padding that makes N a multiple of the number of devices.

    Raises:
      UserError: a setting is invalid, or, when called, x0 has another shape.
    """
    if getattr(bank, "ndim", 0) != 4 or bank.dtype not in (np.uint8, np.float32):
        found = getattr(bank, "shape", type(bank)), getattr(bank, "dtype", None)
        raise UserError(f"bank must be uint8 images [N, H, W, C], or float32 ones; got {found}")
    count = len(bank) if bank_size is None else bank_size
    if not 1 <= count <= len(bank):
        raise UserError(
            f"bank_size={count} must lie in 1..{len(bank)}, the number of images in the bank"
        )
    pick = Partial(_pick, jnp.asarray(bank), jnp.int32(count))
    return from_pattern(pick, Partial(_blend, _weights(num_steps, schedule)))


def is_blend(degrade: Callable[..., jax.Array]) -> bool:
    """Return whether `degrade` blends x0 with another image: `gaussian_noise` or `animorph`."""
    return split(degrade)[1].func is _blend


def blend_weights(degrade: Callable[..., jax.Array]) -> jax.Array:
    """Return `(√ᾱ_t, √(1 - ᾱ_t))` of a blend for t = 0..T; `[T + 1, 2]`.

    Raises:
      UserError: `degrade` is not a blend.
    """
    if not is_blend(degrade):
        raise UserError(
            "ddim and ddpm take only blends, with noise or an image (gaussian_noise, animorph); "
            "for this degradation use tacos"
        )
    return split(degrade)[1].args[0]


def _pick(
    bank: jax.Array, count: jax.Array, key: jax.Array, shape: tuple[int, int, int]
) -> jax.Array:
    """Return one of the first `count` images of the bank, in [-1, 1]."""
    if bank.shape[1:] != shape:
        raise UserError(
            f"the bank's images have shape {bank.shape[1:]}, but x0 has shape {shape}; load the "
            "bank with x0's size and channels"
        )
    return to_model_range(bank[jax.random.randint(key, (), 0, count)])


def _blend(weights: jax.Array, x0: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
    """Return `√ᾱ_t x0 + √(1 - ᾱ_t) z`; exactly x0 at t = 0, where the weights are 1 and 0."""
    return weights[t, 0] * x0 + weights[t, 1] * z


def _weights(num_steps: int, schedule: str) -> jax.Array:
    """Return `(√ᾱ_t, √(1 - ᾱ_t))` for t = 0..T; `[T + 1, 2]`."""
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be 1 or more")
    if not isinstance(schedule, str) or schedule not in _ALPHA_BARS:
        raise unknown_name("schedule", schedule, _ALPHA_BARS)
    alpha_bar = np.asarray(_ALPHA_BARS[schedule](num_steps))
    return jnp.asarray(np.sqrt(np.stack([alpha_bar, 1 - alpha_bar], axis=1)), jnp.float32)
