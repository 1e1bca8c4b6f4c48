"""Every registered degradation keeps the contract; each one's formula against a reference."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import ndimage

from colddiff.degradations import DEGRADATIONS, exponential, gaussian_blur, linear
from colddiff.errors import UserError

SIZE, T = 32, 12
SETTINGS = {  # of each registered degradation, for the properties that all must have
    "gaussian_blur": dict(
        image_size=SIZE, num_steps=T, kernel_size=7, std=linear(T, start=0.4, step=0.2),
        padding="reflect", mean_at_end=True,
    ),
}  # fmt: skip


@pytest.fixture(params=sorted(DEGRADATIONS))
def degrade(request):
    return DEGRADATIONS[request.param](**SETTINGS[request.param])


@pytest.fixture
def x0():
    return jax.random.uniform(jax.random.key(1), (4, SIZE, SIZE, 3), minval=-1, maxval=1)


def at_all_t(degrade, x0, key):
    return jax.vmap(degrade, (None, 0, None))(x0, jnp.arange(T + 1), key)


def test_identity_at_zero_to_the_bit(degrade, x0):
    assert np.array_equal(degrade(x0[0], 0, jax.random.key(0)), x0[0])
    assert np.array_equal(jax.jit(degrade)(x0[0], 0, jax.random.key(0)), x0[0])


def test_same_key_same_pattern_however_it_is_called(degrade, x0):
    keys = jax.random.split(jax.random.key(3), 4)
    one_by_one = jnp.stack([degrade(x, 5, k) for x, k in zip(x0, keys, strict=True)])
    together = jax.jit(jax.vmap(degrade, (0, None, 0)))(x0, 5, keys)
    np.testing.assert_allclose(one_by_one, together, atol=1e-6)
    np.testing.assert_allclose(one_by_one[2], at_all_t(degrade, x0[2], keys[2])[5], atol=1e-6)


def test_finite_and_in_range_with_finite_gradients(degrade, x0):
    xt = at_all_t(degrade, x0[0], jax.random.key(0))
    assert np.all(np.isfinite(xt)) and np.all(np.abs(xt) <= 1 + 1e-5)
    gradient = jax.grad(lambda x: jnp.sum(at_all_t(degrade, x, jax.random.key(0)) ** 2))(x0[0])
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_severity_grows(degrade, x0):
    xt = jax.vmap(at_all_t, (None, 0, 0))(degrade, x0, jax.random.split(jax.random.key(0), 4))
    distance = np.mean(np.abs(xt - x0[:, None]), axis=(0, 2, 3, 4))
    assert np.all(np.diff(distance) >= -1e-6) and distance[-1] > 0.1


def test_tables_are_arguments_and_t_compiles_once(degrade, x0):
    assert isinstance(degrade, Partial)
    traces = []

    @jax.jit
    def run(degrade, x0, t, key):
        traces.append(t)
        return degrade(x0, t, key)

    for t in range(T + 1):
        run(degrade, x0[0], t, jax.random.key(t))
    assert len(traces) == 1
    text = run.lower(degrade, x0[0], 3, jax.random.key(0)).as_text()
    assert len(text) < 50_000  # a table would be printed, in twice its bytes


# Blur: the closed form against T sequential convolutions in float64.


def sequential_blur(x0, kernel_size, stds, padding):
    """[x0, x1, ..., xT], each the previous one convolved with its 2-D kernel."""
    images = [np.asarray(x0, np.float64)]
    offsets = np.arange(kernel_size) - kernel_size // 2
    mode = {"circular": "wrap", "reflect": "mirror"}[padding]  # scipy's words
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
        (128, 200, 15, [math.exp(0.01 * i) for i in range(200)], "reflect"),
    ],
)
def test_blur_equals_sequential_convolutions(size, num_steps, kernel_size, stds, padding):
    x0 = np.random.default_rng(0).uniform(-1, 1, (size, size, 2 if size < 100 else 1))
    x0 = x0.astype(np.float32)
    expected = sequential_blur(x0, kernel_size, stds, padding)
    degrade = gaussian_blur(
        image_size=size, num_steps=num_steps, kernel_size=kernel_size, std=stds, padding=padding
    )
    for t in (1, 2, num_steps // 2, num_steps):
        found = degrade(jnp.asarray(x0), t, jax.random.key(0))
        np.testing.assert_allclose(found, expected[t], atol=1e-5)


def test_blur_ends_in_the_exact_channel_means():
    settings = SETTINGS["gaussian_blur"] | {"mean_at_end": True}
    x0 = jax.random.normal(jax.random.key(0), (SIZE, SIZE, 3))
    xT = gaussian_blur(**settings)(x0, T, jax.random.key(0))
    expected = np.broadcast_to(np.mean(np.asarray(x0, np.float64), axis=(0, 1)), xT.shape)
    np.testing.assert_allclose(xT, expected, atol=1e-6)
    before = gaussian_blur(**settings)(x0, T - 1, jax.random.key(0))
    assert np.std(before, axis=(0, 1)).min() > 1e-3


def test_blur_costs_the_same_at_every_t():
    degrade = gaussian_blur(**SETTINGS["gaussian_blur"])

    def flops(t):
        compiled = jax.jit(lambda d, x: d(x, t, jax.random.key(0))).lower(
            degrade, jnp.ones((32, 32, 3))
        )
        return compiled.compile().cost_analysis()["flops"]

    assert flops(T) == pytest.approx(flops(1), rel=0.01)


def test_schedules():
    assert linear(3, start=0.35, step=0.01) == pytest.approx([0.35, 0.36, 0.37])
    assert exponential(3, start=2, rate=0.5) == pytest.approx([2, 2 * math.e**0.5, 2 * math.e])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"padding": "zero"}, "unknown padding 'zero'; valid: circular, reflect"),
        ({"std": [1.0, 2.0]}, "std has 2 values; give 1 or num_steps=12"),
        ({"std": None}, "std=None must be a number or a list of num_steps=12"),
        ({"std": -1.0}, "std must be positive and finite at every step; got -1.0"),
        ({"kernel_size": 65}, "kernel_size=65 reaches beyond .* use a kernel_size below 64"),
        ({"num_steps": 0}, "num_steps=0 must be 1 or more"),
    ],
)
def test_blur_refuses_what_cannot_work(change, message):
    with pytest.raises(UserError, match=message):
        gaussian_blur(**SETTINGS["gaussian_blur"] | change)


def test_blur_refuses_a_batch_and_another_size():
    degrade = gaussian_blur(**SETTINGS["gaussian_blur"])
    for shape in ((2, SIZE, SIZE, 3), (16, 16, 3)):
        with pytest.raises(UserError, match=r"takes one image of shape \(32, 32, 'C'\)"):
            degrade(jnp.zeros(shape), 1, jax.random.key(0))
