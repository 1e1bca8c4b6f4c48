"""The train step (paper, equation 1 of section 3.1) and the loop around it.

Loss: E ‖R(D(x0, t), t) - x0‖₁ for t uniform on 1..T. Everything random in step k is folded from
(seed, k) and, for an image, from its place in the step: a resumed run replays it exactly, on any
number of devices.
"""

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import parameter_overview
from jax.ad_checkpoint import checkpoint_name
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager

from colddiff import checkpoint, evaluate, report
from colddiff.build import Experiment, build
from colddiff.compiler import network_jit
from colddiff.degradations import Degrade
from colddiff.devices import (
    all_hosts,
    check_shared,
    create_mesh,
    host_rows,
    is_first_host,
    replicate,
    replicated,
    shared,
    split_axis,
    to_host,
)
from colddiff.errors import UserError
from colddiff.events import EventLog
from colddiff.examples import (
    PIXELS,
    check_data,
    keep_batch,
    load_train_images,
    make_example,
    train_batches,
)
from colddiff.files import read_json, write_json
from colddiff.images import mosaic, save_png
from colddiff.inference import Run, forget_priors, load_prior
from colddiff.lock import alone
from colddiff.metrics import SSIM_WINDOW
from colddiff.progress import Meter
from colddiff.samplers import image_keys
from colddiff.state import TrainState, init_state, state_shardings, update_ema
from colddiff.stop import Stop, StoppedError

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, jax.Array, Degrade], tuple[TrainState, Metrics]]


def make_train_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainStep:
    """`train_step(state, images, degrade) -> (state, metrics)`, jitted; `state` is donated.

    `images` is uint8 `[accumulation, batch_size, S, S, C]`, `degrade` that of the experiment.
    The metrics are scalars: `loss`, the l1 on [-1, 1], `grad_norm`, and `param_norm` thereafter.
    """
    config = experiment.config

    def loss_fn(params, x0, xt, t, key):
        rngs = {"dropout": key}
        x0_hat = experiment.model.apply({"params": params}, xt, t, train=True, rngs=rngs)
        return jnp.mean(jnp.abs(x0_hat - x0))

    if mesh.shape["fsdp"] > 1:
        loss_fn = _gathering(loss_fn, mesh)

    def train_step(state, images, degrade):
        accumulation, batch_size = images.shape[:2]
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        pattern_key, dropout_key = jax.random.split(step_key)

        def loss_and_grads(number, params):
            keys = image_keys(pattern_key, number * batch_size, batch_size)
            x0, xt, t = jax.vmap(make_example(experiment, degrade))(images[number], keys)
            key = jax.random.fold_in(dropout_key, number)
            return jax.value_and_grad(loss_fn)(params, x0, xt, t, key)

        params, total = state.params, loss_and_grads(0, state.params)
        # Not lax.scan: XLA's CPU backend runs convolution gradients ten times slower inside a loop.
        for number in range(1, accumulation):
            # One batch after the other: memory holds the activations of one at a time.
            params, total = jax.lax.optimization_barrier((params, total))
            total = jax.tree.map(jnp.add, total, loss_and_grads(number, params))
        loss, grads = jax.tree.map(lambda x: x / accumulation, total)
        grads = jax.lax.with_sharding_constraint(grads, shared(grads, mesh))

        updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema_params = update_ema(state.ema_params, params, step, config.train)
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        metrics = {"loss": loss, **norms}
        return TrainState(step, params, ema_params, opt_state), metrics

    state = state_shardings(experiment, mesh)
    return network_jit(
        train_step,
        in_shardings=(state, split_axis(mesh, 1), None),  # degrade: wherever its tables lie
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
    )


def _gathering(loss_fn: Callable[..., jax.Array], mesh: jax.sharding.Mesh) -> Callable:
    """`loss_fn(params, ...)` of parameters that devices share: each is whole where it is used.

    The gradient gathers it again, so that no device keeps all of them in between.
    """

    def gathered(params, *args):
        params = jax.lax.with_sharding_constraint(params, replicated(mesh))
        return loss_fn(checkpoint_name(params, "whole"), *args)

    policy = jax.checkpoint_policies.save_anything_except_these_names("whole")
    return jax.checkpoint(gathered, policy=policy)


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
    truth = _load_truth(config)
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
            pictures = settings.sample_every and not stopping
            if pictures and (step % settings.sample_every == 0 or last):
                run = Run(experiment, state.ema_params, step, workdir)
                for name, picture in _pictures(run, pictured).items():
                    if is_first_host():
                        save_png(workdir / name / f"{step:07d}.png", picture)
                    events.picture(name, picture, step)
            if saves:
                scores = None
                if truth is not None and not stopping:
                    try:
                        scores = _scores(experiment, state, truth, workdir, stop)
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
    pictures = {"samples": evaluate.picture(run.experiment, run.params, images)}
    if run.prior is not None:
        count = min(len(images) ** 2, run.config.eval.batch_size)
        x0 = run.generate(run.params, range(count))
        pictures["generated"] = mosaic(to_host(x0))
    return pictures


def _load_truth(config: ConfigDict) -> evaluate.Truth | None:
    """What checkpoints are scored against; None if they are not.

    Raises:
      UserError: there is a score to find the best one by, and it will not be measured.
    """
    count, best = config.train.scored, config.train.best
    if not count:
        if best:
            raise UserError(f"config.train.best={best!r} needs config.train.scored test images")
        return None
    sampler, _, score = best.partition("/")
    known = ["rmse", "psnr", "ssim"]
    known += [f"{kind}/{space}" for space in config.eval.features for kind in ("fd", "kd")]
    if best and (sampler not in config.eval.samplers or score not in known):
        expected = f"SAMPLER/SCORE of {config.eval.samplers} and {', '.join(known)}"
        raise UserError(f"config.train.best={best!r} must be {expected}")
    features = config.eval.features
    small = config.data.image_size < SSIM_WINDOW
    fewest = 4 if score.startswith("kd/") else 2 if features else 1
    if count < fewest or (small and score == "ssim"):
        raise UserError(
            f"config.train.scored={count} images of {config.data.image_size}² have no such scores: "
            f"{best or features}; FD needs 2 images, KD 4, SSIM {SSIM_WINDOW} pixels"
        )
    return evaluate.load_truth(config, count)


def _scores(
    experiment: Experiment, state: TrainState, truth: evaluate.Truth, workdir: Path, stop: Stop
) -> dict[str, float]:
    """Of the averaged parameters; added to evolution.json and its pictures.

    Raises:
      StoppedError: they took too long for a run that is to stop.
    """
    step = int(state.step)
    found = evaluate.evaluate(
        experiment, state.ema_params, step, truth=truth, counts=(), between=stop.check
    )
    scores = report.scores_of(found)
    path = workdir / "evolution.json"
    before = read_json(path) or {}
    # A run that went on from an earlier checkpoint measures what came after it anew; scores of
    # another number of images are not of the same curve.
    same = before.get("num_images") == len(truth.images)
    kept = {k: v for k, v in before.get("scores", {}).items() if same and int(k) < step}
    evolution = {"num_images": len(truth.images), "scores": kept | {str(step): scores}}
    if not is_first_host():
        return scores
    write_json(path, evolution)
    for kind, picture in report.evolution_plots(evolution).items():
        save_png(workdir / "evolution" / f"{report.file_name(kind)}.png", picture)
    return scores


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
