"""Event files for TensorBoard, written without a thread, so that flushed events are on disk.

tensorboardX's own `SummaryWriter` writes from a thread. It loses the last events when the process
is killed, and when the disk is full, the next event blocks forever.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from colddiff.runtime.devices import is_first_host


class EventLog:
    """Scalars and pictures by step, in a new file of `folder`; a context manager.

    Only the first host writes. TensorBoard hides the events after step `start` in earlier files.

    Raises:
      OSError: the file cannot be written. All methods raise it too.
    """

    def __init__(self, folder: Path, *, start: int):
        self._writer = None
        if is_first_host():
            folder.mkdir(parents=True, exist_ok=True)
            # The name has the time in seconds, in which a short run may end and resume.
            suffix = f".{start:09d}"
            self._writer = EventsWriter(str(folder / "events"), filename_suffix=suffix)
        self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError:
            if error[0] is None:  # an earlier error is raised instead
                raise

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write one number."""
        self._write(step, summary=summary.scalar(name, value))

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write one picture, uint8 `[H, W, 3]`."""
        self._write(step, summary=summary.image(name, picture, dataformats="HWC"))

    def flush(self) -> None:
        """Flush all events to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def _write(self, step: int, **what: Any) -> None:
        if self._writer is not None:
            self._writer.write_event(Event(step=step, wall_time=time.time(), **what))
