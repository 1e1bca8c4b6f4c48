"""The restorers: their size, their blocks against plain NumPy and SciPy, and what they refuse.

Against the authors' PyTorch networks with the same weights both agree to 1e-6 (docs/networks.md).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import parameter_overview
from scipy import signal, special

from colddiff.errors import UserError
from colddiff.networks import NETWORKS, ConvNeXtUNet, ResNetUNet, convnext_unet, resnet_unet
from colddiff.networks.layers import sinusoidal_embedding


def shapes_of(model, size):
    images, t = jnp.zeros((1, size, size, model.channels)), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, t)["params"])


@pytest.mark.parametrize(
    ("model", "millions"),
    [(ConvNeXtUNet(channels=3), 56.615708), (ResNetUNet(channels=3), 35.746307)],
)
def test_parameter_counts_of_the_paper(model, millions):
    assert parameter_overview.count_parameters(shapes_of(model, 32)) == millions * 1e6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("network", "width", "multipliers", "size", "channels"),
    [
        (ConvNeXtUNet, 10, (1, 3), 6, 3),
        (ConvNeXtUNet, 7, (2,), 5, 1),
        (ResNetUNet, 10, (1, 3), 6, 3),
        (ResNetUNet, 7, (2,), 5, 1),
    ],
)
def test_any_width_multipliers_and_size(network, width, multipliers, size, channels, dtype):
    model = network(channels=channels, width=width, multipliers=multipliers, dtype=dtype)
    x = jax.random.normal(jax.random.key(0), (2, size, size, channels))
    t = jnp.array([1, 7])
    params = jax.jit(model.init)(jax.random.key(1), x, t)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = jax.jit(model.apply)({"params": params}, x, t)
    assert found.shape == x.shape and found.dtype == jnp.float32 and np.all(np.isfinite(found))
    exact = jax.jit(model.clone(dtype=jnp.float32).apply)({"params": params}, x, t)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    assert np.abs(found - exact).max() < tolerance * np.abs(exact).max()
    later = jax.jit(model.apply)({"params": params}, x, t + 5)
    assert np.abs(found - later).max() > 1e-3  # it sees t


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize(
    ("size", "message"), [(30, "multiples of 8: use 24 or 32"), (5, "multiples of 8: use 8, or")]
)
def test_sizes_that_cannot_work_are_refused(network, size, message):
    with pytest.raises(UserError, match=f"image_size={size} cannot be halved 3 times.*{message}"):
        shapes_of(NETWORKS[network](channels=1, multipliers=(1, 2, 2, 2)), size)


def test_options_of_the_convnext_unet():
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), jnp.array([3])
    model = ConvNeXtUNet(channels=1, width=8, multipliers=(1,))
    params = jax.jit(model.init)(jax.random.key(1), x, t)
    residual = jax.jit(model.clone(residual=True).apply)(params, x, t)
    np.testing.assert_allclose(residual, x + jax.jit(model.apply)(params, x, t), atol=1e-5)
    timeless = model.clone(time_embedding=False)
    params = jax.jit(timeless.init)(jax.random.key(1), x, t)
    run = jax.jit(timeless.apply)
    assert np.array_equal(run(params, x, t), run(params, x, t + 9))


def test_dropout_acts_in_training_only():
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), jnp.array([3])
    model = ResNetUNet(channels=1, width=8, multipliers=(1,), dropout=0.5)
    params = jax.jit(model.init)(jax.random.key(1), x, t)
    train = jax.jit(lambda key: model.apply(params, x, t, train=True, rngs={"dropout": key}))
    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    assert not np.array_equal(first, second)
    without = jax.jit(model.clone(dropout=0.0).apply)(params, x, t)
    assert np.array_equal(jax.jit(model.apply)(params, x, t), without)


def test_sinusoidal_embedding():
    t, width = np.array([0, 3, 200]), 9
    angles = t[:, None] / 10000 ** (np.arange(4) / 3)
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((3, 1))], axis=1)
    np.testing.assert_allclose(sinusoidal_embedding(jnp.array(t), width), expected, atol=1e-4)


# Blocks, written again with NumPy and SciPy in float64.


def conv2d(x, params, pad, stride=1):
    """Correlation `[H, W, I]` -> `[H', W', O]` with zero padding, one channel pair at a time."""
    kernel = np.asarray(params["kernel"], np.float64)
    x = np.pad(x, (*pad, (0, 0)))
    depthwise = kernel.shape[2] == 1 and x.shape[2] > 1
    planes = []
    for o in range(kernel.shape[3]):
        pairs = [(o, 0)] if depthwise else [(i, i) for i in range(x.shape[2])]
        planes.append(
            sum(signal.correlate2d(x[..., i], kernel[:, :, k, o], "valid") for i, k in pairs)
        )
    return (np.stack(planes, axis=-1) + params.get("bias", 0))[::stride, ::stride]


def gelu(x):
    return x * 0.5 * (1 + special.erf(x / np.sqrt(2)))


def swish(x):
    return x / (1 + np.exp(-x))


def layer_norm(x, params):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def group_norm(x, params, groups):
    H, W, C = x.shape
    grouped = x.reshape(H, W, groups, C // groups)
    mean, var = grouped.mean((0, 1, 3), keepdims=True), grouped.var((0, 1, 3), keepdims=True)
    grouped = (grouped - mean) / np.sqrt(var + 1e-6)
    return grouped.reshape(H, W, C) * params["scale"] + params["bias"]


def init_and_apply(module, *inputs):
    """Output for the first image, and the parameters, randomised so that none is 0 or 1."""
    params = jax.jit(module.init)(jax.random.key(2), *inputs)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])
    found = jax.jit(module.apply)({"params": params}, *inputs)[0]
    return np.asarray(found), jax.device_get(params)


SAME3, SAME7 = ((1, 1), (1, 1)), ((3, 3), (3, 3))


@pytest.mark.parametrize("features", [4, 6])
def test_convnext_block(features):
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    time = jax.random.normal(jax.random.key(1), (1, 5))
    found, p = init_and_apply(convnext_unet._Block(features), x, time)
    image, time = np.asarray(x[0], np.float64), np.asarray(time[0], np.float64)
    h = conv2d(image, p["Conv_0"], SAME7)
    h = layer_norm(h + gelu(time) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], p["LayerNorm_0"])
    h = conv2d(gelu(conv2d(h, p["Conv_1"], SAME3)), p["Conv_2"], SAME3)
    assert p["Conv_1"]["kernel"].shape[-1] == 2 * features
    shortcut = image if features == 4 else conv2d(image, p["Conv_3"], ((0, 0), (0, 0)))
    np.testing.assert_allclose(found, h + shortcut, atol=1e-4)


def test_linear_attention():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 6))
    found, p = init_and_apply(convnext_unet._LinearAttention(), x)
    image = np.asarray(x[0], np.float64).reshape(16, 6)
    qkv = layer_norm(image, p["LayerNorm_0"]) @ p["Conv_0"]["kernel"][0, 0]
    out = []
    for head in range(4):
        q, k, v = (qkv[:, 128 * i + 32 * head : 128 * i + 32 * head + 32] for i in range(3))
        out.append(q / np.sqrt(32) @ (special.softmax(k, axis=0).T @ v))
    out = np.concatenate(out, axis=1) @ p["Conv_1"]["kernel"][0, 0] + p["Conv_1"]["bias"]
    np.testing.assert_allclose(found.reshape(16, 6), image + out, atol=1e-4)


class _InEvaluation(resnet_unet._Block):
    def __call__(self, x, time):
        return super().__call__(x, time, train=False)


def test_resnet_block():
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 64))
    time = jax.random.normal(jax.random.key(1), (1, 5))
    found, p = init_and_apply(_InEvaluation(32, 0.1, jnp.float32), x, time)
    image, time = np.asarray(x[0], np.float64), np.asarray(time[0], np.float64)
    dense = lambda h, name: h @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    h = conv2d(swish(group_norm(image, p["GroupNorm_0"], 32)), p["Conv_0"], SAME3)
    h = swish(group_norm(h + dense(swish(time), "Dense_0"), p["GroupNorm_1"], 32))
    expected = conv2d(h, p["Conv_1"], SAME3) + dense(image, "Dense_1")
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_full_attention():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    found, p = init_and_apply(resnet_unet._Attention(jnp.float32), x)
    image = np.asarray(x[0], np.float64).reshape(16, 8)
    dense = lambda h, i: h @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"]["bias"]  # noqa: E731
    h = group_norm(image.reshape(4, 4, 8), p["GroupNorm_0"], 8).reshape(16, 8)
    weights = special.softmax(dense(h, 0) @ dense(h, 1).T / np.sqrt(8), axis=1)
    expected = image + dense(weights @ dense(h, 2), 3)
    np.testing.assert_allclose(found.reshape(16, 8), expected, atol=1e-4)
