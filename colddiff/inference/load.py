"""Load a trained run from its workdir, or from the folder of an export: `colddiff.load(FOLDER)`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

import colddiff
from colddiff.experiment import checkpoint
from colddiff.experiment.build import Experiment, build, init_params
from colddiff.experiment.config_files import locate
from colddiff.experiment.state import ema_name
from colddiff.experiment.user_code import source_changes
from colddiff.experiment.weights import FILE, read_metadata, read_params
from colddiff.inference.run import Run
from colddiff.runtime.devices import create_mesh, fsdp_shardings, replicate
from colddiff.runtime.errors import UserError, unknown_name

PRETRAINED = Path(colddiff.__file__).parent / "pretrained"


def load(
    workdir: str | Path,
    *,
    step: int | str | None = None,
    ema: float | None = None,
    config: ConfigDict | None = None,
) -> Run:
    """Return the run in `workdir`.

    Args:
      workdir: the run's folder, or a folder that `--mode=export` wrote, which has one step.
      step: step of the checkpoint; None for the last, 'best' for the best by `train.best`.
      ema: one of `train.ema_decays`; the average of `train.ema_decay` if None.
      config: used instead of the saved one; model and degradation must be the same.

    Raises:
      UserError: `workdir` holds no such checkpoint, or one of another run. Untrained weights are
        never returned.
    """
    workdir = Path(workdir).expanduser()
    if _is_export(workdir):
        if ema is not None:
            raise UserError(f"{workdir} is an export, which holds one average; leave out ema={ema}")
        return _load_export(workdir, step, config)
    with _open(workdir) as manager:
        step = _chosen(manager, workdir, step)
        saved = _saved_config(manager, workdir, step)
        decay = None if ema == saved.train.ema_decay else ema
        if decay not in (None, *saved.train.ema_decays):
            raise UserError(
                f"{workdir} holds the averages of the decays {saved.train.ema_decay:g} (the "
                f"default), {', '.join(map(ema_name, saved.train.ema_decays)) or 'no other'}; not "
                f"{ema:g}"
            )
        experiment = _build(workdir, saved, config)
        shapes = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
        mesh = create_mesh(experiment.config.get("mesh", {}).get("fsdp", 1))
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            fsdp_shardings(shapes, mesh),
        )
        params = checkpoint.restore_ema(manager, like, step, decay)
    return Run(experiment, params, step, workdir, decay)


def load_pretrained(name: str) -> Run:
    """Return a run that comes with the package, such as 'blur_digits' (docs/models.md).

    Its parameters were saved in float16, and are float32 here. It has no workdir.

    Raises:
      UserError: there is no such model; the message lists those that there are.
    """
    path = PRETRAINED / f"{name}.safetensors"
    if not path.is_file():
        names = (file.stem for file in PRETRAINED.glob("*.safetensors"))
        raise unknown_name("pretrained model", name, names)
    config, step = read_metadata(path)
    return _of_file(path, build(config), step, None)


def _of_file(path: Path, experiment: Experiment, step: int, workdir: Path | None) -> Run:
    """Return the run with the parameters in a file, a copy of them on each device."""
    params = replicate(read_params(path, experiment), create_mesh())
    return Run(experiment, params, step, workdir)


def saved_config(workdir: Path, step: int | str | None = None) -> ConfigDict:
    """Return the config of a checkpoint in `workdir`, locked; `step` as for `load`.

    Raises:
      UserError: `workdir` holds no such checkpoint.
    """
    if _is_export(workdir):
        return _exported_config(workdir, step)[0]
    with _open(workdir) as manager:
        return _saved_config(manager, workdir, _chosen(manager, workdir, step))


def _saved_config(manager: checkpoint.Manager, workdir: Path, step: int) -> ConfigDict:
    """Return the config saved at `step`; the workdir may hold the source of its degradation."""
    return _located(checkpoint.restore_config(manager, step), workdir)


def _located(config: ConfigDict, workdir: Path) -> ConfigDict:
    locate(config, [workdir.absolute() / "source"])
    return config


def _build(workdir: Path, saved: ConfigDict, config: ConfigDict | None) -> Experiment:
    """Build the saved config, or another one for the same model; warn of a changed source."""
    if config is not None:
        checkpoint.check_same(checkpoint.SAME_MODEL, saved, config, workdir)
    experiment = build(saved if config is None else config)
    if changes := source_changes(workdir, experiment.config.degradation):
        logging.warning(
            "the source of the degradation is not the one that %s was trained with:\n  %s",
            workdir,
            "\n  ".join(changes),
        )
    return experiment


def _is_export(workdir: Path) -> bool:
    return (workdir / FILE).exists() and not (workdir / "checkpoints").is_dir()


def _load_export(folder: Path, step: int | str | None, config: ConfigDict | None) -> Run:
    """Return the run that `exchange.exporting` wrote to a folder."""
    saved, step = _exported_config(folder, step)
    return _of_file(folder / FILE, _build(folder, saved, config), step, folder)


def _exported_config(folder: Path, step: int | str | None) -> tuple[ConfigDict, int]:
    """Return the config and the step of an export; refuse another step."""
    config, only = read_metadata(folder / FILE)
    if step not in (None, only):
        raise UserError(f"{folder} is an export of step {only} alone; leave the step out")
    return _located(config, folder), only


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
