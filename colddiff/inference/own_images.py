"""Restoration of a user's own images: `run.restore_images(images, t)`.

This module checks and converts what a user gives: images, severities, masks, the sampler.
`sizes.py` computes, and `restore.py` handles files.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image

from colddiff.data.decoding import decode
from colddiff.data.sources import BLACK
from colddiff.degradations import as_key
from colddiff.degradations.known_mask import KnownMask, hole, known_mask
from colddiff.experiment.build import CONSISTENT
from colddiff.images import check_images, to_uint8
from colddiff.inference.run import Restoration, Run
from colddiff.inference.sizes import Batch, Method, check_tile, restore
from colddiff.runtime.devices import to_host
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import SAMPLERS, Sampler, rule_of

_HOLES = 16  # random holes whose mean size is compared with that of a mask
# Samplers that degrade estimates again.
_NEED_PATTERN = sorted(SAMPLERS.keys() - {"direct", "ddim", "ddpm"})
_SAME = 1e-6  # largest difference of two patterns' images if D draws no pattern


def restore_images(
    run: Run,
    images: Any,
    t: Any = None,
    *,
    mask: Any = None,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    tile: int | None = None,
    key: jax.Array | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Return the images restored, uint8; `Run.restore_images` describes the arguments."""
    several = isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4
    pictures = [as_floats(run, image) for image in (images if several else [images])]
    if not pictures:
        raise UserError("restore_images takes one image or more; got none")
    masks = None if mask is None else _masks(mask, pictures)
    times = severities(run, t, pictures, masks)
    estimated = t is None or isinstance(t, str)
    check_steps(steps, run.T if estimated else int(max(times)))
    known = "mask" if masks is not None else "key" if key is not None else ""
    method = method_of(run, sampler, steps, tile, most=int(max(times)), known=known)
    key = jax.random.key(0) if key is None else as_key(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(pictures)))
    restored: list[Any] = [None] * len(pictures)
    for shape in sorted({picture.shape for picture in pictures}):
        at = np.array([i for i, picture in enumerate(pictures) if picture.shape == shape])
        batch = Batch(np.stack([pictures[i] for i in at]), times[at], keys[at])
        if masks is not None:
            batch = with_holes(run, batch, np.stack([masks[i] for i in at]))
        for i, x0 in zip(at, restore(run, method, batch), strict=True):
            restored[i] = to_uint8(x0)
    if isinstance(images, list | tuple):
        return restored
    return np.stack(restored) if several else restored[0]


def with_holes(run: Run, batch: Batch, kept: np.ndarray) -> Batch:
    """Return the batch with the holes of masks as patterns, and the hole's colour in lost pixels.

    Args:
      run: the run, of gaussian_mask.
      batch: N images.
      kept: the kept share of each pixel, float32 `[N, H, W]`; 0 for lost ones.
    """
    color = np.asarray(run.config.degradation.get("fade_to", 0.0), np.float32)
    holes = [hole(mask, s) for mask, s in zip(kept, batch.t, strict=True)]
    images = np.where(kept[..., None] > 0, batch.images, color)
    return batch._replace(
        images=images, patterns=KnownMask(*map(np.stack, zip(*holes, strict=True)))
    )


def as_floats(run: Run, image: Any) -> np.ndarray:
    """Return one image of the run's channels as float32 `[H, W, C]` on [-1, 1].

    Args:
      run: the run that will restore it.
      image: a PIL image, or uint8 or floats on [-1, 1], `[H, W, C]`.

    Raises:
      UserError: the image is something else; the message says how to convert it.
    """
    channels = run.experiment.image_shape[2]
    if isinstance(image, Image.Image):
        try:
            image = pixels_from(run, image)
        except ValueError as error:
            raise UserError(f"an image cannot be restored: {error}") from error
    whole = getattr(image, "dtype", None) == np.uint8
    if not whole:
        check_images(image, "an image")
    image = to_host(image)
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        convert = "Stack images of one size to [B, H, W, C], or give a list of images"
        if image.ndim == 2:
            convert = "Add the channel axis with image[..., None]"
        elif image.ndim == 3 and image.shape[0] == channels:
            convert = "Put the channels last with np.moveaxis(image, 0, -1)"
        elif image.ndim == 3 and image.shape[2] in (1, 3, 4) and channels in (1, 3):
            convert = "Convert the number of channels with PIL.Image.fromarray, which is accepted"
        raise UserError(
            f"an image must be of shape (H, W, {channels}) for this run; got {image.shape}. "
            f"{convert}"
        )
    if whole:
        return image.astype(np.float32) / 127.5 - 1
    if np.abs(image).max() > 1:
        raise UserError(
            f"an image has values from {image.min():.4g} to {image.max():.4g}; it must be uint8 or "
            "floats on [-1, 1]. Rescale it, or clip it with np.clip(image, -1, 1); noise "
            "that leaves [-1, 1] can be restored with run.sample(run.params, xT)"
        )
    return image.astype(np.float32)


