"""How long work shows that it moves: a live line on a terminal, plain log lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TextIO

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Meter:
    """Counts steps of some work from `start` to `total`; a context manager.

    `advance` after every step keeps the live line moving, `note` says something about the work.
    """

    def __init__(self, what: str, *, total: int, start: int = 0, images_per_step: int):
        self._what, self._total, self._start = what, total, start
        self._images_per_step = images_per_step
        self._done, self._text = start, ""
        self._began = self._noted = (time.monotonic(), start)
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}  ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._live.add_task(what, total=total, completed=start, rates="", text="")

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
        if not self._live.disable:
            rates = self._rates(self._began)
            self._live.update(self._task, completed=self._done, rates=rates)

    def note(self, text: str = "") -> None:
        """Shows `text` with the progress; off a terminal, one log line."""
        if not self._live.disable:
            self._live.update(self._task, text=text)
            return
        seconds = (time.monotonic() - self._began[0]) / max(self._done - self._start, 1)
        eta = time.strftime("%H:%M:%S", time.gmtime(seconds * (self._total - self._done)))
        parts = (f"{self._what} {self._done}/{self._total}", text, self._rates(self._noted))
        logging.info("%s  ETA %s", "  ".join(filter(None, parts)), eta)
        self._noted = (time.monotonic(), self._done)

    def _rates(self, since: tuple[float, int]) -> str:
        """Steps and images per second since a (time, step)."""
        steps = (self._done - since[1]) / max(time.monotonic() - since[0], 1e-9)
        return f"{steps:.3g} steps/s  {steps * self._images_per_step:.4g} images/s"


def _log_to(stream: TextIO) -> None:
    """Makes absl write its log lines to `stream`."""
    logging.get_absl_handler().python_handler.setStream(stream)
