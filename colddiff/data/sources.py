"""Images from named sources.

A config names its source by a string:

    digits           scikit-learn's 1,797 handwritten digits: needs no file and no network
    color_digits     the same digits, each class in its own hue
    tfds:NAME        a prepared TensorFlow Datasets dataset (TFDS_DATA_DIR), without TensorFlow
    folder:PATH      PNG, JPEG, WebP and TIFF files below PATH, in any nesting
    arrays:PATH      an .npy or .npz file of images with any number of channels (`data/arrays.py`)

Pictures are returned as uint8 `[H, W, 1 or 3]`. They are turned upright, composited onto a
background where they are transparent, resized, keeping their aspect, until they just cover H × W,
and center-cropped. Arrays are center-cropped, but never resized. They are returned as uint8 if they
are that, and otherwise as float32 on [-1, 1], so that no bit of theirs is lost. Random augmentation
is part of the train step, on the device. The order of training is set in `colddiff.data.batches`.

A folder's files are often sorted by class, so its subsets are taken in the order of a hash of the
file names (`Split.order`), and those of arrays in the order of a hash of the index. Subsets of the
other sources are the first images. In that order, `train[:-100]` is a split without its last 100
images, and `train[-100:]` these; TFDS also takes percentages.
"""

import functools
import hashlib
import importlib.metadata
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from colddiff.data.arrays import read_arrays
from colddiff.data.decoding import CHUNK, Form, Images, LazyImages, Records, Split, open_image
from colddiff.data.folders import SPLITS, by_ending, hash_share, hold_out, split_files
from colddiff.images import height_width
from colddiff.runtime.errors import UserError, first_line, unknown_name

BLACK = (0, 0, 0)
_DIGITS_TRAIN = 1500  # the last 297 digits are the test split
_PART = re.compile(r"(\w+)\[((?:-?\d+)?):((?:-?\d+)?)\]")  # of a split: SPLIT[START:STOP]
_FEW = 100  # with fewer test images, scores are uncertain


def load(
    source: str,
    split: str,
    *,
    size: int | tuple[int, int],
    channels: int,
    background: Sequence[int] = BLACK,
    value_range: Sequence[float] = (),
    cache: bool = True,
    limit: int = 0,
) -> Images:
    """Return the images of one split of a source.

    An image that cannot be read is skipped. A warning gives its name and the number skipped so far.

    Args:
      source: the source's name, as listed at the top of this module.
      split: 'train' or 'test', or a part such as 'train[:1000]'; for TFDS any of its splits.
      size: H = W, or (H, W), in pixels.
      channels: 1 (gray) or 3 (RGB); of arrays any number, the same as in the file.
      background: (R, G, B) in 0..255, visible through transparent pixels.
      cache: decode all images into memory at once. Otherwise each image is decoded at each access,
        and the next readable image replaces an unreadable one.
      value_range: (low, high) of arrays; () for all values of an 8-bit or 16-bit integer type.
      limit: the largest number of images, chosen in the order of `Split.order`; 0 for all.

    Raises:
      UserError: the source, split or folder does not exist, or none of its images can be read; the
        file system fails repeatedly; or an array is too small, or has NaN or values out of range.
    """
    form = Form.of(size, channels, background, value_range)
    images = LazyImages(_records(source, split, channels, limit), form, limit)
    return images.decode_all().images if cache else images


def load_split(
    source: str,
    split: str,
    *,
    size: int | tuple[int, int],
    channels: int,
    background: Sequence[int] = BLACK,
    value_range: Sequence[float] = (),
    limit: int = 0,
) -> Split:
    """Return the images of `load`, with their classes and the order of subsets."""
    form = Form.of(size, channels, background, value_range)
    return LazyImages(_records(source, split, channels, limit), form, limit).decode_all()


