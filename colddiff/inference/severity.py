"""Estimates of the severity t of degraded images, by the severity head of a run.

The head, `p(t | xt)`, is a network in `WORKDIR/severity.npz` (colddiff/networks/severity.py). This
module reads it and applies it; `training/severity.py` trains it.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from colddiff.degradations import as_partial
from colddiff.experiment import checkpoint
from colddiff.experiment.build import Experiment
from colddiff.experiment.saved_config import config_from_json
from colddiff.images import check_images, round_to_8_bit
from colddiff.networks.severity import SeverityHead, check_size, levels_of
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import read_npz

if TYPE_CHECKING:
    from colddiff.inference.run import Run

Estimate = Callable[[jax.Array | np.ndarray], tuple[np.ndarray, np.ndarray]]

FILE = "severity.npz"
_STEPS = 1000  # of the command that the messages advise

# Fields that must be those of the run, or images would mean something else to the head.
_SAME_IMAGES = ("degradation", "data.channels", "data.image_size", "data.eight_bit")


def load_severity(run: "Run") -> Estimate:
    """Return `estimate(images) -> (t, std)` of a run's severity head (`make_estimate`).

    Raises:
      UserError: the run has no head, or one of another degradation; the message gives the command
        that trains one.
    """
    if run.workdir is None:
        raise UserError(
            "the severity cannot be estimated: this run has no workdir with a severity head. Load "
            "a trained run with colddiff.load(workdir), or give t"
        )
    path = run.workdir / FILE
    command = (
        f"python -m colddiff --mode=train --config={run.workdir / 'config.json'} "
        f"--workdir={run.workdir} --config.severity.num_steps={_STEPS}"
    )
    if not path.exists():
        raise UserError(
            f"the severity cannot be estimated: {run.workdir} has no severity head, {FILE}. Give "
            f"t, or train a head, which takes a few minutes:\n  {command}"
        )
    written, arrays = read_npz(path)
    saved = config_from_json(json.loads(written)["config"])
    refused, _ = checkpoint.differences(_SAME_IMAGES, saved, run.config, moved=True)
    if refused:
        listed = "\n  ".join(refused)
        raise UserError(
            f"{path} was trained for other images than those of this run:\n  {listed}\n"
            f"Train a head for them:\n  {command}"
        )
    head = make_head(run.experiment, saved.severity.width)
    return make_estimate(run.experiment, head, unflatten_dict(arrays, sep="/"))


def make_head(experiment: Experiment, width: int) -> SeverityHead:
    """Return the severity head for an experiment's images and severities."""
    return SeverityHead(experiment.T, levels_of(experiment.image_shape[:2]), width)


def make_estimate(experiment: Experiment, head: SeverityHead, params: Any) -> Estimate:
    """Return `estimate(images) -> (t, std)` of a head with its parameters.

    `images` are floats `[B, H, W, C]` on [-1, 1], of any size from 2^levels pixels a side. They are
    rounded to 8 bits, as files are. t, int32 `[B]`, is the posterior's median; std, float32 `[B]`,
    is its standard deviation, in severities. With several hosts, each host passes all images.

    One program takes one image at a time, so that an estimate never depends on its batch.
    """
    channels = experiment.image_shape[2]
    network_input = as_partial(experiment.network_input)

    def estimate(images: jax.Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_images(images, "images")
        if images.ndim != 4 or images.shape[3] != channels:
            raise UserError(
                f"images must be of shape ('B', 'H', 'W', {channels}); got {images.shape}"
            )
        check_size(images.shape, head.levels)
        xt = np.asarray(images, np.float32)
        found = [_estimate(head, network_input, params, xt[i : i + 1]) for i in range(len(xt))]
        found = jax.device_get(found)
        t = np.array([median for median, _ in found], np.int32)
        return t.reshape(-1), np.array([std for _, std in found], np.float32).reshape(-1)

    return estimate


def posterior(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the median, int32 `[B]`, and the standard deviation, float32 `[B]`, of p(t | xt).

    The median is the smallest t with p(severity ≤ t) ≥ 1/2.

    Args:
      logits: logits over t = 0..T, `[B, T + 1]`.
    """
    p = jax.nn.softmax(logits)
    t = jnp.arange(logits.shape[1], dtype=jnp.float32)[None]
    median = jnp.argmax(jnp.cumsum(p, axis=1) >= 0.5, axis=1).astype(jnp.int32)
    mean = jnp.sum(p * t, axis=1, keepdims=True)
    return median, jnp.sqrt(jnp.sum(p * (t - mean) ** 2, axis=1))


@partial(network_jit, static_argnums=0)
def _estimate(head, network_input, params, xt):
    xt = round_to_8_bit(network_input(xt))
    return posterior(head.apply({"params": params}, xt))
