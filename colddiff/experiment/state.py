"""The training state and its EMA, replicated on every device or sharded over some (FSDP).

`colddiff.experiment.checkpoint` saves the state; `colddiff.training` updates it.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from colddiff.experiment.build import Experiment, init_params
from colddiff.runtime.devices import fsdp_shardings


@flax.struct.dataclass
class TrainState:
    """All values that change in training.

    Attributes:
      step: optimiser steps done, int32 scalar. All keys of a step are folded from it.
      params: the restorer's parameters.
      ema_params: their moving average, used for sampling.
      opt_state: the optimiser's state in optax.
      more_ema: further moving averages, by decay (`ema_name`).
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    more_ema: dict[str, Any] = flax.struct.field(default_factory=dict)


def ema_name(decay: float) -> str:
    """Return the name of a further moving average in the state, such as '0.9999'."""
    return f"{decay:g}"


def init_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Return the state before the first step, created directly on the devices."""
    init = functools.partial(_initial, experiment)
    return jax.jit(init, out_shardings=state_shardings(experiment, mesh))()


def state_shardings(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Return the sharding of each array of the state."""
    return fsdp_shardings(jax.eval_shape(functools.partial(_initial, experiment)), mesh)


def _initial(experiment: Experiment) -> TrainState:
    params = init_params(experiment, jax.random.key(experiment.config.seed))
    # Copied, because donated buffers must not be shared.
    copied = lambda: jax.tree.map(jnp.copy, params)  # noqa: E731
    more = {ema_name(decay): copied() for decay in experiment.config.train.ema_decays}
    return TrainState(jnp.int32(0), params, copied(), experiment.optimizer.init(params), more)


def update_ema(
    ema_params: Any, params: Any, step: jax.Array, train: ConfigDict, decay: float | None = None
) -> Any:
    """Return the average after `step` steps (paper, appendix A: decay .995 every 10 steps).

    Before `train.ema_start` it is a copy of `params`. The decay is `train.ema_decay` if None.
    """
    decay = train.ema_decay if decay is None else decay
    rate = jnp.where(step % train.ema_every == 0, 1 - decay, 0.0)
    rate = jnp.where(step < train.ema_start, 1.0, rate)
    return optax.incremental_update(params, ema_params, rate)


def update_more_ema(
    more_ema: dict[str, Any], params: Any, step: jax.Array, train: ConfigDict
) -> dict[str, Any]:
    """Return the further averages after `step` steps, one for each of `train.ema_decays`."""
    return {
        ema_name(decay): update_ema(more_ema[ema_name(decay)], params, step, train, decay)
        for decay in train.ema_decays
    }
