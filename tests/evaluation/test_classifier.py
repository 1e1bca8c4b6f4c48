"""The classifier: its accuracy on real images, its file, and its features."""

import json
from functools import cache

import jax
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.ndimage import gaussian_filter

from colddiff.data import sources
from colddiff.evaluation import classifier, metrics
from colddiff.evaluation.classifier import Settings
from colddiff.runtime.errors import UserError

QUICK = Settings(max_steps=2, batch_size=32)
SHORT = Settings(max_steps=200, batch_size=32)
SHAPE = {"size": 16, "channels": 1}
DIGITS = {"train_split": "train", "test_split": "test"} | SHAPE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of the digits classifier; do not write to it."""
    return tmp_path_factory.mktemp("classifier")


@pytest.fixture(scope="module")
def digits(folder):
    """Return the classifier of the digits, trained with small batches."""
    return classifier.load("digits", **DIGITS, folder=folder, settings=SHORT)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Return the file of a barely trained classifier, and the function that loads it."""

    def load(**changes):
        wanted = DIGITS | {"size": 8, "folder": tmp_path, "settings": QUICK} | changes
        return classifier.load(wanted.pop("source", "digits"), **wanted)

    monkeypatch.setattr(sources, "load_labelled", cache(sources.load_labelled))
    load()
    (path,) = tmp_path.iterdir()
    return path, load


def untrained(images, *_, num_classes=10, **__):
    """Return zeros for all parameters of the network for such images, as `train` would return."""
    shapes = jax.eval_shape(classifier._Network(num_classes).init, jax.random.key(0), images[:1])
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes["params"])


def same(x, y):
    return jax.tree.structure(x) == jax.tree.structure(y) and all(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True)
    )


def test_it_tells_digits_apart_that_it_has_not_seen(digits, monkeypatch):
    """Compute the accuracy from the features and the last layer."""
    last = {name: np.asarray(array) for name, array in digits.params["logits"].items()}
    images, labels = sources.load_labelled("digits", "test", **SHAPE)
    found = jax.jit(classifier.features)(digits.params, images)
    guess = (np.asarray(found) @ last["kernel"] + last["bias"]).argmax(axis=1)
    assert digits.accuracy == np.mean(guess == labels) >= 0.93
    monkeypatch.setattr(classifier, "_CHUNK", 100)
    assert digits.accuracy == classifier.accuracy(digits.params, images, labels)


