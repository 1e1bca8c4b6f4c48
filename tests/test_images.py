"""Scales and pictures."""

import jax.numpy as jnp
import numpy as np
from PIL import Image

from colddiff import images


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
    images.save_png(tmp_path / "new" / "grid.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), picture)
