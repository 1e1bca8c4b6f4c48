"""Whole commands on oblong images, and on arrays of two channels and 16 bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_FLAGS, call_main
from ml_collections import ConfigDict
from PIL import Image

import colddiff
from colddiff.data import sources
from colddiff.evaluation.features import check_spaces
from colddiff.experiment.build import at_size, build, init_params
from colddiff.experiment.config_files import load_config
from colddiff.runtime.errors import UserError
from colddiff.training.examples import make_example

SMALL = tuple(flag for flag in TINY_FLAGS if ".degradation." not in flag)[1:]
OBLONG = (
    *SMALL,
    "--config=configs/generate_superres_digits.py",
    "--config.data.image_size=(24, 40)",
    "--config.prior.size=(3, 5)",
    "--config.eval.samplers=('tacos',)",
    "--config.train.num_steps=4",
    "--config.eval.batch_size=8",
    "--config.eval.chunk=2",
)


def main(*args):
    done = call_main(*args)
    assert not done.returncode, done.stderr
    return done.stdout


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.slow
def test_oblong_digits_from_training_to_pictures(tmp_path):
    """Train, resume, evaluate, generate, compare and restore digits of 24×40 pixels."""
    work, folder = tmp_path / "run", tmp_path / "made"
    flags = (*OBLONG, f"--workdir={work}")
    main(*flags, "--config.train.num_steps=2", "--mode=train")
    told = main(*flags, "--config.train.sample_every=4")
    assert "pca-32 of digits 24×40×1" in told and "EMA of step 4" in told
    run = colddiff.load(work)
    assert run.experiment.image_shape == (24, 40, 1)
    x0 = run.generate(run.params, [3, 4])
    assert x0.shape == (2, 24, 40, 1)
    with pytest.raises(UserError, match=r"from_pil\(images, size=\(24, 40\), channels=1\)"):
        run.sample(run.params, jnp.zeros((1, 40, 24, 1)))

    main("--mode=generate", f"--workdir={work}", "--seeds=0-4", f"--output={folder}")
    made = np.asarray(Image.open(folder / "000003.png")) / 127.5 - 1
    np.testing.assert_allclose(made, np.clip(x0[0, ..., 0], -1, 1), atol=0.01)
    assert "| made | 5 |" in main("--mode=compare", f"--workdir={work}", f"--folder=made={folder}")
    back = tmp_path / "back"
    main("--mode=restore", f"--workdir={work}", f"--input={folder}/000003.png", f"--output={back}")
    assert size_of(back / "restored" / "000003.png") == (40, 24)
    # Pictures enlarge an image by a whole factor to at least 96 pixels: 24×40 becomes 96×160.
    wide, high = size_of(work / "samples" / "0000004.png")
    assert wide == 6 * 162 + 2 and 2 * 98 < high < 2 * 98 + 50
    assert size_of(work / "comparison.png")[0] == 2 * 162 + 2
    # A mosaic enlarges it to at least 64 pixels: 72×120, in three columns of five images.
    assert size_of(folder / "grid.png") == (3 * 122 + 2, 2 * 74 + 2)


def test_the_size_of_a_config_may_be_a_number_or_a_pair(tmp_path):
    """Set it in a config file, by a flag, and by a flag on a saved config."""
    path = tmp_path / "oblong.py"
    path.write_text(
        "from configs import blur_digits\n\n\n"
        "def get_config():\n"
        "    config = blur_digits.get_config()\n"
        "    config.data.image_size = (24, 40)\n"
        "    return config\n"
    )
    saved = tmp_path / "config.json"
    saved.write_text(load_config(str(path)).to_json())
    for file in (path, saved):
        assert load_config(str(file)).data.image_size == (24, 40)
        assert load_config(str(file), ["--config.data.image_size=16"]).data.image_size == 16
        found = load_config(str(file), ["--config.data.image_size", "[16, 8]"])
        assert found.data.image_size == (16, 8)


@pytest.mark.parametrize("name", ["convnext_unet", "resnet_unet"])
def test_a_network_serves_other_sizes_than_its_own(name, config):
    """Give the parameters of a 16×16 network to 32×24 images; attention stays on its level."""
    config.model = ConfigDict(dict(name=name, width=8, multipliers=(1, 2), dtype="float32"))
    if name == "resnet_unet":
        config.model = ConfigDict(
            dict(config.model, num_blocks=1, attention_sizes=(8,), dropout=0.0)
        )
    experiment = build(config)
    params = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
    other = at_size(experiment, (32, 24))
    assert other.image_shape == (32, 24, 1) and experiment.image_shape == (16, 16, 1)
    xt = jnp.zeros((1, 32, 24, 1))
    assert jax.eval_shape(other.restore, params, xt, jnp.array([6])).shape == xt.shape
    # Away from the border, D at one size is D at another.
    x0 = jax.random.uniform(jax.random.key(1), (32, 24, 1), minval=-1, maxval=1)
    square = experiment.degrade(x0[:16, :16], 1, jax.random.key(0))
    large = other.degrade(x0, 1, jax.random.key(0))
    np.testing.assert_allclose(square[2:14, 2:14], large[2:14, 2:14], atol=1e-6)


def test_examples_of_8_bits_and_of_floats_are_the_same(config):
    """Pad, crop and mirror the same oblong images in both types; padding is black."""
    config.data.update(image_size=(10, 14), pad=3, flip=True, channels=3)
    config.degradation.kernel_size = 3
    config.model.multipliers = (1,)
    experiment = build(config)
    levels = np.random.default_rng(0).integers(128, 256, (20, 10, 14, 3), np.uint8)
    floats = (levels / 127.5 - 1).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 20)
    example = jax.vmap(make_example(experiment, experiment.degrade))
    both = [example(images, keys) for images in (levels, floats)]
    for found, expected in zip(*both, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    x0 = both[1][0]
    assert x0.shape == (20, 10, 14, 3)
    assert set(np.unique(x0 < 0)) == {False, True} and set(np.unique(x0[x0 < 0])) == {-1.0}


@pytest.fixture
def two_channels(tmp_path):
    """Write 60 uint16 images of two channels; return the path and the array."""
    rng, y = np.random.default_rng(0), np.linspace(0, 3, 16)
    waves = np.sin(y[None, :, None, None] + rng.uniform(0, 6, (60, 1, 20, 2)))
    images = np.round((waves + 1) * 32767.5).astype(np.uint16)
    np.save(tmp_path / "waves.npy", images)
    return tmp_path / "waves.npy", images


@pytest.mark.slow
def test_arrays_of_two_channels_and_16_bits_are_trained_on_unrounded(two_channels, tmp_path):
    path, images = two_channels
    work = tmp_path / "run"
    flags = ["--config.data.image_size=(16, 20)", "--config.data.channels=2"]
    main(
        *TINY_FLAGS, *flags, f"--config.data.source=arrays:{path}", f"--workdir={work}",
        "--config.train.num_steps=3", "--config.train.sample_every=3",
        "--config.severity.num_steps=2", "--config.severity.batch_size=8",
        "--config.severity.width=4",
    )  # fmt: skip
    assert json.loads((work / "severity.json").read_text())["num_images"] > 1
    run = colddiff.load(work)
    assert run.experiment.image_shape == (16, 20, 2)

    # The RMSE of the degraded images, from the file itself in float64.
    test = sources.load(f"arrays:{path}", "test", **sources.shape_of(run.config.data))
    assert test.dtype == np.float32
    blur = np.asarray(run.degrade.args[1].args[0][6], np.float64)
    columns = np.asarray(run.degrade.args[1].args[1][6], np.float64)
    places = [np.abs(images / 32767.5 - 1 - image).max(axis=(1, 2, 3)).argmin() for image in test]
    x0 = images[places].astype(np.float64) / 65535
    blurred = np.einsum("hi,wj,nijc->nhwc", blur, columns, x0)
    expected = np.sqrt(np.mean((blurred - x0) ** 2))
    [report] = work.glob("evaluation/*/report.json")
    degraded = json.loads(report.read_text())["rows"][0]
    assert degraded["rmse"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(
        UserError, match="'inception' is for images of 1 or 3 channels; these have 2"
    ):
        check_spaces(["pca", "inception"], 2)
    for mode in (["generate"], ["compare", f"--folder=a={tmp_path}"]):
        done = call_main(f"--mode={mode[0]}", f"--workdir={work}", *mode[1:])
        assert done.returncode == 2 and "hold 1 or 3 channels" in done.stderr