def shape_of(settings: Mapping[str, Any], margin: int = 0) -> dict[str, Any]:
    """Return the keywords of `load` that a config's `data` sets, from `size` to `value_range`.

    Args:
      settings: the config's `data`. Saved configs of earlier versions have no `background` and no
        `value_range`.
      margin: pixels to add to both sides.
    """
    high, wide = height_width(settings["image_size"])
    return {
        "size": (high + margin, wide + margin),
        "channels": settings["channels"],
        "background": settings.get("background", BLACK),
        "value_range": settings.get("value_range", ()),
    }


def check_channels(source: str, channels: int) -> None:
    """Refuse a number of channels that a source cannot give.

    Raises:
      UserError: the source has pictures, which have 1 or 3 channels.
    """
    if channels not in (1, 3) and not source.startswith("arrays:"):
        raise UserError(
            f"data.channels={channels} of {source} must be 1 (gray) or 3 (RGB); only arrays:PATH "
            "takes other numbers"
        )


def fingerprint(source: str, split: str, channels: int) -> dict[str, str | int]:
    """Return a split's number of files and a hash of their names.

    For a `folder:` source the hash covers the files' sizes too. An array's name is its index.
    """
    records = _records(source, split, channels, 0)
    digest = hashlib.sha256("\n".join(records.names).encode())
    if source.startswith("folder:"):
        digest.update(str([os.path.getsize(name) for name in records.names]).encode())
    return {"files": len(records.names), "sha256": digest.hexdigest()}


def log_sizes(settings: Mapping[str, Any]) -> None:
    """Log the sizes of both splits of a config's `data`; warn if something may be amiss.

    The warnings are about a small test split, and about files that are passed over. Another line
    says whether arrays are cropped.
    """
    source, channels = settings["source"], settings["channels"]
    train, test = (
        _records(source, settings[name], channels, 0) for name in ("train_split", "test_split")
    )
    sizes = len(train.names), len(test.names)
    logging.info("images of %s: %d for training, %d for testing", source, *sizes)
    if source.startswith("arrays:"):
        stored, size = train.open(0).shape[:2], height_width(settings["image_size"])
        if stored != size:
            logging.info("they are center-cropped from %d×%d to %d×%d", *stored, *size)
    if passed_over := {*train.passed_over, *test.passed_over}:
        counts = by_ending(passed_over)
        logging.warning("files of %s passed over, by their ending: %s", source, counts)
    if len(test.names) < _FEW:
        logging.warning(
            "the test split has only %d images, so its scores are uncertain; hold out %d or more",
            len(test.names),
            _FEW,
        )


def load_labelled(
    source: str,
    split: str,
    *,
    size: int | tuple[int, int],
    channels: int,
    background: Sequence[int] = BLACK,
    value_range: Sequence[float] = (),
    limit: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return images `[N, H, W, C]` and their classes, int32 `[N]`.

    The images are those of `load`. Classes count from 0. A TFDS dataset has classes if it has
    exactly one `ClassLabel` feature.

    Raises:
      UserError: as `load`; or the source has no classes, or some of its images have none.
    """
    records = _records(source, split, channels, limit)
    if records.label is None:
        raise UserError(
            f"{source} has no class labels, or several features of them; a classifier needs one. "
            "Use the feature space 'pca' or 'inception', which need no labels"
        )
    form = Form.of(size, channels, background, value_range)
    images, labels, _ = LazyImages(records, form, limit).decode_all()
    if min(labels) < 0:
        raise UserError(
            f"{np.sum(labels == -1)} of the {len(labels)} images of {source}, split {split}, have "
            "no class, which a classifier needs; use another split, or the feature space 'pca' or "
            "'inception'"
        )
    return images, labels


def _records(source: str, split: str, channels: int, limit: int) -> Records:
    """Return the source's records after checking `source`, `channels` and `limit`."""
    kind, _, argument = source.partition(":")
    if kind not in SOURCES or bool(argument) != (kind in ("tfds", "folder", "arrays")):
        valid = ("digits", "color_digits", "tfds:NAME", "folder:PATH", "arrays:PATH")
        raise unknown_name("data source", source, valid)
    check_channels(source, channels)
    if limit < 0:
        raise UserError(f"limit={limit} of {source} must be 1 or more, or 0 for all images")
    if kind == "tfds" or not (part := _PART.fullmatch(split)):
        return SOURCES[kind](argument, split)
    whole, start, stop = part.groups()
    records = SOURCES[kind](argument, whole)
    chosen = records.part(slice(*(int(text) if text else None for text in (start, stop))))
    if not chosen.names:
        raise UserError(
            f"the split {split} of {source} has no image; {whole} has {len(records.names)}"
        )
    return chosen


def _digits(argument: str, split: str) -> Records:
    """Return the 8×8 digits (UCI, via scikit-learn), enlarged smoothly to 64×64."""
    del argument
    if split not in SPLITS:
        raise unknown_name("split of digits", split, SPLITS)
    start, stop = (0, _DIGITS_TRAIN) if split == "train" else (_DIGITS_TRAIN, None)
    # Read the file of sklearn.datasets.load_digits directly, because importing sklearn is slower.
    package = importlib.metadata.distribution("scikit-learn").locate_file("sklearn")
    rows = np.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",")[start:stop]
    pixels = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = rows[:, 64].astype(int).tolist()

    def open_(i: int) -> Image.Image:
        return Image.fromarray(pixels[i]).resize((64, 64), Image.Resampling.BICUBIC)

    names = [f"digit {start + i}" for i in range(len(pixels))]
    return Records(names, open_, labels.__getitem__)


