"""Formulas of the degradations against independent ones: sequential, in float64, by SciPy."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from colddiff.degradations import (
    animorph,
    compose,
    desaturate,
    exponential,
    gaussian_blur,
    gaussian_mask,
    gaussian_noise,
    linear,
    pixelate,
    snow,
    split,
)
from colddiff.degradations.mask import MaskPattern
from colddiff.degradations.separable import separable
from colddiff.degradations.snow import SnowPattern
from colddiff.images import height_width
from colddiff.runtime.errors import UserError

KEY = jax.random.key(0)


def image(size, channels=3, seed=0):
    x0 = np.random.default_rng(seed).uniform(-1, 1, (*height_width(size), channels))
    return x0.astype(np.float32)


def check_sequence(degrade, x0, expected, times, atol=1e-5):
    """Compare D(x0, t) with `expected`, which holds it for t = 0..T."""
    for t in times:
        np.testing.assert_allclose(degrade(jnp.asarray(x0), t, KEY), expected[t], atol=atol)


# Blur: the closed form against T sequential convolutions.

BLUR = dict(
    image_size=32, num_steps=12, kernel_size=7, std=linear(12, start=0.4, step=0.2),
    padding="reflect",
)  # fmt: skip


def sequential_blur(x0, kernel_size, stds, padding):
    """Return [x0, x1, ..., xT]; each is the previous one convolved with its 2-D kernel."""
    images = [np.asarray(x0, np.float64)]
    offsets = np.arange(kernel_size) - kernel_size // 2
    mode = {"circular": "wrap", "reflect": "mirror"}[padding]  # SciPy's names
    for std in stds:
        kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * std**2))
        kernel /= kernel.sum()
        channels = [ndimage.correlate(c, kernel, mode=mode) for c in np.moveaxis(images[-1], -1, 0)]
        images.append(np.stack(channels, axis=-1))
    return images


@pytest.mark.parametrize(
    ("size", "num_steps", "kernel_size", "stds", "padding"),
    [
        (28, 20, 11, [7.0] * 20, "circular"),
        (32, 20, 11, [7.0] * 20, "circular"),
        (32, 50, 11, [0.35 + 0.01 * i for i in range(50)], "reflect"),
        ((16, 24), 12, 11, [0.4 + 0.2 * i for i in range(12)], "reflect"),
        ((24, 16), 3, 11, [7.0] * 3, "circular"),
        (128, 200, 15, [math.exp(0.01 * i) for i in range(200)], "reflect"),
    ],
)
def test_blur_equals_sequential_convolutions(size, num_steps, kernel_size, stds, padding):
    x0 = image(size, channels=1 if size == 128 else 2)
    degrade = gaussian_blur(
        image_size=size, num_steps=num_steps, kernel_size=kernel_size, std=stds, padding=padding
    )
    expected = sequential_blur(x0, kernel_size, stds, padding)
    check_sequence(degrade, x0, expected, (1, 2, num_steps // 2, num_steps))


@pytest.mark.parametrize("size", [32, (16, 24)])
def test_blur_ends_in_the_exact_channel_means(size):
    degrade = gaussian_blur(**BLUR | {"image_size": size}, mean_at_end=True)
    x0 = image(size)
    xT = degrade(x0, 12, KEY)
    expected = np.broadcast_to(np.mean(x0.astype(np.float64), axis=(0, 1)), xT.shape)
    np.testing.assert_allclose(xT, expected, atol=1e-6)
    assert np.std(degrade(x0, 11, KEY), axis=(0, 1)).min() > 1e-3


def test_separable_maps_are_exact_at_zero_and_never_use_tf32():
    """Use a first matrix that is not the identity; check the precision of the products."""
    degrade = separable([2 * np.eye(8), np.eye(8)])
    x0 = jnp.asarray(image(8))
    assert np.array_equal(degrade(x0, 0, KEY), x0)
    program = jax.jit(degrade).lower(x0, 1, KEY).as_text()
    products = re.findall(r"stablehlo.dot_general.*", program)
    assert len(products) == 2 and all("[HIGHEST, HIGHEST]" in product for product in products)


def test_schedules():
    assert linear(3, start=0.35, step=0.01) == pytest.approx([0.35, 0.36, 0.37])
    assert exponential(3, start=2, rate=0.5) == pytest.approx([2, 2 * math.e**0.5, 2 * math.e])
    with pytest.raises(UserError, match=r"rate=0.01 .* num_steps=100000; use a smaller rate"):
        exponential(100_000, start=1.0, rate=0.01)


# Pixelation: each step shrinks and enlarges the previous result.


def cubic(x, a=-0.75):
    """Return the cubic convolution kernel (Keys 1981) at x."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def bicubic_rows(x, number):
    """Resize x to `number` rows: half-pixel centres, borders repeated, no antialiasing."""
    rows = []
    for i in range(number):
        place = (i + 0.5) * len(x) / number - 0.5
        near = [math.floor(place) + k for k in (-1, 0, 1, 2)]
        rows.append(sum(cubic(place - k) * x[min(max(k, 0), len(x) - 1)] for k in near))
    return np.stack(rows)


