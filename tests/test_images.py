"""Conversion of images, and pictures."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from colddiff import images
from colddiff.data import sources
from colddiff.runtime import files
from colddiff.runtime.errors import UserError


def test_uint8_round_trip_is_exact():
    levels = np.arange(256, dtype=np.uint8)
    x = images.from_uint8(jnp.asarray(levels))
    assert float(x[0]) == -1 and float(x[-1]) == 1
    assert np.array_equal(images.to_uint8(x), levels)
    assert np.array_equal(images.to_uint8(np.array([-7.0, 7.0])), [0, 255])
    np.testing.assert_allclose(images.to_unit(x), levels / 255, atol=1e-6)


def test_truncation_keeps_levels_and_drops_fractions():
    levels = np.arange(256)
    exact = jnp.asarray(levels / 127.5 - 1, jnp.float32)
    np.testing.assert_allclose(images.truncate_to_8_bit(exact), exact, atol=1e-6)
    above = jnp.asarray((levels[:-1] + 0.99) / 127.5 - 1, jnp.float32)
    once = images.truncate_to_8_bit(above)
    np.testing.assert_allclose(once, exact[:-1], atol=1e-6)
    assert np.array_equal(images.truncate_to_8_bit(once), once)


def test_pil_images_are_converted_as_the_data_sources_do(tmp_path):
    """Compare levels, and the size and channels of a wide RGB file with `folder:PATH`."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    one = images.from_pil(Image.fromarray(pixels))
    assert one.shape == (16, 16, 1) and one.dtype == jnp.float32
    assert np.array_equal(images.to_uint8(one)[..., 0], pixels)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    both = images.from_pil([wide, Image.fromarray(pixels)], size=8)
    assert both.shape == (2, 8, 8, 3)
    for i in range(2):
        wide.save(tmp_path / f"{i}.png")
    [expected] = sources.load(f"folder:{tmp_path}", "test", size=8, channels=3)
    assert np.array_equal(images.to_uint8(both[0]), expected)
    assert images.from_pil([wide], channels=1).shape == (1, 20, 30, 1)
    # 20×30 just covers 8×16 as 10.7×16: rows are cropped, columns are not.
    oblong = images.from_pil(wide, size=(8, 16))
    box = (0, 2.5, 30, 17.5)
    expected = wide.resize((16, 8), Image.Resampling.BILINEAR, box)
    assert np.array_equal(images.to_uint8(oblong), np.asarray(expected))
    with pytest.raises(UserError, match=r"have 1 channel \(gray\) or 3 \(RGB\); got channels=2"):
        images.from_pil(wide, channels=2)
    for wrong, message in (
        ([wide, Image.fromarray(pixels)], r"sizes \[\(16, 16\), \(30, 20\)\]; give size="),
        (pixels, "takes PIL images; got ndarray"),
        ([], "takes one PIL image or more"),
    ):
        with pytest.raises(UserError, match=message):
            images.from_pil(wrong)
    with pytest.raises(UserError, match="takes 8-bit images, uint8; got float32"):
        images.from_uint8(one)


def test_a_picture_must_be_one_of_8_bits(tmp_path):
    for wrong in (np.zeros((8, 8, 1)), np.zeros((2, 8, 8, 1), np.uint8)):
        with pytest.raises(UserError, match=r"must be uint8 \[H, W, 1 or 3\]; got .*to_uint8"):
            files.save_png(tmp_path / "a.png", wrong)
    assert not list(tmp_path.iterdir())


def test_grid_shows_every_image_in_its_place(tmp_path):
    tones = np.linspace(-1, 1, 6).reshape(2, 3)  # column, row
    columns = [np.broadcast_to(c[:, None, None, None], (3, 8, 8, 1)) for c in tones]
    picture = images.grid(columns, ["x0", "xT"], height=16)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (2 * (16 + 2) + 2, 3)
    header = picture.shape[0] - 3 * (16 + 2)
    for i in range(2):
        for j in range(3):
            pixel = picture[header + j * 18 + 8, 2 + i * 18 + 8]
            assert np.array_equal(pixel, images.to_uint8(np.full(3, tones[i, j])))
    assert (picture[:header] < 128).any()  # the titles
    files.save_png(str(tmp_path / "new" / "grid.png"), picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), picture)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_images_of_two_channels_are_drawn_as_their_mean(kind):
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 2), np.uint8)
    x = levels if kind == np.uint8 else (levels / 127.5 - 1).astype(np.float32)
    expected = levels.astype(np.float64).mean(axis=-1)
    for picture, columns in ((images.mosaic(x, height=1), 2), (images.grid([x], height=1), 1)):
        assert picture.shape == (-(-3 // columns) * 10 + 2, columns * 14 + 2, 3)
        first = picture[2:10, 2:14]
        assert np.abs(first - expected[0][..., None]).max() <= 0.5
        assert np.ptp(first, axis=-1).max() == 0
    for channels in (1, 3):
        shown = images.drawable(np.repeat(levels[..., :1], channels, axis=-1))
        assert np.array_equal(shown, np.repeat(levels[..., :1], channels, axis=-1))


@pytest.mark.parametrize(
    ("size", "expected", "text"),
    [(32, (32, 32), "32²"), ((24, 40), (24, 40), "24×40"), ([8, 8], (8, 8), "8²")],
)
def test_a_size_is_a_number_or_a_pair(size, expected, text):
    assert images.height_width(size) == expected and images.size_text(size) == text


@pytest.mark.parametrize(
    "size", [0, -1, 2.5, "32", None, True, (), (8,), (8, 0), (8, 8, 1), (8, 1.5)]
)
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(
        UserError, match=r"must be 1 or more, an integer, or \(H, W\), two integers"
    ):
        images.height_width(size)


def test_long_titles_are_broken_into_lines():
    columns = [np.zeros((1, 96, 96, 1))] * 2
    short, long = (images.grid(columns, ["x0", text]) for text in ("xT", "blur, broken symmetry"))
    assert long.shape[0] > short.shape[0] and long.shape[1:] == short.shape[1:]
    bare = images.grid(columns)
    assert bare.shape[0] == 96 + 4 and (bare[:2] == 255).all()
    assert np.array_equal(long[-96:], bare[-96:])


def test_a_mosaic_has_every_image_in_its_place():
    tones = np.array([0, 50, 100, 150, 200], np.uint8)
    picture = images.mosaic(np.tile(tones[:, None, None, None], (1, 8, 8, 1)), height=16)
    assert picture.shape == (2 * 18 + 2, 3 * 18 + 2, 3)  # rows of 3 and 2
    found = picture[10::18, 10::18, 0]
    assert found.tolist() == [[0, 50, 100], [150, 200, 255]]
    captioned = images.mosaic(np.zeros((4, 8, 8, 3)), height=16, caption="t")
    assert captioned.shape[0] > 2 * 18 + 2
    assert captioned[-10, 10].tolist() == [128, 128, 128]  # the middle of [-1, 1]


def test_a_gif_shows_its_frames_in_their_order(tmp_path):
    frames = [np.full((4, 6, 3), tone, np.uint8) for tone in (0, 100, 200)]
    files.save_gif(tmp_path / "new" / "a.gif", frames, seconds=3)
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert gif.n_frames == 3 and gif.size == (6, 4) and gif.info["loop"] == 0
        for i, (tone, duration) in enumerate(((0, 1000), (100, 1000), (200, 2000))):
            gif.seek(i)
            assert np.all(np.asarray(gif.convert("RGB")) == tone)
            assert gif.info["duration"] == duration
