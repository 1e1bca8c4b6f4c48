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
from colddiff.experiment.user_code import Own, raised_at
from colddiff.images import LARGEST, height_width
from colddiff.runtime.devices import to_host
from colddiff.runtime.errors import UserError, first_line, unknown_name
from colddiff.sampling.priors import block_means
from colddiff.sampling.samplers import Sampler, ddim, ddpm, momentum, rule_of

_MOST_LEFT = 0.1  # largest share of an image's contrast left at T, for the prior 'pattern'
_FARTHEST = 0.1  # largest distance of D(x0, T) from the block means before a warning
_SEVERITIES = 16  # at which a user's own degradation is computed, besides 1 and T - 1
_SAME = 0.01  # largest difference of two loads of a degradation: on a GPU, two programs may round
_LARGE = 2.0  # root mean square of xt before a warning; with unit noise on an image it is √2
_RANGES = {  # smallest and largest valid values of the config's numbers
    "seed": (0, 2**32 - 1),
    "data.image_size": (1, math.inf),
    "data.channels": (1, math.inf),
    "data.crop_margin": (0, math.inf),
    "data.pad": (0, math.inf),
    "data.threads": (1, math.inf),
    "degradation.num_steps": (1, math.inf),
    "model.width": (1, math.inf),
    "model.num_blocks": (1, math.inf),
    "model.patch": (1, math.inf),
    "model.dropout": (0, 1),
    "train.num_steps": (1, math.inf),
    "train.batch_size": (1, math.inf),
    "train.accumulation": (1, math.inf),
    "train.learning_rate": (0, math.inf),
    "train.warmup_steps": (0, math.inf),
    "train.clip_norm": (0, math.inf),
    "train.weight_decay": (0, math.inf),
    "train.unfold.weight": (0, math.inf),
    "train.degraded_loss": (0, math.inf),
    "train.ema_decay": (0, 1),
    "train.ema_every": (1, math.inf),
    "train.ema_start": (0, math.inf),
    "train.log_every": (1, math.inf),
    "train.sample_every": (0, math.inf),
    "train.checkpoint_every": (1, math.inf),
    "train.checkpoints_kept": (1, math.inf),
    "train.scored": (0, math.inf),
    "sampler.steps": (0, math.inf),
    "sampler.consistency": (0, math.inf),
    "sampler.noise_std": (1e-6, math.inf),
    "severity.num_steps": (0, math.inf),
    "severity.batch_size": (1, math.inf),
    "severity.learning_rate": (0, math.inf),
    "severity.width": (1, math.inf),
    "eval.batch_size": (1, math.inf),
    "eval.chunk": (1, math.inf),
    "eval.num_images": (0, math.inf),
    "eval.bootstrap": (0, math.inf),
    "eval.pictures": (1, math.inf),
}

_ADDED = ("sampler.consistency", "sampler.noise_std")  # configs of earlier versions lack them


def named(table: Mapping[str, Any], what: str, name: str) -> Any:
    """Return `table[name]`, or raise an error that lists the valid names."""
    if not isinstance(name, str) or name not in table:
        raise unknown_name(what, name, table)
    return table[name]


def check_numbers(config: ConfigDict) -> None:
    """Refuse numbers that are missing or out of range; the error names the field."""
    for path, (low, high) in _RANGES.items():
        section, _, field = path.rpartition(".")
        fields = config
        for name in filter(None, section.split(".")):
            fields = fields.get(name, ConfigDict())
        if field not in fields:
            if section == "model" or path in _ADDED:
                continue  # a field of other models
            raise UserError(f"the config has no {path}; start it from configs/default.py")
        value = fields[field]
        if path == "data.image_size":
            height_width(value)  # refuses what is neither an integer nor a pair
        elif not low <= value <= high:
            expected = f"{low} or more" if high == math.inf else f"in {low}..{high}"
            raise UserError(f"config.{path}={value} must be {expected}")
    decays = config.train.ema_decays
    distinct = len({f"{decay:g}" for decay in (config.train.ema_decay, *decays)}) > len(decays)
    if not distinct or not all(0 <= decay <= 1 for decay in decays):
        raise UserError(
            f"config.train.ema_decays={decays} must be different numbers in 0..1, other than "
            f"train.ema_decay={config.train.ema_decay}"
        )
    for section in ("prior", "paper"):
        if section not in config:
            raise UserError(f"the config has no {section}; start it from configs/default.py")
    if config.data.crop not in ("random", "center"):
        raise unknown_name("data.crop", config.data.crop, ("random", "center"))
    traced = config.train.profile_steps
    if traced and (len(traced) != 2 or not 1 <= traced[0] <= traced[1]):
        raise UserError(
            f"config.train.profile_steps={traced} must be (first, last), with 1 <= first <= last, "
            "or () for none"
        )
    spacing = config.sampler.get("spacing", "even")
    if spacing not in ("even", "change"):
        raise unknown_name("sampler.spacing", spacing, ("even", "change"))


