"""Files that are there whole or not at all, and reading that outlasts a failing disk.

Also JSON and Markdown.
"""

import errno
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

from colddiff.runtime.errors import UserError, first_line

_Value = TypeVar("_Value")

_PAUSES = (1.0, 3.0, 10.0)  # seconds before reading is tried again
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # a damaged folder, not a failing disk


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A new binary file, which becomes `path` when the block ends without an error.

    It makes the folder. Two processes that write the same path do not meet: the later one stays. A
    killed one may leave a file `NAME.*.unfinished` behind, which nothing reads. After a loss of
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
    """Return whether a disk or network failed, rather than what a file holds.

    Known by the number of an OSError, or in the text of orbax's errors, or in what led to `error`.
    A missing file is no such failure.
    """
    number = getattr(error, "errno", None)
    if number is None and (code := re.search(r"os_error_code='(\d+)'", str(error))):
        number = int(code[1])
    if number is not None:
        return number not in _MISSING
    cause = error.__cause__ or error.__context__
    return cause is not None and file_system_failed(cause)


def patiently(read: Callable[[], _Value], what: str) -> _Value:
    """Return `read()`; where the file system fails, try again after pauses of 1, 3 and 10 seconds.

    Args:
      what: is read, for the log.

    Raises:
      Exception: the last error of `read`, or at once one that is not the file system's.
    """
    for pause in _PAUSES:
        try:
            return read()
        except Exception as error:
            if not file_system_failed(error):
                raise
            reason = first_line(error)
            logging.warning("%s: %s; trying again in %g s", what, reason, pause)
            time.sleep(pause)
    return read()


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if there is no such file.

    Raises:
      UserError: it is not JSON, or not an object.
    """
    if not path.exists():
        return None
    try:
        return dict(json.loads(patiently(path.read_text, str(path))))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes it, two spaces a level."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes it in UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())


def as_json(value: Any) -> Any:
    """Named tuples as dicts, in JSON's types; a number that is not finite is null."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown_table(cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row is its header."""
    header, *rows = (f"| {' | '.join(row)} |".replace("|  |", "| |") for row in cells)
    return [header, "|" + "---|" * len(cells[0]), *rows]


def save_gif(path: Path, frames: Sequence[np.ndarray], *, seconds: float = 4.0) -> None:
    """Writes uint8 `[H, W, 3]` frames, shown again and again, the last one a second longer."""
    first, *rest = (Image.fromarray(f).quantize(dither=Image.Dither.NONE) for f in frames)
    each = round(1000 * seconds / len(frames))
    times = [*[each] * len(rest), each + 1000]
    with atomic_write(path) as file:
        first.save(file, "gif", save_all=True, append_images=rest, duration=times, loop=0)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 `[H, W, 3]`, or `[H, W, 1]` as a gray image, to `path`, making its folder."""
    gray = picture.shape[-1] == 1
    with atomic_write(path) as file:
        Image.fromarray(picture[..., 0] if gray else picture).save(file, "png")