def sequential_pixelate(x0, num_steps, method):
    images = [np.asarray(x0, np.float64)]
    for t in range(1, num_steps + 1):
        h, w = (n // 2**t for n in x0.shape[:2])
        if method == "area":
            small = images[-1].reshape(h, 2**t, w, 2**t, -1).mean(axis=(1, 3))
        else:
            half = bicubic_rows(images[-1], h)
            small = bicubic_rows(half.swapaxes(0, 1), w).swapaxes(0, 1)
        images.append(small.repeat(2**t, axis=0).repeat(2**t, axis=1))
    return images


@pytest.mark.parametrize("method", ["area", "bicubic"])
@pytest.mark.parametrize(("size", "num_steps"), [(32, 5), (48, 4), ((16, 24), 3), (128, 6)])
def test_pixelate_equals_sequential_steps(size, num_steps, method):
    x0 = image(size)
    degrade = pixelate(image_size=size, num_steps=num_steps, method=method)
    expected = sequential_pixelate(x0, num_steps, method)
    check_sequence(degrade, x0, expected, range(num_steps + 1))
    blocks = math.prod(n // 2**num_steps for n in x0.shape[:2])
    assert len(np.unique(np.asarray(expected[num_steps])[..., 0])) == blocks


# Mask: the product of the masks of all steps, each built as the paper's code does.


def one_mask(n, std, corner):
    """Return 1 - Gaussian / its maximum, cropped to n×n from `corner`."""
    side = n + 1 if corner is None else 2 * n + 1
    offsets = np.arange(side) - side // 2
    gaussian = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * std**2))
    gaussian /= gaussian.sum()
    mask = (1 - gaussian / gaussian.max())[1:, 1:]
    y, x = (0, 0) if corner is None else corner
    return mask[y : y + n, x : x + n, None]


@pytest.mark.parametrize("corner", [None, (1, 31), (14, 20), (0, 32)])
@pytest.mark.parametrize("color", [0.0, (0.3, -0.2, 1.0)])
def test_mask_equals_sequential_products(corner, color):
    n, stds = 32, [1.0 + 0.1 * i for i in range(50)]
    center = "image" if corner is None else (0, 32)
    degrade = gaussian_mask(image_size=n, num_steps=50, std=stds, center=center, fade_to=color)
    _, apply = split(degrade)
    pattern = MaskPattern(jnp.array(corner or (0, 0)), jnp.asarray(color, jnp.float32))
    x0 = image(n)
    product = np.ones((n, n, 1))
    for t, std in enumerate(stds, 1):
        product *= one_mask(n, std, corner)
        if t in (1, 2, 25, 50):
            expected = product * x0 + (1 - product) * np.array(color)
            np.testing.assert_allclose(apply(x0, t, pattern), expected, atol=1e-6)


