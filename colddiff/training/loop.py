"""The training loop: step, log, draw, score, save.

`colddiff.training.step` defines what a step computes.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.data.sources import Images
from colddiff.evaluation import evaluate
from colddiff.experiment import checkpoint, weights
from colddiff.experiment.build import Experiment, build, learning_rates
from colddiff.experiment.state import TrainState, init_state
from colddiff.experiment.user_code import check_source
from colddiff.images import mosaic
from colddiff.inference.prior import forget_priors, load_prior
from colddiff.inference.run import Run
from colddiff.reporting import pictures
from colddiff.runtime.devices import (
    all_hosts,
    barrier,
    check_shared,
    create_mesh,
    host_rows,
    is_first_host,
    to_host,
)
from colddiff.runtime.errors import UserError
from colddiff.runtime.events import EventLog
from colddiff.runtime.files import read_json, save_png
from colddiff.runtime.lock import alone
from colddiff.runtime.log_file import log_file
from colddiff.runtime.progress import Meter
from colddiff.runtime.stop import Stop, StoppedError
from colddiff.training.examples import (
    PIXELS,
    check_data,
    keep_batch,
    load_train_images,
    train_batches,
)
from colddiff.training.records import (
    STARTS,
    Profile,
    Sink,
    check_sinks,
    open_sinks,
    record_start,
)
from colddiff.training.scoring import load_truth, score
from colddiff.training.severity import train_severity
from colddiff.training.step import Metrics, TrainStep, make_train_step


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    accept_source: bool = False,
    stop_after: float | None = None,
) -> bool:
    """Train to `config.train.num_steps`, from the last undamaged checkpoint of `workdir` if any.

    Then train the severity head, if `config.severity` wants one and `workdir` does not have it.
    SIGTERM, SIGINT and the end of `stop_after` save a checkpoint and end the training. The head's
    training, which takes minutes and has no checkpoints, is not begun after that time.

    Args:
      config: the run's settings.
      workdir: the run's folder, the same on all hosts.
      accept_source: resume although the source of the user's own degradation has changed.
      stop_after: seconds after which to stop, counted from this call; None for no limit.

    Returns:
      True if the training is complete; False if it was stopped.

    Raises:
      UserError: the config cannot work; the data cannot be read; `workdir` holds another run, or a
        run with other data or another source; another process trains there; or a metric is not
        finite.
    """
    deadline = None if stop_after is None else time.monotonic() + stop_after
    with log_file() as write_log:
        experiment = build(config)
        mesh = create_mesh(config.mesh.fsdp)
        # Refuse a batch that the devices cannot share before anything is written.
        host_rows("config.train.batch_size", config.train.batch_size, mesh)
        if config.severity.num_steps:
            host_rows("config.severity.batch_size", config.severity.batch_size, mesh)
        check_sinks(config.train.sinks)
        check_shared(workdir)
        with alone(workdir):
            finished = _train(experiment, mesh, workdir, accept_source, deadline, write_log)
            if finished and config.severity.num_steps:
                write_log(workdir / "log.txt")
                finished = train_severity(experiment, mesh, workdir)
            return finished


def _train(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    accept_source: bool,
    deadline: float | None,
    write_log: Callable[[Path], None],
) -> bool:
    """Train in a workdir that this run has locked; return what `train` returns."""
    config = experiment.config
    state = init_state(experiment, mesh)
    new = checkpoint.last_step(workdir, config) is None
    if new and (workdir / weights.FILE).exists():
        raise UserError(
            f"{workdir} is an export, which cannot be trained; make a workdir of it: --mode=import "
            f"--input={workdir / weights.FILE} --config={workdir / 'config.json'}, and another "
            "--workdir"
        )
    check_source(workdir, config.degradation, accept=accept_source, new=new)
    if new:
        _forget(workdir)
    else:
        state = checkpoint.restore_last(workdir, state)
    start = int(state.step)
    if start >= config.train.num_steps:
        logging.info("%s is trained already: step %d of %d", workdir, start, config.train.num_steps)
        return True
    write_log(workdir / "log.txt")
    if start:
        logging.info("resuming from step %d of %s", start, workdir)
    sources.log_sizes(config.data)
    images = load_train_images(config)
    check_data(config, images, workdir)
    # The prior is fitted before training, so that the run can generate without its data.
    load_prior(experiment, workdir)
    truth = load_truth(config)
    pictured = evaluate.load_test_images(config, config.eval.pictures)
    checkpoint.set_scores_aside(workdir)
    settings = config.train
    images_per_step = settings.batch_size * settings.accumulation
    batches = train_batches(config, mesh, images, start=start, stop=settings.num_steps)
    with (
        Stop(mesh, deadline) as stop,
        checkpoint.open_manager(
            workdir, keep=settings.checkpoints_kept, best=settings.best
        ) as manager,
        EventLog(workdir / "tensorboard", start=start) as events,
        open_sinks(config, workdir, start=start) as sinks,
        Profile(settings.profile_steps, workdir / "profile") as profile,
        # Last, because its clock begins here.
        Meter(
            "train", total=settings.num_steps, start=start, images_per_step=images_per_step
        ) as meter,
    ):
        record_start(config, workdir, start)
        logging.info("parameters: %d", parameter_overview.count_parameters(state.params))
        run = Run(experiment, None, start, workdir)
        loop = _Loop(run, images, pictured, truth, stop, manager, events, sinks, profile, meter)
        finished = loop.go_on(state, make_train_step(experiment, mesh), batches)
    # A signal or the deadline may arrive while the last checkpoint is saved.
    return finished and all_hosts(not stop.noted)


def _forget(workdir: Path) -> None:
    """Delete what an earlier run without a checkpoint left in the workdir.

    Raises:
      UserError: a file with such a name was not written by colddiff.
    """
    written = {
        "evolution.json": "num_images",
        "data.json": PIXELS,
        "config.json": "degradation",
        "versions.json": STARTS,
    }
    for name, key in written.items():
        if not all_hosts(key in (read_json(workdir / name) or {key})):
            raise UserError(f"{workdir / name} was not written by colddiff; use another --workdir")
    if is_first_host():
        forget_priors(workdir)
        for name in written:
            (workdir / name).unlink(missing_ok=True)
    barrier()


@dataclass
class _Loop:
    """The training loop, with its data and its outputs.

    Attributes:
      run: the run with the EMA parameters of the current step.
      images: the training split; a batch of it is written if the training diverges.
      pictured: test images whose restorations are drawn, `[N, H, W, C]`.
      truth: the test data that checkpoints are scored against; None if they are not scored.
      stop: tells whether any host was told to stop.
      manager: writes the checkpoints.
      events: writes the TensorBoard log.
      sinks: take the same numbers, a line for each log.
      profile: traces some steps.
      meter: shows the progress line.
    """

    run: Run
    images: Images
    pictured: np.ndarray
    truth: evaluate.Truth | None
    stop: Stop
    manager: checkpoint.Manager
    events: EventLog
    sinks: list[Sink]
    profile: Profile
    meter: Meter

    def go_on(self, state: TrainState, train_step: TrainStep, batches: Iterable[jax.Array]) -> bool:
        """Step, log, draw, score and save until the batches end or the run is told to stop.

        Returns:
          True if the batches ended; False if the run was told to stop. Both save a checkpoint.
        """
        settings, metrics, first = self.run.config.train, [], self.run.step + 1
        for step, images in enumerate(self.meter.waiting_for(batches), first):
            if step == first:
                with self.meter.uncounted():
                    train_step = train_step.prepare(state, images, self.run.degrade)
            last = step == settings.num_steps
            self.profile.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, step_metrics = train_step(state, images, self.run.degrade)
            self.profile.after(step, step_metrics)
            metrics.append(step_metrics)
            # At most one step is in flight, so that the measured times include the devices' work.
            jax.block_until_ready(metrics[-2:-1])
            self.meter.advance()
            stopping = self.stop.wanted() and not last
            saves = step % settings.checkpoint_every == 0 or last or stopping
            if step % settings.log_every == 0 or saves:
                self._log(step, metrics)
                metrics = []
            self.run = dataclasses.replace(self.run, params=state.ema_params, step=step)
            draws = settings.sample_every and (step % settings.sample_every == 0 or last)
            if draws and not stopping:
                self._draw()
            if saves:
                stopping = self._save(state, score_it=not stopping) or stopping
            if stopping and not last:
                logging.info("stopped at step %d; run the same command again to resume", step)
                return False
        return True

    def _log(self, step: int, metrics: list[Metrics]) -> None:
        """Write the means since the last log to TensorBoard, the sinks and the progress line.

        Raises:
          UserError: a metric is not finite; no checkpoint of that step is saved.
        """
        values = jax.device_get(metrics)
        for at, found in enumerate(values, step - len(values) + 1):
            if not all(map(math.isfinite, found.values())):
                path = keep_batch(self.run.config, self.images, self.run.workdir, at)
                saved = self.manager.latest_step()
                raise UserError(_divergence(at, found, path, saved))
        means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        steps_per_second, images_per_second = self.meter.speeds()
        line = {
            "loss": means["loss"],  # first, for readers
            **means,
            "learning_rate": float(learning_rates(self.run.config.train)(step - 1)),
            "steps_per_second": steps_per_second,
            "images_per_second": images_per_second,
            "waiting_for_data": self.meter.waited(),
        }
        for name, value in line.items():
            self.events.scalar(f"train/{name}", value, step)
        self.events.flush()
        for sink in self.sinks:
            sink({"step": step, **line})
        self.meter.note("loss {loss:.4f}  grad_norm {grad_norm:.3f}".format(**means))

    def _draw(self) -> None:
        """Write pictures to the workdir and to TensorBoard."""
        for name, picture in _pictures(self.run, self.pictured).items():
            if is_first_host():
                save_png(self.run.workdir / name / f"{self.run.step:07d}.png", picture)
            self.events.picture(name, picture, self.run.step)

    def _save(self, state: TrainState, *, score_it: bool) -> bool:
        """Save a checkpoint and its scores; return whether a stop interrupted the scoring."""
        scores, stopping = {}, False
        if self.truth is not None and score_it:
            try:
                scores = score(self.run, self.truth, self.stop)
            except StoppedError:
                logging.warning(
                    "checkpoint %d has no scores: a signal interrupted the scoring", self.run.step
                )
                stopping = True
        for name, value in scores.items():
            part = "validation" if self.run.config.data.validation_split else "test"
            self.events.scalar(f"{part}/{name}", value, self.run.step)
        self.events.flush()
        checkpoint.save(self.manager, state, self.run.config, scores or None)
        return stopping


def _divergence(step: int, metrics: Metrics, images: Path, saved: int | None) -> str:
    """Return the message for a step whose metrics are not all finite.

    Args:
      step: the step, from 1.
      metrics: its metrics; loss and gradient are those before the step's update.
      images: the file with the step's images.
      saved: the step of the last checkpoint, if any.
    """
    told = ", ".join(f"{name} {float(value):g}" for name, value in metrics.items())
    advice = "Try a lower config.train.learning_rate"
    if saved is not None:
        advice += f"; if it diverges again after the checkpoint of step {saved}, use another "
        advice += "--workdir"
    if step == 1 and not all(math.isfinite(metrics[name]) for name in ("loss", "grad_norm")):
        advice = "The network is still the initial one, so look for the cause in the images, in "
        advice += "the degradation (--mode=degrade draws it) and in the network's settings"
    where = f"The step's images are in {images}"
    return f"the training diverged at step {step}: {told}. {where}. {advice}"


def _pictures(run: Run, images: np.ndarray) -> dict[str, np.ndarray]:
    """Draw N restored images and, if there is a prior, up to N² generated ones.

    At most `config.eval.batch_size` images are generated, since more may not fit into memory.
    """
    drawn = {"samples": pictures.picture(run, images)}
    if run.prior is not None:
        count = min(len(images) ** 2, run.config.eval.batch_size)
        x0 = run.generate(run.params, range(count))
        drawn["generated"] = mosaic(to_host(x0))
    return drawn
