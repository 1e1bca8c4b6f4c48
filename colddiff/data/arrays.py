"""Images in NumPy files, of any number of channels and more than 8 bits: `arrays:PATH`.

    PATH.npy    the images alone, read from the file where they are needed (memory-mapped)
    PATH.npz    an array `images` and, if there are classes, `labels`, both read into memory

Images are `[N, H, W, C]`, or `[N, H, W]` for one channel. Their type is uint8, uint16, another
integer or a float. `value_range` = (low, high) gives the values that become -1 and 1; () stands for
all values of an 8-bit or 16-bit integer type.
"""

import functools
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from colddiff.runtime.errors import UserError, first_line


class Arrays(NamedTuple):
    """The content of a file.

    Attributes:
      images: `[N, H, W, C]`, as they are in the file.
      labels: int32 `[N]`, classes from 0; None if there are none.
    """

    images: np.ndarray
    labels: np.ndarray | None


def read_arrays(path: Path) -> Arrays:
    """Return the images and labels of an .npy or .npz file.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"arrays:{path} must be an .npy or .npz file; write one with np.save")
    if not path.is_file():
        raise UserError(f"no file {path} (the source arrays:{path})")
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(2)  # an .npz is decompressed once, not for each split and each count
def _read(path: Path, changed: int) -> Arrays:
    del changed  # a file that has changed is read again
    try:
        if path.suffix == ".npy":
            images, labels = np.load(path, mmap_mode="r", allow_pickle=False), None
        else:
            with np.load(path, allow_pickle=False) as file:
                images, labels = file.get("images"), file.get("labels")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; write it again") from error
    if images is None:
        raise UserError(f"{path} has no array 'images'; write it with np.savez(path, images=...)")
    if images.ndim not in (3, 4) or images.dtype.kind not in "uif" or 0 in images.shape:
        raise UserError(
            f"{path} holds {images.dtype} {images.shape}; images must be integers or floats of "
            "shape [N, H, W, C], or [N, H, W] for one channel"
        )
    if labels is not None:
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "ui" or labels.min() < 0:
            raise UserError(
                f"{path} has labels {labels.dtype} {labels.shape}; they must be classes from 0, "
                f"one integer for each of the {len(images)} images"
            )
        labels = labels.astype(np.int32)
    return Arrays(images if images.ndim == 4 else images[..., None], labels)


def own_range(dtype: np.dtype, value_range: Sequence[float]) -> tuple[float, float]:
    """Return (low, high), the values that become -1 and 1.

    Raises:
      UserError: `value_range` is invalid, or is () for a type that needs it.
    """
    if len(value_range):
        numbers = len(value_range) == 2 and all(isinstance(v, int | float) for v in value_range)
        if not numbers or not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise UserError(
                f"data.value_range={value_range!r} must be (low, high), two finite numbers, low < "
                "high; or () for all values of an 8-bit or 16-bit integer type"
            )
        return value_range[0], value_range[1]
    if dtype.kind == "f" or dtype.itemsize > 2:
        raise UserError(
            f"images of type {dtype} need data.value_range=(low, high), the values that become "
            'black and white, such as --config.data.value_range="(0.0, 1.0)"'
        )
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def data_type(dtype: np.dtype, value_range: Sequence[float]) -> np.dtype:
    """Return the type in which images reach training: uint8 if nothing is lost, else float32."""
    eight_bit = dtype == np.uint8 and own_range(dtype, value_range) == (0, 255)
    return np.dtype(np.uint8 if eight_bit else np.float32)


def convert(image: np.ndarray, value_range: Sequence[float], name: str) -> np.ndarray:
    """Return an image as training takes it: uint8 unchanged, or float32 on [-1, 1].

    Args:
      image: `[H, W, C]`, as in the file.
      value_range: (low, high), or ().
      name: the image's name, for the message.

    Raises:
      UserError: a value is NaN or outside the range.
    """
    low, high = own_range(image.dtype, value_range)
    smallest, largest = image.min(), image.max()
    if not (smallest >= low and largest <= high):  # NaN compares false
        raise UserError(
            f"{name} has values from {smallest:g} to {largest:g}, outside data.value_range "
            f"({low:g}, {high:g}); correct the values, or give the range that they have"
        )
    if data_type(image.dtype, value_range) == np.uint8:
        return np.asarray(image)
    scaled = 2 * (image.astype(np.float64) - low) / (high - low) - 1
    return scaled.astype(np.float32)


def center_crop(image: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """Return the middle `size` = (H, W) pixels of an image `[H', W', C]`.

    Raises:
      UserError: the image is smaller.
    """
    high, wide = image.shape[:2]
    if high < size[0] or wide < size[1]:
        raise UserError(
            f"{name} has {high} × {wide} pixels, fewer than data.image_size plus "
            f"data.crop_margin, {size[0]} × {size[1]}; arrays are cropped, but never resized"
        )
    top, left = (high - size[0]) // 2, (wide - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]
