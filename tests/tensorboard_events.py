"""A reader of TensorBoard's event files, without TensorFlow."""

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def read_events(folder: Path) -> list[tuple[int, str]]:
    """Return (step, tag) of every value; "session" marks where TensorBoard purges later steps."""
    found = []
    for event in _events(folder):
        found += [(event.step, value.tag) for value in event.summary.value]
        if event.HasField("session_log"):
            found.append((event.step, "session"))
    return found


def read_scalars(folder: Path, tag: str) -> dict[int, float]:
    """Return the values of one tag by step; the later one if a step occurs twice."""
    found = {}
    for event in _events(folder):
        for value in event.summary.value:
            if value.tag == tag:
                found[event.step] = value.simple_value
    return found


def _events(folder: Path) -> Iterator[Event]:
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
