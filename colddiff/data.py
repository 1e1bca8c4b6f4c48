"""Images from named sources, and the endless order in which training sees them.

A source is named in the config by a string:

    digits           scikit-learn's 1,797 handwritten digits: needs no file and no network
    color_digits     the same, every digit in a hue of its own
    tfds:NAME        a prepared TensorFlow Datasets dataset (TFDS_DATA_DIR), without TensorFlow
    folder:PATH      PNG and JPEG files below PATH, in any nesting

Every image comes out as uint8 `[size, size, channels]`: turned upright, its shorter side resized
to `size`, the rest cut off evenly. Random augmentation is part of the train step, on the device.
The order is a function of the seed and the step alone, so the step is the data position.
"""

import functools
import hashlib
import importlib.metadata
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

from colddiff.errors import UserError, first_line, unknown_name

SPLITS = ("train", "test")
_TEST_FOLDERS = ("test", "val")  # what a folder may call its test split: AFHQ's is "val"
_SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB"}
_DIGITS_TRAIN = 1500  # the last 297 digits are the test split
_FOLDER_TEST_SHARE = 0.1
_CHUNK = 256  # images decoded at once
_FORMATS = ("PNG", "JPEG")  # whatever a file is called, no other decoder sees it
_MOST_PIXELS = 2**26  # of an image file: a small one can claim to be large enough to fill memory


class Images(Protocol):
    """A sequence of uint8 images `[size, size, channels]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray: ...


class Records(NamedTuple):
    """What a source holds: a name for each image, how to open it, and its class if it has one."""

    names: Sequence[str]
    open: Callable[[int], Image.Image]
    label: Callable[[int], int] | None = None


def load(
    source: str, split: str, *, size: int, channels: int, cache: bool = True, limit: int = 0
) -> Images:
    """The images of one split of a source.

    An image that cannot be read is left out, with its name and how many there were in a warning.

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
    lazy = _LazyImages(_records(source, split, channels, limit), size, channels, limit)
    return lazy.decode_all()[0] if cache else lazy


def fingerprint(source: str, split: str, channels: int) -> dict[str, str | int]:
    """What a split is made of: how many files, a hash of their names and, in a folder, sizes."""
    records = _records(source, split, channels, 0)
    digest = hashlib.sha256("\n".join(records.names).encode())
    if source.startswith("folder:"):
        digest.update(str([os.path.getsize(name) for name in records.names]).encode())
    return {"files": len(records.names), "sha256": digest.hexdigest()}


