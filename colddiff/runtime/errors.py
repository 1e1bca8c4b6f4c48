"""The one exception for bad input: what was given, what was expected, what to do.

`colddiff.main` shows its message alone; any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used: a name, a number, a shape, a path or a workdir."""


class StorageError(UserError):
    """The file system failed where something was to be read, which itself may be in order."""


def unknown_name(what: str, name: object, valid: Iterable[str]) -> UserError:
    """The error for a `name` of some `what` ("sampler", ...) that is none of the `valid` ones."""
    return UserError(f"unknown {what} {name!r}; valid: {', '.join(sorted(valid))}")


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, or its type if it says nothing."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(" [tensorstore_spec")[0]  # kilobytes of settings follow
