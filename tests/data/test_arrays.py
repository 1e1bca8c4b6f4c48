"""The source `arrays:PATH`: values, splits, labels, crops, and files that cannot be used."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from colddiff.data import sources
from colddiff.images import to_data_type, to_model_range, to_unit_data
from colddiff.runtime.errors import UserError
from colddiff.sampling.priors import fit_mixture

SIZE = (4, 6)


def write(path, images, labels=None):
    """Write an .npy or .npz file, and return the source's name."""
    if path.suffix == ".npy":
        np.save(path, images)
    else:
        np.savez(path, images=images, **({} if labels is None else {"labels": labels}))
    return f"arrays:{path}"


def numbers(dtype, *shape):
    """Return images of which each one begins with its index."""
    rng = np.random.default_rng(0)
    high = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    images = (rng.uniform(0, 1, shape) * high).astype(dtype)
    images[:, 0, 0] = np.arange(len(images)).reshape(-1, *[1] * (images.ndim - 3))
    return images


def both(source, **settings):
    return [sources.load_split(source, split, **settings) for split in ("train", "test")]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_8_bits_stay_as_they_are_in_two_complete_splits(tmp_path, suffix, channels):
    images = numbers(np.uint8, 200, *SIZE, channels)
    source = write(tmp_path / f"x{suffix}", images[..., 0] if channels == 1 else images)
    splits = both(source, size=SIZE, channels=channels)
    indices = [split.images[:, 0, 0, 0].tolist() for split in splits]
    assert sorted(np.concatenate(indices)) == [*range(200)] and 8 < len(indices[1]) < 35
    for split, where in zip(splits, indices, strict=True):
        assert split.images.dtype == np.uint8 and np.array_equal(split.images, images[where])
    lazy = sources.load(source, "test", size=SIZE, channels=channels, cache=False)
    assert np.array_equal(np.stack([*lazy]), splits[1].images)
    # A subset is not the first images; images added at the end do not move the others.
    assert not np.array_equal(splits[0].order, np.arange(len(indices[0])))
    write(tmp_path / f"x{suffix}", np.concatenate([images, images[:50]]))
    os.utime(tmp_path / f"x{suffix}", (1, 1))
    more = both(source, size=SIZE, channels=channels)
    for split, where in zip(more, indices, strict=True):
        assert np.array_equal(split.images[: len(where)], images[where])


@pytest.mark.parametrize(
    ("dtype", "value_range", "low", "high"),
    [
        (np.uint16, (), 0, 65535),
        (np.int16, (), -32768, 32767),
        (np.uint16, (0, 40000), 0, 40000),
        (np.uint8, (0, 255), None, None),
        (np.uint8, (0.0, 255.0), None, None),
        (np.uint8, (0, 300), 0, 300),
        (np.float32, (-1.0, 3.0), -1, 3),
        (np.float64, (0, 1), 0, 1),
        (np.int64, (-5, 2000), -5, 2000),
    ],
)
def test_the_value_range_becomes_minus_one_to_one(tmp_path, dtype, value_range, low, high):
    """Compare with float64; no image is cut to 8 bits unless the file holds 8 bits."""
    limits = (0, 255) if high is None else (low, high)
    images = np.random.default_rng(1).uniform(*limits, (40, *SIZE, 2)).astype(dtype)
    images[:, 0, 0] = limits[0]
    if dtype != np.uint8:
        images[:, 0, 1] = limits[1]
    source = write(tmp_path / "x.npy", images)
    split = sources.load_split(source, "train", size=SIZE, channels=2, value_range=value_range)
    if high is None:
        assert split.images.dtype == np.uint8
        return
    assert split.images.dtype == np.float32
    everything = 2 * (images.astype(np.float64) - low) / (high - low) - 1
    for image in split.images:
        assert np.abs(everything - image).max(axis=(1, 2, 3)).min() < 1e-7
    if dtype == np.uint16 and not value_range:
        back = np.round((split.images.astype(np.float64) + 1) * 32767.5)
        assert len(np.unique(back)) > 256 and set(np.unique(back)) <= set(np.unique(images))


def test_labels_and_subsets_follow_their_images(tmp_path):
    images, labels = numbers(np.uint8, 60, *SIZE), np.arange(60) % 7
    source = write(tmp_path / "x.npz", images, labels)
    for limit in (0, 5):
        found, classes = sources.load_labelled(source, "train", size=SIZE, channels=1, limit=limit)
        assert np.array_equal(classes, found[:, 0, 0, 0] % 7)
        assert len(found) == (limit or len(found))
    with pytest.raises(UserError, match="has no class labels"):
        sources.load_labelled(write(tmp_path / "y.npy", images), "train", size=SIZE, channels=1)


def test_arrays_are_cropped_at_the_centre_and_never_resized(tmp_path):
    images = numbers(np.uint16, 10, 8, 9, 1)
    source = write(tmp_path / "x.npy", images)
    settings = dict(image_size=(3, 4), channels=1)
    split = sources.load_split(source, "train", **sources.shape_of(settings, margin=2))
    expected = images[:, 1:6, 1:7] / 32767.5 - 1
    for image in split.images:
        assert np.abs(expected - image).max(axis=(1, 2, 3)).min() < 1e-7
    with pytest.raises(
        UserError, match=r"has 8 × 9 pixels, fewer than .*, 8 × 10; arrays are crop"
    ):
        sources.load(source, "train", size=(8, 10), channels=1)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, -0.01])
