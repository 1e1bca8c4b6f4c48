"""The networks' convolutions against XLA's, values and gradients; on one device and on four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from colddiff.devices import create_mesh, replicated, split_axis
from colddiff.networks import ConvNeXtUNet, ResNetUNet, convolution, init_params

LAYOUT = ("NHWC", "HWIO", "NHWC")
AROUND = ((1, 1), (1, 1))


def plain(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def ours(x, kernel, strides, padding, groups):
    settings = dict(dimension_numbers=LAYOUT, lhs_dilation=(1, 1), rhs_dilation=(1, 1))
    return convolution.convolve(x, kernel, strides, padding, feature_group_count=groups, **settings)


def results(function, x, kernel):
    """Output and both gradients of a weighted sum of it."""

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


CASES = {  # image, kernel, strides, padding, groups
    "depthwise 7x7": ((4, 12, 12, 6), (7, 7, 1, 6), (1, 1), ((3, 3), (3, 3)), 6),
    "depthwise, not square, padded unevenly": (
        (3, 9, 7, 5),
        (3, 5, 1, 5),
        (1, 1),
        ((0, 2), (1, 3)),
        5,
    ),
    "one channel": ((2, 9, 9, 1), (7, 7, 1, 1), (1, 1), ((3, 3), (3, 3)), 1),
    "two groups": ((2, 9, 9, 4), (3, 3, 2, 4), (1, 1), AROUND, 2),
    "1x1": ((3, 5, 4, 6), (1, 1, 6, 3), (1, 1), ((0, 0), (0, 0)), 1),
    "1x1, padded": ((3, 5, 4, 6), (1, 1, 6, 3), (1, 1), AROUND, 1),
    "depthwise, padded by more than the kernel": (
        (2, 5, 5, 3),
        (3, 3, 1, 3),
        (1, 1),
        ((3, 3), (3, 3)),
        3,
    ),
    "two outputs a channel": ((2, 6, 6, 2), (3, 3, 1, 4), (1, 1), AROUND, 2),
    "3x3": ((4, 6, 6, 5), (3, 3, 5, 7), (1, 1), AROUND, 1),
    "3x3, padded unevenly": ((2, 17, 16, 4), (3, 3, 4, 2), (1, 1), ((0, 2), (1, 0)), 1),
    "4x4, halving": ((4, 8, 12, 3), (4, 4, 3, 5), (2, 2), AROUND, 1),
    "3x3, other strides": ((4, 11, 9, 3), (3, 3, 3, 5), (2, 1), ((0, 1), (1, 1)), 1),
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
    check_same(results(convolution._upsample, x, kernel), expected)


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
        # the weights of `results` are rounded too; of the output one rounding is left
        assert np.abs(a.astype(np.float32) - b).max() <= 2**-7 * np.abs(b).max()


def lowered(function, *arguments):
    """The program of its gradients, by platform."""

    def gradients(*arguments):
        return jax.grad(lambda arguments: function(*arguments).sum())(arguments)

    traced = jax.jit(gradients).trace(*arguments)
    return {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }


def test_on_the_cpu_only():
    """Other platforms get XLA's convolutions, without loops around them."""
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((7, 7, 1, 4))
    found = lowered(lambda x, k: ours(x, k, (1, 1), ((3, 3), (3, 3)), 4), x, kernel)
    assert "while" in found["cpu"] and "stablehlo.convolution" not in found["cpu"]
    for platform in ("cuda", "tpu"):
        assert "while" not in found[platform] and "stablehlo.convolution" in found[platform]

    kernel = jnp.zeros((4, 4, 4, 4))
    found = lowered(lambda x, k: jnp.sin(convolution._upsample(x, k)), x, kernel)
    plain = lowered(lambda x, k: jnp.sin(lax.conv_transpose(x, k, (2, 2), "SAME")), x, kernel)
    count = {platform: text.count("stablehlo.convolution") for platform, text in found.items()}
    expected = {platform: text.count("stablehlo.convolution") for platform, text in plain.items()}
    assert count["cpu"] > expected["cpu"]  # by parity
    assert count["cuda"] == expected["cuda"] and count["tpu"] == expected["tpu"]


@pytest.mark.parametrize("setting", [dict(rhs_dilation=(2, 2)), dict(precision="highest")])
def test_what_is_not_there_is_refused(setting):
    x, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))
    with pytest.raises(NotImplementedError, match="neither dilation nor precision"):
        convolution.convolve(x, kernel, (1, 1), AROUND, **setting)


def test_devices_need_nothing_of_each_other_but_sums():
    """A batch split over four devices: no image is gathered, and the gradients are the same."""
    mesh = create_mesh()
    x = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
    kernels = [jax.random.normal(jax.random.key(1), s) for s in ((7, 7, 1, 4), (4, 4, 4, 4))]

    def gradients(x, kernels):
        def loss(kernels):
            h = convolution._depthwise(x, kernels[0], ((3, 3), (3, 3)))
            return jnp.sin(convolution._upsample(h, kernels[1])).sum()

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
    """Kernels uniform on ±1/√fan_in, none like another; biases 0, scales 1."""
    model = network(channels=1, width=16, multipliers=(1, 2))
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
    params = jax.jit(lambda key: init_params(model, key, x, t))(jax.random.key(0))
    seen = []
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
    again = jax.jit(lambda key: init_params(model, key, x, t))(jax.random.key(1))
    assert not np.array_equal(again["Conv_0"]["kernel"], params["Conv_0"]["kernel"])
