"""A small image classifier, trained on a labelled source, as a feature space.

It makes Fréchet distances meaningful without a download. The features are the input of the last
layer: 128 numbers an image, after GELU. Their scale depends on the training, so distances are
comparable within one classifier only. The network has no normalisation layers, because they would
hide a loss of contrast from the features.

Callers choose the images and compute the distances.
"""

import hashlib
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
from colddiff.images import to_model_range
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import array_digest, cached_npz
from colddiff.runtime.progress import Meter

Params = Mapping[str, Any]

_VERSION = 2  # version of the network and of the file format
_FEATURES = 128
_LAST_SIZE = 4  # side of the averaged feature maps, in pixels
_CHUNK = 500  # images classified at once
_NOTE_EVERY = 100  # steps
_ACCURACY = "accuracy"  # its key in the file, beside parameters such as "logits/bias"


class Settings(NamedTuple):
    """Training settings.

    Attributes:
      epochs: passes over the images.
      max_steps: largest number of steps, even if `epochs` would need more.
      batch_size: images per step.
      learning_rate: Adam's peak rate; the rate rises linearly over a tenth of the steps, then falls
        to 0 along a cosine.
      shift: images are shifted at random by up to the shorter side / shift pixels, along both axes.
      seed: seed of the initial parameters, the order of images and the shifts.
    """

    epochs: int = 20
    max_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    shift: int = 16
    seed: int = 0


_SETTINGS = Settings()


class Trained(NamedTuple):
    """A trained classifier.

    Attributes:
      params: the parameters that `features` takes.
      accuracy: accuracy on the test split, 0 to 1.
      identity: everything the parameters depend on, and their digest; JSON types.
    """

    params: Params
    accuracy: float
    identity: dict[str, Any]


def load(
    source: str,
    *,
    train_split: str,
    test_split: str,
    size: int | tuple[int, int],
    channels: int,
    folder: Path,
    background: Sequence[int] = sources.BLACK,
    value_range: Sequence[float] = (),
    settings: Settings = _SETTINGS,
) -> Trained:
    """Return the classifier of a source's images, `[H, W, channels]`.

    The first call trains it and writes it to `folder`; later calls read the file. Each set of
    training images, labels and settings has its own file.

    Raises:
      UserError: the source has no labels or cannot be read, or the file is damaged.
    """
    shape = dict(size=size, channels=channels, background=background, value_range=value_range)
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

    def make() -> dict[str, Any]:
        num_classes = int(labels.max()) + 1
        test = sources.load_labelled(source, test_split, **shape)
        params = train(images, labels, num_classes=num_classes, settings=settings)
        reached = accuracy(params, *test)
        count = len(test[0])
        logging.info(
            "classifier of %s: accuracy %.4f on %s, %d images", source, reached, test_split, count
        )
        return {_ACCURACY: reached, **flatten_dict(params, sep="/")}

    arrays = cached_npz(folder, "classifier", identity, make)
    reached = float(arrays.pop(_ACCURACY))
    params = unflatten_dict({k: jnp.asarray(v) for k, v in arrays.items()}, sep="/")
    return Trained(params, reached, identity | {"params": array_digest(arrays)})


def features(params: Params, images: jax.Array) -> jax.Array:
    """Return the last layer's input, float32 `[B, 128]`, for images `[B, H, W, C]`.

    The function is pure: `Partial(features, params)` can be passed through `jax.jit`. An image's
    features do not depend on the rest of its batch. H, W, C and the dtype, uint8 or float32 on
    [-1, 1], must be those of the training images.
    """
    return _apply(params, images)[0]


def accuracy(params: Params, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images `[N, H, W, C]` classified as their int32 `labels` `[N]`."""
    starts = range(0, len(images), _CHUNK)
    found = np.concatenate([_classify(params, images[s : s + _CHUNK]) for s in starts])
    return float(np.mean(found == labels))


def train(
    images: np.ndarray, labels: np.ndarray, *, num_classes: int, settings: Settings = _SETTINGS
) -> Params:
    """Train a classifier by cross-entropy, on one device, and return its parameters.

    The same arrays and settings give bit-identical parameters on the same machine and libraries.

    Args:
      images: `[N, H, W, C]`, uint8 or float32 on [-1, 1].
      labels: int32 `[N]` in 0..num_classes - 1.
      num_classes: number of logits.
      settings: training settings.

    Raises:
      UserError: `labels` contains fewer than two classes.
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
    shift = min(images.shape[1:3]) // settings.shift
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
    """3×3 convolutions that halve the image, a mean over pixels, two dense layers.

    The shorter side is halved down to 4 pixels.

    The network takes any size and number of channels. The last two halvings, to 64 and 128
    channels, each have a second convolution. Earlier halvings have one convolution to 32 channels,
    so large images cost little more.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return features `[B, 128]` and logits `[B, num_classes]` of `[B, H, W, C]`."""
        conv = partial(nn.Conv, kernel_size=(3, 3), precision=jax.lax.Precision.HIGHEST)
        dense = partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
        x = to_model_range(images)
        halvings = math.ceil(math.log2(min(images.shape[1:3]) / _LAST_SIZE))
        for left in reversed(range(halvings)):
            width = (128, 64, 32)[min(left, 2)]
            x = nn.gelu(conv(width, strides=2)(x))
            if left < 2:
                x = nn.gelu(conv(width)(x))
        x = nn.gelu(dense(_FEATURES)(x.mean(axis=(1, 2))))
        return x, dense(self.num_classes, name="logits")(x)


def _apply(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return features and logits; the shape of `params` gives the number of classes."""
    return _Network(len(params["logits"]["bias"])).apply({"params": params}, images)


@network_jit
def _classify(params: Params, images: jax.Array) -> jax.Array:
    return _apply(params, images)[1].argmax(axis=-1)


def _make_step(optimizer: optax.GradientTransformation, shift: int) -> Callable:
    """Return a jitted `step((params, opt_state), images, labels, corners) -> (...), loss`.

    The step pads images by `shift` pixels with their edge values and crops them at `corners`,
    int32 `[B, 2]`. The first argument is donated.
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
    """Draw normal kernels of variance 2 / fan-in (He et al. 2015); biases are zero.

    NumPy draws them, because compiling the draws with XLA takes seconds.
    """

    def draw(leaf):
        if len(leaf.shape) == 1:
            return jnp.zeros(leaf.shape)
        std = np.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
        return jnp.asarray(std * rng.standard_normal(leaf.shape, np.float32))

    shapes = jax.eval_shape(_Network(num_classes).init, jax.random.key(0), images)
    return jax.tree.map(draw, shapes["params"])


def _order(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return independent shuffles of 0..count - 1, concatenated and cut to `[length]`."""
    shuffles = [rng.permutation(count) for _ in range(-(-length // count))]
    return np.concatenate(shuffles)[:length]
