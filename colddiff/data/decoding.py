"""Decoding of a source's images into the size, channels and type that training takes.

Damaged images are skipped, with a warning. Arrays that do not fit are errors.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT

from colddiff.data.arrays import center_crop, convert, data_type
from colddiff.images import height_width, pixels_of
from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import file_system_failed, patiently

CHUNK = 256  # images decoded in parallel
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")  # PIL uses no other decoder, whatever the file's name
_TIFF_MODES = ("L", "LA", "P", "RGB", "RGBA", "YCbCr")
_MOST_PIXELS = 2**26  # largest image; a small file can claim a size that fills memory


class Images(Protocol):
    """A sequence of images `[H, W, C]`, uint8 or float32 on [-1, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray: ...


class Records(NamedTuple):
    """The images of a source, not yet decoded.

    Attributes:
      names: one name for each image.
      open: `open(i)` returns image i, not yet decoded; of arrays `[H, W, C]`, as in the file.
      label: `label(i)` returns the class of image i, from 0; None if the source has no classes.
      order: all indices, in the order in which subsets take them; None for 0, 1, 2, ...
      passed_over: files beside the images that have no image's ending.
      dtype: type of the pixels that `open` returns.
    """

    names: Sequence[str]
    open: Callable[[int], Image.Image | np.ndarray]
    label: Callable[[int], int] | None = None
    order: Sequence[int] | None = None
    passed_over: Sequence[Path] = ()
    dtype: np.dtype = np.dtype(np.uint8)

    def part(self, positions: slice) -> "Records":
        """Return the images at these positions of `order`, in the source's order."""
        order = range(len(self.names)) if self.order is None else self.order
        chosen = sorted(order[positions])
        place = {index: new for new, index in enumerate(chosen)}
        label = None if self.label is None else lambda i: self.label(chosen[i])
        return self._replace(
            names=[self.names[index] for index in chosen],
            open=lambda i: self.open(chosen[i]),
            label=label,
            order=None if self.order is None else [place[index] for index in order[positions]],
        )


class Split(NamedTuple):
    """The images of one split, in memory.

    Attributes:
      images: `[N, H, W, C]`, uint8 or float32 on [-1, 1], in the source's order.
      labels: int32 `[N]`; None if the source has no classes.
      order: int `[N]`; the subset of n images is `images[order[:n]]`, for every n.
    """

    images: np.ndarray
    labels: np.ndarray | None
    order: np.ndarray


class Form(NamedTuple):
    """The form in which images are returned.

    Attributes:
      size: (H, W), in pixels.
      channels: number of channels.
      background: (R, G, B) in 0..255, visible through transparent pixels.
      value_range: (low, high) of arrays, or ().
    """

    size: tuple[int, int]
    channels: int
    background: tuple[int, ...]
    value_range: tuple[float, ...]

    @classmethod
    def of(
        cls,
        size: int | tuple[int, int],
        channels: int,
        background: Sequence[int],
        value_range: Sequence[float],
    ) -> "Form":
        """Return the form; refuse a size or background that cannot be.

        Raises:
          UserError: the message names the setting.
        """
        levels = all(isinstance(v, int) and 0 <= v <= 255 for v in background)
        if len(background) != 3 or not levels:
            raise UserError(f"data.background={background!r} must be (R, G, B), each in 0..255")
        return cls(height_width(size), channels, tuple(background), tuple(value_range))


class LazyImages:
    """Images that are decoded at each access."""

    def __init__(self, records: Records, form: Form, limit: int):
        self._records, self._form = records, form
        self._length = min(limit or len(records.names), len(records.names))
        self._limited = limit > 0
        everything = range(len(records.names))
        # The first `_length` candidates are chosen; the others only replace unreadable images.
        in_order = self._limited and records.order is not None
        self._candidates = records.order if in_order else everything
        self._chosen = sorted(self._candidates[: self._length])
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> np.ndarray:
        for j in range(len(self._records.names)):
            image = self._read((self._chosen[i] + j) % len(self._records.names))
            if image is not None:
                return image
        raise self._nothing()

    def decode_all(self) -> Split:
        """Decode images in the order of subsets, leaving out damaged ones, up to the limit."""
        records = self._records
        form = self._form
        dtype = data_type(records.dtype, form.value_range)
        images = np.empty((len(self), *form.size, form.channels), dtype)
        places, labels = [], []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self._candidates), CHUNK):
                chunk = self._candidates[start : start + CHUNK]
                for i, image in zip(chunk, pool.map(self._read, chunk), strict=True):
                    if image is not None and len(places) < len(images):
                        images[len(places)] = image
                        places.append(i)
                        if records.label is not None:
                            labels.append(records.label(i))
                if len(places) == len(images):
                    break
        if not places:
            raise self._nothing()
        images = images[: len(places)]
        labels = None if records.label is None else np.array(labels, np.int32)
        if records.order is None:
            return Split(images, labels, np.arange(len(places)))
        if self._limited:  # the candidates are in subset order
            by_place = np.argsort(places)
            labels = None if labels is None else labels[by_place]
            return Split(images[by_place], labels, np.argsort(by_place))
        rank = np.argsort(records.order)  # the inverse of the permutation
        return Split(images, labels, np.argsort(rank[places]))

    def _read(self, i: int) -> np.ndarray | None:
        """Return image i, or None if it is damaged, with a warning the first time.

        Raises:
          UserError: the file system fails repeatedly, or an array cannot be an image of this form.
        """
        name = self._records.names[i]
        try:
            return patiently(lambda: self._decode(i), name)
        except UserError:
            raise
        except Exception as error:  # decoders raise many types on damaged files
            if file_system_failed(error):
                raise UserError(
                    f"{name} cannot be read: {first_line(error)}. The image itself may be "
                    "undamaged: check the disk or the network, then run the same command again"
                ) from error
            if i not in self._unreadable:
                self._unreadable.add(i)
                logging.warning(
                    "skipped the unreadable image %s (%d so far): %r",
                    name,
                    len(self._unreadable),
                    error,
                )
            return None

    def _decode(self, i: int) -> np.ndarray:
        image, form = self._records.open(i), self._form
        if isinstance(image, np.ndarray):
            return _decode_array(image, form, self._records.names[i])
        return decode(image, form.channels, size=form.size, background=form.background)

    def _nothing(self) -> UserError:
        names = self._records.names
        return UserError(f"none of the {len(names)} images can be read, the first is {names[0]}")


