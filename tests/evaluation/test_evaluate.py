"""Scores with restorers whose answer is known, and on real data."""

import importlib
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config
from ml_collections import ConfigDict
from PIL import Image
from sklearn.decomposition import PCA

from colddiff.data import sources
from colddiff.degradations import split
from colddiff.evaluation import evaluate, metrics
from colddiff.experiment.build import build
from colddiff.images import from_uint8, to_uint8
from colddiff.inference.run import Run
from colddiff.reporting import pictures
from colddiff.runtime.errors import UserError


def oracle(experiment):
    """Return a restorer that gives the test image nearest to its input; params holds them."""

    def restore(params, xt, t):
        # Compare images degraded to T, where the iterates of an image stay near its own.
        blur = jax.vmap(experiment.degrade, (0, None, None))
        table = blur(params, experiment.T, jax.random.key(0))[None]
        shown = blur(xt, experiment.T, jax.random.key(0))[:, None]
        return params[abs(table - shown).sum((2, 3, 4)).argmin(axis=1)]

    return restore


def test_a_perfect_restorer_scores_perfectly():
    config = tiny_config()
    config.degradation.std = 0.5
    config.eval.num_images = 12
    experiment = build(config)
    experiment = experiment._replace(restore=oracle(experiment))
    params = from_uint8(evaluate.load_test_images(config, 12))
    report = evaluate.evaluate(Run(experiment, params, 7))
    assert [row.name for row in report.rows] == ["degraded", "direct", "naive", "tacos"]
    assert [row.steps for row in report.rows] == [0, 1, 6, 6]
    assert report.rows[0].rmse > 0.05 and report.rows[0].ssim < 0.95
    for row in report.rows[1:]:
        assert row.rmse < 1e-5 and row.ssim > 1 - 1e-5