def test_a_second_load_reads_the_file(digits, folder, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(classifier, "train", fail)
    again = classifier.load("digits", **DIGITS, folder=folder, settings=SHORT)
    assert same(again.params, digits.params)
    assert (again.accuracy, again.identity) == (digits.accuracy, digits.identity)
    assert json.loads(json.dumps(again.identity)) == json.loads(json.dumps(digits.identity))
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


def test_every_setting_has_a_file_of_its_own(quick, monkeypatch):
    path, load = quick
    monkeypatch.setattr(classifier, "train", untrained)
    monkeypatch.setattr(classifier, "accuracy", lambda *_: 0.1)
    others = [
        {"source": "color_digits"},
        {"train_split": "test"},
        {"test_split": "train"},
        {"size": 7},
        {"channels": 3},
        {"settings": QUICK._replace(seed=1)},
        {"settings": QUICK._replace(learning_rate=1e-3)},
    ]
    identities = [load()[2], *(load(**changes)[2] for changes in others)]
    load_labelled = sources.load_labelled
    for pixels, shift in ((1, 0), (0, 1)):

        def changed(source, split, *, pixels=pixels, shift=shift, **settings):
            images, labels = load_labelled(source, split, **settings)
            return images ^ np.uint8(pixels), (labels + shift) % 10

        monkeypatch.setattr(sources, "load_labelled", changed)
        identities.append(load()[2])
    assert len({json.dumps(i) for i in identities}) == len(identities) == 10
    assert len(list(path.parent.iterdir())) == 10


def test_other_parameters_have_another_identity(quick, monkeypatch):
    """Change the rounding of the parameters, as another machine would."""
    path, load = quick
    before, train = load().identity, classifier.train
    path.unlink()

    def rounded(*args, **kwargs):
        return jax.tree.map(lambda x: np.nextafter(x, np.float32(9)), train(*args, **kwargs))

    monkeypatch.setattr(classifier, "train", rounded)
    after = load().identity
    assert before.pop("params") != after.pop("params")
    assert before == after


def test_damaged_files_are_refused(quick):
    path, load = quick
    good = path.read_bytes()
    for length in (0, 10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match=r"classifier-\w+\.npz cannot be read: .*; delete it"):
            load()
    path.write_bytes(good)
    with np.load(path) as file:
        arrays = dict(file)
    changes = (
        ({"logits/bias": arrays["logits/bias"] + 1e-6}, "is damaged.*delete it"),
        ({"logits/more": np.zeros(3)}, "is damaged.*delete it"),
        ({"identity": "{}"}, r"was written for \{\}, but .* was asked for; delete it"),
    )
    for change, message in changes:
        np.savez(path, **arrays | change)
        with pytest.raises(UserError, match=message):
            load()
    for name in ("accuracy", "digest", "identity", "logits/bias"):
        np.savez(path, **{k: v for k, v in arrays.items() if k != name})
        with pytest.raises(UserError, match="delete it"):
            load()
    path.write_bytes(good)
    load()


@pytest.mark.parametrize(
    ("size", "channels", "convolutions"),
    [(4, 1, 0), (16, 3, 4), (28, 1, 5), (32, 3, 5), (36, 1, 6), (128, 3, 7)],
)
def test_features_of_any_size_and_number_of_channels(size, channels, convolutions):
    """Check two convolutions for the last two halvings, and one for the others."""
    images = np.zeros((2, size, size, channels), np.uint8)
    params = untrained(images)
    found = jax.eval_shape(classifier.features, params, images)
    assert found.shape == (2, 128) and found.dtype == np.float32
    assert sum(name.startswith("Conv") for name in params) == convolutions


def test_features_are_an_image_s_own(digits):
    """Pass `features` through jit as a Partial, in several batches and for constant images."""
    images = sources.load("digits", "test", **SHAPE, limit=40)
    images[:3] = np.array([0, 100, 255])[:, None, None, None]
    extract = jax.jit(lambda extract, images: extract(images))
    partial = Partial(classifier.features, digits.params)
    found = np.asarray(extract(partial, images))
    assert found.shape == (40, 128) and found.dtype == np.float32 and np.isfinite(found).all()
    scale = np.abs(found).max()
    for part in (slice(0, 1), slice(1, 17), slice(39, 40)):
        np.testing.assert_allclose(extract(partial, images[part]), found[part], atol=1e-5 * scale)
    np.testing.assert_allclose(extract(partial, images[::-1])[::-1], found, atol=1e-5 * scale)


@pytest.mark.slow
def test_distances_in_its_features_grow_with_damage(digits):
    """Check blur, noise, darkness, and a loss of contrast, which normalisation would hide."""
    images = {s: sources.load("digits", s, **SHAPE) for s in sources.SPLITS}
    noise = np.random.default_rng(0).normal(size=images["test"].shape)
    damages = {
        "blur": (lambda x, s: gaussian_filter(x, (0, s, s, 0)), (0.5, 1, 2, 4)),
        "noise": (lambda x, s: x + s * noise, (20, 40, 80)),
        "darkness": (lambda x, s: x / s, (1.5, 3, 10)),
        "contrast": (lambda x, s: (x - 128) / s + 128, (1.5, 3, 10)),
    }

    extract = jax.jit(Partial(classifier.features, digits.params))

    def gaussian(x):
        return metrics.moments(extract(np.clip(np.round(x), 0, 255).astype(np.uint8))).gaussian

    train = gaussian(images["train"])
    test = metrics.frechet_distance(train, gaussian(images["test"]))
    for name, (damage, severities) in damages.items():
        damaged = [damage(images["test"].astype(float), s) for s in severities]
        found = [metrics.frechet_distance(train, gaussian(x)) for x in damaged]
        assert np.all(np.diff(found) > 0), (name, found)
        assert found[-1] > 3 * test, (name, test, found)


@pytest.mark.slow
def test_training_is_a_function_of_its_settings():
    """Check that equal settings give equal bits, and that other settings do not."""
    images, labels = sources.load_labelled("digits", "train", size=8, channels=1, limit=200)
    settings = Settings(epochs=2, batch_size=64, shift=8)

    def train(**changes):
        wanted = settings._replace(**changes)
        return classifier.train(images, labels, num_classes=10, settings=wanted)

    first = train()
    assert same(train(), first)
    changes = dict(
        epochs=1, max_steps=3, batch_size=32, learning_rate=1e-3, shift=1000, seed=1
    ).items()
    for name, value in changes:
        assert not same(train(**{name: value}), first), name


def test_every_image_is_seen_once_an_epoch():
    order = classifier._order(10, 35, np.random.default_rng(0))
    epochs = [order[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(e) == list(range(10)) for e in epochs) and len(order) == 35
    assert not np.array_equal(epochs[0], epochs[1])


def test_what_cannot_be_learned_is_refused(tmp_path):
    images = np.zeros((5, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match=r"needs 2 or more classes; the labels are all 3"):
        classifier.train(images, np.full(5, 3, np.int32), num_classes=10)
    with pytest.raises(UserError, match=r"no class labels.*'pca' or 'inception'"):
        (tmp_path / "a.png").touch()
        (tmp_path / "b.png").touch()
        classifier.load(f"folder:{tmp_path}", **DIGITS, folder=tmp_path)


@pytest.mark.slow
def test_all_its_steps_tell_digits_apart(tmp_path):
    assert classifier.load("digits", **DIGITS, folder=tmp_path).accuracy >= 0.95


@pytest.mark.slow
def test_it_tells_mnist_apart(real_data, tmp_path):
    """Train on a fifth of the images for a tenth of the steps (a linear model: .90)."""
    wanted = DIGITS | {"folder": tmp_path, "settings": Settings(max_steps=200)}
    wanted |= {"train_split": "train[:12000]", "test_split": "test[:2000]"}
    assert classifier.load("tfds:mnist", **wanted).accuracy >= 0.95
