"""Assignment of a folder's image files to splits, and their order in subsets."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from absl import logging

from colddiff.runtime.errors import UserError, unknown_name

SPLITS = ("train", "test")
_SPLIT_FOLDERS = {  # folder names of each split, upper or lower case; the first is used
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
KINDS = "PNG, JPEG, WebP or TIFF"
_TEST_SHARE = 0.1
_Image = TypeVar("_Image")


class SplitFiles(NamedTuple):
    """The files of a split of a folder.

    Attributes:
      images: the image files.
      order: the indices of `images`, in the order in which subsets take them.
      others: the files that are passed over, because no image has such an ending.
    """

    images: list[Path]
    order: list[int]
    others: list[Path]


def split_files(path: str, split: str) -> SplitFiles:
    """Return the files of a split of a folder.

    A folder without split folders is split by a hash of each file's name: about a tenth of the
    files is the test split. Adding files does not move others between the splits.

    Raises:
      UserError: there is no such split or folder, or it holds too few images; or it has the
        folder of one split only, beside other folders.
    """
    if split not in SPLITS:
        raise unknown_name("split of a folder", split, SPLITS)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {root} (the source folder:{path})")
    own = _own_splits(root)
    top = own[split] if own else root
    files, others = image_files(top, root)
    passed = f" (passed over: {by_ending(others)})" if others else ""
    share = {f: hash_share(f.relative_to(root).as_posix()) for f in files}
    if not own:
        if len(files) < len(SPLITS):
            raise UserError(
                f"{root} holds {len(files)} {KINDS} files; at least 2 are needed{passed}"
            )
        test = hold_out(share)
        files = [f for f in files if (f in test) == (split == "test")]
    if not files:
        raise UserError(f"{top} holds no {KINDS} file{passed}")
    order = sorted(range(len(files)), key=lambda i: share[files[i]])
    return SplitFiles(files, order, others)


def image_files(top: Path, root: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Return the image files below `top`, by their endings, and the other files; both sorted.

    Args:
      top: the folder; linked folders in it are followed.
      root: links into this folder are skipped, because it is read already; None for `top`.
    """
    found = sorted(_files_below(top, root or top))
    images = [f for f in found if f.suffix.lower() in _SUFFIXES]
    return images, [f for f in found if f.suffix.lower() not in _SUFFIXES]


def by_ending(files: Iterable[Path]) -> str:
    """Return how many files have each ending, such as '12 .gif, 1 without an ending'."""
    counts = Counter(f.suffix.lower() or "without an ending" for f in files)
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {ending}" for ending, count in by_count)


def hash_share(name: str) -> float:
    """Return a number in [0, 1): a hash of a file's path in its folder, or of an index."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def hold_out(share: Mapping[_Image, float]) -> set[_Image]:
    """Return the test split of two or more images: about a tenth, those with the least `share`.

    Neither split is ever empty.
    """
    first, *_, last = sorted(share, key=share.get)
    return {image for image in share if share[image] < _TEST_SHARE} - {last} | {first}


def _own_splits(root: Path) -> dict[str, Path]:
    """Return the folders of both splits if `root` has them under usual names, else {}.

    Raises:
      UserError: only one split has a folder, and there are other folders of unknown purpose; or the
        names of two folders for the same split differ only in case.
    """
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    found = {}
    for split, names in _SPLIT_FOLDERS.items():
        candidates = [f for name in names for f in folders if f.name.lower() == name]
        if candidates:
            found[split] = candidates[0]
        if len(candidates) > 1 and candidates[0].name.lower() == candidates[1].name.lower():
            raise UserError(
                f"{candidates[0]} and {candidates[1].name} are both folders of the {split} split; "
                "keep one of them"
            )
    if len(found) == len(SPLITS):
        return found
    if found and len(folders) > 1:
        [split] = found
        [other] = set(SPLITS) - {split}
        seen = ", ".join(f.name for f in folders)
        raise UserError(
            f"{root} has a folder for the {split} split but none for the {other} split, among its "
            f"folders {seen}. Rename the {other} split's folder to one of "
            f"{', '.join(_SPLIT_FOLDERS[other])}, or give the folder that holds all images, which "
            "are then split by a hash of their names"
        )
    return {}


def _files_below(top: Path, root: Path) -> Iterator[Path]:
    """Yield all files below `top`, including those in linked folders.

    A linked folder is skipped with a warning if it lies in `root`, contains `root`, or has been
    read already.
    """
    seen = {os.path.realpath(top)}
    base = root.resolve()

    def refuse(error: OSError) -> None:
        raise error

    for folder, below, names in os.walk(top, followlinks=True, onerror=refuse):
        for name in list(below):
            link = Path(folder, name)
            if not link.is_symlink():
                continue
            target = link.resolve()
            if target.is_relative_to(base) or base.is_relative_to(target) or str(target) in seen:
                logging.warning("skipped the linked folder %s: %s is read already", link, target)
                below.remove(name)
            seen.add(str(target))
        yield from (file for name in names if (file := Path(folder, name)).is_file())
