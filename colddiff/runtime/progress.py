"""How long work shows that it moves: a live line on a terminal, plain log lines elsewhere."""

import datetime
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TextIO, TypeVar

from absl import logging
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column

_Item = TypeVar("_Item")


class Meter:
    """Counts steps of some work from `start` to `total`; a context manager.

    `advance` after every step keeps the live line moving, `note` says something about the work,
    `waiting_for` what the steps need shows whether they wait for it.
    """

    def __init__(self, what: str, *, total: int, start: int = 0, images_per_step: int):
        self._what, self._total, self._start = what, total, start
        self._images_per_step = images_per_step
        self._done = start
        self._began = self._noted = (time.monotonic(), start)
        self._waited = 0.0
        self._live = Progress(
            # One column, of which a narrow terminal cuts off the end.
            TextColumn(
                "{task.description}  {task.fields[text]}", table_column=Column(no_wrap=True)
            ),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._live.add_task(what, text="")

    def __enter__(self) -> "Meter":
        self._live.start()
        # While the line lives, rich's stand-in for stderr puts log lines above it.
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
        """One more step is done."""
        self._done += 1
        self._live.update(self._task, description=self._status(self._began))

    def note(self, text: str = "") -> None:
        """Shows `text` with the progress; off a terminal, one log line."""
        self._live.update(self._task, text=text)
        if self._live.disable:
            logging.info("%s", f"{self._status(self._noted)}  {text}".rstrip())
        self._noted = (time.monotonic(), self._done)
        self._waited = 0.0

    def waiting_for(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items; the time until each comes counts as waiting."""
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

    def waited(self) -> float:
        """Share of all time since the last note, or the beginning, that was spent waiting."""
        return self._waited / max(time.monotonic() - self._noted[0], 1e-9)

    def _status(self, since: tuple[float, int]) -> str:
        """Steps done, speed since a (time, step), time left at the speed since the beginning."""
        now = time.monotonic()
        steps = (self._done - since[1]) / max(now - since[0], 1e-9)
        left = (
            (now - self._began[0]) / max(self._done - self._start, 1) * (self._total - self._done)
        )
        return (
            f"{self._what} {self._done}/{self._total}  {steps:.3g} steps/s  "
            f"{steps * self._images_per_step:.4g} images/s  "
            f"ETA {datetime.timedelta(seconds=round(left))}"
        )


def _log_to(stream: TextIO) -> None:
    """Makes absl write its log lines to `stream`."""
    logging.get_absl_handler().python_handler.setStream(stream)