def check_sampler(sampler: Sampler, degrade: Degrade) -> None:
    """Refuse a sampler that does not fit the degradation, or whose η or β is invalid.

    Raises:
      UserError: the sampler is `ddim` or `ddpm`, and `degrade` is no blend; or η is not in 0..1, or
        β is not in 0..1.
    """
    rule, settings = rule_of(sampler), getattr(sampler, "keywords", {})
    if rule in (ddim, ddpm):
        blend_weights(degrade)
    for name, value in settings.items():
        if rule in (ddim, momentum) and not (
            isinstance(value, Real | jax.Array) and 0 <= value <= 1
        ):
            raise UserError(f"{name}={value!r} of {rule.__name__} must be a number in 0..1")


def check_differentiable(name: str, degrade: Degrade, shape: tuple[int, int, int]) -> None:
    """Refuse a degradation that JAX cannot differentiate in x0, as data consistency does.

    Args:
      name: the degradation's name in the config.
      degrade: `D(x0, t, key) -> xt` for one image.
      shape: (H, W, C).

    Raises:
      UserError: the message gives JAX's reason.
    """
    total = lambda x0: jnp.sum(degrade(x0, jnp.int32(1), jax.random.key(0)))  # noqa: E731
    try:
        jax.eval_shape(jax.grad(total), jnp.zeros(shape))
    except Exception as error:  # JAX raises many types
        raise UserError(
            f"data consistency needs a degradation that JAX can differentiate; {name} fails: "
            f"{type(error).__name__}: {first_line(error)}. Write it with jax.numpy, or use "
            "consistency=0"
        ) from error


def check_degradation(name: str, degrade: Degrade, shape: tuple[int, int, int]) -> None:
    """Refuse a degradation that fails, or does not return a float32 image of x0's shape.

    Args:
      name: the degradation's name in the config.
      degrade: `D(x0, t, key) -> xt` for one image.
      shape: (H, W, C).

    Raises:
      UserError: the message says what the degradation does instead.
    """
    try:
        xt = _traced(degrade, shape)
    except UserError:
        raise
    except Exception as error:  # JAX and NumPy raise many types
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the degradation {name} fails on one image {shape}: {reason}") from error
    if wrong := _wrong_image(xt, shape):
        raise UserError(f"the degradation {name} {wrong}")


def check_own_degradation(own: Own, again: Own, T: int, shape: tuple[int, int, int]) -> None:
    """Refuse a user's own degradation that breaks the contract; errors name the file and the line.

    D is traced as training traces it, and then computed as in `check_values`. Refused are:

    - errors, and a result that is not a float32 image of x0's shape;
    - what `check_values` refuses;
    - an image at t = 0 that is not x0, to the bit;
    - two loads of FILE.py that give different images.

    If D is the same at T - 1 and T, this is only a warning.

    Args:
      own: the degradation.
      again: the same, loaded a second time.
      T: the largest severity.
      shape: (H, W, C).

    Raises:
      UserError: the message says what is wrong, where, and what to write instead.
    """
    try:
        xt = _traced(own.degrade, shape)
    except UserError:
        raise
    except Exception as error:  # the user's code can raise any type
        raise own.failed(error, shape) from error
    place = own.defined_at()
    if wrong := _wrong_image(xt, shape):
        raise UserError(f"the degradation {own.function} {wrong}. It is at {place}")
    x0, times, xts = check_values(own, T, shape)
    if not np.array_equal(xts[0], x0):
        raise UserError(
            f"the degradation {own.function} must return x0 unchanged, to the bit, at t = 0; it "
            f"differs by up to {np.abs(xts[0] - x0).max():.2g}. At {place}: make its parameters "
            "such that t = 0 changes nothing, or return jnp.where(t == 0, x0, xt)"
        )
    difference = np.abs(_degraded(again.degrade, x0, times) - xts).max()
    if not difference <= _SAME:
        raise UserError(
            f"the degradation {own.function} changes when it is loaded again, by up to "
            f"{difference:.2g}. At {place}: draw from key with jax.random, not from np.random "
            "or random; a factory may draw tables from np.random.default_rng(0)"
        )
    if T > 1 and np.array_equal(xts[-2], xts[-1]):
        logging.warning(
            "the degradation %s is the same at t = %d and t = T = %d, at %s. Tables need T + 1 "
            "entries, for t = 0..T: beyond the end, JAX reads the last one",
            *(own.function, T - 1, T, place),
        )


