"""The train step (paper, equation 1 of section 3.1) and the loop around it.

Loss: E ‖R(D(x0, t), t) - x0‖₁ for t uniform on 1..T. Everything random in step k is folded from
(seed, k) and, for an image, from its place in the step: a resumed run replays it exactly, on any
number of devices.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager
from tensorboardX import SummaryWriter

from colddiff import checkpoint, data, evaluate, report
from colddiff.build import Experiment, build
from colddiff.degradations import Degrade
from colddiff.devices import create_mesh, host_rows, replicate, replicated, split_axis, to_mesh
from colddiff.errors import UserError
from colddiff.files import read_json, write_json
from colddiff.images import from_uint8, mosaic, save_png
from colddiff.inference import Run, forget_priors, load_prior
from colddiff.metrics import SSIM_WINDOW
from colddiff.progress import Meter
from colddiff.samplers import image_keys
from colddiff.state import TrainState, init_state, update_ema

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

        updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema_params = update_ema(state.ema_params, params, step, config.train)
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        metrics = {"loss": loss, **norms}
        return TrainState(step, params, ema_params, opt_state), metrics

    everywhere = replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(everywhere, split_axis(mesh, 1), None),  # degrade: wherever its tables lie
        out_shardings=everywhere,
        donate_argnums=0,
    )


def make_example(
    experiment: Experiment, degrade: Degrade
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """`example(image, key) -> (x0, xt, t)` for one uint8 image `[S, S, C]`.

    x0 is a crop of the image, after padding, and mirrored at random, as the config's `data` says;
    xt is what the network sees of D(x0, t), t ~ U{1..T}.
    """
    settings = experiment.config.data
    size, channels = settings.image_size, settings.channels

    def example(image, key):
        crop_key, flip_key, t_key, pattern_key = jax.random.split(key, 4)
        x0 = from_uint8(jnp.pad(image, ((settings.pad,) * 2, (settings.pad,) * 2, (0, 0))))
        room = x0.shape[0] - size
        corner = jax.random.randint(crop_key, (2,), 0, room + 1)
        if settings.crop == "center":
            corner = jnp.full(2, round(room / 2))
        x0 = jax.lax.dynamic_slice(x0, (*corner, 0), (size, size, channels))
        if settings.flip:
            x0 = jnp.where(jax.random.bernoulli(flip_key), x0[:, ::-1], x0)
        t = jax.random.randint(t_key, (), 1, experiment.T + 1)
        return x0, experiment.network_input(degrade(x0, t, pattern_key)), t

    return example


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains to `config.train.num_steps`, from the last checkpoint of `workdir` if it has one.

    Raises:
      UserError: the config cannot work, `workdir` holds another run, the data cannot be read, or
        the loss is no longer finite.
    """
    experiment = build(config)
    mesh = create_mesh()
    experiment = experiment._replace(degrade=replicate(experiment.degrade, mesh))
    host_rows("config.train.batch_size", config.train.batch_size, mesh)  # or refused, at once
    start = checkpoint.last_step(workdir, config)
    if start >= config.train.num_steps:
        logging.info("%s is trained: step %d of %d", workdir, start, config.train.num_steps)
        return
    if not start:  # what an earlier run may have left
        forget_priors(workdir)
        (workdir / "evolution.json").unlink(missing_ok=True)
    load_prior(experiment, workdir)  # fitted now, so that the run has it wherever it goes
    images = load_train_images(config)
    truth = _load_truth(config)
    pictured = evaluate.load_test_images(config, config.eval.pictures)
    settings = config.train
    with checkpoint.open_manager(
        workdir, keep=settings.checkpoints_kept, best=settings.best
    ) as manager:
        state = init_state(experiment, mesh)
        logging.info("parameters: %d", parameter_overview.count_parameters(state.params))
        if start:
            state = checkpoint.restore_state(manager, state, start)
            logging.info("going on from step %d of %s", start, workdir)
        batches = train_batches(config, mesh, images, start=start, stop=settings.num_steps)
        _loop(experiment, mesh, state, batches, pictured, truth, manager, workdir)


