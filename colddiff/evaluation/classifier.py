"""A small image classifier, trained here on a labelled source, whose features tell images apart.

A feature space in which Fréchet distances mean something, with nothing to download. The features
are what the last layer sees: 128 numbers an image, after GELU. Their scale is the training's own,
so distances are comparable within one classifier only. Nothing in the network normalises
activations, as that would hide a loss of contrast from the features.

Distances, and the sets of images, are the callers'.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from colddiff.data import sources
from colddiff.images import from_uint8
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import atomic_write
from colddiff.runtime.progress import Meter

Params = Mapping[str, Any]

_VERSION = 1  # of the network and of the files
_FEATURES = 128
_LAST_SIZE = 4  # of the maps that are averaged, in pixels
_CHUNK = 500  # images classified at once
_NOTE_EVERY = 100  # steps
_PARAMS = "params/"  # how the names of parameters begin in a file


class Settings(NamedTuple):
    """Of the training.

    Attributes:
      epochs: how often each image is seen, ...
      max_steps: ... unless that takes more steps than these.
      batch_size: images a step.
      learning_rate: of Adam, after a linear rise over a tenth of the steps; falls as a cosine to 0.
      shift: images are moved by up to their size divided by it, at random, either way.
      seed: of the first parameters, the order and the shifts.
    """

    epochs: int = 20
    max_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    shift: int = 16
    seed: int = 0


_SETTINGS = Settings()


class Trained(NamedTuple):
    """A classifier.

    Attributes:
      params: for `features`.
      accuracy: on the test split, 0 to 1.
      identity: all that the parameters depend on and a digest of them, in JSON's types.
    """

    params: Params
    accuracy: float
    identity: dict[str, Any]


def load(
    source: str,
    *,
    train_split: str,
    test_split: str,
    size: int,
    channels: int,
    folder: Path,
    background: Sequence[int] = sources.BLACK,
    settings: Settings = _SETTINGS,
) -> Trained:
    """The classifier of a source's images, `[size, size, channels]`.

    The first call trains it and keeps it in `folder`, in a file named by a hash of the training
    images, their labels and the settings; later calls read it.

    Raises:
      UserError: the source has no labels or cannot be read, or the file is damaged.
    """
    shape = dict(size=size, channels=channels, background=background)
    images, labels = sources.load_labelled(source, train_split, **shape)
    identity = {
        "version": _VERSION,
        "source": source,
        "splits": [train_split, test_split],
        "images": list(images.shape),
        "pixels": hashlib.sha256(images).hexdigest(),
        "labels": hashlib.sha256(labels).hexdigest(),
        "settings": settings._asdict(),
    }
    text = json.dumps(identity, sort_keys=True)
    path = folder / f"classifier-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        num_classes = int(labels.max()) + 1
        test = sources.load_labelled(source, test_split, **shape)
        params = train(images, labels, num_classes=num_classes, settings=settings)
        reached = accuracy(params, *test)
        logging.info(
            "classifier of %s: accuracy %.4f on %s, %d images: %s",
            source,
            reached,
            test_split,
            len(test[0]),
            path,
        )
        _write(path, params, reached, text)
    params, reached, digest = _read(path, text)
    return Trained(params, reached, identity | {"params": digest})


def features(params: Params, images: jax.Array) -> jax.Array:
    """What the last layer sees of uint8 images `[B, H, W, C]`: `[B, 128]` float32.

    Pure. `Partial(features, params)` can be handed through `jax.jit`. Each image's features are its
    own, whatever the batch. H = W and C are those that `params` were trained with.
    """
    return _apply(params, images)[0]


def accuracy(params: Params, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of uint8 images `[N, H, W, C]` that get their label, int32 `[N]`."""
    starts = range(0, len(images), _CHUNK)
    found = np.concatenate([_classify(params, images[s : s + _CHUNK]) for s in starts])
    return float(np.mean(found == labels))