def check_values(
    own: Own, T: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute D for one image at up to 18 severities; refuse NaN, infinity and huge values.

    The severities are 0, 1, T - 1, T, and others spread evenly between; one program computes all.
    The image is noise on [-1, 1], with a third of its pixels at the ends. Absolute values are
    refused above those that `check_images` accepts, so noise may leave [-1, 1]. A large root mean
    square is only a warning.

    Args:
      own: a user's own degradation, or a composition with one.
      T: the largest severity.
      shape: (H, W, C).

    Returns:
      x0 `[H, W, C]`, the N severities, from 0 to T, and the images xt `[N, H, W, C]`.

    Raises:
      UserError: the message names the value, t, and the place in the user's file.
    """
    x0 = np.random.default_rng(0).uniform(-1.5, 1.5, shape).clip(-1, 1).astype(np.float32)
    times = np.unique([0, 1, T - 1, T, *np.linspace(0, T, _SEVERITIES).round()]).astype(np.int32)
    try:
        xts = _degraded(own.degrade, x0, times)
    except Exception as error:  # such as that of a callback
        raise own.failed(error, shape) from error
    largest = np.abs(xts).max(axis=(1, 2, 3))
    for t, value in zip(times.tolist(), largest, strict=True):
        if not np.isfinite(value):
            place = _not_finite_at(own, x0, t) or own.defined_at()
            raise UserError(
                f"the degradation {own.function} gives NaN or infinity at t = {t}. At {place}: "
                "keep arguments of a division, root or logarithm away from 0 and below, as in "
                "x0 / jnp.maximum(t, 1)"
            )
        if value > LARGEST:
            raise UserError(
                f"the degradation {own.function} gives values up to {value:.3g} at t = {t}. At "
                f"{own.defined_at()}: return an image on [-1, 1], as x0 is, and not on [0, 255]; "
                f"noise may leave [-1, 1], up to {LARGEST:g}"
            )
    rms = np.sqrt(np.mean(np.square(xts), axis=(1, 2, 3)))
    if rms.max() > _LARGE:
        logging.warning(
            "the degradation %s leaves [-1, 1]: at t = %d the root mean square of xt is %.2g. Its "
            "place is %s; networks expect images around [-1, 1]",
            *(own.function, times[rms.argmax()], rms.max(), own.defined_at()),
        )
    return x0, times, xts


def _traced(degrade: Degrade, shape: tuple[int, int, int]) -> Any:
    """Return the shapes and dtypes of xt, traced as in training: of a batch, in `jit`."""

    def batch(degrade, x0, t, key):
        return jax.vmap(lambda *args: degrade(*args))(x0, t, key)

    x0, t, key = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32), jax.random.key(0)[None]
    xt = jax.eval_shape(batch, degrade, x0, t, key)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xt)


def _wrong_image(xt: Any, shape: tuple[int, int, int]) -> str:
    """Return what is wrong with the shape and dtype of xt, with a hint; '' if nothing is."""
    expected, found = f"float32 {shape}", f"{type(xt).__name__}: return xt alone"
    if xt is None:
        found = "None: end the function with `return xt`"
    elif isinstance(xt, jax.ShapeDtypeStruct):
        found = f"{xt.dtype} {xt.shape}"
    if found == expected:
        return ""
    if found.endswith(f" {shape}"):
        found += ": use xt.astype(jnp.float32)"
    elif isinstance(xt, jax.ShapeDtypeStruct):
        found += ": D takes one image without a batch axis, and keeps its size and channels"
    return f"must return {expected} for one image; it returns {found}"


def _degraded(degrade: Degrade, x0: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the images of one pattern at `times`, by a program that is traced anew."""

    def images(degrade, x0, times):
        return jax.vmap(degrade, (None, 0, None))(x0, times, jax.random.key(0))

    return to_host(jax.jit(images)(degrade, x0, times))


def _not_finite_at(own: Own, x0: np.ndarray, t: int) -> str:
    """Return the user's line that first gives NaN or infinity; '' if it is in no user's file."""
    try:
        with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
            own.degrade(jnp.asarray(x0), jnp.int32(t), jax.random.key(0))
    except FloatingPointError as error:
        return raised_at(own.name, error)
    except Exception:  # some functions need jit
        return ""
    return ""


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
    name: str,
    degrade: Degrade,
    T: int,
    shape: tuple[int, int, int],
    size: int | tuple[int, int],
) -> None:
    """Warn if D(x0, T) differs from the block means that the prior 'gaussian_mixture' draws.

    Args:
      name: the degradation's name in the config.
      degrade: `D(x0, t, key) -> xt` for one image.
      T: the largest severity.
      shape: (H, W, C).
      size: the number of blocks on each side, or (rows, columns) of them.
    """
    high, wide, channels = shape
    rows, columns = height_width(size)
    slope = np.add.outer(np.linspace(-0.5, 0.5, high), np.linspace(-0.5, 0.5, wide))
    x0 = np.repeat(slope[..., None], channels, axis=2).astype(np.float32)
    end = np.asarray(degrade(x0, jnp.int32(T), jax.random.key(0)))
    blocks = block_means(x0, size).repeat(high // rows, axis=0).repeat(wide // columns, axis=1)
    distance = np.abs(end - blocks).max()
    if not distance <= _FARTHEST:
        logging.warning(
            "config.prior draws %d × %d blocks, but %s at T=%d differs by up to %.2f from an "
            "image's block means; the restorer was not trained on such xT",
            *(rows, columns, name, T, distance),
        )
