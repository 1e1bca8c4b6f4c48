"""The restorers: their size, their blocks against NumPy and SciPy, and their errors.

docs/networks.md compares both with the authors' PyTorch networks.
"""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import parameter_overview
from scipy import signal, special

from colddiff.networks import (
    NETWORKS,
    ConvNeXtUNet,
    ResNetUNet,
    convnext_unet,
    init_params,
    resnet_unet,
)
from colddiff.networks.layers import sinusoidal_embedding
from colddiff.runtime.errors import UserError


def shapes_of(model, size):
    images, t = jnp.zeros((1, size, size, model.channels)), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, t)["params"])


def initial(module, *inputs):
    return jax.jit(lambda key: init_params(module, key, *inputs))(jax.random.key(1))


@pytest.mark.parametrize(
    ("model", "millions"),
    [(ConvNeXtUNet(channels=3), 56.615708), (ResNetUNet(channels=3), 35.746307)],
)
def test_parameter_counts_of_the_paper(model, millions):
    assert parameter_overview.count_parameters(shapes_of(model, 32)) == millions * 1e6


@pytest.mark.slow
@pytest.mark.parametrize("network", [ConvNeXtUNet, ResNetUNet])
def test_any_width_multipliers_and_size(network):
    model = network(channels=3, width=10, multipliers=(1, 3))
    x, t = jax.random.normal(jax.random.key(0), (2, 6, 6, 3)), jnp.array([1, 7])
    params = {"params": initial(model, x, t)}
    apply = jax.jit(model.apply)
    found = apply(params, x, t)
    assert found.shape == x.shape and found.dtype == jnp.float32 and np.all(np.isfinite(found))
    assert np.abs(found - apply(params, x, t + 5)).max() > 1e-3  # t matters


@pytest.mark.slow
@pytest.mark.parametrize("network", [ConvNeXtUNet, ResNetUNet])
def test_bfloat16_rounds_and_returns_float32(network):
    """Check it with one level, one channel and an odd width and size."""
    model = network(channels=1, width=7, multipliers=(2,))
    x, t = jax.random.normal(jax.random.key(0), (2, 5, 5, 1)), jnp.array([1, 7])
    params = {"params": initial(model, x, t)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found, rounded = (
        jax.jit(model.clone(dtype=dtype).apply)(params, x, t) for dtype in ("float32", "bfloat16")
    )
    assert found.shape == rounded.shape == x.shape and rounded.dtype == jnp.float32
    assert 0 < np.abs(found - rounded).max() < 0.05 * np.abs(found).max()


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize(
    ("size", "message"), [(30, "multiples of 8: use 24 or 32"), (5, "multiples of 8: use 8, or")]
)
def test_sizes_that_cannot_work_are_refused(network, size, message):
    with pytest.raises(UserError, match=f"image_size={size} cannot be halved 3 times.*{message}"):
        shapes_of(NETWORKS[network](channels=1, multipliers=(1, 2, 2, 2)), size)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_oblong_images_keep_their_shape_or_are_refused(network):
    model = NETWORKS[network](channels=2, width=8, multipliers=(1, 2))

    def output(*shape):
        x, t = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
        return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, t)[0]).shape

    assert output(6, 10, 2) == (1, 6, 10, 2)
    with pytest.raises(
        UserError, match=r"=\(6, 11\) cannot be halved 1 times.*use 10 or 12 for 11"
    ):
        output(6, 11, 2)
    with pytest.raises(UserError, match=r"takes images \[B, H, W, C\]; got shape \(1, 6, 10\)"):
        output(6, 10)


@pytest.mark.slow
def test_options_of_the_convnext_unet():
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), jnp.array([3])
    model = ConvNeXtUNet(channels=1, width=8, multipliers=(1,))
    params = {"params": initial(model, x, t)}
    residual = jax.jit(model.clone(residual=True).apply)(params, x, t)
    np.testing.assert_allclose(residual, x + jax.jit(model.apply)(params, x, t), atol=1e-5)
    timeless = model.clone(time_embedding=False)
    params = {"params": initial(timeless, x, t)}
    run = jax.jit(timeless.apply)
    assert np.array_equal(run(params, x, t), run(params, x, t + 9))


