"""The training loop: step, log, draw, score, save.

What a step computes is in `colddiff.training.step`.
"""

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager

from colddiff.evaluation import evaluate
from colddiff.experiment import checkpoint
from colddiff.experiment.build import Experiment, build
from colddiff.experiment.state import TrainState, init_state
from colddiff.images import mosaic
from colddiff.inference.run import Run, forget_priors, load_prior
from colddiff.reporting import pictures
from colddiff.runtime.devices import (
    all_hosts,
    check_shared,
    create_mesh,
    host_rows,
    is_first_host,
    replicate,
    to_host,
)
from colddiff.runtime.errors import UserError
from colddiff.runtime.events import EventLog
from colddiff.runtime.files import read_json, save_png
from colddiff.runtime.lock import alone
from colddiff.runtime.progress import Meter
from colddiff.runtime.stop import Stop, StoppedError
from colddiff.training.examples import (
    PIXELS,
    check_data,
    keep_batch,
    load_train_images,
    train_batches,
)
from colddiff.training.scoring import load_truth, score
from colddiff.training.step import Metrics, make_train_step


def train(config: ConfigDict, workdir: Path, *, accept_source: bool = False) -> bool:
    """Train to `config.train.num_steps`, from the last good checkpoint of `workdir` if it has one.

    SIGTERM and SIGINT save and end it.

    Args:
      accept_source: go on although the source of the user's own degradation has changed.

    Returns:
      Whether it came to the end.

    Raises:
      UserError: the config cannot work, `workdir` holds another run, one of other data or source,
        or another process trains there, the data cannot be read, or the loss is no longer finite.
    """
    experiment = build(config)
    mesh = create_mesh(config.mesh.fsdp)
    experiment = experiment._replace(degrade=replicate(experiment.degrade, mesh))
    host_rows("config.train.batch_size", config.train.batch_size, mesh)  # or refused, at once
    check_shared(workdir)
    with alone(workdir):
        return _train(experiment, mesh, workdir, accept_source)


def _train(
    experiment: Experiment, mesh: jax.sharding.Mesh, workdir: Path, accept_source: bool
) -> bool:
    """Train in a workdir where no other process does."""
    config = experiment.config
    state = init_state(experiment, mesh)
    new = not checkpoint.last_step(workdir, config)
    checkpoint.check_source(workdir, config, accept=accept_source, new=new)
    if new:
        _forget(workdir)
    else:
        state = checkpoint.restore_last(workdir, state)
    start = int(state.step)
    if start >= config.train.num_steps:
        logging.info("%s is trained: step %d of %d", workdir, start, config.train.num_steps)
        return True
    if start:
        logging.info("going on from step %d of %s", start, workdir)
    images = load_train_images(config)
    check_data(config, images, workdir)
    load_prior(experiment, workdir)  # fitted now, so that the run has it wherever it goes
    truth = load_truth(config)
    pictured = evaluate.load_test_images(config, config.eval.pictures)
    checkpoint.set_scores_aside(workdir)
    settings = config.train
    with (
        Stop(mesh) as stop,
        checkpoint.open_manager(
            workdir, keep=settings.checkpoints_kept, best=settings.best
        ) as manager,
    ):
        logging.info("parameters: %d", parameter_overview.count_parameters(state.params))
        batches = train_batches(config, mesh, images, start=start, stop=settings.num_steps)
        keep = functools.partial(keep_batch, config, images, workdir)
        finished = _loop(
            experiment, mesh, state, batches, pictured, truth, manager, stop, keep, workdir
        )
    return finished and all_hosts(not stop.noted)  # which may have come while the last was saved


def _forget(workdir: Path) -> None:
    """What a run that had no checkpoint yet may have left.

    Raises:
      UserError: a file of that name is somebody else's.
    """
    for name, key in (("evolution.json", "num_images"), ("data.json", PIXELS)):
        if not all_hosts(key in (read_json(workdir / name) or {key})):
            raise UserError(f"{workdir / name} is not of colddiff; use another --workdir")
    if is_first_host():
        forget_priors(workdir)
        for name in ("evolution.json", "data.json"):
            (workdir / name).unlink(missing_ok=True)
    all_hosts(True)  # wait for it


