"""Checks of a config's settings: ranges of numbers, and settings that must fit together.

Errors name the field. `build.py` builds the experiment from the settings.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from colddiff.degradations import Degrade, blend_weights
from colddiff.runtime.errors import UserError, first_line, unknown_name
from colddiff.sampling.priors import block_means
from colddiff.sampling.samplers import Sampler, ddim, ddpm

_MOST_LEFT = 0.1  # largest share of an image's contrast left at T, for the prior 'pattern'
_FARTHEST = 0.1  # largest distance of D(x0, T) from the block means before a warning
_RANGES = {  # smallest and largest valid values of the config's numbers
    "seed": (0, 2**32 - 1),
    "data.image_size": (1, math.inf),
    "data.crop_margin": (0, math.inf),
    "data.pad": (0, math.inf),
    "data.threads": (1, math.inf),
    "degradation.num_steps": (1, math.inf),
    "model.width": (1, math.inf),
    "model.num_blocks": (1, math.inf),
    "model.dropout": (0, 1),
    "train.num_steps": (1, math.inf),
    "train.batch_size": (1, math.inf),
    "train.accumulation": (1, math.inf),
    "train.learning_rate": (0, math.inf),
    "train.ema_decay": (0, 1),
    "train.ema_every": (1, math.inf),
    "train.ema_start": (0, math.inf),
    "train.log_every": (1, math.inf),
    "train.sample_every": (0, math.inf),
    "train.checkpoint_every": (1, math.inf),
    "train.checkpoints_kept": (1, math.inf),
    "train.scored": (0, math.inf),
    "sampler.steps": (0, math.inf),
    "eval.batch_size": (1, math.inf),
    "eval.chunk": (1, math.inf),
    "eval.num_images": (0, math.inf),
    "eval.pictures": (1, math.inf),
}


def named(table: Mapping[str, Any], what: str, name: str) -> Any:
    """Return `table[name]`, or raise an error that lists the valid names."""
    if not isinstance(name, str) or name not in table:
        raise unknown_name(what, name, table)
    return table[name]


def check_numbers(config: ConfigDict) -> None:
    """Refuse numbers that are missing or out of range; the error names the field."""
    for path, (low, high) in _RANGES.items():
        section, _, field = path.rpartition(".")
        fields = config.get(section, ConfigDict()) if section else config
        if field not in fields:
            if section == "model":
                continue  # a field of other models
            raise UserError(f"the config has no {path}; start it from configs/default.py")
        value = fields[field]
        if not low <= value <= high:
            expected = f"{low} or more" if high == math.inf else f"in {low}..{high}"
            raise UserError(f"config.{path}={value} must be {expected}")
    for section in ("prior", "paper"):
        if section not in config:
            raise UserError(f"the config has no {section}; start it from configs/default.py")
    if config.data.crop not in ("random", "center"):
        raise unknown_name("data.crop", config.data.crop, ("random", "center"))
    if config.data.channels not in (1, 3):
        raise UserError(f"config.data.channels={config.data.channels} must be 1 (gray) or 3 (RGB)")


def check_sampler(sampler: Sampler, degrade: Degrade) -> None:
    """Refuse a sampler that does not fit the degradation, or whose η is invalid.

    Raises:
      UserError: the sampler is `ddim` or `ddpm`, and `degrade` is no blend; or η is not in 0..1.
    """
    if getattr(sampler, "func", sampler) in (ddim, ddpm):
        blend_weights(degrade)
        eta = getattr(sampler, "keywords", {}).get("eta", 0.0)
        if not (isinstance(eta, Real | jax.Array) and 0 <= eta <= 1):
            raise UserError(f"eta={eta!r} of ddim must be a number in 0..1")


def check_degradation(name: str, degrade: Degrade, shape: tuple[int, int, int]) -> None:
    """Refuse a degradation that fails, or does not return a float32 image of x0's shape.

    A user's own degradation must also return x0, to the bit, at t = 0.

    Args:
      name: the degradation's name in the config.
      degrade: `D(x0, t, key) -> xt` for one image.
      shape: (H, W, C).

    Raises:
      UserError: the message says what the degradation does instead.
    """
    key = jax.random.key(0)
    x0 = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    try:
        xt = jax.eval_shape(degrade, x0, jnp.int32(1), key)
    except UserError:
        raise
    except Exception as error:  # the user's code can raise any type
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the degradation {name} fails on one image {shape}: {reason}") from error
    found = getattr(xt, "shape", None), str(getattr(xt, "dtype", type(xt).__name__))
    if found != (shape, "float32"):
        expected = (shape, "float32")
        raise UserError(
            f"the degradation {name} returns {found} for one image; expected {expected}"
        )
    if ":" in name and not np.array_equal(degrade(x0, jnp.int32(0), key), x0):
        raise UserError(f"the degradation {name} must return x0 unchanged, to the bit, at t = 0")


def check_nothing_is_left(name: str, degrade: Degrade, T: int, shape: tuple[int, int, int]) -> None:
    """Refuse the prior 'pattern' if D(x0, T) still shows the image.

    Raises:
      UserError: the message says how much of the image is left.
    """
    at_T = jax.jit(lambda degrade, x0: degrade(x0, jnp.int32(T), jax.random.key(0)))
    shown = [at_T(degrade, jnp.full(shape, tone)) for tone in (-1.0, 1.0)]
    left = float(jnp.max(jnp.abs(shown[1] - shown[0]))) / 2
    if left > _MOST_LEFT:
        raise UserError(
            "config.prior.name='pattern' needs a degradation that leaves nothing of an image at T; "
            f"{name} leaves {left:.0%} of the contrast. Use config.prior.name='gaussian_mixture'"
        )


def warn_of_other_ends(
    name: str, degrade: Degrade, T: int, shape: tuple[int, int, int], size: int
) -> None:
    """Warn if D(x0, T) differs from the block means that the prior 'gaussian_mixture' draws.

    Args:
      name: the degradation's name in the config.
      degrade: `D(x0, t, key) -> xt` for one image.
      T: the largest severity.
      shape: (H, W, C).
      size: the number of blocks on each side.
    """
    high, wide, channels = shape
    slope = np.add.outer(np.linspace(-0.5, 0.5, high), np.linspace(-0.5, 0.5, wide))
    x0 = np.repeat(slope[..., None], channels, axis=2).astype(np.float32)
    end = np.asarray(degrade(x0, jnp.int32(T), jax.random.key(0)))
    blocks = block_means(x0, size).repeat(high // size, axis=0).repeat(wide // size, axis=1)
    distance = np.abs(end - blocks).max()
    if not distance <= _FARTHEST:
        logging.warning(
            "config.prior draws %d × %d blocks, but %s at T=%d differs by up to %.2f from an "
            "image's block means; the restorer was not trained on such xT",
            *(size, size, name, T, distance),
        )
