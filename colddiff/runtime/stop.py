"""Stopping on Ctrl-C, after a given time, or on SIGTERM, which queues send before a job ends."""

import signal
import threading
import time
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from colddiff.runtime.devices import replicated, to_mesh

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """Work ended early because the run is to stop."""


class Stop:
    """A context manager that records SIGTERM and SIGINT; a second signal ends the process at once.

    Python delivers signals to the main thread only. In other threads no signal is recorded.

    Args:
      mesh: the devices of all hosts.
      deadline: a time of `time.monotonic` to stop at as well; None for none.
    """

    def __init__(self, mesh: Mesh, deadline: float | None = None):
        self._mesh = mesh
        self._signalled = False
        self._deadline = deadline
        self._asked: jax.Array | None = None
        self._before: dict[int, object] = {}
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def noted(self) -> bool:
        """Return whether this process has received a signal, or its deadline has passed."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return self._signalled or late

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        logging.warning(
            "%s: saving a checkpoint, then ending; a second signal ends this process at once", name
        )

    def wanted(self) -> bool:
        """Return whether any host is to stop; the answer is the same on all hosts.

        Every host must call this after every step. With several hosts, each call returns the
        result for the call before, which the devices have computed in the meantime.
        """
        if jax.process_count() == 1:
            return self.noted
        mine = np.full(jax.local_device_count(), self.noted)
        before, self._asked = self._asked, self._any(to_mesh(mine, self._mesh, 0))
        return before is not None and bool(before)

    def check(self) -> None:
        """Raise an error if any host is to stop; every host must call this.

        Raises:
          StoppedError: a host is to stop.
        """
        if self.wanted():
            raise StoppedError
