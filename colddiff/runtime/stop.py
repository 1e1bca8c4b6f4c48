"""Stopping on Ctrl-C, or on SIGTERM, which schedulers send before they take a machine away."""

import signal
import threading
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

    Attributes:
      noted: whether this process has received a signal.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self.noted = False
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        logging.warning(
            "%s: saving a checkpoint, then ending; a second signal ends this process at once", name
        )

    def wanted(self) -> bool:
        """Return whether any host has received a signal; the answer is the same on all hosts.

        Every host must call this after every step. With several hosts, each call returns the
        result for the call before, which the devices have computed in the meantime.
        """
        if jax.process_count() == 1:
            return self.noted
        mine = np.full(jax.local_device_count(), self.noted)
        before, self._asked = self._asked, self._any(to_mesh(mine, self._mesh, 0))
        return before is not None and bool(before)

    def check(self) -> None:
        """Raise an error if any host has received a signal; every host must call this.

        Raises:
          StoppedError: a host has received a signal.
        """
        if self.wanted():
            raise StoppedError
