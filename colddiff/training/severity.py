"""Training of the severity head, p(t | xt), after the restorer and on the same images.

The loss is the cross entropy of t ~ U{0..T}. The keys are the head's own, so that a restorer is the
same with and without a head. The result is `WORKDIR/severity.npz`, and its scores on test images
are in `severity.json` and `severity.png`. `inference/severity.py` applies the head.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.data.batches import batches
from colddiff.degradations import Degrade
from colddiff.evaluation.evaluate import load_test_images
from colddiff.experiment import checkpoint
from colddiff.experiment.build import Experiment
from colddiff.experiment.saved_config import config_from_json, config_json
from colddiff.images import round_to_8_bit, to_model_range
from colddiff.inference.severity import FILE, Estimate, make_estimate, make_head
from colddiff.networks import init_params
from colddiff.networks.severity import SeverityHead
from colddiff.reporting.plots import curves
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.devices import (
    all_hosts,
    barrier,
    host_rows,
    is_first_host,
    place,
    replicated,
    split_axis,
    to_host,
    to_mesh,
)
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import read_json, read_npz, save_png, write_json, write_npz
from colddiff.runtime.progress import Meter
from colddiff.runtime.stop import Stop
from colddiff.sampling.samplers import image_keys
from colddiff.training.examples import check_data, load_train_images, make_example

# The fields that a head depends on; a head of other values is trained again.
_SAME_HEAD = ("degradation", "data", "severity", "seed")
_OWN_KEY = 2**32 - 1  # folded into the seed's key; the train step folds in steps, which are smaller
_NOTE_EVERY = 100  # steps
_TESTED = 256  # test images of the scores, at severities spread evenly over 0..T
_NEAR = 0.05  # of T
_GROUPS = 21  # points of each curve in the plot


class _State(NamedTuple):
    step: jax.Array
    params: Any
    opt_state: Any


def train_severity(experiment: Experiment, mesh: jax.sharding.Mesh, workdir: Path) -> bool:
    """Train the head that `config.severity` describes and test it, unless `workdir` has it.

    SIGTERM and SIGINT end the training; the next one starts from the beginning.

    Returns:
      True if `workdir` has the head; False if a host was told to stop.

    Raises:
      UserError: the data cannot be read, or are not those of the run; the devices cannot share a
        batch; or the loss is not finite.
    """
    config = experiment.config
    if all_hosts(_has_head(config, workdir)):
        logging.info("%s has this severity head already", workdir / FILE)
        return True
    check_data(config, load_train_images(config, cache=False), workdir)
    head = make_head(experiment, config.severity.width)
    params = _train(experiment, head, mesh)
    if params is None:
        logging.info("stopped; run the same command again to train the severity head")
        return False
    _test(experiment, make_estimate(experiment, head, params), mesh, workdir)
    if is_first_host():
        identity = {"config": config_json(config), "images": read_json(workdir / "data.json")}
        write_npz(workdir / FILE, identity, flatten_dict(params, sep="/"))
    barrier()
    return True


def _has_head(config: ConfigDict, workdir: Path) -> bool:
    """Return whether the workdir has a head of this config and of the run's images."""
    path = workdir / FILE
    if not path.exists():
        return False
    saved = json.loads(read_npz(path)[0])
    was = config_from_json(saved["config"])
    changes, _ = checkpoint.differences(_SAME_HEAD, was, config, moved=False)
    if saved["images"] != read_json(workdir / "data.json"):
        changes.append("the images")
    for change in changes:
        logging.info("training the severity head again, because of %s", change)
    return not changes


def _train(experiment: Experiment, head: SeverityHead, mesh: jax.sharding.Mesh) -> Any:
    """Return the trained parameters on this host, or None if a host was told to stop."""
    settings = experiment.config.severity
    # Without the rise, a high rate switches the first layers' features off for good.
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.num_steps // 10, settings.num_steps
    )
    optimizer = optax.adam(schedule)
    step, state = _make_step(experiment, head, optimizer, mesh), None
    parts = _batches(experiment.config, mesh)
    with (
        Stop(mesh) as stop,
        Meter(
            "severity head", total=settings.num_steps, images_per_step=settings.batch_size
        ) as meter,
    ):
        for number, images in enumerate(meter.waiting_for(parts), 1):
            if state is None:
                with meter.uncounted():
                    state = _initial_state(experiment, head, optimizer, mesh)
                    step = step.prepare(state, images, experiment.degrade)
            state, loss = step(state, images, experiment.degrade)
            loss = float(loss)
            meter.advance()
            if not math.isfinite(loss):
                raise UserError(
                    f"the training of the severity head diverged at step {number}: loss {loss}. "
                    f"Lower config.severity.learning_rate={settings.learning_rate}"
                )
            if number % _NOTE_EVERY == 0 or number == settings.num_steps:
                meter.note(f"loss {loss:.4f}")
            if stop.wanted():
                return None
    return to_host(state.params)


