"""Image sizes; conversion of images, uint8 and PIL <-> [-1, 1]; pictures of many images."""

import math
import textwrap
from collections.abc import Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image, ImageDraw, ImageFont, ImageOps

from colddiff.runtime.errors import UserError

LARGEST = 10.0  # largest valid absolute value: Gaussian noise reaches 6, 8-bit images 255
_NEAR = 0.05  # images are taken for [0, 1] if they come as near as this to both of its ends
_MODES = {1: "L", 3: "RGB"}
_GRAY = ("1", "L", "LA", "I", "I;16", "F")
_GAP, _BACKGROUND, _INK = 2, 255, 0  # pixels between images; gray levels


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (H, W) of an image size, in pixels: an integer for H = W, or the pair (H, W).

    Raises:
      UserError: it is neither, or a side is below 1.
    """
    sides = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in sides)
    if isinstance(image_size, str) or len(sides) != 2 or not whole or min(sides) < 1:
        raise UserError(
            f"image_size={image_size!r} must be 1 or more, an integer, or (H, W), two integers"
        )
    return int(sides[0]), int(sides[1])


def size_text(image_size: int | Sequence[int]) -> str:
    """Return an image size in words: '32²' for squares, and '24×40' for H×W."""
    high, wide = height_width(image_size)
    return f"{high}²" if high == wide else f"{high}×{wide}"


def to_model_range(images: jax.Array) -> jax.Array:
    """Convert images as data sources give them to float32 on [-1, 1]; any shape.

    Sources give uint8, or float32 that lies on [-1, 1] already.

    Raises:
      UserError: the images are of another type.
    """
    if images.dtype == np.float32:
        return images
    return from_uint8(images)


def to_data_type(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert [-1, 1], clipped, to uint8 or float32, the types that data sources give."""
    return to_uint8(x) if dtype == np.uint8 else np.clip(np.asarray(x, np.float32), -1, 1)


def from_uint8(images: jax.Array) -> jax.Array:
    """Convert uint8 to float32 in [-1, 1], any shape.

    Raises:
      UserError: the images are of another type.
    """
    if images.dtype != np.uint8:
        raise UserError(f"from_uint8 takes 8-bit images, uint8; got {images.dtype}")
    return images.astype(jnp.float32) / 127.5 - 1


