"""A user's image files and masks: find them, and check that they can be read."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image, UnidentifiedImageError

from colddiff.data.decoding import decode, open_image
from colddiff.data.folders import KINDS, by_ending, image_files
from colddiff.inference.own_images import as_mask, check_mask_size, pixels_from
from colddiff.inference.run import Run
from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import patiently


class Picture(NamedTuple):
    """An image file.

    Attributes:
      name: the path below the input folder, with '/'.
      path: the file.
      mask: the file of its mask, or None.
      size: (H, W), in pixels.
      sha256: digest of the file and its mask.
      colored: whether colours are lost, because the run's images are gray.
    """

    name: str
    path: Path
    mask: Path | None
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    colored: bool = False


def find(source: Path, mask: Path | None) -> list[Picture]:
    """Return the image files of the request, sorted by name.

    Args:
      source: an image file, or a folder of them.
      mask: a file or folder of masks, or None.

    Raises:
      UserError: there is none, one has no mask, or two would get one output file.
    """
    files, top, others = [source], source.parent, []
    if source.is_dir():
        top = source
        files, others = image_files(top)
    if not files:
        passed = f" (passed over: {by_ending(others)})" if others else ""
        raise UserError(f"{top} holds no {KINDS} file{passed}; give a folder of images as --input")
    if others:
        logging.info("files of %s passed over, by their ending: %s", top, by_ending(others))
    names = sorted(file.relative_to(top).as_posix() for file in files)
    names_of = {png_name(name): name for name in names}
    for name in names:
        if (other := names_of[png_name(name)]) != name:
            raise UserError(
                f"{name} and {other} would both be restored to {png_name(name)}; rename one of them"
            )
    return [Picture(name, top / name, _mask_of(mask, name)) for name in names]


def png_name(name: str) -> str:
    """Return the name of an image's output file, which is always a PNG file."""
    return name if name.lower().endswith(".png") else f"{name}.png"


def _mask_of(mask: Path | None, name: str) -> Path | None:
    """Return the file of a picture's mask.

    Raises:
      UserError: the folder of masks holds none of this name.
    """
    if mask is None or mask.is_file():
        return mask
    for path in (mask / name, mask / png_name(name), (mask / name).with_suffix(".png")):
        if path.is_file():
            return path
    raise UserError(f"no mask for {name} in {mask}; give a PNG file of the same name")


def examine(run: Run, found: Sequence[Picture]) -> tuple[list[Picture], dict[str, str]]:
    """Return the pictures that can be read, with their sizes, and the reasons of the others.

    Raises:
      UserError: none can be read, or a mask does not fit its picture.
    """
    pictures, failed = [], {}
    with ThreadPoolExecutor() as pool:
        for picture, result in zip(found, pool.map(lambda p: _read(run, p), found), strict=True):
            if isinstance(result, str):
                logging.warning("left out %s: %s", picture.path, result)
                failed[picture.name] = result
            else:
                pictures.append(result)
    if not pictures:
        reasons = "\n  ".join(f"{picture.path}: {failed[picture.name]}" for picture in found)
        raise UserError(f"no file can be restored:\n  {reasons}")
    if colored := sum(picture.colored for picture in pictures):
        logging.info(
            "%d of %d images have colours and are converted to gray, as in training",
            *(colored, len(pictures)),
        )
    return pictures, failed


def _read(run: Run, picture: Picture) -> Picture | str:
    """Return the picture with its size and digest, or the reason why it cannot be read."""
    data = patiently(picture.path.read_bytes, str(picture.path))
    try:
        image = open_image(io.BytesIO(data))
        *size, channels = pixels_from(run, image).shape
        colored = channels == 1 and Image.getmodebase(image.mode) != "L"
    except UnidentifiedImageError:
        return f"it is no {KINDS} image"
    except Exception as error:  # decoders raise many types on damaged files
        return first_line(error)
    sha256 = hashlib.sha256(data)
    if picture.mask:
        check_mask_size(load_mask(picture.mask), tuple(size), str(picture.mask), str(picture.path))
        sha256.update(patiently(picture.mask.read_bytes, str(picture.mask)))
    return picture._replace(size=tuple(size), sha256=sha256.hexdigest(), colored=colored)


def load_mask(path: Path) -> np.ndarray:
    """Return the kept shares in a file of a mask, `[H, W]`.

    Raises:
      UserError: the file is no image, or keeps nothing.
    """
    data = patiently(path.read_bytes, str(path))
    try:
        image = decode(open_image(io.BytesIO(data)), 1)
    except Exception as error:  # decoders raise many types on damaged files
        raise UserError(f"the mask {path} cannot be read: {first_line(error)}") from error
    return as_mask(image[..., 0])
