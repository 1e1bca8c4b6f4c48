"""The exception for bad input: its message says what was given, what was expected, what to do.

`colddiff.main` shows only this message. Any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used: a name, a number, a shape, a path or a workdir."""


class StorageError(UserError):
    """A failure of the file system while reading; the file itself may be undamaged."""


def unknown_name(what: str, name: object, valid: Iterable[str]) -> UserError:
    """Return the error for a `name` of kind `what` ("sampler", ...) that is not in `valid`."""
    return UserError(f"unknown {what} {name!r}; valid: {', '.join(sorted(valid))}")


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, or the error's type if it is empty."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(" [tensorstore_spec")[0]  # drops kilobytes of settings
