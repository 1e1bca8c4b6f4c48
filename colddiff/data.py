"""Images from named sources, and the endless order in which training sees them.

A source is named in the config by a string:

    digits           scikit-learn's 1,797 handwritten digits: needs no file and no network
    tfds:NAME        a prepared TensorFlow Datasets dataset (TFDS_DATA_DIR), without TensorFlow
    folder:PATH      PNG and JPEG files below PATH, in any nesting

Every image comes out as uint8 `[size, size, channels]`: turned upright, its shorter side resized
to `size`, the rest cut off evenly. Random augmentation is part of the train step, on the device.
The order is a function of the seed and the step alone, so the step is the data position.
"""

import binascii
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import grain
import numpy as np
from absl import logging
from PIL import Image, ImageOps

from colddiff.errors import UserError, unknown_name

SPLITS = ("train", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB"}
_DIGITS_TRAIN = 1500  # the last 297 digits, by writers of their own, are the test split
_FOLDER_TEST_SHARE = 0.1
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as PIL raises


class Images(Protocol):
    """A sequence of uint8 images `[size, size, channels]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray: ...


class Records(NamedTuple):
    """What a source holds: a name for each image, and how to open it."""

    names: Sequence[str]
    open: Callable[[int], Image.Image]


def load(
    source: str, split: str, *, size: int, channels: int, cache: bool = True, limit: int = 0
) -> Images:
    """The images of one split of a source.

    An image that cannot be read is left out, with its name in a warning; how many is logged.

    Args:
      source: see above.
      split: 'train' or 'test'; for TFDS any split it knows, such as 'train[:1000]'.
      size: side of every image, in pixels.
      channels: 1 (gray) or 3 (RGB).
      cache: decode all of them now, into memory; otherwise each one whenever it is asked for,
        and then the next readable image stands in for an unreadable one.
      limit: at most so many, the first ones; 0 is all.

    Raises:
      UserError: no such source, split or folder, or no image in it can be read.
    """
    kind, _, argument = source.partition(":")
    if kind not in SOURCES or bool(argument) != (kind != "digits"):
        raise unknown_name("data source", source, ("digits", "tfds:NAME", "folder:PATH"))
    if channels not in _MODES:
        raise UserError(f"data.channels={channels} must be 1 (gray) or 3 (RGB)")
    records = SOURCES[kind](argument, split)
    if limit:
        records = records._replace(names=records.names[:limit])
    lazy = _LazyImages(records, size, channels)
    return _decode_all(lazy, source) if cache else lazy


def batches(
    images: Images,
    batch_size: int,
    *,
    accumulation: int = 1,
    seed: int,
    start: int,
    stop: int,
    rows: slice = slice(None),
    threads: int = 4,
) -> Iterator[np.ndarray]:
    """What steps `start` .. `stop - 1` train on: uint8 `[accumulation, batch_size, H, W, C]`.

    All images are seen once, shuffled by `seed`, before the next shuffle begins. `threads` threads
    prepare batches ahead of time.

    Args:
      rows: the part of each batch that this host reads; all hosts share one order.
    """
    order = grain.MapDataset.range(len(images)).seed(seed).shuffle().repeat()
    places = np.arange(accumulation * batch_size).reshape(accumulation, batch_size)[:, rows]

    def read(step: int) -> np.ndarray:
        first = step * accumulation * batch_size
        flat = np.stack([images[order[int(first + place)]] for place in places.flat])
        return flat.reshape(*places.shape, *flat.shape[1:])

    steps = grain.MapDataset.range(start, stop).map(read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    return iter(steps.to_iter_dataset(options))


class _LazyImages:
    """Images decoded when asked for."""

    def __init__(self, records: Records, size: int, channels: int):
        self._records, self._size, self._channels = records, size, channels

    def __len__(self) -> int:
        return len(self._records.names)

    def __getitem__(self, i: int) -> np.ndarray:
        for j in range(len(self)):
            image = self.read((i + j) % len(self))
            if image is not None:
                return image
        raise UserError(f"none of the {len(self)} images can be read")

    def read(self, i: int) -> np.ndarray | None:
        """Image i, or None, with a warning, if it cannot be read."""
        try:
            return _fit(self._records.open(i), self._size, self._channels)
        except _UNREADABLE as error:
            logging.warning("skipped the unreadable image %s: %s", self._records.names[i], error)
            return None


def _decode_all(lazy: _LazyImages, source: str) -> np.ndarray:
    """All readable images, `[N, size, size, channels]`."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lazy.read, range(len(lazy))))
    readable = [image for image in images if image is not None]
    skipped = len(images) - len(readable)
    if not readable:
        raise UserError(f"none of the {len(images)} images of {source} can be read")
    if skipped:
        logging.warning("unreadable images skipped: %d of %d in %s", skipped, len(images), source)
    return np.stack(readable)


def _fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Upright, the shorter side resized, the middle cut out: `[size, size, channels]`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray, which PIL would clip instead of scale
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    image = ImageOps.fit(image.convert(_MODES[channels]), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size, size, channels)


def _digits(argument: str, split: str) -> Records:
    """8×8 digits (UCI, via scikit-learn), enlarged smoothly."""
    del argument
    from sklearn.datasets import load_digits

    if split not in SPLITS:
        raise unknown_name("split of digits", split, SPLITS)
    start, stop = (0, _DIGITS_TRAIN) if split == "train" else (_DIGITS_TRAIN, None)
    pixels = np.round(load_digits().images[start:stop] * (255 / 16)).astype(np.uint8)

    def open_(i: int) -> Image.Image:
        return Image.fromarray(pixels[i]).resize((64, 64), Image.Resampling.BICUBIC)

    return Records([f"digit {start + i}" for i in range(len(pixels))], open_)


def _tfds(name: str, split: str) -> Records:
    """The images of a dataset that TFDS has prepared in a random-access format."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError as error:
        message = f"TFDS knows no dataset {name!r}, and none lies in TFDS_DATA_DIR"
        raise UserError(message) from error
    keys = [k for k, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    if len(keys) != 1:
        raise UserError(f"tfds:{name} must have one image feature; it has {keys or 'none'}")
    if not builder.data_path.exists():
        raise UserError(
            f"tfds:{name} is not prepared at {builder.data_path}. Set TFDS_DATA_DIR to where it is,"
            " or prepare it once (needs a network, and TensorFlow: pip install tensorflow): "
            f"tfds build {name} --file_format=array_record"
        )
    try:
        # The bytes as stored: PIL decodes them ten times as fast as TFDS would.
        rows = builder.as_data_source(split, decoders={keys[0]: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise UserError(
            f"tfds:{name} at {builder.data_path} is in a format without random access; "
            f"convert it: tfds convert_format --dataset_dir={builder.data_path} "
            "--out_file_format=array_record"
        ) from error
    except (KeyError, ValueError) as error:
        raise unknown_name(f"split of tfds:{name}", split, builder.info.splits) from error
    names = range(len(rows))
    return Records(
        [f"tfds:{name} {split} #{i}" for i in names],
        lambda i: Image.open(io.BytesIO(rows[i][keys[0]])),
    )


def _folder(path: str, split: str) -> Records:
    """Image files below a folder: its own `train` and `test` folders, or a fixed tenth for test.

    That tenth is chosen by a hash of the files' names, so it is the same on every machine.
    """
    if split not in SPLITS:
        raise unknown_name("split of a folder", split, SPLITS)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {root} (data.source=folder:{path})")
    own_splits = all((root / s).is_dir() for s in SPLITS)
    top = root / split if own_splits else root
    files = sorted(f for f in top.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    if not own_splits:
        if len(files) < len(SPLITS):
            raise UserError(f"{root} holds {len(files)} PNG or JPEG files; at least 2 are needed")
        name = lambda f: f.relative_to(root).as_posix()  # noqa: E731
        by_hash = sorted(files, key=lambda f: binascii.crc32(name(f).encode()))
        test = set(by_hash[: max(1, round(_FOLDER_TEST_SHARE * len(files)))])
        files = [f for f in files if (f in test) == (split == "test")]
    if not files:
        raise UserError(f"{top} holds no PNG or JPEG file")
    return Records([str(f) for f in files], lambda i: Image.open(files[i]))


SOURCES: dict[str, Callable[[str, str], Records]] = {
    "digits": _digits,
    "tfds": _tfds,
    "folder": _folder,
}
