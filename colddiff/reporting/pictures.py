"""Pictures of images that are degraded and restored: grids, sampler iterates, galleries.

Plots of scores are in `plots`, pages in `page`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.experiment.build import Experiment, full_name, make_sampler
from colddiff.images import grid, mosaic, to_model_range
from colddiff.inference.run import Run, degrade_and_restore
from colddiff.runtime.devices import create_mesh, replicate, to_host
from colddiff.sampling.samplers import image_keys, marks_of

_STAGES = 6  # times of a walk that a picture shows, T included
_GAP = 16  # pixels between the parts of an animation


class Walk(NamedTuple):
    """A sampler's `iterates` `[times, B, H, W, C]` at the severities `times`, from T to 0."""

    times: list[int]
    iterates: np.ndarray


def record_walk(run: Run, images: np.ndarray, count: int) -> Walk:
    """Return the iterates of the config's sampler from xT of `images` to x0.

    Args:
      run: the run that restores them.
      images: x0 `[B, H, W, C]`, uint8 or float32 on [-1, 1].
      count: the largest number of iterates to return.
    """
    times = run.times()
    marks = marks_of(make_sampler(run.config), times, count)
    return Walk(marks.tolist(), _iterates(run, images, None, marks))


def picture(run: Run, images: np.ndarray, known: Walk | None = None) -> np.ndarray:
    """Draw x0, xT, the direct restoration and the iterates of the config's sampler.

    Args:
      run: the run that restores them.
      images: x0 `[B, H, W, C]`, uint8 or float32 on [-1, 1].
      known: the iterates of these images (`record_walk`), if they are computed already.

    Returns:
      One picture, uint8 `[height, width, 3]`.
    """
    known = record_walk(run, images, _STAGES) if known is None else known
    places = np.unique(np.linspace(0, len(known.times) - 1, _STAGES).round().astype(int))
    xT, restored = _iterates(run, images, "direct", np.array([run.T, 0]))
    columns = [to_model_range(images), xT, restored, *known.iterates[places[1:]]]
    # With spaces, so that a title is wrapped between words.
    first, name = (
        full_name(run.config, sampler).replace("+", " + ")
        for sampler in ("direct", run.config.sampler.name)
    )
    titles = ["x0", f"xT, T={run.T}", first]
    titles += [f"{name} t={known.times[place]}" for place in places[1:]]
    return grid([to_host(c) for c in columns], titles)


def animation(images: np.ndarray, known: Walk) -> list[np.ndarray]:
    """Draw each iterate of a walk between xT and x0, with captions.

    Args:
      images: x0 `[B, H, W, C]`, uint8 or float32 on [-1, 1].
      known: the iterates of these images (`record_walk`).

    Returns:
      A frame for each time, uint8 `[height, width, 3]`, for a GIF.
    """
    xT, x0 = mosaic(known.iterates[0], caption="xT"), mosaic(images, caption="x0")
    captioned = zip(known.iterates, known.times, strict=True)
    between = [mosaic(x, caption=f"t = {t}") for x, t in captioned]
    gap = np.full_like(xT[:, :_GAP], 255)
    return [np.concatenate([xT, gap, frame, gap, x0], axis=1) for frame in between]


def _iterates(run: Run, images: np.ndarray, sampler: str | None, marks: np.ndarray) -> np.ndarray:
    """Return the sampler's iterates at the times `marks`, `[marks, B, H, W, C]`."""
    times = run.times()
    x0, keys = _images_and_keys(run.experiment, images)
    restoration = run.restoration(run.params, sampler)
    return to_host(degrade_and_restore(restoration, x0, keys, times, marks)[1])


def gallery(experiment: Experiment, images: np.ndarray) -> np.ndarray:
    """Draw D(x0, t) at t = 0, T/4, T/2, 3T/4 and T for `images`; uint8 `[., ., 3]`."""
    x0, keys = _images_and_keys(experiment, images)
    times = np.unique(np.round(np.linspace(0, experiment.T, 5)).astype(int))
    columns = degrade_at(experiment.degrade, x0, jnp.asarray(times), keys)
    titles = [f"t = {t}" for t in times[:-1]] + [f"t = T = {experiment.T}"]
    return grid(list(to_host(columns)), titles)


@jax.jit
def degrade_at(degrade, x0, times, keys):
    """Return D(x0, t) of a batch at each of `times`, `[times, B, H, W, C]`."""
    return jax.lax.map(lambda t: jax.vmap(degrade, (0, None, 0))(x0, t, keys), times)


def _images_and_keys(experiment: Experiment, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Return x0 and the keys of their patterns, which are the same in every picture and score."""
    keys = image_keys(jax.random.key(experiment.config.seed), 0, len(images))
    return replicate((to_model_range(jnp.asarray(images)), keys), create_mesh())
