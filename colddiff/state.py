"""The training state and where it lies: EMA, device mesh, shardings.

The same code serves one device and many: batches are split over the mesh, the state is a copy on
each device. Saving is `colddiff.checkpoint`, computing is `colddiff.train`.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from colddiff.build import Experiment, init_params
from colddiff.errors import UserError


@flax.struct.dataclass
class TrainState:
    """All that changes in training.

    Attributes:
      step: optimiser steps done, int32 scalar. All randomness of a step is folded from it.
      params: of the restorer.
      ema_params: their moving average, which samples.
      opt_state: of optax.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


def create_mesh() -> Mesh:
    """One axis, 'data', over all devices."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_axis(mesh: Mesh, axis: int) -> NamedSharding:
    """That axis of an array split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def to_mesh(rows: np.ndarray, mesh: Mesh, axis: int) -> jax.Array:
    """This host's part of a batch, put onto the devices; split along `axis`."""
    return jax.make_array_from_process_local_data(split_axis(mesh, axis), rows)


def host_rows(what: str, batch_size: int, mesh: Mesh) -> slice:
    """The part of each batch that this host reads.

    Raises:
      UserError: the devices cannot share the batch evenly.
    """
    devices = mesh.size
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{what}={batch_size} cannot be shared by {devices} devices; use {nearest}")
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def init_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step, made in place on the devices."""

    def init():
        params = init_params(experiment, jax.random.key(experiment.config.seed))
        # A copy: donated buffers must not be shared.
        ema_params = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.int32(0), params, ema_params, experiment.optimizer.init(params))

    return jax.jit(init, out_shardings=replicated(mesh))()


def update_ema(ema_params: Any, params: Any, step: jax.Array, train: ConfigDict) -> Any:
    """The average after `step` steps (paper, appendix A: decay .995 every 10 steps).

    Before `train.ema_start` it is a plain copy.
    """
    rate = jnp.where(step % train.ema_every == 0, 1 - train.ema_decay, 0.0)
    rate = jnp.where(step < train.ema_start, 1.0, rate)
    return optax.incremental_update(params, ema_params, rate)