def test_the_hole_lies_where_it_is_said_to():
    white = jnp.ones((32, 32, 1))
    centred = gaussian_mask(image_size=32, num_steps=1, std=1.0, center="image")
    hole = np.asarray(centred(white, 1, KEY))[..., 0]
    assert hole[15, 15] == 0 and np.count_nonzero(hole == 0) == 1
    for size in (31, 33):  # odd sizes have a middle pixel
        centred = gaussian_mask(image_size=size, num_steps=1, std=1.0, center="image")
        hole = np.asarray(centred(jnp.ones((size, size, 1)), 1, KEY))[..., 0]
        assert np.argwhere(hole == 0).tolist() == [[size // 2, size // 2]]
        np.testing.assert_array_equal(hole, hole[::-1, ::-1])
    draw, apply = split(gaussian_mask(image_size=32, num_steps=1, std=1.0, center=(1, 31)))
    for key in jax.random.split(KEY, 20):
        pattern = draw(key, white.shape)
        y, x = 31 - np.asarray(pattern.corner)
        assert apply(white, 1, pattern)[y, x, 0] == 0


def test_the_hole_of_an_oblong_image_lies_where_it_is_said_to():
    """Compare with the Gaussian around the centre; the hole may be anywhere, also at the sides."""
    size, white = (16, 25), jnp.ones((16, 25, 1))
    places = np.stack(np.meshgrid(np.arange(16), np.arange(25), indexing="ij"))

    def expected(center):
        squares = ((places - np.reshape(center, (2, 1, 1))) ** 2).sum(axis=0)
        return 1 - np.exp(-squares / (2 * 3.0**2))

    centred = gaussian_mask(image_size=size, num_steps=1, std=3.0, center="image")
    np.testing.assert_allclose(centred(white, 1, KEY)[..., 0], expected((7, 12)), atol=1e-6)
    for offsets, limits in ((((0, 15), (3, 24)), ((0, 15), (3, 24))), ((2, 9), ((2, 9), (2, 9)))):
        draw, apply = split(gaussian_mask(image_size=size, num_steps=1, std=3.0, center=offsets))
        keys = jax.random.split(KEY, 400)
        corners = np.asarray(jax.vmap(lambda key, draw=draw: draw(key, white.shape))(keys).corner)
        assert [*zip(corners.min(axis=0), corners.max(axis=0), strict=True)] == [*limits]
        for key in keys[:2]:
            pattern = draw(key, white.shape)
            center = np.array([15, 24]) - np.asarray(pattern.corner)
            found = apply(white, 1, pattern)[..., 0]
            np.testing.assert_allclose(found, expected(center), atol=1e-6)


def test_the_drawn_holes_and_colours_are_uniform():
    settings = dict(image_size=32, num_steps=3, std=2.0)
    draw, _ = split(gaussian_mask(**settings, center=(1, 31), fade_to="random"))
    patterns = jax.vmap(lambda key: draw(key, (32, 32, 3)))(jax.random.split(KEY, 4000))
    for axis in range(2):
        counts = np.bincount(patterns.corner[:, axis], minlength=33)
        assert counts[0] == counts[32] == 0 and counts[1:32].min() > 80  # of 129 expected
    assert abs(np.corrcoef(patterns.corner.T)[0, 1]) < 0.06
    assert patterns.color.shape == (4000, 3) and np.abs(patterns.color).max() <= 0.5
    np.testing.assert_allclose(np.quantile(patterns.color, [0.25, 0.75]), [-0.25, 0.25], atol=0.02)
    assert abs(np.corrcoef(patterns.color.T)[0, 1]) < 0.06
    both = np.corrcoef(patterns.corner.T, patterns.color.T)
    assert np.abs(both - np.eye(5)).max() < 0.08


def test_an_inward_mask_closes_to_nothing_but_the_colour():
    n, T, stds = 32, 40, [0.5 * i for i in range(1, 41)]
    degrade = gaussian_mask(
        image_size=n, num_steps=T, std=stds, center="image", fade_to="random", inward=True
    )
    x0 = image(n)
    color = np.asarray(split(degrade)[0](KEY, x0.shape).color)
    outward = [np.ones((n, n, 1))]
    for std in stds:
        outward.append(outward[-1] * one_mask(n, std, None))
    for t in (1, 10, T - 1, T):
        G = 1 - outward[T - t]
        np.testing.assert_allclose(degrade(x0, t, KEY), G * x0 + (1 - G) * color, atol=1e-6)
    assert np.array_equal(degrade(x0, T, KEY), np.broadcast_to(color, x0.shape))


# Snow: the layer of flakes by SciPy.


@pytest.mark.parametrize("size", [8, 28, 32, 33, 128, (16, 25)])
def test_snow_fields_are_zoomed_as_scipy_does(size):
    """Zoom a random coarse field with SciPy, and trim it."""
    settings = dict(num_steps=2, threshold=(1.15, 0.7), motion_std=(0.05, 16.0))
    draw, _ = split(snow(image_size=size, **settings))
    rows, columns = (None if zoom is None else np.asarray(zoom, np.float64) for zoom in draw.args)
    columns = rows if columns is None else columns
    high, wide = height_width(size)
    coarse = np.random.default_rng(0).normal(size=(math.ceil(high / 2.5), math.ceil(wide / 2.5)))
    large = ndimage.zoom(coarse, 2.5, order=1)
    top, left = (large.shape[0] - high) // 2, (large.shape[1] - wide) // 2
    expected = large[top : top + high, left : left + wide]
    np.testing.assert_allclose(rows @ coarse @ columns.T, expected, atol=1e-6)


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("size", [32, (24, 41)])
def test_snow_equals_scipy(size, vertical):
    T = 20
    settings = dict(num_steps=T, threshold=(1.15, 0.7), motion_std=(0.05, 16.0))
    draw, apply = split(snow(image_size=size, **settings))
    x0 = image(size)
    field = np.asarray(draw(KEY, x0.shape).field)
    for t in (1, 7, T):
        c0 = 1.15 + (0.7 - 1.15) * (t - 1) / (T - 1)
        c1 = 0.05 + (16.0 - 0.05) * (t - 1) / (T - 1)
        flakes = np.clip(np.where(field < c0, 0, field), 0, 1)
        kernel = np.exp(-0.5 * ((np.arange(11) - 5) / c1) ** 2)
        flakes = ndimage.correlate1d(
            flakes, kernel / kernel.sum(), axis=0 if vertical else 1, mode="constant"
        )
        layer = (flakes + np.rot90(flakes, 2))[..., None]
        expected = 2 * np.clip((x0 + 1) / 2 + layer, 0, 1) - 1
        pattern = SnowPattern(jnp.asarray(field), jnp.asarray(vertical))
        np.testing.assert_allclose(apply(x0, t, pattern), expected, atol=1e-6)
        assert np.abs(expected - x0).max() > 0.1


def test_snow_is_drawn_as_it_should():
    draw, _ = split(snow(image_size=32, num_steps=2, threshold=(1, 0.7), motion_std=(1, 2)))
    patterns = jax.vmap(lambda key: draw(key, (32, 32, 3)))(jax.random.split(KEY, 1000))
    assert 0.45 < np.mean(patterns.vertical) < 0.55
    corners = patterns.field[:, 0, 0]  # a corner is a value of the coarse field itself
    assert np.mean(corners) == pytest.approx(0.55, abs=0.04)
    assert np.std(corners) == pytest.approx(0.3, abs=0.03)


# Desaturation, blends, composition.


def test_desaturate_mixes_the_channels():
    x0 = image(16)
    gray = x0.astype(np.float64).mean(axis=-1, keepdims=True)
    expected = [gray + (1 - t / 7) * (x0 - gray) for t in range(8)]
    check_sequence(desaturate(num_steps=7), x0, expected, range(8), atol=1e-6)
    assert np.ptp(desaturate(num_steps=7)(x0, 7, KEY), axis=-1).max() < 1e-6


@pytest.mark.parametrize("T", [4, 50, 200, 1000])
def test_noise_has_the_cosine_schedule(T):
    """Compute ᾱ from Nichol and Dhariwal's β at the points of the released code."""
    places = np.linspace(0, T + 1, T + 1) / (T + 1)
    f = np.cos((places + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.concatenate([[1], np.cumprod(1 - np.clip(1 - f[1:] / f[:-1], 0, 0.999))])
    degrade = gaussian_noise(num_steps=T)
    x0 = image(16)
    z = np.asarray(split(degrade)[0](KEY, x0.shape))
    for t in (0, 1, T // 2, T - 1, T):
        expected = np.sqrt(alpha_bar[t]) * x0 + np.sqrt(1 - alpha_bar[t]) * z
        np.testing.assert_allclose(degrade(x0, t, KEY), expected, atol=1e-5)


def test_noise_is_normal():
    draw, _ = split(gaussian_noise(num_steps=4))
    z = np.asarray(draw(KEY, (64, 64, 3))).reshape(-1, 3)
    assert np.abs(z.mean(axis=0)).max() < 0.05 and np.abs(z.std(axis=0) - 1).max() < 0.05
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.05


def test_animorph_ends_in_images_of_the_bank():
    bank = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
    degrade = animorph(num_steps=50, bank=bank, bank_size=5)
    assert split(degrade)[0].args[0].dtype == np.uint8
    x0 = image(16)
    xT = jax.vmap(degrade, (None, None, 0))(x0, 50, jax.random.split(KEY, 500))
    far = np.abs(np.asarray(xT)[:, None] - (bank / 127.5 - 1)).max(axis=(2, 3, 4))
    picked = far.argmin(axis=1)
    assert far.min(axis=1).max() < 0.05  # √ᾱ_T is not quite 0
    counts = np.bincount(picked, minlength=7)
    assert counts[:5].min() > 70 and counts[5:].sum() == 0


def test_compose_applies_one_after_the_other():
    parts = (gaussian_blur(**BLUR), gaussian_noise(num_steps=12), desaturate(num_steps=12))
    x0 = xt = jnp.asarray(image(32))
    for i, part in enumerate(parts):
        xt = part(xt, 7, jax.random.fold_in(KEY, i))
    np.testing.assert_allclose(compose(*parts)(x0, 7, KEY), xt, atol=1e-6)
    other = compose(*reversed(parts))(x0, 7, KEY)
    assert np.abs(other - xt).max() > 0.1
    plain = lambda x0, t, key: x0 * (1 - 0.05 * t)  # noqa: E731
    np.testing.assert_allclose(compose(plain, plain)(x0, 2, KEY), 0.81 * x0, atol=1e-6)


# Settings that cannot work.

MASK = dict(image_size=32, num_steps=12, std=1.0, center="image")
SNOW = dict(image_size=32, num_steps=12, threshold=(1.15, 0.7), motion_std=(0.05, 16.0))
BANK = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (gaussian_blur, BLUR | {"kernel_size": 4}, "kernel_size=4 must be odd"),
        (gaussian_blur, BLUR | {"padding": "zero"}, "unknown padding 'zero'; valid: circular, ref"),
        (gaussian_blur, BLUR | {"std": [1.0, 2.0]}, "std has 2 values; give 1 or num_steps=12"),
        (gaussian_blur, BLUR | {"std": None}, "std=None must be a number or a list of num_steps=1"),
        (gaussian_blur, BLUR | {"std": -1.0}, "std must be positive and finite .*; got -1.0"),
        (gaussian_blur, BLUR | {"kernel_size": 65}, "=65 reaches .* use a kernel_size below 64"),
        (gaussian_blur, BLUR | {"num_steps": 0}, "num_steps=0 must be 1 or more"),
        (
            pixelate,
            dict(image_size=32, num_steps=6),
            "=32 cannot be .* num_steps=6 times; .* multiple",
        ),
        (pixelate, dict(image_size=32, num_steps=0), "num_steps=0"),
        (pixelate, dict(image_size=8, num_steps=1, method="max"), "unknown method 'max'; valid: a"),
        (gaussian_mask, MASK | {"center": "corner"}, "center='corner' must be 'image', or two"),
        (gaussian_mask, MASK | {"center": (5, 4)}, r"center=\(5, 4\) must be .* within 0..32"),
        (gaussian_mask, MASK | {"center": (0, 33)}, r"center=\(0, 33\) must be"),
        (gaussian_mask, MASK | {"center": (0.5, 3)}, r"center=\(0.5, 3\) must be"),
        (gaussian_mask, MASK | {"center": ((1, 2), (3,))}, r"center=\(\(1, 2\), \(3,\)\) must be"),
        (
            gaussian_mask,
            MASK | {"image_size": (16, 24), "center": (0, 17)},
            r"within 0\.\.16 for rows and 0\.\.24 for columns; \(\(low, high\), \(low, high\)\)",
        ),
        (
            gaussian_blur,
            BLUR | {"image_size": (32,)},
            r"image_size=\(32,\) must be 1 or more, an int",
        ),
        (gaussian_blur, BLUR | {"image_size": (0, 8)}, r"image_size=\(0, 8\) must be 1 or more"),
        (gaussian_blur, BLUR | {"image_size": (32, 3)}, r"use a kernel_size below 6"),
        (
            pixelate,
            dict(image_size=(16, 20), num_steps=3),
            r"=\(16, 20\) cannot be halved num_steps=3",
        ),
        (gaussian_mask, MASK | {"fade_to": "red"}, "fade_to='red' must be a number, one for each"),
        (gaussian_mask, MASK | {"fade_to": 255}, r"fade_to=255 must lie in \[-1, 1\]"),
        (gaussian_mask, MASK | {"fade_to": [0.0, math.nan]}, r"must lie in \[-1, 1\]"),
        (gaussian_mask, MASK | {"std": 0}, "std must be positive"),
        (gaussian_mask, MASK | {"num_steps": 0}, "num_steps=0 1 or more"),
        (snow, SNOW | {"threshold": 1.0}, "threshold=1.0 must be two numbers: at t = 1 and at T"),
        (snow, SNOW | {"motion_std": (0.0, 1.0)}, r"motion_std=\(0.0, 1.0\) must be positive"),
        (snow, SNOW | {"num_steps": 0}, "num_steps=0"),
        (desaturate, dict(num_steps=0), "num_steps=0 must be 1 or more"),
        (gaussian_noise, dict(num_steps=0), "num_steps=0 must be 1 or more"),
        (
            gaussian_noise,
            dict(num_steps=3, schedule="cos"),
            "unknown schedule 'cos'; valid: cosine",
        ),
        (animorph, dict(num_steps=3, bank=BANK / 2), r"must be uint8 .*\(3, 8, 8, 3\).*float64"),
        (animorph, dict(num_steps=3, bank=BANK[0]), "bank must be uint8 images"),
        (animorph, dict(num_steps=3, bank=BANK, bank_size=4), r"bank_size=4 must lie in 1\.\.3"),
        (compose, {}, "compose needs one degradation or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(factory, settings, message):
    with pytest.raises(UserError, match=message):
        factory(**settings)


@pytest.mark.parametrize(
    ("degrade", "shape", "message"),
    [
        (gaussian_blur(**BLUR), (2, 32, 32, 3), r"takes one image \[H, W, C\]; .* use jax.vmap"),
        (gaussian_blur(**BLUR), (16, 16, 3), r"takes one image of shape \(32, 32, 'C'\)"),
        (
            gaussian_blur(**BLUR | {"image_size": (16, 24)}),
            (24, 16, 3),
            r"takes one image of shape \(16, 24, 'C'\); got \(24, 16, 3\)",
        ),
        (gaussian_mask(**MASK), (16, 16, 3), r"takes one image of shape \(32, 32, 'C'\)"),
        (gaussian_mask(**MASK | {"center": (0, 1)}), (64, 64, 3), "takes one image"),
        (
            gaussian_mask(**MASK, fade_to=(0, 1)),
            (32, 32, 3),
            "2 values for images of 3 channels; give one",
        ),
        (snow(**SNOW), (33, 33, 3), "takes one image"),
        (desaturate(num_steps=3), (8, 8, 1), "needs images with colours"),
        (
            animorph(num_steps=3, bank=BANK),
            (8, 8, 1),
            r"\(8, 8, 3\), but x0 has shape \(8, 8, 1\)",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(degrade, shape, message):
    with pytest.raises(UserError, match=message):
        jax.jit(degrade)(jnp.zeros(shape), 1, KEY)


ALL = [
    gaussian_blur(**BLUR),
    pixelate(image_size=32, num_steps=5),
    gaussian_mask(**MASK),
    snow(**SNOW),
    desaturate(num_steps=12),
    gaussian_noise(num_steps=12),
]


@pytest.mark.parametrize(
    "degrade",
    [
        *ALL,
        animorph(num_steps=12, bank=np.zeros((3, 32, 32, 3), np.uint8)),
        compose(gaussian_blur(**BLUR), desaturate(num_steps=12)),
    ],
    ids=lambda degrade: split(degrade)[1].func.__name__,
)
def test_arguments_that_cannot_be_meant_are_refused(degrade):
    """Give 8-bit images, images on [0, 255], NaN, and a known t outside 0..T."""
    x0, T = jnp.zeros((32, 32, 3)), 5 if degrade is ALL[1] else 12
    for wrong, message in (
        (np.zeros((32, 32, 3), np.uint8), "x0 is of type uint8; .*from_uint8"),
        (jnp.full((32, 32, 3), 255.0), r"x0 has absolute values up to 255; .*from_uint8"),
        (x0.at[0, 0, 0].set(jnp.nan), "up to nan"),
    ):
        with pytest.raises(UserError, match=message):
            degrade(wrong, 1, KEY)
    with pytest.raises(UserError, match="x0 is of type uint8"):
        jax.jit(jax.vmap(degrade, (0, None, None)))(np.zeros((2, 32, 32, 3), np.uint8), 1, KEY)
    for t in (-1, T + 1, jnp.int32(-1), np.int64(T + 1)):
        with pytest.raises(UserError, match=rf"t={t} must be one severity in 0\.\.T={T}"):
            degrade(x0, t, KEY)
        with pytest.raises(UserError, match="must be one severity"):
            jax.vmap(degrade, (0, None, None))(x0[None], t, KEY)
    assert degrade(x0, T, KEY).shape == x0.shape


@pytest.mark.parametrize(
    "degrade",
    ALL,
    ids=lambda degrade: split(degrade)[1].func.__name__,
)
def test_the_cost_is_the_same_at_every_t(degrade):
    """Count the FLOPs of programs with a constant t, which must not have loops."""
    draw, apply = split(degrade)
    x0 = jnp.zeros((32, 32, 3))
    program = str(jax.make_jaxpr(apply)(x0, 3, draw(KEY, x0.shape)))
    assert "while" not in program and "scan" not in program

    def flops(t):
        lowered = jax.jit(lambda d, x: d(x, t, KEY)).lower(degrade, jnp.zeros((32, 32, 3)))
        return lowered.compile().cost_analysis()["flops"]

    assert flops(5) == pytest.approx(flops(1), rel=0.01)