def _color_digits(argument: str, split: str) -> Records:
    """Return the digits in ten hues, one per class: white becomes the hue, black stays black."""
    gray = _digits(argument, split)

    def open_(i: int) -> Image.Image:
        hue = Image.new("HSV", (1, 1), (gray.label(i) * 256 // 10, 200, 255)).convert("RGB")
        return ImageOps.colorize(gray.open(i), "black", hue.getpixel((0, 0)))

    return gray._replace(names=[f"colour {name}" for name in gray.names], open=open_)


def _tfds(name: str, split: str) -> Records:
    """Return the images of a dataset that TFDS has prepared in a random-access format."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        raise UserError(
            f"TFDS knows no dataset {name!r}, and TFDS_DATA_DIR does not hold it "
            f"({first_line(error)}); check the name and the folder"
        ) from error
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
        # TFDS returns the stored bytes, because PIL decodes them ten times as fast.
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
    # Cache rows so that an image and its label cost one read.
    row = functools.lru_cache(CHUNK)(rows.__getitem__)

    def open_(i: int) -> Image.Image:
        return open_image(io.BytesIO(row(i)[image_keys[0]]))

    def label(i: int) -> int:
        return int(row(i)[label_keys[0]])

    return Records(names, open_, label if len(label_keys) == 1 else None)


def _folder(path: str, split: str) -> Records:
    """Return the image files of a split of a folder (`data/folders.py`)."""
    files, order, others = split_files(path, split)
    return Records(
        [str(f) for f in files],
        lambda i: open_image(files[i]),
        order=order,
        passed_over=others,
    )


def _arrays(argument: str, split: str) -> Records:
    """Return the images of a split of an .npy or .npz file; about a tenth is the test split.

    A hash of the index splits them, so images that are added at the end move no others.
    """
    if split not in SPLITS:
        raise unknown_name("split of arrays", split, SPLITS)
    path = Path(argument).expanduser()
    images, labels = read_arrays(path)
    if len(images) < len(SPLITS):
        raise UserError(f"{path} holds {len(images)} image; at least 2 are needed")
    share = {i: hash_share(str(i)) for i in range(len(images))}
    test = hold_out(share)
    chosen = [i for i in share if (i in test) == (split == "test")]
    return Records(
        [f"image {i} of {path}" for i in chosen],
        lambda i: images[chosen[i]],
        None if labels is None else lambda i: int(labels[chosen[i]]),
        order=sorted(range(len(chosen)), key=lambda i: share[chosen[i]]),
        dtype=images.dtype,
    )


SOURCES: dict[str, Callable[[str, str], Records]] = {
    "digits": _digits,
    "color_digits": _color_digits,
    "tfds": _tfds,
    "folder": _folder,
    "arrays": _arrays,
}
