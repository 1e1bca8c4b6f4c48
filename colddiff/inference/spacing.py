"""The times that a run's sampler visits: even, or chosen by how much D changes.

The change of D is measured on training images and stored in `WORKDIR/spacing`. The rule that
chooses the times is `sampling.samplers.times_by_change`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from colddiff.data import sources
from colddiff.degradations import Degrade
from colddiff.experiment.build import Experiment
from colddiff.experiment.config_files import rename_own
from colddiff.experiment.saved_config import config_json
from colddiff.experiment.user_code import source_hashes
from colddiff.images import to_model_range
from colddiff.runtime.files import cached_npz, read_json
from colddiff.runtime.progress import Meter
from colddiff.sampling.samplers import draw_patterns, image_keys

_IMAGES = 128  # training images that the change is measured on


def load_change(experiment: Experiment, workdir: Path | None) -> np.ndarray:
    """Return how much D changes from t - 1 to t, float64 `[T + 1]`; 0 at t = 0.

    It is the root mean square of D(x0, t) - D(x0, t - 1) over 128 training images. The first call
    stores it in `workdir`, if there is one; another degradation or other images are measured again.

    Raises:
      UserError: the training images cannot be read.
    """
    config = experiment.config

    def make() -> dict[str, np.ndarray]:
        settings = config.data
        logging.info("measuring the change of D on %s, %s", settings.source, settings.train_split)
        shape = sources.shape_of(settings)
        images = sources.load(settings.source, settings.train_split, limit=_IMAGES, **shape)
        x0 = to_model_range(jnp.asarray(np.asarray(images)))
        return {"change": measure_change(experiment.degrade, x0, experiment.T)}

    if workdir is None:
        return make()["change"]
    degradation = config_json(config)["degradation"]
    identity = {
        "images": read_json(workdir / "data.json"),
        "data": [config.data.source, config.data.train_split, list(experiment.image_shape)],
        "degradation": rename_own(degradation, lambda name: Path(name).name),
        "source": source_hashes(config.degradation),
    }
    return cached_npz(workdir / "spacing", "change", identity, make)["change"]


def measure_change(degrade: Degrade, x0: jax.Array, T: int) -> np.ndarray:
    """Return the root mean square of D(x0, t) - D(x0, t - 1) for t = 1..T, `[T + 1]`; 0 at t = 0.

    Args:
      degrade: the degradation; image i has the pattern of `fold_in(key(0), i)`.
      x0: images `[B, H, W, C]` on [-1, 1].
      T: the largest severity.
    """
    keys = image_keys(jax.random.key(0), 0, len(x0))
    change, last = [0.0], x0
    with Meter("change of D", total=T, images_per_step=len(x0)) as meter:
        for t in range(1, T + 1):
            xt = _degraded(degrade, x0, keys, jnp.int32(t))
            change.append(float(jnp.sqrt(jnp.mean((xt - last) ** 2))))
            last = xt
            meter.advance()
    return np.array(change)


@jax.jit
def _degraded(degrade: Degrade, x0: jax.Array, keys: jax.Array, t: jax.Array) -> jax.Array:
    return draw_patterns(degrade, keys, x0.shape[1:])(x0, t)