def _loop(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    batches: Iterable[jax.Array],
    pictured: np.ndarray,
    truth: evaluate.Truth | None,
    manager: CheckpointManager,
    stop: Stop,
    keep: Callable[[int], Path],
    workdir: Path,
) -> bool:
    """Step, log, picture (of the images `pictured`), score, save, until the batches end.

    Or until it is to stop: then it saves, and says False. `keep` writes the images of a step down.
    """
    settings = experiment.config.train
    start = int(state.step)
    train_step = make_train_step(experiment, mesh)
    images_per_step = settings.batch_size * settings.accumulation
    meter = Meter("train", total=settings.num_steps, start=start, images_per_step=images_per_step)
    metrics = []
    with EventLog(workdir / "tensorboard", start=start) as events, meter:
        for step, images in enumerate(meter.waiting_for(batches), start + 1):
            last = step == settings.num_steps
            state, step_metrics = train_step(state, images, experiment.degrade)
            metrics.append(step_metrics)
            # One step in flight while the next is prepared; no more, so that times are true.
            jax.block_until_ready(metrics[-2:-1])
            meter.advance()
            stopping = stop.wanted() and not last
            saves = step % settings.checkpoint_every == 0 or last or stopping
            if step % settings.log_every == 0 or saves:
                _log(events, meter, step, metrics, keep)
                metrics = []
            draws = settings.sample_every and not stopping
            if draws and (step % settings.sample_every == 0 or last):
                run = Run(experiment, state.ema_params, step, workdir)
                for name, picture in _pictures(run, pictured).items():
                    if is_first_host():
                        save_png(workdir / name / f"{step:07d}.png", picture)
                    events.picture(name, picture, step)
            if saves:
                scores = None
                if truth is not None and not stopping:
                    try:
                        scores = score(experiment, state, truth, workdir, stop)
                    except StoppedError:
                        logging.warning("checkpoint %d has no scores", step)
                        stopping = not last
                for name, value in (scores or {}).items():
                    events.scalar(f"test/{name}", value, step)
                events.flush()
                checkpoint.save(manager, state, experiment.config, scores)
            if stopping:
                logging.info("stopped at step %d; the same command goes on from there", step)
                return False
    return True


def _pictures(run: Run, images: np.ndarray) -> dict[str, np.ndarray]:
    """Of restored `images`, and, if there is a prior, of as many generated ones, squared.

    But of no more than one batch of evaluation, which is what fits into memory.
    """
    drawn = {"samples": pictures.picture(run.experiment, run.params, images)}
    if run.prior is not None:
        count = min(len(images) ** 2, run.config.eval.batch_size)
        x0 = run.generate(run.params, range(count))
        drawn["generated"] = mosaic(to_host(x0))
    return drawn


def _log(
    events: EventLog,
    meter: Meter,
    step: int,
    metrics: list[Metrics],
    keep: Callable[[int], Path],
) -> None:
    """Means since the last log, to TensorBoard and the progress line.

    Raises:
      UserError: one of them is no finite number, so that what it led to is never saved.
    """
    values = jax.device_get(metrics)
    for at, found in enumerate(values, step - len(values) + 1):
        if not all(map(math.isfinite, found.values())):
            told = ", ".join(f"{name} {float(value):g}" for name, value in found.items())
            path = keep(at)
            raise UserError(
                f"the training diverged at step {at}: {told}. Its images are in {path}; the last "
                "checkpoint is from before. Try a lower config.train.learning_rate, in another "
                "workdir if this comes again"
            )
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    for name, value in (means | {"waiting_for_data": meter.waited()}).items():
        events.scalar(f"train/{name}", value, step)
    events.flush()
    meter.note("loss {loss:.4f}  grad_norm {grad_norm:.3f}".format(**means))
