"""Progress of long work: a live line on a terminal, plain log lines elsewhere."""

import datetime
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO, TypeVar

from absl import logging
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column

_Item = TypeVar("_Item")


class Meter:
    """Progress of some work from step `start` to `total`; a context manager.

    `advance` counts a step, `note` shows a text, `waiting_for` measures how long the steps wait for
    their inputs, and `uncounted` leaves time out, such as that of compilation.
    """

    def __init__(self, what: str, *, total: int, start: int = 0, images_per_step: int):
        self._what, self._total, self._start = what, total, start
        self._images_per_step = images_per_step
        self._done = start
        self._began = self._noted = (time.monotonic(), start)
        self._waited = 0.0
        self._live = Progress(
            # With one column, a narrow terminal cuts off only the end of the line.
            TextColumn(
                "{task.description}  {task.fields[text]}", table_column=Column(no_wrap=True)
            ),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._live.add_task(what, text="")

    def __enter__(self) -> "Meter":
        self._live.start()
        # rich replaces sys.stderr while the line is live, so that log lines appear above it.
        _log_to(sys.stderr)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        _log_to(sys.stderr)

    def advance(self) -> None:
        """Count one step as done."""
        self._done += 1
        self._live.update(self._task, description=self._status(self._began))

    def note(self, text: str = "") -> None:
        """Show `text` with the progress; without a terminal, log both in one line."""
        self._live.update(self._task, text=text)
        if self._live.disable:
            logging.info("%s", f"{self._status(self._noted)}  {text}".rstrip())
        self._noted = (time.monotonic(), self._done)
        self._waited = 0.0

    def waiting_for(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items; the time until each one arrives counts as waiting."""
        items = iter(items)
        while True:
            begin = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - begin
            yield item

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the time of this block out of the speed and of the time left."""
        begin = time.monotonic()
        yield
        spent = time.monotonic() - begin
        self._began, self._noted = ((at + spent, step) for at, step in (self._began, self._noted))

    def waited(self) -> float:
        """Return the share of time spent waiting since the last note, or since the start."""
        return self._waited / max(time.monotonic() - self._noted[0], 1e-9)

    def speeds(self) -> tuple[float, float]:
        """Return steps/s and images/s since the last note, or since the start."""
        return self._speeds(self._noted)

    def _speeds(self, since: tuple[float, int]) -> tuple[float, float]:
        steps = (self._done - since[1]) / max(time.monotonic() - since[0], 1e-9)
        return steps, steps * self._images_per_step

    def _status(self, since: tuple[float, int]) -> str:
        """Return steps done, speed since `since` (time, step), and time left at average speed."""
        steps, images = self._speeds(since)
        left = (
            (time.monotonic() - self._began[0])
            / max(self._done - self._start, 1)
            * (self._total - self._done)
        )
        return (
            f"{self._what} {self._done}/{self._total}  {steps:.3g} steps/s  {images:.4g} images/s  "
            f"ETA {datetime.timedelta(seconds=round(left))}"
        )


def _log_to(stream: TextIO) -> None:
    """Make absl write its log lines to `stream`."""
    logging.get_absl_handler().python_handler.setStream(stream)