def pixels_from(run: Run, image: Image.Image) -> np.ndarray:
    """Return a PIL image as the run's data sources would, but in its own size; uint8 `[H, W, C]`.

    Raises:
      UserError: the run's images have neither 1 nor 3 channels.
      ValueError: the image is too large, animated, or of more than 8 bits a sample.
    """
    channels = run.experiment.image_shape[2]
    if channels not in (1, 3):
        raise UserError(
            f"this run restores images of {channels} channels, but PIL images have 1 or 3; give "
            "arrays [H, W, C]"
        )
    return decode(image, channels, background=tuple(run.config.data.get("background", BLACK)))


def severities(
    run: Run, t: Any, pictures: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None
) -> np.ndarray:
    """Return the severity of each picture, int32 `[N]`.

    Args:
      run: the run.
      t: an integer, or one for each picture; 'auto'; None for T, or for `matching_severity`.
      pictures: float32 `[H, W, C]` each.
      masks: kept shares `[H, W]` of each picture, or None.

    Raises:
      UserError: `t` is something else or not in 0..T; or there is no severity head.
    """
    count = len(pictures)
    if isinstance(t, str) and t == "auto":
        return np.concatenate([run.severity(picture[None])[0] for picture in pictures])
    if t is None and masks is not None:
        shares = lost_shares(run)
        return np.array([matching_severity(shares, mask) for mask in masks], np.int32)
    times = np.asarray(run.T if t is None else t)
    valid = times.shape in ((), (count,)) and np.issubdtype(times.dtype, np.integer)
    if not valid or np.any(times < 0) or np.any(times > run.T):
        raise UserError(
            f"t={t} must be a severity in 0..T={run.T}, an integer, or one for each of the {count} "
            "images; or 'auto' to estimate them"
        )
    if masks is not None and np.any(times == 0):
        raise UserError("t=0 is an image without a hole; leave the mask out, or give t in 1..T")
    return np.broadcast_to(times, count).astype(np.int32)


def method_of(
    run: Run,
    sampler: str | Sampler | None,
    steps: int | None,
    tile: int | None,
    *,
    most: int,
    known: str = "",
) -> Method:
    """Return how to restore, after checking that the choices fit the degradation.

    Args:
      run: the run.
      sampler: a name or function; None for the config's, or 'direct' where that needs a pattern.
      steps: largest number of sampler steps; None for the config's.
      tile: as for `sizes.Method`.
      most: the largest severity of the images.
      known: what tells the random patterns: 'mask', 'key' or '' for nothing.

    Raises:
      UserError: a choice does not fit.
    """
    check_tile(run, tile)
    degrade = _masked_degradation(run) if known == "mask" else None
    consistency = None
    if not known and draws_patterns(run):
        sampler, consistency = _without_pattern(run, sampler), 0
    run.restoration(run.params, sampler, consistency)  # refuses an unknown sampler

    def adapt(at: Run) -> Restoration:
        restoration = at.restoration(at.params, sampler, consistency)
        return restoration if degrade is None else restoration._replace(degrade=degrade)

    steps = min(run.experiment.steps if steps is None else steps, max(most, 1))
    return Method(adapt, steps, tile)


def check_steps(steps: int | None, most: int) -> None:
    """Refuse a number of sampler steps outside 1..most, the severity of the images; None passes."""
    if steps is not None and (not isinstance(steps, Integral) or not 1 <= steps <= most):
        raise UserError(
            f"steps={steps} must be a whole number in 1..{most}, the severity of the images; there "
            "is no more than one step for each severity"
        )


def draws_patterns(run: Run) -> bool:
    """Return whether the run's degradation draws a random pattern."""
    x0 = np.random.default_rng(0).uniform(-1, 1, run.experiment.image_shape).astype(np.float32)
    one, two = to_host(_degraded(run.degrade, x0, run.T, jax.random.split(jax.random.key(0))))
    return bool(np.abs(one - two).max() > _SAME)


@jax.jit
def _degraded(degrade, x0, t, keys):
    """Return D(x0, t) of one image `[H, W, C]` with each of the keys."""
    return jax.vmap(degrade, (None, None, 0))(x0, jnp.int32(t), keys)