def _batches(config: ConfigDict, mesh: jax.sharding.Mesh) -> Iterator[jax.Array]:
    """Return an iterator over batches `[batch_size, H, W, C]`, split over the devices.

    The images are as sharp as test images: they are resized to `image_size` without the margin that
    the restorer's crops need, because enlarging blurs.
    """
    data, settings = config.data, config.severity
    shape = sources.shape_of(data)
    images = sources.load(data.source, data.train_split, cache=data.cache, **shape)
    rows = host_rows("config.severity.batch_size", settings.batch_size, mesh)
    parts = batches(
        images,
        settings.batch_size,
        seed=config.seed,
        start=0,
        stop=settings.num_steps,
        rows=rows,
        threads=data.threads,
    )
    return (to_mesh(part[0], mesh, 0) for part in parts)


def _key(experiment: Experiment) -> jax.Array:
    return jax.random.fold_in(jax.random.key(experiment.config.seed), _OWN_KEY)


def _initial_state(
    experiment: Experiment,
    head: SeverityHead,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> _State:
    def make() -> _State:
        xt = jnp.zeros((1, *experiment.image_shape))
        params = init_params(head, _key(experiment), xt)
        return _State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.jit(make, out_shardings=replicated(mesh))()


def _make_step(
    experiment: Experiment,
    head: SeverityHead,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> Callable:
    """Return a jitted `step(state, images, degrade) -> (state, loss)`; it donates `state`."""

    def loss_fn(params, xt, t):
        logits = head.apply({"params": params}, xt)
        return optax.softmax_cross_entropy_with_integer_labels(logits, t).mean()

    def step(state: _State, images: jax.Array, degrade: Degrade) -> tuple[_State, jax.Array]:
        keys = image_keys(jax.random.fold_in(_key(experiment), state.step), 0, len(images))
        _, xt, t = jax.vmap(make_example(experiment, degrade, smallest=0))(images, keys)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, round_to_8_bit(xt), t)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return _State(state.step + 1, params, opt_state), loss

    return network_jit(
        step,
        announce="the severity head's training step",
        in_shardings=(replicated(mesh), split_axis(mesh, 0), None),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


def _test(
    experiment: Experiment, estimate: Estimate, mesh: jax.sharding.Mesh, workdir: Path
) -> None:
    """Score the head on test images; write `severity.json` and `severity.png`."""
    T = experiment.T
    x0 = np.asarray(to_model_range(load_test_images(experiment.config, _TESTED)))
    true = np.linspace(0, T, len(x0)).round().astype(np.int32)
    keys = image_keys(_key(experiment), 0, len(x0))
    degrade = jax.jit(lambda degrade, *images: jax.vmap(degrade)(*images))
    xt = to_host(degrade(experiment.degrade, *place((x0, true, keys), replicated(mesh))))
    t, std = estimate(xt)
    scores = scores_of(true, t, std, T)
    logging.info(
        "severity head on %d test images, T = %d: median |t̂ - t| %g, %.0f%% within 5%% of T, mean "
        "|t̂ - t| %.2f, mean predicted std %.2f",
        *(len(x0), T, scores["median_error"], 100 * scores["within_5_percent"]),
        *(scores["mean_error"], scores["mean_std"]),
    )
    if is_first_host():
        write_json(workdir / "severity.json", {"num_images": len(x0), "T": T, **scores})
        save_png(workdir / "severity.png", plot(true, t))


def scores_of(true: np.ndarray, t: np.ndarray, std: np.ndarray, T: int) -> dict[str, float | None]:
    """Return the scores of estimates, in severities.

    Args:
      true: the severities, int `[N]`.
      t: their estimates, int `[N]`.
      std: the predicted standard deviations, `[N]`.
      T: the largest severity.

    Returns:
      The median and the mean of |t̂ - t|, the share of images within 5% of T, the mean of std, and
      `calibration`: the root mean square of t̂ - t over that of std. It is 1 if the predicted
      uncertainty is right, and more if it is too small; None if all of std is 0.
    """
    error, std = np.abs(t - true.astype(np.float64)), std.astype(np.float64)
    rms = np.sqrt(np.mean(std**2))
    return {
        "median_error": float(np.median(error)),
        "mean_error": float(np.mean(error)),
        "within_5_percent": float(np.mean(error <= _NEAR * T)),
        "mean_std": float(np.mean(std)),
        "calibration": float(np.sqrt(np.mean(error**2)) / rms) if rms else None,
    }


def plot(true: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Draw the estimates t against the increasing `true` severities, both `[N]`; return a picture.

    Each point summarises images of neighbouring severities.
    """
    count = min(_GROUPS, true.max() + 1, len(true))
    groups = np.array_split(np.arange(len(true)), count)
    x = [float(true[group].mean()) for group in groups]
    series = {
        f"{percent}% of images below": [
            (at, float(np.percentile(t[group], percent)))
            for at, group in zip(x, groups, strict=True)
        ]
        for percent in (10, 50, 90)
    }
    return curves(
        {"t̂ = t": [(at, at) for at in x], **series},
        title=f"Severity of {len(true)} test images",
        x_label="true t",
        y_label="estimated t̂",
    )
