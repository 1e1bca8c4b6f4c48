"""A file with the log lines of a run."""

import logging as python_logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from absl import logging

from colddiff.runtime.devices import is_first_host

_FORMAT = python_logging.Formatter("%(asctime)s %(levelname)s %(message)s")


@contextmanager
def log_file() -> Iterator[Callable[[Path], None]]:
    """Collect the log lines of the block; yield `write_to(path)`, which appends them to a file.

    Lines before and after that call are written, and the error that ends the block, if any. Without
    that call nothing is written. Only the first host writes. Lines that the console leaves out are
    left out here too.
    """
    collected = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    collected.filters = list(logging.get_absl_handler().filters)
    logger = python_logging.getLogger()
    logger.addHandler(collected)

    def write_to(path: Path) -> None:
        first = is_first_host()
        file = _LenientFile(path, encoding="utf-8") if first else python_logging.NullHandler()
        file.setFormatter(_FORMAT)
        collected.setTarget(file)
        collected.capacity = 1
        collected.flush()

    try:
        yield write_to
    except BaseException as error:
        level, name = python_logging.ERROR, type(error).__name__
        collected.handle(logger.makeRecord("", level, "", 0, "%s: %s", (name, error), None))
        raise
    finally:
        logger.removeHandler(collected)
        if collected.target is not None:
            collected.target.close()
        collected.close()


class _LenientFile(python_logging.FileHandler):
    """A log file that a full disk does not turn into an error; the console has the same lines."""

    def handleError(self, record: python_logging.LogRecord) -> None:
        """Drop the line."""