def train(
    images: np.ndarray, labels: np.ndarray, *, num_classes: int, settings: Settings = _SETTINGS
) -> Params:
    """Parameters that tell the classes apart, by cross-entropy; on one device.

    The same arrays and settings give the same bits again, on the same machine and libraries.

    Args:
      images: uint8 `[N, size, size, channels]`.
      labels: int32 `[N]` in 0..num_classes - 1.

    Raises:
      UserError: fewer than two classes occur.
    """
    found = np.unique(labels)
    if len(found) < 2:
        raise UserError(f"a classifier needs 2 or more classes; the labels are all {found[0]}")
    batch_size = settings.batch_size
    num_steps = min(-(-settings.epochs * len(images) // batch_size), settings.max_steps)
    optimizer = optax.adam(
        optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, num_steps // 10, num_steps)
    )
    rng = np.random.default_rng(settings.seed)
    params = _initial_params(num_classes, images[:1], rng)
    state = (params, optimizer.init(params))
    order = _order(len(images), num_steps * batch_size, rng)
    shift = images.shape[1] // settings.shift
    step = _make_step(optimizer, shift)
    what = f"classifier of {len(images)} images"
    with Meter(what, total=num_steps, images_per_step=batch_size) as meter:
        for k, rows in enumerate(order.reshape(num_steps, batch_size), start=1):
            corners = rng.integers(0, 2 * shift, (batch_size, 2), np.int32, endpoint=True)
            state, loss = step(state, images[rows], labels[rows], corners)
            meter.advance()
            if k % _NOTE_EVERY == 0 or k == num_steps:
                meter.note(f"loss {float(loss):.4f}")
    return state[0]


class _Network(nn.Module):
    """3×3 convolutions that halve the image down to 4×4 pixels, their mean, and two dense layers.

    For any size and number of channels. The last two halvings, to 64 and 128 channels, each have a
    second convolution; those before give 32 channels, so a large image costs little more.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features `[B, 128]` and logits `[B, num_classes]` of uint8 `[B, H, W, C]`."""
        conv = partial(nn.Conv, kernel_size=(3, 3), precision=jax.lax.Precision.HIGHEST)
        dense = partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
        x = from_uint8(images)
        halvings = math.ceil(math.log2(images.shape[1] / _LAST_SIZE))
        for left in reversed(range(halvings)):
            width = (128, 64, 32)[min(left, 2)]
            x = nn.gelu(conv(width, strides=2)(x))
            if left < 2:
                x = nn.gelu(conv(width)(x))
        x = nn.gelu(dense(_FEATURES)(x.mean(axis=(1, 2))))
        return x, dense(self.num_classes, name="logits")(x)


def _apply(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features and logits; the parameters know how many classes there are."""
    return _Network(len(params["logits"]["bias"])).apply({"params": params}, images)


@network_jit
def _classify(params: Params, images: jax.Array) -> jax.Array:
    return _apply(params, images)[1].argmax(axis=-1)


def _make_step(optimizer: optax.GradientTransformation, shift: int) -> Callable:
    """`step((params, opt_state), images, labels, corners) -> (...), loss`, jitted.

    Images are padded by `shift` pixels like their edges, and cut at `corners`, int32 `[B, 2]`. The
    first argument is donated.
    """

    def move(image, corner):
        padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
        return jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)

    def loss_fn(params, images, labels):
        logits = _apply(params, images)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, images, labels, corners):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, jax.vmap(move)(images, corners), labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return network_jit(step, donate_argnums=0)


def _initial_params(num_classes: int, images: np.ndarray, rng: np.random.Generator) -> Params:
    """Normal kernels of variance 2 / fan-in (He et al. 2015), zero biases.

    NumPy draws them: XLA would compile for seconds.
    """

    def draw(leaf):
        if len(leaf.shape) == 1:
            return jnp.zeros(leaf.shape)
        std = np.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
        return jnp.asarray(std * rng.standard_normal(leaf.shape, np.float32))

    shapes = jax.eval_shape(_Network(num_classes).init, jax.random.key(0), images)
    return jax.tree.map(draw, shapes["params"])


def _order(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """0..count - 1 in one shuffle after the other, `[length]`."""
    shuffles = [rng.permutation(count) for _ in range(-(-length // count))]
    return np.concatenate(shuffles)[:length]


def _write(path: Path, params: Params, reached: float, identity: str) -> None:
    arrays = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    named = {_PARAMS + k: v for k, v in arrays.items()}
    with atomic_write(path) as file:
        np.savez(file, identity=identity, accuracy=reached, digest=_digest(arrays), **named)


def _read(path: Path, identity: str) -> tuple[Params, float, str]:
    """Parameters, accuracy and the parameters' digest.

    Raises:
      UserError: the file cannot be read, is another classifier's, or was changed.
    """
    try:
        with np.load(path) as file:
            said, digest = str(file["identity"]), str(file["digest"])
            reached = float(file["accuracy"])
            names = [name for name in file.files if name.startswith(_PARAMS)]
            arrays = {name.removeprefix(_PARAMS): file[name] for name in names}
    except Exception as error:  # damaged archives raise all sorts
        raise UserError(f"{path} cannot be read: {first_line(error)}; delete it") from error
    if said != identity:
        raise UserError(f"{path} is of {said}, not of {identity}; delete it")
    if _digest(arrays) != digest:
        raise UserError(
            f"{path} is damaged: its parameters are not those it was made of; delete it"
        )
    params = unflatten_dict({k: jnp.asarray(v) for k, v in arrays.items()}, sep="/")
    return params, reached, digest


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