def _without_pattern(run: Run, sampler: str | Sampler | None) -> str | Sampler:
    """Return a sampler that needs no pattern of a random degradation."""
    name = run.config.degradation.name
    if sampler is None and run.config.sampler.name in _NEED_PATTERN:
        logging.info(
            "sampler: direct, because %s draws a random pattern, which is unknown for your images",
            name,
        )
        return "direct"
    consistent = isinstance(sampler, str) and sampler.endswith(CONSISTENT)
    rules = [SAMPLERS[name] for name in _NEED_PATTERN]
    if consistent or sampler in _NEED_PATTERN or rule_of(sampler) in rules:
        raise UserError(
            "naive, tacos with its variants and data consistency degrade estimates again, but the "
            f"random pattern that {name} draws is unknown for your images. Use direct; or ddim, "
            "for blends; or give a mask, if it is a hole"
        )
    return sampler


def _masked_degradation(run: Run) -> Any:
    """Return D with a known hole in place of a random one.

    Raises:
      UserError: the run's degradation is no hole of known colour that grows outwards.
    """
    settings = run.config.degradation
    if settings.name != "gaussian_mask":
        raise UserError(
            "a mask marks the hole of gaussian_mask, but this run was trained with "
            f"{settings.name}; leave the mask out"
        )
    if settings.get("inward", False) or settings.get("fade_to", 0.0) == "random":
        raise UserError(
            "a mask needs holes of a known colour that grow outwards, but this run has "
            f"fade_to={settings.get('fade_to', 0.0)!r}, inward={settings.get('inward', False)}; "
            "leave the mask out"
        )
    return known_mask(fade_to=settings.get("fade_to", 0.0))


def as_mask(mask: Any) -> np.ndarray:
    """Return the kept share of each pixel, float32 `[H, W]` in [0, 1].

    Args:
      mask: a PIL image or uint8 `[H, W]`, white (255) for kept and black for lost; or floats in
        [0, 1].

    Raises:
      UserError: the mask is something else, or keeps nothing.
    """
    if isinstance(mask, Image.Image):
        mask = decode(mask, 1)[..., 0]
    kept = np.asarray(mask)
    whole = kept.dtype == np.uint8
    kept = kept.astype(np.float32) / (255 if whole else 1)
    if kept.ndim != 2 or not kept.size or not (kept.min() >= 0 and kept.max() <= 1):
        raise UserError(
            f"a mask must be [H, W], uint8 or floats in [0, 1]; got {np.asarray(mask).dtype} "
            f"{kept.shape}. White, 255 or 1, is kept; black, 0, is lost"
        )
    if kept.max() < 0.5:
        raise UserError("the mask keeps nothing: white pixels are kept, black ones lost; invert it")
    return kept


def _masks(mask: Any, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return one mask for each picture, of its size; lost pixels of the picture are not used."""
    several = isinstance(mask, list | tuple) or getattr(mask, "ndim", 2) == 3
    masks = [as_mask(m) for m in mask] if several else [as_mask(mask)] * len(pictures)
    if len(masks) != len(pictures):
        raise UserError(
            f"give one mask, or one for each of {len(pictures)} images; got {len(masks)}"
        )
    for m, picture in zip(masks, pictures, strict=True):
        check_mask_size(m, picture.shape[:2], "the mask", "the image")
    return masks


def check_mask_size(mask: np.ndarray, size: tuple[int, int], mask_is: str, image_is: str) -> None:
    """Refuse a mask of another size than its image, (H, W); the names are for the message."""
    if mask.shape != size:
        raise UserError(
            f"{mask_is} has {mask.shape[0]} × {mask.shape[1]} pixels, but {image_is} has "
            f"{size[0]} × {size[1]}; give a mask of the image's size"
        )


def lost_shares(run: Run) -> np.ndarray:
    """Return the share of an image that training's holes cover at severities 0..T; `[T + 1]`."""
    keys = jax.random.split(jax.random.key(0), _HOLES)
    white = np.ones(run.experiment.image_shape, np.float32)
    shares = []
    for t in range(run.T + 1):  # xt is linear in x0, so white minus black is twice the mask
        ends = [to_host(_degraded(run.degrade, x0, t, keys)) for x0 in (white, -white)]
        shares.append(1 - np.mean(ends[0] - ends[1]) / 2)
    return np.array(shares)


def matching_severity(shares: np.ndarray, mask: np.ndarray) -> int:
    """Return the severity in 1..T at which training's holes cover as much as the mask's hole."""
    return 1 + int(np.abs(shares[1:] - (1 - mask.mean())).argmin())
