"""Feature spaces for comparing sets of images, and the feature statistics of a set.

    pixels       all pixels, on [0, 1]
    pca          32 principal components of the training split's pixels
    classifier   features of a small classifier of the training split (`classifier.py`)
    inception    features of FID's network (`inception.py`)

A distance is meaningful only with its feature space, so a space's `name` is shown beside every
number. `colddiff.evaluation.metrics` computes the distances.
"""

import functools
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.tree_util import Partial
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.evaluation import classifier, inception, metrics
from colddiff.images import height_width, size_text, to_unit, to_unit_data
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.devices import create_mesh, replicate, split_rows, to_host
from colddiff.runtime.errors import UserError, unknown_name
from colddiff.runtime.files import cached_npz
from colddiff.runtime.progress import Meter

FEW = " †"  # mark of a Fréchet distance between fewer images than the space has dimensions
FEW_NOTE = (
    "† fewer images than the feature space has dimensions: the covariance is singular, and FD is "
    "too large; compare only FDs of the same n"
)

_COMPONENTS = 32
_PCA_IMAGES = 10_000  # images of the training split that PCA is fitted to
_EXACT = 4096  # largest H W C for which the full covariance is computed
KEPT = 10_000  # largest number of images whose features are kept, for kernel distances
_CHUNK = 16  # images per device and call; fixed, because rounding depends on the batch size
_BATCH = 1024  # images copied at a time
_VERSION = 2  # version of the cached files' format


class Features(NamedTuple):
    """A feature space.

    Attributes:
      space: its key in `SPACES`.
      name: full name, shown beside every number, such as 'pca-32 of digits 32²×1'.
      identity: everything the features depend on; JSON types.
      extract: `extract(images) -> [B, D]` float32, for `[B, H, W, C]`, uint8 or float32 on [-1, 1];
        a Partial, for `jit`.
    """

    space: str
    name: str
    identity: dict[str, Any]
    extract: Partial


class Collected(NamedTuple):
    """The feature statistics of a set of images.

    Attributes:
      moments: moments of the first n images, by n; the last entry is of all images.
      first: features of the first 10,000 images, float32 `[., D]`.
    """

    moments: dict[int, metrics.Moments]
    first: np.ndarray

    @property
    def count(self) -> int:
        """Return the number of images."""
        return max(self.moments)

    @property
    def dimension(self) -> int:
        """Return the number of features."""
        return self.first.shape[1]

    @property
    def gaussian(self) -> metrics.Gaussian:
        """Return the mean and covariance of all images' features."""
        return self.moments[self.count].gaussian


def cache_folder() -> Path:
    """Return the folder of statistics and weights: $COLDDIFF_CACHE, or ~/.cache/colddiff."""
    return Path(os.environ.get("COLDDIFF_CACHE") or "~/.cache/colddiff").expanduser()


def make_features(name: str, config: ConfigDict) -> Features:
    """Return the feature space of that name for the images of a config.

    Raises:
      UserError: there is no such space, the data have no labels, or weights are missing.
    """
    check_spaces([name], config.data.channels)
    return SPACES[name](config)


def check_spaces(names: Iterable[str], channels: int) -> None:
    """Refuse feature spaces that do not exist, or are not for images of so many channels.

    Raises:
      UserError: the message lists the known names, or names one that takes the images.
    """
    for name in names:
        if name not in SPACES:
            raise unknown_name("feature space", name, SPACES)
        if name == "inception" and channels not in (1, 3):
            raise UserError(
                f"the feature space 'inception' is for images of 1 or 3 channels; these have "
                f"{channels}. Use 'pca'"
            )