@pytest.mark.slow
@pytest.mark.parametrize("network", [ConvNeXtUNet, ResNetUNet])
def test_recomputed_blocks_change_nothing(network):
    """Compare parameters, outputs and gradients with and without."""
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.array([1, 7])
    models = [network(channels=1, width=4, multipliers=(1,), remat=remat) for remat in (0, 1)]
    params = initial(models[0], x, t)

    def loss(model, params):
        return jnp.mean(model.apply({"params": params}, x, t) ** 2)

    plain, recomputed = (jax.jit(jax.value_and_grad(lambda p, m=m: loss(m, p))) for m in models)
    assert "remat" in str(jax.make_jaxpr(lambda p: loss(models[1], p))(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain(params), recomputed(params)
    )


def test_patches_are_pixels_of_more_channels():
    """Compare with the same network on images that NumPy has rearranged."""
    model = ResNetUNet(channels=2, width=4, multipliers=(1,), num_blocks=1, patch=2)
    inner = model.clone(channels=8, patch=1)
    x, t = (
        np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(np.float32),
        jnp.array([1, 2, 3]),
    )

    def rearranged(x):
        quarters = [x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]
        return np.concatenate(quarters, -1)

    params = {"params": initial(model, x, t)}
    found = jax.jit(model.apply)(params, x, t)
    assert found.shape == x.shape
    expected = jax.jit(inner.apply)(params, rearranged(x), t)
    np.testing.assert_allclose(rearranged(np.asarray(found)), expected, atol=1e-6)
    with pytest.raises(
        UserError, match=r"divided into patches of 2 and halved 0 times.*use 4 or 6"
    ):
        shapes_of(model, 5)


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), jnp.array([3])
    model = ResNetUNet(channels=1, width=8, multipliers=(1,), dropout=0.5)
    params = {"params": initial(model, x, t)}
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


# The blocks in NumPy and SciPy, in float64.


def conv2d(x, params, pad, stride=1):
    """Correlate `[H, W, I]` to `[H', W', O]`, zero padding, one pair of channels at a time."""
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


