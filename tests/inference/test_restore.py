"""A user's own images: arrays, PIL images and files, of any size, with masks."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import call_main, run_main, tiny_config
from jax.tree_util import Partial
from ml_collections import ConfigDict
from PIL import Image

import colddiff
from colddiff.data import sources
from colddiff.degradations import split
from colddiff.degradations.known_mask import KnownMask, hole, known_mask
from colddiff.experiment.build import build
from colddiff.inference import sizes
from colddiff.inference.restore import Request, parse_severity, restore
from colddiff.runtime.errors import UserError

T = 6
MASK = dict(name="gaussian_mask", num_steps=T, std=[1.0, 1.4, 1.8, 2.2, 2.6, 3.0], center=(1, 15))


@pytest.fixture(scope="module")
def run(trained):
    return colddiff.load(trained)


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", "test", size=16, channels=1)[:10]


def with_degradation(run, settings, restorer=None):
    """Return the run with another degradation and, if given, another restorer."""
    config = tiny_config()
    config.degradation = ConfigDict(settings)
    experiment = build(config)._replace(restore=restorer or run.experiment.restore)
    return dataclasses.replace(run, experiment=experiment)


@pytest.fixture(scope="module")
def inpainting(run):
    return with_degradation(run, MASK)


@pytest.fixture
def folder(tmp_path, digits):
    """Return a folder of pictures, as another program writes them, with nesting and two sizes."""
    top = tmp_path / "input"
    (top / "deep" / "er").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(digits[i, ..., 0]).save(top / f"{i}.png")
    Image.fromarray(digits[5, ..., 0]).convert("RGB").save(top / "0.jpg", quality=95)
    Image.fromarray(digits[6, ..., 0]).resize((31, 20)).save(top / "deep" / "er" / "wide one.png")
    return top


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def to_levels(x):
    return (np.clip(np.asarray(x, np.float64), -1, 1) + 1) * 127.5


def test_each_image_has_its_own_severity(run, digits):
    """Compare with `sample` from each severity, one at a time; at 0 an image stays as it is."""
    times = [0, 1, 2, 3, T]
    found = run.restore_images(digits[:5], times)
    assert found.dtype == np.uint8 and np.array_equal(found[0], digits[0])
    for i, t in enumerate(times[1:], 1):
        x = jnp.asarray(digits[i : i + 1] / 127.5 - 1, jnp.float32)
        expected = run.sample(run.params, x, times=np.arange(t, -1, -1))
        assert np.abs(found[i] - to_levels(expected[0])).max() < 0.51


def test_arrays_pil_images_and_lists_are_the_same(run, digits):
    expected = run.restore_images(digits[:3], 4, steps=2)
    pictures = [Image.fromarray(digit[..., 0]) for digit in digits[:3]]
    assert np.array_equal(run.restore_images(pictures, 4, steps=2), expected)
    floats = (digits[:3] / 127.5 - 1).astype(np.float32)
    assert np.array_equal(run.restore_images(floats, 4, steps=2), expected)
    one = run.restore_images(pictures[0].convert("RGB"), 4, steps=2)
    assert np.abs(one.astype(int) - expected[0]).max() <= 1  # another number of images a program
    wide = digits[0][:, :10]
    several = run.restore_images([digits[0], wide, digits[1]], [4, 5, 4], steps=2)
    assert [x.shape for x in several] == [(16, 16, 1), (16, 10, 1), (16, 16, 1)]
    assert np.abs(several[2].astype(int) - expected[1]).max() <= 1


@pytest.mark.parametrize(
    ("images", "t", "message"),
    [
        (np.zeros((16, 16, 1), np.float32) + 1.5, 1, "from 1.5 to 1.5.*floats on .-1, 1.*np.clip"),
        (np.zeros((16, 16, 1), np.int32), 1, "must be floats on"),
        (np.zeros((16, 16), np.uint8), 1, "Add the channel axis with image"),
        (np.zeros((2, 3, 16, 16), np.uint8), 1, r"shape \(H, W, 1\).*got \(3, 16, 16\)"),
        (np.zeros((16, 16, 3), np.uint8), 1, "PIL.Image.fromarray"),
        (np.zeros((1, 16, 16), np.uint8), 1, "np.moveaxis"),
        (np.zeros((16, 16, 1), np.uint8), 7, "t=7 must be a severity in 0..T=6"),
        (np.zeros((16, 16, 1), np.uint8), 0.5, "t=0.5 must be a severity"),
        (np.zeros((16, 16, 1), np.uint8), [1, 2], "one for each of the 1 images"),
        ([], 1, "one image or more"),
    ],
)
def test_wrong_images_and_severities_are_refused(run, images, t, message):
    with pytest.raises(UserError, match=message):
        run.restore_images(images, t)


def test_wrong_choices_are_refused(run, digits):
    for choices, message in (
        (dict(steps=4), "steps=4 must be a whole number in 1..3"),
        (dict(tile=7), "tile=7 must be a multiple of 4 pixels"),
        (dict(sampler="heun"), "unknown sampler 'heun'; valid: ddim"),
        (dict(mask=np.ones((16, 16))), "a mask marks the hole of gaussian_mask"),
    ):
        with pytest.raises(UserError, match=message):
            run.restore_images(digits, 3, **choices)


def test_the_pattern_of_a_random_degradation_is_unknown(inpainting, digits):
    """Check the default sampler, that others are refused, and that a known key is used."""
    found = inpainting.restore_images(digits)
    assert np.array_equal(found, inpainting.restore_images(digits, T, sampler="direct"))
    for sampler in ("tacos", "naive", "direct+consistency"):
        with pytest.raises(UserError, match="the random pattern that gaussian_mask draws"):
            inpainting.restore_images(digits, sampler=sampler)
    key = jax.random.key(3)
    x = jnp.asarray(digits / 127.5 - 1, jnp.float32)
    expected = to_levels(inpainting.sample(inpainting.params, x, key, steps=2))
    known = inpainting.restore_images(digits, key=key, steps=2)
    assert np.abs(known - expected).max() < 0.51 and not np.array_equal(known, found)


def test_a_known_hole_shrinks_to_nothing(inpainting):
    """Compare with the formula in NumPy: the hole, its depth, the exact ends."""
    kept = np.ones((12, 14), np.float32)
    kept[3:8, 4:9] = 0
    rows, columns = np.arange(12)[:, None], np.arange(14)[None]
    depth = np.maximum(0, 3 - np.abs(rows - 5) - 0 * columns)  # 1, 2, 3 from the edge
    depth = np.minimum(depth, np.maximum(0, 3 - np.abs(columns - 6))) / 3
    pattern = hole(kept, 4)
    np.testing.assert_allclose(pattern.depth, depth, atol=1e-6)
    _, apply = split(known_mask(fade_to=0.25))
    x0 = np.random.default_rng(0).uniform(-1, 1, (12, 14, 2)).astype(np.float32)
    lost_before = 0.0
    for t in range(5):
        lost = np.clip((1.5 * t / 4 - 1 + depth) / 0.5, 0, 1) * (1 - kept) * (t > 0)
        xt = np.asarray(apply(x0, jnp.int32(t), KnownMask(*map(jnp.asarray, pattern))))
        expected = x0 + lost[..., None] * (0.25 - x0)
        np.testing.assert_allclose(xt, expected, atol=1e-6)
        assert np.all(lost >= lost_before)
        lost_before = lost
    assert np.array_equal(lost_before, 1 - kept)  # the mask itself at its own severity
    assert np.array_equal(apply(x0, jnp.int32(0), pattern), x0)


def test_a_mask_keeps_what_is_kept(inpainting, digits):
    """Check kept pixels, that lost ones are not read, and that the mask's size is matched."""
    mask = np.full((16, 16), 255, np.uint8)
    mask[5:10, 4:9] = 0
    spoiled = digits.copy()
    spoiled[:, 5:10, 4:9] = 99
    found = inpainting.restore_images(spoiled, mask=Image.fromarray(mask))
    assert np.array_equal(found, inpainting.restore_images(digits, mask=mask))
    assert np.array_equal(found[:, mask > 0], digits[:, mask > 0])  # tacos, or with consistency
    assert not np.array_equal(found[:, mask == 0], spoiled[:, mask == 0])
    for wrong, message in (
        (mask[:8], "the mask has 8 × 16 pixels, but the image has 16 × 16"),
        (255 - np.full_like(mask, 255), "keeps nothing"),
        (mask.astype(np.float32), r"uint8 or floats in \[0, 1\]; got float32"),
    ):
        with pytest.raises(UserError, match=message):
            inpainting.restore_images(digits, mask=wrong)
    with pytest.raises(UserError, match="t=0 is an image without a hole"):
        inpainting.restore_images(digits, 0, mask=mask)


