"""Stopping when told to: by SIGTERM, as schedulers send before they take a machine, or Ctrl-C."""

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
    """Work that was left off, because the run is to stop."""


class Stop:
    """Notes SIGTERM and SIGINT while it is open; a second one ends the process at once.

    Attributes:
      noted: this process was told to stop.

    A context manager. Only Python's main thread gets signals: elsewhere nothing is ever noted.
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
        logging.warning("%s: saving, then ending; once more ends at once", name)

    def wanted(self) -> bool:
        """Whether any host was told to stop; all must ask after every step, and get one answer.

        Of several hosts it is the answer to the question before, which the devices have by now.
        """
        if jax.process_count() == 1:
            return self.noted
        mine = np.full(jax.local_device_count(), self.noted)
        before, self._asked = self._asked, self._any(to_mesh(mine, self._mesh, 0))
        return before is not None and bool(before)

    def check(self) -> None:
        """Leaves off what can be left off; all must ask, as for `wanted`.

        Raises:
          StoppedError: any host was told to stop.
        """
        if self.wanted():
            raise StoppedError
