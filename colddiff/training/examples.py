"""The input of training: the images in the order of the steps, and the example made of each.

`colddiff.data.batches` orders the images by the seed and the step alone. Crop, flip, severity and
pattern are drawn on the device, in the train step (`make_example`).
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.data.batches import batches
from colddiff.degradations import Degrade
from colddiff.experiment.build import Experiment
from colddiff.images import height_width, mosaic, to_model_range
from colddiff.runtime.devices import all_hosts, barrier, host_rows, is_first_host, to_mesh
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import atomic_write, read_json, save_png, write_json

PIXELS = "pixels of some"  # a key that identifies a data.json as colddiff's
_LOOKED_AT = 64  # images whose pixels are hashed to detect changed data


def make_example(
    experiment: Experiment, degrade: Degrade, *, smallest: int = 1
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """Return `example(image, key) -> (x0, xt, t)` for one image `[., ., C]`.

    The image is uint8, or float32 on [-1, 1], and at least as large as `image_size`. x0 is a crop
    of the padded image, mirrored at random, as `config.data` sets. xt is `network_input(D(x0, t))`,
    with t ~ U{smallest..T}.
    """
    settings = experiment.config.data
    high, wide = height_width(settings.image_size)

    def example(image, key):
        crop_key, flip_key, t_key, pattern_key = jax.random.split(key, 4)
        black = 0 if image.dtype == jnp.uint8 else -1
        around = ((settings.pad,) * 2, (settings.pad,) * 2, (0, 0))
        x0 = to_model_range(jnp.pad(image, around, constant_values=black))
        room = x0.shape[0] - high  # the same for both sides
        corner = jax.random.randint(crop_key, (2,), 0, room + 1)
        if settings.crop == "center":
            corner = jnp.full(2, round(room / 2))
        x0 = jax.lax.dynamic_slice(x0, (*corner, 0), (high, wide, settings.channels))
        if settings.flip:
            x0 = jnp.where(jax.random.bernoulli(flip_key), x0[:, ::-1], x0)
        t = jax.random.randint(t_key, (), smallest, experiment.T + 1)
        return x0, experiment.network_input(degrade(x0, t, pattern_key)), t

    return example


def pattern_key(key: jax.Array) -> jax.Array:
    """Return the key of the pattern that `make_example` degrades an image with."""
    return jax.random.split(key, 4)[3]


def keep_batch(config: ConfigDict, images: sources.Images, workdir: Path, step: int) -> Path:
    """Write the images that a step trained on, and their mosaic; return the path of the images."""
    path = workdir / "diverged" / f"{step:07d}.npz"
    if is_first_host():
        [batch] = _batches(config, images, start=step - 1, stop=step)
        with atomic_write(path) as file:
            np.savez(file, images=batch)
        flat = batch.reshape(-1, *batch.shape[2:])
        save_png(path.with_suffix(".png"), mosaic(flat))
    return path


def check_data(config: ConfigDict, images: sources.Images, workdir: Path) -> None:
    """Check that the run in the workdir began with the same images.

    The first call in a workdir writes their fingerprint to `data.json`.

    Raises:
      UserError: the images differ from those that the run began with, on any host.
    """
    settings, path = config.data, workdir / "data.json"
    found = sources.fingerprint(settings.source, settings.train_split, settings.channels)
    some = np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).round().astype(int))
    pixels = hashlib.sha256(b"".join(images[i].tobytes() for i in some.tolist()))
    found |= {"images": len(images), PIXELS: pixels.hexdigest()}
    if is_first_host() and not path.exists():
        write_json(path, found)
    barrier()
    began = read_json(path)
    if not all_hosts(began == found):
        began = began or {}
        tell = [f"{k}: {began.get(k)} saved, {found.get(k)} now" for k in sorted(began | found)]
        differences = "\n  ".join(tell)
        raise UserError(
            "the training images, on this host or another, are not those that the run in "
            f"{workdir} began with:\n  {differences}\n"
            f"Restore them, use another --workdir, or delete {path} to resume with the new images"
        )


def load_train_images(config: ConfigDict, *, cache: bool = True) -> sources.Images:
    """Return the images of the training split, `crop_margin` pixels larger than `image_size`.

    They are kept in memory if `cache` and `config.data.cache` are both true.
    """
    settings = config.data
    return sources.load(
        settings.source,
        settings.train_split,
        cache=cache and settings.cache,
        **sources.shape_of(settings, settings.crop_margin),
    )


def train_batches(
    config: ConfigDict, mesh: jax.sharding.Mesh, images: sources.Images, *, start: int, stop: int
) -> Iterator[jax.Array]:
    """Return an iterator over the batches of steps `start` .. `stop - 1`, on the devices.

    Each batch is `[accumulation, batch_size, ., ., C]`, uint8 or float32 on [-1, 1], split over the
    devices along axis 1.

    Raises:
      UserError: the devices cannot share a batch evenly.
    """
    rows = host_rows("config.train.batch_size", config.train.batch_size, mesh)
    batches = _batches(config, images, start=start, stop=stop, rows=rows)
    return (to_mesh(part, mesh, 1) for part in batches)


def _batches(config: ConfigDict, images: sources.Images, **which: Any) -> Iterator[np.ndarray]:
    """Return `data.batches` with the config's settings."""
    settings = config.train
    return batches(
        images,
        settings.batch_size,
        accumulation=settings.accumulation,
        seed=config.seed,
        threads=config.data.threads,
        **which,
    )