def load_labelled(
    source: str, split: str, *, size: int, channels: int, limit: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The images of one split, uint8 `[N, size, size, channels]`, and their classes, int32 `[N]`.

    The images are those of `load`. Classes count from 0; a TFDS dataset has them if it has one
    `ClassLabel` feature.

    Raises:
      UserError: as `load`; or the source has no classes, or some of its images have none.
    """
    records = _records(source, split, channels, limit)
    if records.label is None:
        raise UserError(
            f"{source} has no class labels, which a classifier needs, or several; feature spaces "
            "that need none: 'pca', 'inception'"
        )
    images, labels = _LazyImages(records, size, channels, limit).decode_all()
    if min(labels) < 0:
        raise UserError(
            f"{labels.count(-1)} of the {len(labels)} images of {source}, split {split}, are of no "
            "class, which a classifier needs; take another split, or the feature space 'pca' or "
            "'inception'"
        )
    return images, np.array(labels, np.int32)


def _records(source: str, split: str, channels: int, limit: int) -> Records:
    """What the source holds, once `source`, `channels` and `limit` are known to be valid."""
    kind, _, argument = source.partition(":")
    if kind not in SOURCES or bool(argument) != (kind in ("tfds", "folder")):
        valid = ("digits", "color_digits", "tfds:NAME", "folder:PATH")
        raise unknown_name("data source", source, valid)
    if channels not in _MODES:
        raise UserError(f"data.channels={channels} must be 1 (gray) or 3 (RGB)")
    if limit < 0:
        raise UserError(f"limit={limit} of {source} must be 0, for all, or more")
    return SOURCES[kind](argument, split)


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

    def __init__(self, records: Records, size: int, channels: int, limit: int):
        self._records, self._size, self._channels = records, size, channels
        self._length = min(limit or len(records.names), len(records.names))
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> np.ndarray:
        for j in range(len(self._records.names)):
            image = self._read((i + j) % len(self._records.names))
            if image is not None:
                return image
        raise self._nothing()

    def decode_all(self) -> tuple[np.ndarray, list[int]]:
        """The readable ones, `[N, size, size, channels]`, and their labels where there are any."""
        images = np.empty((len(self), self._size, self._size, self._channels), np.uint8)
        labels, count = [], 0
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self._records.names), _CHUNK):
                chunk = range(start, min(start + _CHUNK, len(self._records.names)))
                for i, image in zip(chunk, pool.map(self._read, chunk), strict=True):
                    if image is not None and count < len(images):
                        images[count] = image
                        count += 1
                        if self._records.label:
                            labels.append(self._records.label(i))
                if count == len(images):
                    break
        if not count:
            raise self._nothing()
        return images[:count], labels

    def _read(self, i: int) -> np.ndarray | None:
        """Image i, or None, with a warning the first time, if it cannot be read."""
        try:
            image = self._records.open(i)
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels; at most {_MOST_PIXELS}")
            return _fit(image, self._size, self._channels)
        except Exception as error:  # decoders raise all sorts on damaged files
            if i not in self._unreadable:
                self._unreadable.add(i)
                logging.warning(
                    "skipped the unreadable image %s (%d so far): %r",
                    self._records.names[i],
                    len(self._unreadable),
                    error,
                )
            return None

    def _nothing(self) -> UserError:
        names = self._records.names
        return UserError(f"none of the {len(names)} images can be read, the first is {names[0]}")


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
    if split not in SPLITS:
        raise unknown_name("split of digits", split, SPLITS)
    start, stop = (0, _DIGITS_TRAIN) if split == "train" else (_DIGITS_TRAIN, None)
    # The file of sklearn.datasets.load_digits, whose import would take longer than all of this.
    package = importlib.metadata.distribution("scikit-learn").locate_file("sklearn")
    rows = np.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",")[start:stop]
    pixels = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = rows[:, 64].astype(int).tolist()

    def open_(i: int) -> Image.Image:
        return Image.fromarray(pixels[i]).resize((64, 64), Image.Resampling.BICUBIC)

    names = [f"digit {start + i}" for i in range(len(pixels))]
    return Records(names, open_, labels.__getitem__)


def _color_digits(argument: str, split: str) -> Records:
    """The digits, 0 to 9 in ten hues: white ink becomes the hue, black stays black."""
    gray = _digits(argument, split)

    def open_(i: int) -> Image.Image:
        hue = Image.new("HSV", (1, 1), (gray.label(i) * 256 // 10, 200, 255)).convert("RGB")
        return ImageOps.colorize(gray.open(i), "black", hue.getpixel((0, 0)))

    return gray._replace(names=[f"colour {name}" for name in gray.names], open=open_)


def _tfds(name: str, split: str) -> Records:
    """The images of a dataset that TFDS has prepared in a random-access format."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        message = f"TFDS knows no dataset {name!r}, and none lies in TFDS_DATA_DIR"
        raise UserError(f"{message} ({first_line(error)})") from error
    image_keys, label_keys = (
        [key for key, feature in builder.info.features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    if len(image_keys) != 1:
        raise UserError(f"tfds:{name} must have one image feature; it has {image_keys or 'none'}")
    if not builder.data_path.exists():
        raise UserError(
            f"tfds:{name} is not prepared at {builder.data_path}. Set TFDS_DATA_DIR to where it is,"
            " or prepare it once (needs a network, and TensorFlow: pip install tensorflow): "
            f"tfds build {name} --file_format=array_record"
        )
    try:
        # The bytes as stored: PIL decodes them ten times as fast as TFDS would.
        rows = builder.as_data_source(split, decoders={image_keys[0]: tfds.decode.SkipDecoding()})
        names = [f"tfds:{name} {split} #{i}" for i in range(len(rows))]
    except NotImplementedError as error:
        raise UserError(
            f"tfds:{name} at {builder.data_path} is in a format without random access; "
            f"convert it: tfds convert_format --dataset_dir={builder.data_path} "
            "--out_file_format=array_record"
        ) from error
    except (KeyError, ValueError) as error:
        raise unknown_name(f"split of tfds:{name}", split, builder.info.splits) from error
    # An image and its label are of one reading: rows are kept while their chunk is decoded.
    row = functools.lru_cache(_CHUNK)(rows.__getitem__)

    def open_(i: int) -> Image.Image:
        return Image.open(io.BytesIO(row(i)[image_keys[0]]), formats=_FORMATS)

    def label(i: int) -> int:
        return int(row(i)[label_keys[0]])

    return Records(names, open_, label if len(label_keys) == 1 else None)


def _folder(path: str, split: str) -> Records:
    """Image files below a folder: its own `train` and `test` (or `val`), or a fixed tenth for test.

    That tenth is chosen by a hash of each file's name: files that come later move no other.
    """
    if split not in SPLITS:
        raise unknown_name("split of a folder", split, SPLITS)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {root} (the source folder:{path})")
    tests = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    own_splits = bool(tests) and (root / "train").is_dir()
    top = root / {"train": "train", "test": tests[0]}[split] if own_splits else root
    files = sorted(f for f in top.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    if not own_splits:
        if len(files) < len(SPLITS):
            raise UserError(f"{root} holds {len(files)} PNG or JPEG files; at least 2 are needed")
        hashes = {f: hashlib.sha256(f.relative_to(root).as_posix().encode()) for f in files}
        share = {f: int.from_bytes(h.digest()[:4], "big") / 2**32 for f, h in hashes.items()}
        first, *_, last = sorted(files, key=share.get)  # neither split is ever empty
        test = {f for f in files if share[f] < _FOLDER_TEST_SHARE} - {last} | {first}
        files = [f for f in files if (f in test) == (split == "test")]
    if not files:
        raise UserError(f"{top} holds no PNG or JPEG file")
    return Records([str(f) for f in files], lambda i: Image.open(files[i], formats=_FORMATS))


SOURCES: dict[str, Callable[[str, str], Records]] = {
    "digits": _digits,
    "color_digits": _color_digits,
    "tfds": _tfds,
    "folder": _folder,
}
