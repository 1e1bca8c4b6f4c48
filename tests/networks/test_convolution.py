"""Convolutions and sums over pixels against XLA's: values and gradients, on 1 and 4 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from colddiff.networks import ConvNeXtUNet, ResNetUNet, convolution, init_params, pixels
from colddiff.networks.layers import Conv
from colddiff.networks.pixels import pixel_sum, spread
from colddiff.runtime.devices import create_mesh, replicated, split_axis

LAYOUT = ("NHWC", "HWIO", "NHWC")
AROUND = ((1, 1), (1, 1))


def plain(x, kernel, stride, padding):
    groups = x.shape[-1] // kernel.shape[2]
    strides = (stride, stride)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def ours(x, kernel, stride, padding):
    return convolution.convolve(x, kernel, stride, padding)


def results(function, x, kernel):
    """Return the output, and both gradients of a weighted sum of it."""

    def value_and_gradients(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, *pull(weights.astype(y.dtype))

    return jax.device_get(jax.jit(value_and_gradients)(x, kernel))


def check_same(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


CASES = {  # image, kernel, stride, padding
    "depthwise 7x7": ((4, 12, 12, 6), (7, 7, 1, 6), 1, ((3, 3), (3, 3))),
    "depthwise, not square, padded unevenly": ((3, 9, 7, 5), (3, 5, 1, 5), 1, ((0, 2), (1, 3))),
    "one channel": ((2, 9, 9, 1), (7, 7, 1, 1), 1, ((3, 3), (3, 3))),
    "two groups": ((2, 9, 9, 4), (3, 3, 2, 4), 1, AROUND),
    "1x1": ((3, 5, 4, 6), (1, 1, 6, 3), 1, ((0, 0), (0, 0))),
    "1x1, padded": ((3, 5, 4, 6), (1, 1, 6, 3), 1, AROUND),
    "1x1, halving": ((3, 6, 4, 6), (1, 1, 6, 3), 2, ((0, 0), (0, 0))),
    "depthwise, halving": ((2, 6, 6, 3), (3, 3, 1, 3), 2, AROUND),
    "two outputs a channel": ((2, 6, 6, 2), (3, 3, 1, 4), 1, AROUND),
    "3x3": ((4, 6, 6, 5), (3, 3, 5, 7), 1, AROUND),
    "3x3, padded unevenly": ((2, 17, 16, 4), (3, 3, 4, 2), 1, ((0, 2), (1, 0))),
    "4x4, halving": ((4, 8, 12, 3), (4, 4, 3, 5), 2, AROUND),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    image, size, *settings = CASES[case]
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((image, size)))
    found = results(lambda x, k: ours(x, k, *settings), x, kernel)
    check_same(found, results(lambda x, k: plain(x, k, *settings), x, kernel))


@pytest.mark.parametrize("shape", [(4, 4, 4, 3, 5), (1, 3, 6, 2, 2)])
def test_transposed_values_and_gradients(shape):
    B, H, W, inputs, outputs = shape
    x = jax.random.normal(jax.random.key(0), (B, H, W, inputs))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, inputs, outputs))
    expected = results(lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME"), x, kernel)
    assert expected[0].shape == (B, 2 * H, 2 * W, outputs)
    check_same(results(convolution.upsample, x, kernel), expected)
    elsewhere = convolution._transposed(x, kernel)  # the form of GPUs and TPUs
    np.testing.assert_allclose(elsewhere, expected[0], atol=1e-5)


def test_bfloat16_is_summed_in_float32():
    image, size, *settings = CASES["depthwise 7x7"]
    x, kernel = (
        jax.random.normal(jax.random.key(i), s).astype(jnp.bfloat16)
        for i, s in enumerate((image, size))
    )
    exact = results(
        lambda x, k: plain(x, k, *settings), x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    found = results(lambda x, k: ours(x, k, *settings), x, kernel)
    assert {a.dtype for a in found} == {jnp.dtype("bfloat16")}
    for a, b in zip(found, exact, strict=True):
        # The weights of `results` are rounded too, so the output has one more rounding.
        assert np.abs(a.astype(np.float32) - b).max() <= 2**-7 * np.abs(b).max()


def lowered(function, *arguments):
    """Return the program of the gradients of a function, by platform."""

    def gradients(*arguments):
        return jax.grad(lambda arguments: function(*arguments).sum())(arguments)

    traced = jax.jit(gradients).trace(*arguments)
    return {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }


def test_on_the_cpu_only():
    """Check that other platforms get XLA's convolutions without loops around them."""
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((7, 7, 1, 4))
    found = lowered(lambda x, k: ours(x, k, 1, ((3, 3), (3, 3))), x, kernel)
    assert "while" in found["cpu"] and "stablehlo.convolution" not in found["cpu"]
    for platform in ("cuda", "tpu"):
        assert "while" not in found[platform] and "stablehlo.convolution" in found[platform]

    kernel = jnp.zeros((4, 4, 4, 4))
    found = lowered(lambda x, k: jnp.sin(convolution.upsample(x, k)), x, kernel)
    plain = lowered(lambda x, k: jnp.sin(lax.conv_transpose(x, k, (2, 2), "SAME")), x, kernel)
    count = {platform: text.count("stablehlo.convolution") for platform, text in found.items()}
    expected = {platform: text.count("stablehlo.convolution") for platform, text in plain.items()}
    assert count["cpu"] > expected["cpu"]  # one for each parity
    assert count["cuda"] == expected["cuda"] and count["tpu"] == expected["tpu"]