def group_norm(x, params):
    H, W, C = x.shape
    groups = math.gcd(32, C)
    grouped = x.reshape(H, W, groups, C // groups)
    mean, var = grouped.mean((0, 1, 3), keepdims=True), grouped.var((0, 1, 3), keepdims=True)
    grouped = (grouped - mean) / np.sqrt(var + 1e-6)
    return grouped.reshape(H, W, C) * params["scale"] + params["bias"]


def init_and_apply(module, *inputs):
    """Return the output for the first image, and random parameters other than 0 and 1."""
    shapes = jax.eval_shape(lambda key: init_params(module, key, *inputs), jax.random.key(0))
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.float32(math.sqrt(leaf.size // leaf.shape[-1]))
            case "scale":
                return 1 + np.float32(0.3) * noise
            case "bias":
                return np.float32(0.3) * noise

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return np.asarray(jax.jit(module.apply)({"params": params}, *inputs)[0]), params


NONE, SAME3, SAME4, SAME7 = (((pad, pad), (pad, pad)) for pad in (0, 1, 1, 3))
AFTER = ((0, 1), (0, 1))


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def convnext_block(x, time, p, features, norm=True):
    h = conv2d(x, p["Conv_0"], SAME7)
    if time is not None:
        h = h + dense(gelu(time), p["Dense_0"])
    if norm:
        h = layer_norm(h, p["LayerNorm_0"])
    h = conv2d(gelu(conv2d(h, p["Conv_1"], SAME3)), p["Conv_2"], SAME3)
    assert p["Conv_1"]["kernel"].shape[-1] == 2 * features
    return h + (x if x.shape[-1] == features else conv2d(x, p["Conv_3"], NONE))


def linear_attention(x, p):
    pixels = x.reshape(-1, x.shape[-1])
    qkv = layer_norm(pixels, p["LayerNorm_0"]) @ p["Conv_0"]["kernel"][0, 0]
    out = []
    for head in range(4):
        q, k, v = (qkv[:, 128 * i + 32 * head : 128 * i + 32 * head + 32] for i in range(3))
        out.append(q / np.sqrt(32) @ (special.softmax(k, axis=0).T @ v))
    out = np.concatenate(out, axis=1) @ p["Conv_1"]["kernel"][0, 0] + p["Conv_1"]["bias"]
    return (pixels + out).reshape(x.shape)


def resnet_block(x, time, p, features):
    h = conv2d(swish(group_norm(x, p["GroupNorm_0"])), p["Conv_0"], SAME3)
    h = swish(group_norm(h + dense(swish(time), p["Dense_0"]), p["GroupNorm_1"]))
    h = conv2d(h, p["Conv_1"], SAME3)
    return h + (x if x.shape[-1] == features else dense(x, p["Dense_1"]))


def attention(x, p):
    pixels = x.reshape(-1, x.shape[-1])
    h = group_norm(x, p["GroupNorm_0"]).reshape(pixels.shape)
    q, k, v = (dense(h, p[f"Dense_{i}"]) for i in range(3))
    weights = special.softmax(q @ k.T / np.sqrt(x.shape[-1]), axis=1)
    return (pixels + dense(weights @ v, p["Dense_3"])).reshape(x.shape)


def embedding(t, width):
    angles = t / 10000 ** (np.arange(width // 2) / (width // 2 - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)])


def upsampled(x, params):
    """Put zeros between the pixels, then convolve: a transposed 4×4 convolution of stride 2."""
    spread = np.zeros((2 * x.shape[0] - 1, 2 * x.shape[1] - 1, x.shape[2]))
    spread[::2, ::2] = x
    return conv2d(spread, params, ((2, 2), (2, 2)))


class Parts:
    """The parameters of a network's modules by kind, in the order of their creation."""

    def __init__(self, params):
        self.params, self.taken = params, collections.Counter()

    def __call__(self, kind):
        self.taken[kind] += 1
        return self.params[f"{kind}_{self.taken[kind] - 1}"]


def convnext_unet_reference(params, x, t, width, multipliers):
    part = Parts(params)
    time = dense(gelu(dense(embedding(t, width), part("Dense"))), part("Dense"))
    features = [width * m for m in multipliers]
    skips = []

    def level(x, f, norm=True):
        x = convnext_block(x, time, part("_Block"), f, norm)
        return linear_attention(
            convnext_block(x, time, part("_Block"), f), part("_LinearAttention")
        )

    for i, f in enumerate(features):
        x = level(x, f, norm=i > 0)
        skips.append(x)
        x = conv2d(x, part("Conv"), SAME4, stride=2) if i < len(features) - 1 else x
    x = convnext_block(x, time, part("_Block"), features[-1])
    x = linear_attention(x, part("_LinearAttention"))
    x = convnext_block(x, time, part("_Block"), features[-1])
    for i in range(len(features) - 1, 0, -1):
        x = level(np.concatenate([x, skips[i]], axis=-1), features[i - 1])
        x = upsampled(x, part("ConvTranspose"))
    return conv2d(convnext_block(x, None, part("_Block"), width), part("Conv"), NONE)


def resnet_unet_reference(params, x, t, width, multipliers, num_blocks, attention_sizes):
    part = Parts(params)
    time = dense(swish(dense(embedding(t, width), part("Dense"))), part("Dense"))
    features = [width * m for m in multipliers]

    def block(x, f):
        x = resnet_block(x, time, part("_Block"), f)
        return attention(x, part("_Attention")) if len(x) in attention_sizes else x

    x = conv2d(x, part("Conv"), SAME3)
    skips = [x]
    for i, f in enumerate(features):
        for _ in range(num_blocks):
            x = block(x, f)
            skips.append(x)
        if i < len(features) - 1:
            x = conv2d(x, part("Conv"), AFTER, stride=2)
            skips.append(x)
    x = resnet_block(x, time, part("_Block"), features[-1])
    x = attention(x, part("_Attention"))
    x = resnet_block(x, time, part("_Block"), features[-1])
    for i, f in reversed(list(enumerate(features))):
        for _ in range(num_blocks + 1):
            x = block(np.concatenate([x, skips.pop()], axis=-1), f)
        x = conv2d(np.kron(x, np.ones((2, 2, 1))), part("Conv"), SAME3) if i else x
    return conv2d(swish(group_norm(x, part("GroupNorm"))), part("Conv"), SAME3)


@pytest.mark.parametrize(
    ("network", "reference", "options"),
    [
        (ConvNeXtUNet, convnext_unet_reference, {}),
        (ResNetUNet, resnet_unet_reference, dict(num_blocks=1, attention_sizes=(4,))),
    ],
    ids=["convnext_unet", "resnet_unet"],
)
def test_the_whole_network(network, reference, options):
    options = dict(width=8, multipliers=(1, 2), **options)
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 2)), jnp.array([3])
    found, params = init_and_apply(network(channels=2, **options), x, t)
    expected = reference(params, np.asarray(x[0], np.float64), 3, **options)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_a_block_with_another_number_of_features():
    x, time = jax.random.normal(jax.random.key(0), (1, 6, 6, 64)), jnp.ones((1, 5))
    image = np.asarray(x[0], np.float64)
    found, p = init_and_apply(convnext_unet._Block(6), x, time)
    np.testing.assert_allclose(found, convnext_block(image, np.ones(5), p, 6), atol=1e-3)
    found, p = init_and_apply(_InEvaluation(32, 0.1, jnp.float32), x, time)
    np.testing.assert_allclose(found, resnet_block(image, np.ones(5), p, 32), atol=1e-3)


@pytest.mark.parametrize("most_scores", [2**24, 3 * 20, 1])
def test_attention_may_be_in_parts(most_scores, monkeypatch):
    monkeypatch.setattr(resnet_unet, "_MOST_SCORES", most_scores)
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 8))
    found, p = init_and_apply(resnet_unet._Attention(jnp.float32), x)
    np.testing.assert_allclose(found, attention(np.asarray(x[0], np.float64), p), atol=1e-3)


class _InEvaluation(resnet_unet._Block):
    def __call__(self, x, time):
        return super().__call__(x, time, train=False)
