"""Feature statistics: independent of batches, devices and the cache."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, environment, tiny_config
from jax.tree_util import Partial
from PIL import Image
from sklearn.decomposition import PCA

from colddiff.data import sources
from colddiff.evaluation import features, metrics
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import write_npz

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLDDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images():
    return sources.load("digits", "test", size=16, channels=1, limit=101)


@pytest.fixture
def convolved():
    """Return features of a convolution, whose rounding would depend on the batch size."""
    kernel = jax.random.normal(jax.random.key(0), (5, 5, 1, 64))

    def extract(kernel, images):
        x = jax.lax.conv_general_dilated(
            images / jnp.float32(255),
            kernel,
            (2, 2),
            "SAME",
            dimension_numbers=LAYOUT,
        )
        return jnp.mean(jax.nn.relu(x), axis=(1, 2))

    return features.Features("pixels", "convolved", {}, Partial(extract, kernel))


def batches(images, size):
    return [images[i : i + size] for i in range(0, len(images), size)]


def test_statistics_do_not_depend_on_the_batches(images, convolved):
    """Use batches of 7 and 64; no image is dropped, and padding does not count."""
    found = [features.collect(convolved, batches(images, n), total=101) for n in (7, 64, 101)]
    for other in found[1:]:
        assert np.array_equal(found[0].first, other.first)
        np.testing.assert_allclose(other.gaussian.mean, found[0].gaussian.mean, rtol=1e-12)
    values = np.asarray(jax.jit(convolved.extract)(images), np.float64)
    assert found[0].count == 101
    np.testing.assert_allclose(found[0].gaussian.mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[0].gaussian.covariance, np.cov(values.T), atol=1e-6)


@pytest.mark.slow
def test_statistics_do_not_depend_on_the_devices(tmp_path):
    """Use one and four devices, in subprocesses, with a classifier of 20 steps."""
    code = (
        "import sys, numpy as np; from colddiff.data import sources;"
        "from colddiff.evaluation import classifier, features;"
        "classifier.load.__kwdefaults__['settings'] = classifier.Settings(max_steps=20);"
        "from configs import blur_digits; c = blur_digits.get_config(); c.data.image_size = 16;"
        "f = features.make_features('classifier', c);"
        "x = sources.load('digits', 'test', size=16, channels=1, limit=101);"
        "g = features.collect(f, [x], total=101).gaussian;"
        "np.savez(sys.argv[1], mean=g.mean, covariance=g.covariance)"
    )
    found = []
    for devices in (1, 4):
        path = tmp_path / f"{devices}.npz"
        env = environment(devices)
        subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, env=env, check=True)
        found.append(np.load(path))
    for name in ("mean", "covariance"):
        scale = np.abs(found[0][name]).max()
        np.testing.assert_allclose(found[1][name], found[0][name], atol=1e-9 * scale)


def test_moments_of_the_first_n(images):
    space = features.make_features("pixels", tiny_config())
    found = features.collect(space, batches(images, 30), total=101, counts=(64, 2, 77, 64))
    assert sorted(found.moments) == [2, 64, 77, 101]
    flat = images.reshape(101, -1) / 255
    for n, moments in found.moments.items():
        assert moments.count == n
        np.testing.assert_allclose(moments.mean, flat[:n].mean(axis=0), atol=1e-7)
        np.testing.assert_allclose(moments.gaussian.covariance, np.cov(flat[:n].T), atol=1e-7)
    with pytest.raises(UserError, match="no images to compute features of"):
        features.collect(space, [], total=0)


def test_principal_components_are_those_of_the_training_split(images):
    space = features.make_features("pca", tiny_config())
    assert space.name == "pca-32 of digits 16²×1"
    train = sources.load("digits", "train", size=16, channels=1).reshape(1500, -1) / 255
    expected = PCA(32, svd_solver="full").fit(train).transform(images.reshape(101, -1) / 255)
    found = features.collect(space, [images], total=101).first
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)


@pytest.mark.parametrize("limit", [20, 70])
def test_only_the_first_features_are_kept(images, monkeypatch, limit):
    """Check limits in the first and in the second chunk; the moments are of all images."""
    monkeypatch.setattr(features, "KEPT", limit)
    space = features.make_features("pixels", tiny_config())
    found = features.collect(space, batches(images, 30), total=101)
    flat = images.reshape(101, -1) / 255
    assert found.count == 101
    assert found.first.shape == (limit, 256)
    np.testing.assert_allclose(found.first, flat[:limit], atol=1e-6)
    np.testing.assert_allclose(found.gaussian.mean, flat.mean(axis=0), atol=1e-7)


def test_a_set_is_at_distance_0_from_itself(images):
    """Include 256 dimensions from 101 images, where covariances are singular."""
    for name in ("pixels", "pca"):
        found = features.collect(features.make_features(name, tiny_config()), [images], total=101)
        assert metrics.frechet_distance(found.gaussian, found.gaussian) <= 1e-6


def test_a_split_is_collected_once(cache, monkeypatch):
    config = tiny_config()
    space = features.make_features("pca", config)
    found = features.of_split(space, config, "test")
    (path,) = cache.glob("statistics-*.npz")
    with np.load(path) as arrays:
        identity = json.loads(str(arrays["identity"]))
    assert identity["source"] == "digits" and identity["split"] == "test"
    assert identity["images"] == [297, 16, 16, 1] and identity["features"] == space.identity

    monkeypatch.setattr(features, "collect", None)
    again = features.of_split(space, config, "test")
    assert np.array_equal(again.gaussian.covariance, found.gaussian.covariance)
    assert np.array_equal(again.first, found.first)
    monkeypatch.undo()
    monkeypatch.setenv("COLDDIFF_CACHE", str(cache))
    features.of_split(space, config, "train")
    features.of_split(features.make_features("pixels", config), config, "test")
    config.data.image_size = 12
    features.of_split(features.make_features("pixels", config), config, "test")
    assert len(list(cache.glob("statistics-*.npz"))) == 4

    config.data.image_size = 16
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"statistics-.*npz cannot be read: .*; delete it"):
        features.of_split(space, config, "test")
    write_npz(path, {"source": "another"}, {"first": found.first})
    with pytest.raises(
        UserError, match=r'written for {"source": "another"}, but .* was asked for; delete it'
    ):
        features.of_split(space, config, "test")


def test_statistics_are_of_the_pixels_that_are_there(tmp_path):
    """Replace the files of a folder: its name, split and shape stay the same."""
    config = tiny_config()
    config.data.source = f"folder:{tmp_path / 'images'}"
    space = features.make_features("pixels", config)
    for level in (51, 204):
        for split in ("train", "test"):
            folder = tmp_path / "images" / split
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(3):
                Image.new("L", (16, 16), level).save(folder / f"{i}.png")
        found = features.of_split(space, config, "test")
        np.testing.assert_allclose(found.first, level / 255, atol=1e-6)
        np.testing.assert_allclose(found.gaussian.mean, level / 255, atol=1e-6)


def test_spaces_of_other_principal_components_share_no_statistics():
    """Project the same images as scikit-learn does, on the components of each split."""
    config = tiny_config()
    load = lambda split: sources.load("digits", split, size=16, channels=1)  # noqa: E731
    test = load("test").reshape(-1, 256) / 255
    for split in ("train", "test"):
        config.data.train_split = split
        space = features.make_features("pca", config)
        gaussian = features.of_split(space, config, "test").gaussian
        pca = PCA(32, svd_solver="full").fit(load(split).reshape(-1, 256) / 255)
        expected = pca.transform(test)  # up to the sign of each component
        np.testing.assert_allclose(np.abs(gaussian.mean), np.abs(expected.mean(axis=0)), atol=1e-4)
        variances = expected.var(axis=0, ddof=1)
        np.testing.assert_allclose(np.diag(gaussian.covariance), variances, atol=1e-4)


def test_wrong_spaces(monkeypatch, images):
    with pytest.raises(UserError, match="unknown feature space 'vgg'; valid: classifier,"):
        features.make_features("vgg", tiny_config())
    large = tiny_config()
    large.data.image_size, large.data.channels = 64, 3
    with pytest.raises(UserError, match=r"at most 4096 numbers; these have 64² × 3\. Use 'pca'"):
        features.make_features("pixels", large)
    nothing = features.Features("pixels", "x", {}, Partial(lambda x: x[:, :, 0, 0] * jnp.nan))
    with pytest.raises(UserError, match="the features x of an image are not finite"):
        features.collect(nothing, [images], total=101)