def test_a_doubled_image_is_never_made():
    """Compare values and gradients with a 3×3 convolution of the doubled image."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 5))
    layer = Conv(6, 3, jnp.float32, double=True)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 5, 6))
    bias = jnp.arange(6.0)
    found = results(lambda x, k: layer.apply({"params": {"kernel": k, "bias": bias}}, x), x, kernel)
    doubled = lambda x: x.repeat(2, axis=1).repeat(2, axis=2)  # noqa: E731
    add = bias[None, None, None]
    check_same(found, results(lambda x, k: plain(doubled(x), k, 1, AROUND) + add, x, kernel))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-7)])
def test_sums_over_pixels(dtype, tolerance):
    """Compare with float64. The gradient of a sum is `spread`, and the reverse."""
    x = jax.random.normal(jax.random.key(0), (3, 500, 7)).astype(dtype) + 1
    exact = np.asarray(x, np.float64).sum(axis=1, keepdims=True)
    total, pull = jax.vjp(jax.jit(pixel_sum), x)
    (spreading,) = pull(total)
    assert total.dtype == spreading.dtype == dtype and spreading.shape == x.shape
    np.testing.assert_allclose(np.asarray(total, np.float64), exact, rtol=tolerance)
    assert np.array_equal(spreading, np.broadcast_to(total, x.shape))
    everywhere, pull = jax.vjp(lambda v: spread(v, 500), total)
    (summed,) = pull(x)
    assert everywhere.dtype == summed.dtype == dtype
    assert np.array_equal(everywhere, spreading)
    np.testing.assert_allclose(np.asarray(summed, np.float64), exact, rtol=tolerance)


@pytest.mark.parametrize("vectors", [(7,), (3, 7)])
def test_vectors_are_added_to_every_pixel(vectors):
    x, v = jnp.ones((3, 4, 5, 7)), jax.random.normal(jax.random.key(0), vectors)
    np.testing.assert_allclose(pixels.add(x, v), x + jnp.broadcast_to(v, (3, 7))[:, None, None])
    found = jax.grad(lambda v: (pixels.add(x, v) ** 2).sum())(v)
    many = 1 if len(vectors) == 2 else 3
    np.testing.assert_allclose(found, 2 * (1 + v) * 20 * many, rtol=1e-5)


def test_devices_need_nothing_of_each_other_but_sums():
    """Split a batch over four devices: no image is gathered, and gradients are equal."""
    mesh = create_mesh()
    x = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
    shapes = ((7, 7, 1, 4), (4, 4, 4, 4), (1, 1, 4, 4), (4,))
    kernels = [jax.random.normal(jax.random.key(1), shape) for shape in shapes]

    def gradients(x, kernels):
        def loss(kernels):
            h = convolution._depthwise(x, kernels[0], ((3, 3), (3, 3)))
            h = convolution.convolve(h, kernels[2], 1, ((0, 0), (0, 0)))
            return jnp.sin(pixels.add(convolution.upsample(h, kernels[1]), kernels[3])).sum()

        return jax.grad(loss)(kernels)

    expected = jax.jit(gradients)(x, kernels)
    split = jax.jit(
        gradients,
        in_shardings=(split_axis(mesh, 0), replicated(mesh)),
        out_shardings=replicated(mesh),
    )
    check_same(jax.device_get(split(x, kernels)), jax.device_get(expected))
    program = split.lower(x, kernels).compile().as_text()
    assert "all-reduce" in program
    assert not any(word in program for word in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize("network", [ConvNeXtUNet, ResNetUNet])
def test_initial_parameters(network):
    """Check for distinct kernels, uniform on ±1/√fan_in, biases of 0 and scales of 1."""
    model = network(channels=1, width=16, multipliers=(1, 2))
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
    initial = jax.jit(lambda key: init_params(model, key, x, t))
    params, seen = initial(jax.random.key(0)), []
    for path, leaf in jax.tree.leaves_with_path(params):
        kind = path[-1].key
        if kind != "kernel":
            assert np.all(leaf == {"bias": 0, "scale": 1}[kind])
            continue
        bound = (leaf.size / leaf.shape[-1]) ** -0.5
        assert np.abs(leaf).max() <= bound
        if leaf.size > 1000:
            assert np.abs(leaf).max() > 0.98 * bound
            assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.1)
        seen.append(float(leaf.ravel()[0]) / bound)
    assert len(set(seen)) == len(seen)
    again = initial(jax.random.key(1))
    assert not np.array_equal(again["Conv_0"]["kernel"], params["Conv_0"]["kernel"])