def _decode_array(image: np.ndarray, form: Form, name: str) -> np.ndarray:
    """Return an array `[H', W', C]` as an image of this form, center-cropped."""
    if image.shape[-1] != form.channels:
        raise UserError(
            f"{name} has {image.shape[-1]} channels, but data.channels={form.channels}; set "
            f"--config.data.channels={image.shape[-1]}. The channels are the last axis"
        )
    return convert(center_crop(image, form.size, name), form.value_range, name)


def open_image(file: Path | io.BytesIO) -> Image.Image:
    """Return the image in a PNG, JPEG, WebP or TIFF file, not yet decoded."""
    return Image.open(file, formats=_FORMATS)


def decode(
    image: Image.Image,
    channels: int,
    *,
    size: tuple[int, int] | None = None,
    background: tuple[int, ...] = (0, 0, 0),
) -> np.ndarray:
    """Return `images.pixels_of` the image, uint8 `[H, W, C]`.

    Raises:
      ValueError: the image is too large, animated, or of more than 8 bits a sample.
    """
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"{image.width} × {image.height} pixels; at most {_MOST_PIXELS}")
    _check_plain(image)
    return pixels_of(image, channels, size=size, background=background)


def _check_plain(image: Image.Image) -> None:
    """Refuse animated WebP files, and TIFF files that are not one picture of 8 bits a sample.

    PIL would show the first page only, and would cut other depths to 8 bits or clip them.

    Raises:
      ValueError: the message says what the file holds instead.
    """
    if image.format not in ("WEBP", "TIFF"):
        return
    if image.n_frames > 1:
        raise ValueError(f"{image.n_frames} pages or frames; save each as a file of its own")
    if image.format == "TIFF":
        bits, kinds = image.tag_v2.get(BITSPERSAMPLE, (1,)), image.tag_v2.get(SAMPLEFORMAT, (1,))
        if set(bits) != {8} or set(kinds) != {1} or image.mode not in _TIFF_MODES:
            raise ValueError(
                f"TIFF of mode {image.mode} with {bits[0]} bits a sample; save it as 8-bit gray or "
                "RGB"
            )