def test_subsets_of_a_class_per_folder_score_as_the_whole_does(tmp_path):
    """Check that a subset of undegraded images is near to all images."""
    images = sources.load("digits", "test", size=16, channels=1, limit=160)
    for i, image in enumerate(images):
        folder = tmp_path / ("train", "test")[i % 2] / ("plain", "inverted")[i // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = 255 - image if folder.name == "inverted" else image
        Image.fromarray(picture[..., 0]).save(folder / f"{i:03d}.png")
    config = tiny_config()
    config.data.source = f"folder:{tmp_path}"
    config.eval.samplers = ()
    for num_images, counts in ((0, (40,)), (40, ())):
        config.eval.num_images, config.eval.counts = num_images, counts
        experiment = build(config)._replace(degrade=jax.tree_util.Partial(lambda x0, t, key: x0))
        report = evaluate.evaluate(Run(experiment))
        (distance,) = report.rows[0].distances
        at_40 = distance.frechet_at[40] if counts else distance.frechet
        means = [images[i::4].mean(axis=0) / 255 for i in (1, 3)]
        apart = np.sum((means[0] - (1 - means[1])) ** 2)  # of both classes; of one: a quarter
        assert at_40 < 0.1 * apart / 4
        if counts:
            assert report.num_images == 80 and distance.frechet < 1e-3


def test_every_image_has_a_pattern_of_its_own_number():
    """Use a D that adds a number drawn from the key, with two seeds and batch sizes."""
    config = tiny_config()
    config.eval.samplers = ()
    shift = lambda x0, t, key: x0 + jax.random.normal(key)  # noqa: E731
    experiment = build(config)._replace(degrade=jax.tree_util.Partial(shift))
    for config.seed, config.eval.batch_size in ((1, 8), (2, 20)):
        keys = [jax.random.fold_in(jax.random.key(config.seed), i) for i in range(20)]
        expected = np.sqrt(np.mean([(float(jax.random.normal(key)) / 2) ** 2 for key in keys]))
        (row,) = evaluate.evaluate(Run(experiment)).rows
        assert row.rmse == pytest.approx(expected, rel=1e-5)


def test_the_degraded_row_is_that_of_all_images_whatever_the_batch():
    """Compare with NumPy in float64; 20 images in batches of 8 leave a last batch of 4."""
    config = tiny_config()
    config.eval.samplers = ()
    experiment = build(config)
    x0 = np.asarray(from_uint8(evaluate.load_test_images(config, 20)), np.float64)
    A = np.asarray(split(experiment.degrade)[1].args[0][-1], np.float64)
    xT = np.einsum("hi,bijc,wj->bhwc", A, x0, A)
    expected = np.sqrt(np.mean(((xT - x0) / 2) ** 2))
    for batch_size in (8, 20, 64):
        config.eval.batch_size = batch_size
        (row,) = evaluate.evaluate(Run(experiment)).rows
        assert row.rmse == pytest.approx(expected, rel=1e-5)
        assert row.psnr == pytest.approx(-20 * np.log10(expected), rel=1e-5)


def test_distances_are_those_of_the_restored_images():
    """Compare with NumPy and scikit-learn; D has no pattern, so xT is known."""
    config = tiny_config()
    config.eval.samplers = ()
    config.eval.num_images = 101
    config.eval.features = ("pixels", "pca")
    config.eval.counts = (40,)
    experiment = build(config)
    report = evaluate.evaluate(Run(experiment))
    assert (report.num_images, report.num_reference) == (101, 297)
    test = evaluate.load_test_images(config, 0)
    x0 = from_uint8(test[:101])
    xT = to_uint8(jax.jit(jax.vmap(experiment.degrade, (0, None, None)))(x0, 6, jax.random.key(0)))
    train = sources.load("digits", "train", size=16, channels=1).reshape(1500, -1) / 255
    pca = PCA(32, svd_solver="full").fit(train)
    flat = lambda images: images.reshape(len(images), -1) / 255  # noqa: E731
    for distance, of in zip(
        report.rows[0].distances, (flat, lambda x: pca.transform(flat(x))), strict=True
    ):
        restored, truth = of(xT), of(test)
        gaussians = [metrics.moments(f).gaussian for f in (restored, restored[:40], truth)]
        expected = metrics.frechet_distance(gaussians[0], gaussians[2])
        assert distance.frechet == pytest.approx(expected, rel=1e-3)
        expected = metrics.frechet_distance(gaussians[1], gaussians[2])
        assert distance.frechet_at == {40: pytest.approx(expected, rel=1e-3)}
        expected = metrics.kernel_distance(restored, truth, paired=True)
        assert distance.kernel.value == pytest.approx(expected.value, rel=1e-2)
    assert [d.features for d in report.rows[0].distances] == ["pixels", "pca-32 of digits 16²×1"]
    # 101 images are fewer than the 256 pixels.
    assert [(d.dimension, d.few) for d in report.rows[0].distances] == [(256, True), (32, False)]

    config.eval.counts = (40, 102)
    with pytest.raises(UserError, match=r"eval.counts has \[102\]; use counts in 2\.\.101"):
        evaluate.evaluate(Run(experiment))


def test_restored_images_that_are_the_truth_are_at_distance_0():
    config = tiny_config()
    config.eval.num_images = 0
    config.eval.samplers = ("direct", "tacos")
    shift = jax.tree_util.Partial(lambda x0, t, key: x0 + 0.1 * t)
    experiment = build(config)._replace(degrade=shift)
    experiment = experiment._replace(restore=lambda params, xt, t: xt - 0.1 * t[0])
    degraded, *restored = evaluate.evaluate(Run(experiment, None, 7)).rows
    assert degraded.distances[0].frechet > 1
    for row in restored:
        assert row.distances[0].frechet <= 1e-6
        assert abs(row.distances[0].kernel.value) <= 1e-6


def test_ways_are_samplers_by_steps():
    experiment = build(tiny_config())
    assert evaluate.ways_of(experiment) == [("direct", 1), ("naive", 6), ("tacos", 6)]
    ways = evaluate.ways_of(experiment, ("naive", "direct"), (1, 3))
    assert ways == [("naive", 1), ("naive", 3), ("direct", 1)]
    with pytest.raises(UserError, match=r"steps=7 must lie in 1\.\.T=6"):
        evaluate.ways_of(experiment, ("tacos",), (3, 7))
    with pytest.raises(UserError, match="ddim and ddpm take only blends"):
        evaluate.ways_of(experiment, ("ddim",))
    config = tiny_config()
    config.eval.num_images = 4
    experiment = build(config)._replace(restore=lambda params, xt, t: 0.9 * xt)
    rows = evaluate.evaluate(Run(experiment), ways=ways).rows[1:]
    assert [(row.name, row.times) for row in rows] == [
        ("naive", [6, 0]),
        ("naive", [6, 4, 2, 0]),
        ("direct", [6, 0]),
    ]
    assert rows[0].rmse == pytest.approx(rows[2].rmse) != rows[1].rmse  # one step: both are equal


def test_only_the_start_of_a_walk_is_cut_to_8_bits():
    """Record the input of the restorer; the Degraded row scores the truncated xT."""
    config = tiny_config()
    config.data.eight_bit = True
    experiment = build(config)
    seen = []

    def restore(params, xt, t):
        jax.debug.callback(lambda x: seen.append(np.asarray(x, np.float64)), xt)
        return 0.9 * xt

    experiment = experiment._replace(restore=restore)
    run = Run(experiment, None, 0, Path())
    xT = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    run.sample(None, xT)
    jax.effects_barrier()
    fractions = [np.abs((x + 1) * 127.5 - np.round((x + 1) * 127.5)).max() for x in seen]
    assert len(seen) == 6
    assert fractions[0] < 1e-3 and min(fractions[1:]) > 0.1
    assert np.all(seen[0] <= xT + 1e-4) and np.all(seen[0] > xT - 1 / 127.5)

    seen.clear()
    pictures.picture(Run(experiment), evaluate.load_test_images(config, 2))
    jax.effects_barrier()
    for x in (x for x in seen if np.abs(x - seen[0]).max() == 0):  # xT of direct and of tacos
        assert np.abs((x + 1) * 127.5 - np.round((x + 1) * 127.5)).max() < 1e-3

    config.eval.samplers = ()
    cut = evaluate.evaluate(Run(build(config))).rows[0].rmse
    x0 = np.asarray(from_uint8(evaluate.load_test_images(config, 20)), np.float64)
    A = np.asarray(split(experiment.degrade)[1].args[0][-1], np.float64)
    xT = np.einsum("hi,bijc,wj->bhwc", A, x0, A)
    xT = np.floor((xT + 1) * 127.5 + 1e-3) / 127.5 - 1
    assert cut == pytest.approx(np.sqrt(np.mean(((xT - x0) / 2) ** 2)), rel=1e-4)


@pytest.mark.parametrize(("name", "columns"), [("naive", 8), ("direct", 4)])
def test_the_picture_ends_with_the_config_s_sampler(name, columns):
    config = tiny_config()
    config.sampler.name = name
    experiment = build(config)._replace(restore=lambda params, xt, t: 0.9 * xt)
    images = evaluate.load_test_images(config, 2)
    picture = pictures.picture(Run(experiment), images)
    assert picture.shape[1] == columns * 98 + 2  # x0, xT, direct, and six or two iterates
    run = Run(experiment, None, 0, Path())
    keys = jax.random.split(jax.random.key(0), 2)  # blur draws nothing
    xT = jax.vmap(experiment.degrade, (0, None, 0))(from_uint8(images), 6, keys)
    expected = to_uint8(run.sample(None, xT))[-1, :, :, 0].repeat(6, axis=0).repeat(6, axis=1)
    found = picture[-98:-2, -98:-2, 0].astype(int)
    assert np.abs(found - expected).max() <= 1


def test_the_gallery_shows_growing_severities():
    """Check the columns against D(x0, t) with the keys of the scores."""
    config = tiny_config()
    with config.unlocked():
        config.degradation = {"name": "gaussian_noise", "num_steps": 8, "schedule": "cosine"}
    experiment = build(config)
    images = evaluate.load_test_images(config, 2)
    high = wide = 96
    for config.seed, (column, t) in itertools.product((1, 2), enumerate((0, 2, 4, 6, 8))):
        picture = pictures.gallery(experiment, images)
        header = picture.shape[0] - 2 * (high + 2)
        assert picture.shape[1] == 5 * (wide + 2) + 2
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        xt = to_uint8(experiment.degrade(from_uint8(images[1]), t, key))
        left = 2 + column * (wide + 2)
        shown = picture[header + high + 2 : header + 2 * high + 2, left : left + wide]
        difference = shown[::6, ::6].astype(int) - xt
        assert np.abs(difference).max() <= 1  # eager and compiled arithmetic round differently
    config.degradation.num_steps = 3
    assert pictures.gallery(build(config), images).shape[1] == 4 * (wide + 2) + 2


@pytest.mark.parametrize(
    ("name", "ssim", "rmse"),
    [
        ("blur_mnist", 0.0145, 0.2866),
        pytest.param("blur_cifar10", 0.312, 0.1347, marks=pytest.mark.slow),
        pytest.param("inpaint_mnist", 0.4925, 0.2623, marks=pytest.mark.slow),
        pytest.param("inpaint_cifar10", 0.619, 0.1424, marks=pytest.mark.slow),
        pytest.param("superres_mnist", 0.1781, 0.2305, marks=pytest.mark.slow),
        pytest.param("superres_cifar10", 0.277, 0.1447, marks=pytest.mark.slow),
        pytest.param("snow_cifar10", (0.36, 0.46), (0.295, 0.349), marks=pytest.mark.slow),
        pytest.param("color_cifar10", 0.958, 0.0739, marks=pytest.mark.slow),
    ],
)
def test_degraded_rows_of_the_paper(name, ssim, rmse, real_data):
    """Score the whole test sets; the paper draws one snow for a batch, so it varies more."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.eval.samplers = ()
    config.eval.features = ()
    config.eval.batch_size = 500
    report = evaluate.evaluate(Run(build(config)))
    assert report.num_images == 10_000
    for found, expected in ((report.rows[0].ssim, ssim), (report.rows[0].rmse, rmse)):
        low, high = expected if isinstance(expected, tuple) else (expected - 0.01, expected + 0.01)
        assert low <= found <= high


def test_rows_are_of_the_configs_own_sampler():
    """Check that ddim's η changes its own row and no other."""
    config = tiny_config()
    config.degradation = ConfigDict(dict(name="gaussian_noise", num_steps=6, schedule="cosine"))
    config.eval.samplers = ("direct", "ddim")
    found = {}
    for eta in (0.0, 1.0):
        config.sampler = ConfigDict(dict(name="ddim", steps=0, eta=eta))
        experiment = build(config)._replace(restore=lambda params, xt, t: 0.5 * xt)
        rows = evaluate.evaluate(Run(experiment)).rows
        found[eta] = [row._replace(seconds=0.0) for row in rows]
    assert found[0.0][:2] == found[1.0][:2]
    assert abs(found[0.0][2].rmse - found[1.0][2].rmse) > 1e-2
