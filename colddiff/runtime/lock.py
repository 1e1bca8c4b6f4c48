"""A lock on a workdir, where two processes would delete each other's unfinished checkpoints."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from absl import logging

from colddiff.runtime.devices import all_hosts, is_first_host
from colddiff.runtime.errors import UserError


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Hold `WORKDIR/train.lock`; all hosts of one run hold it together.

    The operating system frees the lock when its process ends, even if it is killed. A lock file
    that a killed process leaves behind does no harm.

    Raises:
      UserError: another process trains in this workdir; the message names it.
    """
    path, file, other = workdir / "train.lock", None, ""
    if is_first_host():
        workdir.mkdir(parents=True, exist_ok=True)
        file, other = _lock(path)
    try:
        if not all_hosts(not other):
            raise UserError(
                f"{workdir} is in use: {other or 'a process that host 0 names'} trains there. Wait "
                "until it ends, or end it, or use another --workdir"
            )
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _lock(path: Path) -> tuple[TextIO | None, str]:
    """Return (locked file, ""), or (None, a description of the process that holds the lock)."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip()
            file.close()
            return None, other or "another process"
        except FileNotFoundError:
            pass
        except OSError as error:
            told = "%s cannot be locked: %s. Do not start a second training in this workdir"
            logging.warning(told, path, error)
            break
        file.close()  # the last holder has deleted this file, so lock a new one
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since},")
    file.flush()
    return file, ""
