"""Files that are there whole or not at all; JSON and Markdown."""

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
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
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes it in UTF-8."""
    with whole(path) as file:
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