def test_a_value_outside_the_range_is_an_error_that_names_the_image(tmp_path, value, cache):
    images = np.full((30, *SIZE, 1), 0.5)
    images[17, 2, 3] = value
    source = write(tmp_path / "x.npy", images)
    with pytest.raises(
        UserError, match=r"image 17 of .*x\.npy has values from .* outside data.val"
    ):
        for split in ("train", "test"):
            load = dict(size=SIZE, channels=1, value_range=(0, 1), cache=cache)
            list(sources.load(source, split, **load))


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (np.zeros((9, *SIZE, 2)), {}, r"float64 need data.value_range=\(low, high\), the values"),
        (np.zeros((9, *SIZE, 2), np.int32), {}, "int32 need data.value_range"),
        (
            np.zeros((9, *SIZE, 2)),
            dict(value_range=(1, 0)),
            r"=\(1, 0\) must be \(low, high\), two",
        ),
        (np.zeros((9, *SIZE, 2)), dict(value_range=(0.0,)), r"=\(0.0,\) must be \(low, high\)"),
        (np.zeros((9, *SIZE, 3), np.uint8), {}, "has 3 channels, but data.channels=2; set --con"),
        (np.zeros((9, *SIZE), np.uint8), {}, "has 1 channels, but data.channels=2"),
        (
            np.zeros((9, 6), np.uint8),
            {},
            r"holds uint8 \(9, 6\); images must be integers or floats",
        ),
        (np.zeros((9, *SIZE, 2), complex), {}, "holds complex128"),
        (np.zeros((0, *SIZE, 2), np.uint8), {}, r"holds uint8 \(0, 4, 6, 2\)"),
        (np.zeros((1, *SIZE, 2), np.uint8), {}, "holds 1 image; at least 2 are needed"),
    ],
)
def test_arrays_that_cannot_be_images_are_refused(tmp_path, images, settings, message):
    source = write(tmp_path / "x.npy", images)
    with pytest.raises(UserError, match=message):
        sources.load(source, "train", **{"size": SIZE, "channels": 2, **settings})


def test_files_that_are_no_arrays_are_refused(tmp_path):
    def refused(name, message, split="train"):
        with pytest.raises(UserError, match=message):
            sources.load(f"arrays:{tmp_path / name}", split, size=SIZE, channels=1)

    for name in ("text.npy", "text.npz"):
        (tmp_path / name).write_text("no array")
        refused(name, f"{name} cannot be read: .*; write it again")
    np.savez(tmp_path / "other.npz", pictures=np.zeros((9, *SIZE)))
    refused("other.npz", r"has no array 'images'; write it with np.savez\(path, images=")
    refused("none.npy", r"no file .*none\.npy")
    refused("x.tif", r"must be an \.npy or \.npz file; write one with np.save")
    np.save(tmp_path / "objects.npy", np.array([None] * 9), allow_pickle=True)
    refused("objects.npy", "cannot be read")
    for labels in (np.arange(8), np.arange(9) - 1, np.arange(9) / 2):
        write(tmp_path / "x.npz", np.zeros((9, *SIZE), np.uint8), labels)
        os.utime(tmp_path / "x.npz", (len(labels), labels[0] + 2))
        refused("x.npz", "they must be classes from 0, one integer for each of the 9 images")
    write(tmp_path / "x.npy", np.zeros((9, *SIZE), np.uint8))
    refused("x.npy", "unknown split of arrays 'valid'; valid: test, train", "valid")


def test_both_types_of_images_are_converted_alike():
    """Convert 8-bit images, and the same ones as floats on [-1, 1]."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = (levels / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(to_model_range(jnp.asarray(levels)), floats, atol=1e-7)
    assert to_model_range(floats) is floats
    np.testing.assert_allclose(to_unit_data(floats), to_unit_data(levels), atol=1e-6)
    assert np.array_equal(to_data_type(floats, np.dtype(np.uint8)), levels)
    assert np.array_equal(
        to_data_type(floats * 2, np.dtype(np.float32)), np.clip(2 * floats, -1, 1)
    )
    with pytest.raises(UserError, match="takes 8-bit images, uint8; got float16"):
        to_model_range(floats.astype(np.float16))
    many = np.random.default_rng(0).integers(0, 256, (30, 8, 12, 2), np.uint8)
    fits = [fit_mixture(x, size=(2, 3)) for x in (many, (many / 127.5 - 1).astype(np.float32))]
    for x, y in zip(*fits, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    blocks = (many.reshape(30, 2, 4, 3, 4, 2).mean(axis=(2, 4)) / 127.5 - 1).reshape(30, -1)
    np.testing.assert_allclose(fits[0].means[0].ravel(), blocks.mean(axis=0), atol=1e-6)
    covariance = fits[0].factors[0] @ fits[0].factors[0].T
    np.testing.assert_allclose(covariance, np.cov(blocks.T, bias=True), atol=1e-4)
