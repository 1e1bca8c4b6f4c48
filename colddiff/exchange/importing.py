"""A workdir from weights in a file: `--mode=import --input=model.pt --config=... --workdir=...`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from colddiff.experiment import checkpoint
from colddiff.experiment.build import build
from colddiff.experiment.state import TrainState, state_shardings
from colddiff.experiment.user_code import check_source
from colddiff.experiment.weights import read_weights
from colddiff.runtime.devices import check_shared, create_mesh, place
from colddiff.runtime.files import check_empty
from colddiff.runtime.lock import alone


def import_weights(config: ConfigDict, source: Path, workdir: Path) -> int:
    """Write the weights in a file as the first checkpoint of a new workdir; return its step.

    Training goes on from there by the usual command. The optimiser's moments start at 0, because
    files with weights do not hold them.

    Args:
      config: the run's settings.
      source: the file (`experiment.weights.read_weights`).
      workdir: the run's folder, new or empty.

    Raises:
      UserError: the config cannot work, the file does not fit it, or the workdir holds files. In
        these cases nothing is written.
    """
    check_empty(workdir, "--workdir")
    experiment = build(config)
    weights = read_weights(source, experiment)
    shardings = state_shardings(experiment, create_mesh(config.mesh.fsdp))
    params = jax.tree.map(place, weights.params, shardings.params)

    def begin(params: Any) -> Any:
        return _at_step(experiment.optimizer.init(params), weights.step)

    average = jax.tree.map(place, weights.ema_params, shardings.ema_params)
    state = TrainState(
        step=place(np.int32(weights.step), shardings.step),
        params=params,
        ema_params=average,
        opt_state=jax.jit(begin, out_shardings=shardings.opt_state)(params),
        more_ema=dict.fromkeys(shardings.more_ema, average),
    )
    check_shared(workdir)
    with alone(workdir):
        check_source(workdir, config.degradation, accept=False, new=True)
        with checkpoint.open_manager(workdir, keep=config.train.checkpoints_kept) as manager:
            checkpoint.save(manager, state, config)
    logging.info("imported %s, step %d, into %s", source, weights.step, workdir)
    return weights.step


def _at_step(opt_state: Any, step: int) -> Any:
    """Return the optimiser's initial state with the learning rate of a later step.

    Adam's own count stays 0, since its moments are 0.
    """

    def of_schedule(path: Any, _: Any) -> bool:
        return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

    return optax.tree_utils.tree_set(opt_state, of_schedule, count=jnp.int32(step))