def from_pil(
    images: Image.Image | list[Image.Image] | tuple[Image.Image, ...],
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> jax.Array:
    """Convert PIL images to float32 in [-1, 1], as the data sources do.

    Args:
      images: one image, or a list of images.
      size: H = W, or (H, W), in pixels. The image is resized, keeping its aspect, until it just
        covers this size, and center-cropped. None keeps the pixels as they are.
      channels: 1 (gray) or 3 (RGB); None for 1 if all images are gray, and else 3.

    Returns:
      `[H, W, C]` for one image, `[N, H, W, C]` for a list.

    Raises:
      UserError: something is no PIL image, the images' sizes differ, or `size` or `channels` is
        invalid.
    """
    several = images if isinstance(images, list | tuple) else [images]
    for image in several:
        if not isinstance(image, Image.Image):
            raise UserError(f"from_pil takes PIL images; got {type(image).__name__}")
    if not several:
        raise UserError("from_pil takes one PIL image or more; got none")
    if channels is None:
        channels = 1 if all(image.mode in _GRAY for image in several) else 3
    if channels not in _MODES:
        raise UserError(f"PIL images have 1 channel (gray) or 3 (RGB); got channels={channels}")
    arrays = [pixels_of(image, channels, size=size) for image in several]
    if len({array.shape for array in arrays}) != 1:
        sizes = sorted({image.size for image in several})
        raise UserError(f"from_pil got images of sizes {sizes}; give size= to make them equal")
    converted = from_uint8(jnp.asarray(np.stack(arrays)))
    return converted[0] if isinstance(images, Image.Image) else converted


def pixels_of(
    image: Image.Image,
    channels: int,
    *,
    size: int | tuple[int, int] | None = None,
    background: tuple[int, ...] = (0, 0, 0),
) -> np.ndarray:
    """Return a PIL image upright, on `background` where it is transparent; uint8 `[H, W, C]`.

    With `size`, H = W or (H, W), the image is resized, keeping its aspect, until it just covers
    this size, and center-cropped.
    """
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(below, image)
    if image.mode.startswith("I"):  # 16-bit gray, which PIL would clip instead of scale
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    image = image.convert(_MODES[channels])
    if size is not None:
        high, wide = height_width(size)
        image = ImageOps.fit(image, (wide, high), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def check_images(x: jax.Array, what: str) -> None:
    """Refuse what cannot be images around [-1, 1]: other types, NaN, values far outside.

    If the values look like images on [0, 1], this is only a warning: bright images on [-1, 1] may
    lie there too. Only the type is checked if the array is traced, or spread over several hosts.

    Args:
      x: the array to check.
      what: the array's name, for the message.

    Raises:
      UserError: the message gives the array's type or its largest absolute value.
    """
    if not isinstance(x, np.ndarray | jax.Array):
        first = x[0] if isinstance(x, list | tuple) and x else x
        convert = "Convert PIL images with colddiff.images.from_pil"
        if not isinstance(first, Image.Image):
            convert = "Convert it with jnp.asarray, or a list of arrays with jnp.stack"
        raise UserError(
            f"{what} is of type {type(x).__name__}; it must be an array of floats on [-1, 1]. "
            f"{convert}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(
            f"{what} is of type {x.dtype}; it must be floats on [-1, 1]. Convert 8-bit images with "
            "colddiff.images.from_uint8"
        )
    known = not isinstance(x, jax.core.Tracer)
    if isinstance(x, jax.Array) and known:
        known = x.is_fully_addressable
    if not known or not x.size:
        return
    values = np.asarray(x)  # np, because jnp is traced within a jit
    low, high = values.min(), values.max()
    largest = np.maximum(-low, high)  # NaN if there is one
    if not largest <= LARGEST:
        convert = "Convert 8-bit images with colddiff.images.from_uint8"
        if not np.isfinite(largest):
            convert = "Set jax.config.update('jax_debug_nans', True) to find what made it"
        raise UserError(
            f"{what} has absolute values up to {largest:g}; images lie on [-1, 1]. {convert}"
        )
    if 0 <= low <= _NEAR and 1 - _NEAR <= high <= 1:
        logging.warning(
            "%s has values from %.3g to %.3g, as if it lay on [0, 1]; images lie on [-1, 1]. If it "
            "does, convert it with 2 * x - 1",
            *(what, low, high),
        )


def to_uint8(x: np.ndarray | jax.Array) -> np.ndarray:
    """Convert [-1, 1], clipped, to the nearest of 256 levels; any shape."""
    return np.round(np.clip((np.asarray(x, np.float32) + 1) * 127.5, 0, 255)).astype(np.uint8)


def truncate_to_8_bit(x: jax.Array) -> jax.Array:
    """Truncate [-1, 1] to the 256 levels of an 8-bit image; any shape, not clipped."""
    # float32 may round a value below its level; 1e-3 keeps it from dropping to the level below.
    return jnp.trunc((x + 1) * 127.5 + 1e-3) / 127.5 - 1


def before_truncation(x: jax.Array, truncated: jax.Array) -> jax.Array:
    """Return the mean of the images that `truncate_to_8_bit` truncates to `truncated`.

    It is half a level above `truncated`. An image x that is on 8-bit levels already, such as one
    from a file, loses nothing by truncation and is returned as it is.

    Args:
      x: images on [-1, 1], `[B, H, W, C]`.
      truncated: `truncate_to_8_bit(x)`; or x itself, where nothing is truncated.
    """
    changed = jnp.abs(x - truncated) * 127.5 > 0.01  # levels; float32 is far more precise
    changed = jnp.any(changed, axis=(1, 2, 3), keepdims=True)
    return truncated + jnp.where(changed, 0.5 / 127.5, 0.0)


def round_to_8_bit(x: jax.Array) -> jax.Array:
    """Clip to [-1, 1] and round to the 256 levels of an 8-bit image, as a file does; any shape."""
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


def to_unit(x: jax.Array) -> jax.Array:
    """Convert [-1, 1] to [0, 1], the scale of the metrics; not clipped."""
    return (x + 1) / 2


def to_unit_data(images: jax.Array) -> jax.Array:
    """Convert images as data sources give them, uint8 or float32 on [-1, 1], to [0, 1]."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    return to_unit(images)


def drawable(images: np.ndarray) -> np.ndarray:
    """Return images as pictures show them, uint8 `[N, H, W, 1 or 3]`.

    One channel is gray, three are RGB. Of any other number, pictures show the mean, as gray.

    Args:
      images: `[N, H, W, C]` on [-1, 1] or uint8.
    """
    shown = images if images.dtype == np.uint8 else to_uint8(images)
    if shown.shape[-1] not in _MODES:
        shown = shown.mean(axis=-1, keepdims=True).round().astype(np.uint8)
    return shown


def grid(
    columns: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, height: int = 96
) -> np.ndarray:
    """Draw one row for each image and one titled column for each stage.

    Args:
      columns: arrays `[N, H, W, C]` in [-1, 1] or uint8, all of one shape; see `drawable`.
      titles: a text above each column, wrapped into lines; None for no header.
      height: images are enlarged by a whole factor to at least this many pixels.

    Returns:
      One picture, uint8 `[height, width, 3]`.
    """
    stages = [drawable(c) for c in columns]
    scale = max(1, -(-height // stages[0].shape[1]))
    stages = [s.repeat(scale, axis=1).repeat(scale, axis=2) for s in stages]
    number, high, wide, _ = stages[0].shape
    font = ImageFont.load_default(max(10, min(16, wide // 8)))
    titles = [textwrap.wrap(title, int(wide / (0.55 * font.size))) for title in titles or ()]
    lines = max(map(len, titles), default=0)
    header = int(font.size) * lines + (2 * _GAP if lines else _GAP)
    size = (len(stages) * (wide + _GAP) + _GAP, header + number * (high + _GAP))
    canvas = Image.new("RGB", size, (_BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)
    for i, stage in enumerate(stages):
        left = _GAP + i * (wide + _GAP)
        if titles:
            place = (left + wide / 2, header / 2)
            text = "\n".join(titles[i])
            draw.multiline_text(place, text, (_INK,) * 3, font, "mm", spacing=0, align="center")
        for j, image in enumerate(stage):
            rgb = np.broadcast_to(image, (high, wide, 3))
            canvas.paste(Image.fromarray(rgb), (left, header + j * (high + _GAP)))
    return np.asarray(canvas)


def mosaic(images: np.ndarray, *, height: int = 64, caption: str = "") -> np.ndarray:
    """Draw images in a grid of as many rows as columns, or one row fewer.

    Args:
      images: `[N, H, W, C]` in [-1, 1] or uint8; see `drawable`.
      height: as for `grid`.
      caption: a short text above the images; '' for none.

    Returns:
      One picture, uint8 `[height, width, 3]`.
    """
    images = drawable(images)
    columns = math.ceil(math.sqrt(len(images)))
    missing = -len(images) % columns
    filled = np.concatenate([images, np.full_like(images[:1], _BACKGROUND).repeat(missing, 0)])
    stages = filled.reshape(-1, columns, *images.shape[1:]).swapaxes(0, 1)
    return grid(list(stages), [caption, *[""] * (columns - 1)] if caption else None, height=height)