def _loop(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    batches: Iterable[jax.Array],
    pictured: np.ndarray,
    truth: evaluate.Truth | None,
    manager: CheckpointManager,
    workdir: Path,
) -> None:
    """Step, log, picture (of the images `pictured`), score, save, until the batches end."""
    settings = experiment.config.train
    start = int(state.step)
    train_step = make_train_step(experiment, mesh)
    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
    images_per_step = settings.batch_size * settings.accumulation
    meter = Meter("train", total=settings.num_steps, start=start, images_per_step=images_per_step)
    metrics = []
    with writer, meter:
        for step, images in enumerate(meter.waiting_for(batches), start + 1):
            last = step == settings.num_steps
            state, step_metrics = train_step(state, images, experiment.degrade)
            metrics.append(step_metrics)
            # One step in flight while the next is prepared; no more, so that times are true.
            jax.block_until_ready(metrics[-2:-1])
            meter.advance()
            saves = step % settings.checkpoint_every == 0 or last
            if step % settings.log_every == 0 or saves:
                _log(writer, meter, step, metrics)
                metrics = []
            if settings.sample_every and (step % settings.sample_every == 0 or last):
                run = Run(experiment, state.ema_params, step, workdir)
                for name, picture in _pictures(run, pictured).items():
                    save_png(workdir / name / f"{step:07d}.png", picture)
                    writer.add_image(name, picture, step, dataformats="HWC")
            if saves:
                scores = None
                if truth is not None:
                    scores = _scores(experiment, state, truth, workdir)
                    for name, value in scores.items():
                        writer.add_scalar(f"test/{name}", value, step)
                writer.flush()
                checkpoint.save(manager, state, experiment.config, scores)


def _pictures(run: Run, images: np.ndarray) -> dict[str, np.ndarray]:
    """Of restored `images`, and, if there is a prior, of as many generated ones, squared.

    But of no more than one batch of evaluation, which is what fits into memory.
    """
    pictures = {"samples": evaluate.picture(run.experiment, run.params, images)}
    if run.prior is not None:
        count = min(len(images) ** 2, run.config.eval.batch_size)
        x0 = run.generate(run.params, range(count))
        pictures["generated"] = mosaic(np.asarray(x0))
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
    experiment: Experiment, state: TrainState, truth: evaluate.Truth, workdir: Path
) -> dict[str, float]:
    """Of the averaged parameters; added to evolution.json and its pictures."""
    step = int(state.step)
    found = evaluate.evaluate(experiment, state.ema_params, step, truth=truth, counts=())
    scores = report.scores_of(found)
    path = workdir / "evolution.json"
    before = read_json(path) or {}
    # A run that went on from an earlier checkpoint measures what came after it anew; scores of
    # another number of images are not of the same curve.
    same = before.get("num_images") == len(truth.images)
    kept = {k: v for k, v in before.get("scores", {}).items() if same and int(k) < step}
    evolution = {"num_images": len(truth.images), "scores": kept | {str(step): scores}}
    write_json(path, evolution)
    for kind, picture in report.evolution_plots(evolution).items():
        save_png(workdir / "evolution" / f"{report.file_name(kind)}.png", picture)
    return scores


def _log(writer: SummaryWriter, meter: Meter, step: int, metrics: list[Metrics]) -> None:
    """Means since the last log, to TensorBoard and the progress line.

    Raises:
      UserError: one of them is no finite number, so that what it led to is never saved.
    """
    values = jax.device_get(metrics)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    if not all(map(math.isfinite, means.values())):
        raise UserError(
            f"the training diverged by step {step}: {means}. The last checkpoint is from before; "
            "try a lower config.train.learning_rate, in another workdir if this comes again"
        )
    for name, value in (means | {"waiting_for_data": meter.waited()}).items():
        writer.add_scalar(f"train/{name}", value, step)
    meter.note("loss {loss:.4f}  grad_norm {grad_norm:.3f}".format(**means))


def load_train_images(config: ConfigDict) -> data.Images:
    """Those of the training split, a crop's margin larger."""
    settings = config.data
    images = data.load(
        settings.source,
        settings.train_split,
        size=settings.image_size + settings.crop_margin,
        channels=settings.channels,
        cache=settings.cache,
    )
    logging.info("training images: %d of %s", len(images), settings.source)
    return images


def train_batches(
    config: ConfigDict, mesh: jax.sharding.Mesh, images: data.Images, *, start: int, stop: int
) -> Iterator[jax.Array]:
    """What steps `start` .. `stop - 1` train on, on the devices: uint8, as `make_train_step` says.

    Raises:
      UserError: the devices cannot share a batch evenly.
    """
    settings = config.train
    batches = data.batches(
        images,
        settings.batch_size,
        accumulation=settings.accumulation,
        seed=config.seed,
        start=start,
        stop=stop,
        rows=host_rows("config.train.batch_size", settings.batch_size, mesh),
        threads=config.data.threads,
    )
    return (to_mesh(rows, mesh, 1) for rows in batches)
