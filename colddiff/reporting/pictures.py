"""Pictures of images that are degraded and restored: grids, walks, galleries.

Plots of scores and pages are elsewhere.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from colddiff.experiment.build import Experiment, make_sampler
from colddiff.images import from_uint8, grid
from colddiff.inference.run import run_sampler
from colddiff.runtime.devices import create_mesh, replicate, to_host
from colddiff.sampling.samplers import Sampler, direct, image_keys, marks_of, times_between

_STAGES = 6  # of a walk, in a picture


class Walk(NamedTuple):
    """Images on their way back: `iterates` `[times, B, H, W, C]` at `times`, from T to 0."""

    times: list[int]
    iterates: np.ndarray


def walk(experiment: Experiment, params: Any, images: np.ndarray, count: int) -> Walk:
    """From xT of uint8 `images` to x0 with the config's sampler, seen at most `count` times."""
    sampler = make_sampler(experiment.config)
    times = marks_of(sampler, times_between(experiment.T, experiment.steps), count)
    return Walk(times.tolist(), _iterates(experiment, params, images, sampler, times))


def picture(
    experiment: Experiment, params: Any, images: np.ndarray, way: Walk | None = None
) -> np.ndarray:
    """x0, xT, direct and iterates of the config's sampler for uint8 `images`; uint8 `[., ., 3]`.

    Args:
      way: the walk of these images, if it is known.
    """
    way = walk(experiment, params, images, _STAGES) if way is None else way
    places = np.unique(np.linspace(0, len(way.times) - 1, _STAGES).round().astype(int))
    ends = np.array([experiment.T, 0])
    xT, restored = _iterates(experiment, params, images, Partial(direct), ends)
    columns = [from_uint8(images), xT, restored, *way.iterates[places[1:]]]
    name = experiment.config.sampler.name
    titles = ["x0", f"xT, T={experiment.T}", "direct"]
    titles += [f"{name} t={way.times[place]}" for place in places[1:]]
    return grid([to_host(c) for c in columns], titles)


def _iterates(
    experiment: Experiment, params: Any, images: np.ndarray, sampler: Sampler, marks: np.ndarray
) -> np.ndarray:
    """The walk's images at the times `marks`; `[marks, B, H, W, C]`."""
    times = times_between(experiment.T, experiment.steps)
    x0, keys = _images_and_keys(experiment, images)
    xT = experiment.network_input(
        jax.vmap(experiment.degrade, (0, None, 0))(x0, experiment.T, keys)
    )
    common = (experiment.restore, experiment.degrade, params, xT, keys, times)
    return to_host(run_sampler(sampler, *common, marks)[1])


def gallery(experiment: Experiment, images: np.ndarray) -> np.ndarray:
    """D(x0, t) at t = 0, T/4, T/2, 3T/4 and T for uint8 `images`; uint8 `[., ., 3]`."""
    x0, keys = _images_and_keys(experiment, images)
    times = np.unique(np.round(np.linspace(0, experiment.T, 5)).astype(int))
    columns = degrade_at(experiment.degrade, x0, jnp.asarray(times), keys)
    titles = [f"t = {t}" for t in times[:-1]] + [f"t = T = {experiment.T}"]
    return grid(list(to_host(columns)), titles)


@jax.jit
def degrade_at(degrade, x0, times, keys):
    """D(x0, t) of a batch at each of `times`; `[times, B, H, W, C]`."""
    return jax.lax.map(lambda t: jax.vmap(degrade, (0, None, 0))(x0, t, keys), times)


def _images_and_keys(experiment: Experiment, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """x0 and the keys of their patterns, the same in every picture and score."""
    keys = image_keys(jax.random.key(experiment.config.seed), 0, len(images))
    return replicate((from_uint8(jnp.asarray(images)), keys), create_mesh())
