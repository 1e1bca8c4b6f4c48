"""Load a trained run from its workdir: `run = colddiff.load(workdir)`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from colddiff.experiment import checkpoint
from colddiff.experiment.build import build, init_params
from colddiff.experiment.config_files import locate
from colddiff.experiment.user_code import source_changes
from colddiff.inference.run import Run
from colddiff.runtime.devices import create_mesh, fsdp_shardings
from colddiff.runtime.errors import UserError


def load(
    workdir: str | Path, *, step: int | str | None = None, config: ConfigDict | None = None
) -> Run:
    """Return the run in `workdir`.

    Args:
      workdir: the run's folder.
      step: step of the checkpoint; None for the last, 'best' for the best by `train.best`.
      config: used instead of the saved one; model and degradation must be the same.

    Raises:
      UserError: `workdir` holds no such checkpoint, or one of another run. Untrained weights are
        never returned.
    """
    workdir = Path(workdir).expanduser()
    with _open(workdir) as manager:
        step = _chosen(manager, workdir, step)
        saved = _saved_config(manager, workdir, step)
        if config is not None:
            checkpoint.check_same(checkpoint.SAME_MODEL, saved, config, workdir)
        experiment = build(saved if config is None else config)
        if changes := source_changes(workdir, experiment.config.degradation):
            logging.warning(
                "the source of the degradation is not the one that %s was trained with:\n  %s",
                workdir,
                "\n  ".join(changes),
            )
        shapes = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
        mesh = create_mesh(experiment.config.get("mesh", {}).get("fsdp", 1))
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            fsdp_shardings(shapes, mesh),
        )
        params = checkpoint.restore_ema(manager, like, step)
    return Run(experiment, params, step, workdir)


def saved_config(workdir: Path, step: int | str | None = None) -> ConfigDict:
    """Return the config of a checkpoint in `workdir`, locked; `step` as for `load`.

    Raises:
      UserError: `workdir` holds no such checkpoint.
    """
    with _open(workdir) as manager:
        return _saved_config(manager, workdir, _chosen(manager, workdir, step))


def _saved_config(manager: checkpoint.Manager, workdir: Path, step: int) -> ConfigDict:
    """Return the config saved at `step`; the workdir may hold the source of its degradation."""
    config = checkpoint.restore_config(manager, step)
    locate(config, [workdir.absolute() / "source"])
    return config


@contextmanager
def _open(workdir: Path) -> Iterator[checkpoint.Manager]:
    """Open the checkpoints of `workdir` for reading; refuse a workdir without any."""
    if (workdir / "checkpoints").is_dir():
        with checkpoint.open_manager(workdir) as manager:
            if manager.all_steps():
                yield manager
                return
    raise UserError(f"{workdir} holds no checkpoint; train there first, or name another workdir")


def _chosen(manager: checkpoint.Manager, workdir: Path, step: int | str | None) -> int:
    """Return the step that `step` means: a number, None for the last, 'best' for the best."""
    steps = manager.all_steps()
    if step == "best":
        step = _best_step(workdir, checkpoint.restore_config(manager, max(steps)))
    if step is not None and step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; there are {sorted(steps)}")
    return max(steps) if step is None else step


def _best_step(workdir: Path, config: ConfigDict) -> int:
    """Return the step of the best checkpoint by `train.best`."""
    score = config.train.get("best", "")
    if not score:
        raise UserError(
            f"{workdir} was trained without config.train.best, so it has no best step; give a "
            "step, or leave it out for the last one"
        )
    with checkpoint.open_manager(workdir, best=score) as manager:
        step = manager.best_step()
        known = step is not None and score in (manager.metrics(step) or {})
    if not known:
        raise UserError(
            f"no checkpoint in {workdir} has the score {score}; give a step instead of 'best'"
        )
    return step
