"""Atomic writes, reads that are retried when the file system fails, and caches of arrays.

This module also handles JSON, Markdown tables, and GIF and PNG files.
"""

import errno
import hashlib
import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from absl import logging
from PIL import Image

from colddiff.runtime.devices import all_hosts
from colddiff.runtime.errors import UserError, first_line

_Value = TypeVar("_Value")

_PAUSES = (1.0, 3.0, 10.0)  # seconds before each retry of a read
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # a file is missing; the disk works


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a new binary file, which replaces `path` when the block ends without an error.

    The folder is created. If two processes write the same path, the one that ends last wins. A
    killed process may leave a file `NAME.*.unfinished` behind, which nothing reads. After a loss of
    power `path` is the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def file_system_failed(error: BaseException) -> bool:
    """Return whether a disk or network failed, as opposed to a damaged file.

    The errno decides. It is read from an OSError, or from the text of an orbax error. If an error
    has no errno, its cause is checked instead. A missing file does not count as a failure.
    """
    number = getattr(error, "errno", None)
    if number is None and (code := re.search(r"os_error_code='(\d+)'", str(error))):
        number = int(code[1])
    if number is not None:
        return number not in _MISSING
    cause = error.__cause__ or error.__context__
    return cause is not None and file_system_failed(cause)


def patiently(read: Callable[[], _Value], what: str) -> _Value:
    """Return `read()`; if the file system fails, retry after pauses of 1, 3 and 10 seconds.

    Args:
      read: the function that reads.
      what: the name of what is read, for the log.

    Raises:
      Exception: the last error of `read`. Errors other than the file system's are not retried.
    """
    for pause in _PAUSES:
        try:
            return read()
        except Exception as error:
            if not file_system_failed(error):
                raise
            reason = first_line(error)
            logging.warning("reading %s failed: %s; trying again in %g s", what, reason, pause)
            time.sleep(pause)
    return read()


def cached_npz(
    folder: Path,
    name: str,
    identity: Mapping[str, Any],
    make: Callable[[], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return the arrays of `folder/NAME-HASH.npz`; compute and write them if there is no such file.

    The file also holds the identity and the arrays' digest, which are compared on reading. Every
    host must call this. If a host lacks the file, all hosts compute the arrays.

    Args:
      folder: the cache folder.
      name: the beginning of the file's name.
      identity: everything that the arrays depend on, in JSON types; HASH is its hash.
      make: computes the arrays, none of them called "identity" or "digest".

    Raises:
      UserError: the file cannot be read, or its content has changed since it was written.
    """
    text = json.dumps(identity, sort_keys=True)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if not all_hosts(path.exists()):
        arrays = {key: np.asarray(array) for key, array in make().items()}
        write_npz(path, identity, arrays)
        logging.info("wrote %s", path)
    written, arrays = read_npz(path)
    if written != text:
        raise UserError(
            f"{path} was written for {written}, but {text} was asked for; delete it to compute it "
            "again"
        )
    return arrays


def write_npz(path: Path, identity: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays with their digest and with what they depend on, in JSON types; atomic."""
    text = json.dumps(identity, sort_keys=True)
    with atomic_write(path) as file:
        np.savez(file, identity=text, digest=array_digest(arrays), **arrays)


def read_npz(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return the identity, as JSON text with sorted keys, and the arrays of `write_npz`.

    Raises:
      UserError: the file cannot be read, or its arrays have changed since they were written.
    """
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        written, digest = str(arrays.pop("identity")), str(arrays.pop("digest"))
    except Exception as error:  # damaged archives raise many types of exception
        message = f"{path} cannot be read: {first_line(error)}; delete it to compute it again"
        raise UserError(message) from error
    if array_digest(arrays) != digest:
        raise UserError(
            f"{path} is damaged: its arrays differ from those that were written; delete it to "
            "compute it again"
        )
    return written, arrays


def array_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the arrays' names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file.

    Raises:
      UserError: the file holds no JSON, or no object.
    """
    if not path.exists():
        return None
    try:
        return dict(json.loads(patiently(path.read_text, str(path))))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {first_line(error)}. It must hold a JSON object; restore it, "
            "or move it away"
        ) from error


def check_empty(folder: Path, flag: str) -> None:
    """Refuse a folder that holds files, or a file, on any host; `flag` names it in the message."""
    if not all_hosts(not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(f"{folder} exists and is not empty; give another {flag}")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as JSON, indented by two spaces; an atomic write."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8; an atomic write."""
    with atomic_write(path) as file:
        file.write(text.encode())


def as_json(value: Any) -> Any:
    """Return `value` in JSON's types: named tuples become dicts, non-finite numbers None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown_table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its header."""
    header, *rows = (f"| {' | '.join(row)} |".replace("|  |", "| |") for row in cells)
    return [header, "|" + "---|" * len(cells[0]), *rows]


def save_gif(path: str | Path, frames: Sequence[np.ndarray], *, seconds: float = 4.0) -> None:
    """Write uint8 `[H, W, 3]` frames as a looping GIF; the last frame stays a second longer."""
    first, *rest = (Image.fromarray(f).quantize(dither=Image.Dither.NONE) for f in frames)
    each = round(1000 * seconds / len(frames))
    times = [*[each] * len(rest), each + 1000]
    with atomic_write(Path(path).expanduser()) as file:
        first.save(file, "gif", save_all=True, append_images=rest, duration=times, loop=0)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write uint8 `[H, W, 3]`, or `[H, W, 1]` as a gray image, to `path`; create its folder.

    Raises:
      UserError: the picture has another type or shape.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] not in (1, 3):
        raise UserError(
            f"a picture must be uint8 [H, W, 1 or 3]; got {picture.dtype} {picture.shape}. Convert "
            "an image on [-1, 1] with colddiff.images.to_uint8, and draw several with "
            "colddiff.images.grid or mosaic"
        )
    gray = picture.shape[-1] == 1
    with atomic_write(Path(path).expanduser()) as file:
        Image.fromarray(picture[..., 0] if gray else picture).save(file, "png")