def collect(
    features: Features, batches: Iterable[np.ndarray], *, total: int, counts: Sequence[int] = ()
) -> Collected:
    """Compute the feature statistics of a stream of images, on all devices.

    No image is dropped. The features do not depend on the batches or the number of devices. Sums
    are in float64.

    Args:
      features: the feature space.
      batches: images `[., H, W, C]`, uint8 or float32 on [-1, 1], in batches of any size.
      total: number of images, for the progress line.
      counts: return the moments of the first n images too, for each n in `counts`.
    """
    mesh = create_mesh()
    size = _CHUNK * mesh.size
    extract = replicate(features.extract, mesh)
    found, all_moments, first = {}, None, []
    what = f"features {features.name}"
    with Meter(what, total=-(-total // size), images_per_step=size) as meter:
        for chunk in _chunks(batches, size):
            filled = np.pad(chunk, ((0, size - len(chunk)), *[(0, 0)] * 3))
            values = to_host(_extract(extract, split_rows(filled, mesh)))[: len(chunk)]
            if not np.isfinite(values).all():
                raise UserError(f"the features {features.name} of an image are not finite")
            done = 0 if all_moments is None else all_moments.count
            if done < KEPT:
                first.append(values[: KEPT - done])
            ends = [n - done for n in sorted(set(counts)) if done < n < done + len(values)]
            for part in np.split(values, ends):
                own = metrics.moments(part)
                all_moments = own if all_moments is None else metrics.merge(all_moments, own)
                if all_moments.count in counts:
                    found[all_moments.count] = all_moments
            meter.advance()
        meter.note()
    if all_moments is None:
        raise UserError("there are no images to compute features of")
    return Collected(found | {all_moments.count: all_moments}, np.concatenate(first))


def of_split(features: Features, config: ConfigDict, split: str) -> Collected:
    """Return the feature statistics of a split of the config's data, from the cache if possible.

    The images are taken in the order of `Split.order`. The cache identifies them by their pixels.
    """
    images, _, order = load_split(config, split)
    source = config.data.source
    identity = {
        "version": _VERSION,
        "source": source,
        "split": split,
        "images": list(images.shape),
        "pixels": hashlib.sha256(images).hexdigest(),
        "features": features.identity,
    }
    if np.any(np.diff(order) < 0):
        identity["order"] = hashlib.sha256(order.astype(np.int64)).hexdigest()

    def make() -> dict[str, Any]:
        logging.info("computing the feature statistics of %s, split %s", source, split)
        batches = (images[order[i : i + _BATCH]] for i in range(0, len(order), _BATCH))
        collected = collect(features, batches, total=len(images))
        return {"first": collected.first, **collected.moments[len(images)]._asdict()}

    arrays = cached_npz(cache_folder(), "statistics", identity, make)
    first, count = arrays.pop("first"), int(arrays.pop("count"))
    return Collected({count: metrics.Moments(count, **arrays)}, first)


def load_split(config: ConfigDict, split: str, *, limit: int = 0) -> sources.Split:
    """Return a split of the config's data, or a subset of `limit` images."""
    settings = config.data
    return sources.load_split(settings.source, split, limit=limit, **sources.shape_of(settings))


@functools.partial(network_jit, announce="the feature extractor")
def _extract(extract: Partial, images: jax.Array) -> jax.Array:
    return extract(images)


def _chunks(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same images in the same order, `size` at a time, then the rest."""
    waiting = None
    for batch in batches:
        waiting = batch if waiting is None else np.concatenate([waiting, batch])
        full = len(waiting) - len(waiting) % size
        for start in range(0, full, size):
            yield waiting[start : start + size]
        waiting = waiting[full:]
    if waiting is not None and len(waiting):
        yield waiting


def _pixels(config: ConfigDict) -> Features:
    settings = config.data
    if math.prod(height_width(settings.image_size)) * settings.channels > _EXACT:
        raise UserError(
            f"the feature space 'pixels' is for images of at most {_EXACT} numbers; these have "
            f"{size_text(settings.image_size)} × {settings.channels}. Use 'pca'"
        )
    identity = {"space": "pixels"}
    return Features("pixels", "pixels", identity, Partial(_flat))


def _pca(config: ConfigDict) -> Features:
    from sklearn.decomposition import PCA

    images = load_split(config, config.data.train_split, limit=_PCA_IMAGES).images
    exact = images[0].size <= _EXACT
    dtype = np.float64 if exact else np.float32
    flat = images.reshape(len(images), -1).astype(dtype)
    flat = flat / 255 if images.dtype == np.uint8 else to_unit(flat)
    solver = "covariance_eigh" if exact else "randomized"
    pca = PCA(min(_COMPONENTS, *flat.shape), svd_solver=solver, random_state=0).fit(flat)
    mean, axes = (np.asarray(x, np.float32) for x in (pca.mean_, pca.components_.T))
    identity = {"space": "pca", "axes": hashlib.sha256(mean.tobytes() + axes.tobytes()).hexdigest()}
    name = f"pca-{pca.n_components_} of {_origin(config)}"
    return Features("pca", name, identity, Partial(_project, jnp.asarray(mean), jnp.asarray(axes)))


def _origin(config: ConfigDict) -> str:
    """Return the name of the data that a space was fitted to, such as 'digits 32²×1'."""
    settings = config.data
    split = "" if settings.train_split == "train" else f" {settings.train_split}"
    return f"{settings.source}{split} {size_text(settings.image_size)}×{settings.channels}"


def _flat(images: jax.Array) -> jax.Array:
    return to_unit_data(images.reshape(len(images), -1))


def _project(mean: jax.Array, axes: jax.Array, images: jax.Array) -> jax.Array:
    centred = _flat(images) - mean[None]
    return jnp.dot(centred, axes, precision=jax.lax.Precision.HIGHEST)


def _classifier(config: ConfigDict) -> Features:
    settings = config.data
    found = classifier.load(
        settings.source,
        train_split=settings.train_split,
        test_split=settings.test_split,
        **sources.shape_of(settings),
        folder=cache_folder(),
    )
    name = f"classifier of {_origin(config)}"
    return Features("classifier", name, found.identity, Partial(classifier.features, found.params))


def _inception(config: ConfigDict) -> Features:
    params = inception.load(cache_folder())
    extract = Partial(_of_eight_bits, params)
    return Features("inception", inception.NAME, inception.IDENTITY, extract)


def _of_eight_bits(params: Any, images: jax.Array) -> jax.Array:
    """Return the features of FID's network, which takes uint8; round float32 on [-1, 1] to it."""
    if images.dtype == jnp.float32:
        images = jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)
    return inception.features(params, images)


SPACES = {
    "pixels": _pixels,
    "pca": _pca,
    "classifier": _classifier,
    "inception": _inception,
}
