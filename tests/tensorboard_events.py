"""Reads TensorBoard's event files without TensorFlow."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def read_events(folder: Path) -> list[tuple[int, str]]:
    """(step, tag) of every value in `folder`; "session" where a session purges what follows."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag) for value in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "session"))
            data = data[12 + length + 4 :]
    return found
