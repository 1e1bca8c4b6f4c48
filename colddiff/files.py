"""Files that are there whole or not at all, and JSON."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from colddiff.errors import UserError, first_line


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A new binary file, which becomes `path` when the block ends without an error.

    It makes the folder. Two processes that write the same path do not meet: the later one stays. A
    killed one may leave a file `NAME.*.unfinished` behind, which nothing reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if there is no such file.

    Raises:
      UserError: it is not JSON, or not an object.
    """
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes it, two spaces a level."""
    with whole(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")