def sharpen(params, xt, t):
    """Return xt sharpened in a 3×3 neighbourhood: a restorer that acts locally."""
    high, wide = xt.shape[1:3]
    padded = jnp.pad(xt, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    near = [padded[:, i : i + high, j : j + wide] for i in range(3) for j in range(3)]
    return jnp.clip(xt + 1.5 * (xt - sum(near) / 9), -1, 1)


@pytest.mark.parametrize(
    "settings",
    [
        dict(name="gaussian_blur", num_steps=T, kernel_size=5, std=1.0, padding="reflect"),
        dict(name="pixelate", num_steps=3),
    ],
    ids=["blur", "pixelate"],
)
def test_tiles_are_as_the_whole(run, settings):
    """Compare within half a gray level where tiles meet, on an image of 4 tiles."""
    local = with_degradation(run, settings, Partial(sharpen))
    size, T = (98, 107), settings["num_steps"]
    x0 = np.random.default_rng(0).uniform(-1, 1, (13, 14)).repeat(8, 0).repeat(8, 1)
    padded = x0.astype(np.float32)[..., None]  # 104 × 112, whole blocks
    at_size = sizes.at_size(local, padded.shape[:2])
    xT = np.asarray(at_size.degrade(padded, T, jax.random.key(0)))[: size[0], : size[1]]
    whole, tiled = (
        local.restore_images(xT.clip(-1, 1), T, tile=tile).astype(int) for tile in (0, 64)
    )
    assert whole.shape == (*size, 1) and np.abs(whole - to_levels(xT)).mean() > 1
    assert np.abs(whole - tiled).max() <= 1  # two roundings to levels
    assert np.abs(whole - tiled).mean() < 0.02


def test_weights_of_tiles_sum_to_a_whole():
    for length, tile, unit in ((107, 48, 1), (112, 48, 8), (48, 48, 1), (1000, 64, 4), (49, 48, 1)):
        origins = sizes._origins(length, tile, tile // 4, unit)
        total = np.zeros(length)
        for first in origins:
            total[first : first + tile] += sizes._weights(
                first, tile, tile // 4, tile // 16, length
            )
        assert origins[0] == 0 and origins[-1] == length - tile and np.all(origins % unit == 0)
        assert np.all(np.diff(origins) <= tile - tile // 4) and total.min() > 0.49


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (MASK, "the hole of gaussian_mask has one place"),
        (dict(name="snow", num_steps=T, threshold=(1.1, 0.7), motion_std=(0.1, 4)), "one layer"),
        (
            dict(name="gaussian_blur", num_steps=T, kernel_size=5, std=1.0, padding="circular"),
            "circular blur mixes the opposite edges",
        ),
    ],
    ids=["mask", "snow", "circular"],
)
def test_what_does_not_act_locally_is_not_cut(run, settings, reason):
    with pytest.raises(UserError, match=f"24 × 32 pixels.*{reason}"):
        with_degradation(run, settings).restore_images(np.zeros((24, 32, 1), np.uint8), tile=16)


def test_which_sizes_are_whole(run):
    config = run.config.copy_and_resolve_references()
    for model, size, tile in (
        ({}, (512, 512), 0),
        ({}, (512, 513), 256),
        ({"attention_sizes": (8,)}, (16, 20), 16),
    ):
        with config.unlocked():
            config.model = ConfigDict({"multipliers": (1, 2), **model})
        other = dataclasses.replace(run, experiment=run.experiment._replace(config=config))
        assert sizes.tile_of(other, size, None) == tile
        assert sizes.tile_of(other, size, 0) == 0


@pytest.mark.parametrize(
    ("text", "t"), [(None, None), ("auto", "auto"), ("7", 7), ("0", 0), ("0.35", 7), (".01", 1)]
)
def test_severity_of_a_text(text, t):
    assert parse_severity(text, 20) == t


@pytest.mark.parametrize("text", ["21", "1.5", "1.0", "-1", "0.0", "nan", "much", ""])
def test_wrong_severity_of_a_text(text):
    with pytest.raises(UserError, match=f"--t={text} must be a severity, .* 0..T=20; or a share"):
        parse_severity(text, 20)


def test_a_folder_is_restored(trained, run, folder, tmp_path):
    """Check names, pixels, the record and the page; nothing is lost, nothing is left over."""
    output = tmp_path / "out"
    (folder / "notes.txt").write_text("not an image")
    (folder / "broken.png").write_text("not an image either")
    command = ["--mode=restore", f"--workdir={trained}", f"--input={folder}", f"--output={output}"]
    result = call_main(*command, "--t=0.5", "--steps=2", "--tile=0")
    assert result.returncode == 2 and "broken.png: it is no PNG" in result.stderr
    assert "1 of 8 files" in result.stderr and str(output) in result.stdout
    names = [f"{i}.png" for i in range(5)] + ["0.jpg.png", "deep/er/wide one.png"]
    expected = {f"{kind}/{name}" for kind in ("restored", "compared") for name in names}
    assert set(files_of(output)) == expected | {"index.html", "restored.json", "settings.json"}
    for name in names:
        given = Image.open(folder / name.replace(".jpg.png", ".jpg"))
        found = np.asarray(Image.open(output / "restored" / name)).astype(int)
        truth = run.restore_images(given, 3, steps=2, tile=0)[..., 0]
        assert found.shape == given.size[::-1] and np.abs(found - truth).max() <= 1
    record = json.loads((output / "restored.json").read_text())
    assert {entry["t"] for entry in record["pictures"].values()} == {3}
    assert record["pictures"]["deep/er/wide one.png"]["size"] == [20, 31]
    assert list(record["failed"]) == ["broken.png"]
    page = (output / "index.html").read_text()
    assert 'href="restored/deep/er/wide%20one.png"' in page and "broken.png" in page
    assert 'alt="deep/er/wide one.png, t = 3"' in page


def test_the_same_bytes_after_an_interruption(run, folder, tmp_path):
    """Delete some of the files, an entry of the record, and a file of each chunk."""
    output = tmp_path / "out"
    request = Request(folder, output, "4")
    restore(run, request)
    before = {name: path.read_bytes() for name, path in files_of(output).items()}
    (output / "restored" / "1.png").unlink()
    (output / "compared" / "4.png").unlink()
    shutil.rmtree(output / "restored" / "deep")
    written = {name: path.stat().st_mtime_ns for name, path in files_of(output).items()}
    restore(run, request)
    after = {name: path.read_bytes() for name, path in files_of(output).items()}
    assert after == before
    kept = "restored/0.png"  # a chunk of two without a missing file
    assert files_of(output)[kept].stat().st_mtime_ns == written[kept]
    Image.open(folder / "3.png").rotate(180).save(folder / "0.png")
    restore(run, request)  # an input that has changed is restored again
    assert (output / "restored" / "0.png").read_bytes() != before["restored/0.png"]
    with pytest.raises(UserError, match=r"made with other settings:(.|\n)*  t: 4 saved, 3 now"):
        restore(run, request._replace(t="3"))


def test_estimated_severities_are_recorded(run, folder, tmp_path):
    """Replace the head by one that tells the number of an image's columns, 16 or 31."""
    other, seen = dataclasses.replace(run, workdir=tmp_path), []
    (tmp_path / "severity.npz").write_bytes(b"a head")

    def estimate(images):
        seen.append(images.shape)
        return np.array([images.shape[2] // 8], np.int32), np.array([0.25], np.float32)

    other.__dict__["_severity"] = estimate
    outcome = restore(other, Request(folder, tmp_path / "out", "auto", tile=0, steps=2))
    for name, t in (("0.png", 2), ("deep/er/wide one.png", 3)):
        assert (outcome.pictures[name]["t"], outcome.pictures[name]["std"]) == (t, 0.25)
        found = np.asarray(Image.open(tmp_path / "out" / "restored" / name)).astype(int)
        truth = run.restore_images(Image.open(folder / name), t, steps=2, tile=0)[..., 0]
        assert np.abs(found - truth).max() <= 1
    assert {shape[0] for shape in seen} == {1}  # so that no estimate depends on its batch


def test_masks_in_files(inpainting, folder, digits, tmp_path):
    """Restore with one mask, and with a folder of them; a mask of another size is refused."""
    (folder / "deep" / "er" / "wide one.png").unlink()
    mask = np.full((16, 16), 255, np.uint8)
    mask[5:10, 4:9] = 0
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("0.jpg.png", *(f"{i}.png" for i in range(5))):
        Image.fromarray(mask).save(masks / name)
    one, several = (
        restore(inpainting, Request(folder, tmp_path / name, mask=path)).folder / "restored"
        for name, path in (("one", masks / "0.png"), ("several", masks))
    )
    expected = inpainting.restore_images(digits[:5], mask=mask)
    for i in range(5):
        found = np.asarray(Image.open(one / f"{i}.png")).astype(int)
        assert np.abs(found - expected[i, ..., 0]).max() <= 1
        assert (one / f"{i}.png").read_bytes() == (several / f"{i}.png").read_bytes()
    (masks / "3.png").unlink()
    with pytest.raises(UserError, match="no mask for 3"):
        restore(inpainting, Request(folder, tmp_path / "three", mask=masks))
    Image.fromarray(mask[:8]).save(masks / "3.png")
    with pytest.raises(UserError, match=r"3.png has 8 × 16 pixels, but .*3.png has 16 × 16"):
        restore(inpainting, Request(folder, tmp_path / "three", mask=masks))
    assert not (tmp_path / "three").exists()


def _huge(path):
    Image.new("1", (8193, 8193)).save(path / "huge.png")
    return ["--input", path / "huge.png"]


def _text(path):
    (path / "text.png").write_text("hello")
    return ["--input", path / "text.png"]


def _others(path):
    (path / "out").mkdir()
    (path / "out" / "thesis.tex").write_text("precious")
    return []


def _empty(path):
    (path / "empty").mkdir()
    (path / "empty" / "a.gif").touch()
    return ["--input", path / "empty"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (["--input=nowhere"], "no file or folder .*nowhere"),
        (_text, "text.png: it is no PNG, JPEG, WebP or TIFF image"),
        (_huge, "huge.png: 8193 × 8193 pixels; at most"),
        (["--t=7"], "--t=7 must be a severity, a whole number in 0..T=6"),
        (["--t=lots"], "--t=lots must be a severity"),
        (_others, "out holds files, such as thesis.tex, but no settings.json"),
        (["--output={input}"], "lies in the folder of --input"),
        (["--output={input}/0.png"], "0.png is a file; give a folder"),
        (_empty, "empty holds no PNG, JPEG, WebP or TIFF file .passed over: 1 .gif"),
        (["--t=auto"], "no severity head, severity.npz. Give t, or train a head"),
        (["--sampler=heun"], "unknown sampler 'heun'; valid: "),
        (["--t=3", "--steps=4"], "steps=4 must be a whole number in 1..3, the severity"),
        (["--steps=2,4"], "--steps=2,4: --mode=restore takes one number"),
        (["--mask={input}/0.png"], "a mask marks the hole of gaussian_mask, but .*gaussian_blur"),
        (["--mask=nowhere"], "no file or folder .*nowhere .--mask"),
        (["--tile=7"], "tile=7 must be a multiple of 4"),
        (["--workdir={input}"], "input holds no checkpoint; train there first"),
        (["--output="], "needs --input=FILE-or-FOLDER and --output=FOLDER"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_malformed_requests_write_nothing(trained, folder, tmp_path, prepare, message):
    more = prepare(tmp_path) if callable(prepare) else [t.format(input=folder) for t in prepare]
    before = {name: path.read_bytes() for name, path in files_of(tmp_path).items()}
    command = ["--mode=restore", f"--workdir={trained}", f"--input={folder}"]
    result = call_main(*command, f"--output={tmp_path / 'out'}", *more)
    assert result.returncode == 2 and result.stderr.count("colddiff: ") == 1, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert {name: path.read_bytes() for name, path in files_of(tmp_path).items()} == before


@pytest.mark.slow
def test_the_same_bytes_on_any_devices(trained, folder, tmp_path):
    """Compare one device with three, and batch sizes."""
    for devices, batch in ((1, 8), (3, 64)):
        result = run_main(
            *("--mode=restore", f"--workdir={trained}", f"--input={folder}", "--t=5"),
            *(f"--output={tmp_path / str(devices)}", f"--config.eval.batch_size={batch}"),
            devices=devices,
        )
        assert result.returncode == 0, result.stderr
    one, three = (
        {name: path.read_bytes() for name, path in files_of(tmp_path / n).items()} for n in "13"
    )
    assert one == three and len(one) == 2 * 7 + 3
