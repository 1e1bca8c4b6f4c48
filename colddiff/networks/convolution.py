"""Convolutions of the networks, each the way its platform runs it fastest.

GPUs and TPUs run XLA's own. XLA's CPU backend is slow at some that the ConvNeXt U-Net needs:
depthwise ones, 1×1 ones, strided and transposed ones backwards, kernel gradients of large images.
There they are made of operations it is fast at; `_on` chooses, docs/performance.md has the figures.
Outputs and gradients are XLA's but for the order of summation. There is no forward-mode derivative.

Images are `[B, H, W, C]`, kernels `[h, w, I, O]` (depthwise `[h, w, 1, C]`), of one dtype.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

_LARGE = 256  # pixels of an image from which on a kernel gradient on the CPU is better made here
_BLOCK = 2048  # pixels whose windows one matrix product takes: about what a core's cache holds
_AROUND = ((1, 1), (1, 1))  # the padding of a 4×4 kernel that halves an image's size


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int,
    **defaults: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, for an undilated `nn.Conv(conv_general_dilated=convolve)`."""
    del defaults
    strides, padding = tuple(strides), tuple(map(tuple, padding))
    if feature_group_count > 1 and kernel.shape[2] == 1 and strides == (1, 1):
        return _depthwise(x, kernel, padding)
    if kernel.shape[:2] == strides == (1, 1) and feature_group_count == 1:
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
    large = x.shape[1] * x.shape[2] >= _LARGE or strides != (1, 1)
    if large and feature_group_count == 1:
        return _dense(x, kernel, strides, padding)
    return _xla(x, kernel, strides, padding)


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose` of a 4×4 kernel that doubles an image's size, with the same parameters."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, 2H, 2W, features]`."""
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _upsample(x, kernel) + bias[None, None, None]


def _on(cpu: Callable, elsewhere: Callable, *arguments: jax.Array) -> Any:
    """`cpu(*arguments)` where the program is compiled for a CPU, else `elsewhere(*arguments)`."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=elsewhere)


# The convolutions. Each has a rule for its gradients, `(*settings, (x, kernel), dy)`.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Every channel with its own kernel."""
    ours = functools.partial(_shifted_sum, padding=padding)
    theirs = functools.partial(_xla, strides=(1, 1), padding=padding)
    return _on(ours, theirs, x, kernel)


def _depthwise_gradients(padding, inputs, dy):
    def ours(x, kernel, dy):
        dx = _shifted_sum(dy, kernel[::-1, ::-1], _adjoint(padding, kernel))
        return dx, _depthwise_kernel_gradient(x, dy, kernel, padding)

    return _on(ours, _gradients_of(_xla, (1, 1), padding), *inputs, dy)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Every channel with every other."""
    return _xla(x, kernel, strides, padding)


def _dense_gradients(strides, padding, inputs, dy):
    def ours(x, kernel, dy):
        if (kernel.shape[:2], strides, padding) == ((4, 4), (2, 2), _AROUND):
            dx = _by_parity(dy, _turned(kernel))
        else:
            dx = jax.vjp(lambda x: _xla(x, kernel, strides, padding), x)[1](dy)[0]
        return dx, _kernel_gradient(x, dy, kernel, strides, padding)

    return _on(ours, _gradients_of(_xla, strides, padding), *inputs, dy)


@jax.custom_vjp
def _upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The transposed convolution of a 4×4 kernel and stride 2."""
    return _on(_by_parity, _transposed, x, kernel)


def _upsample_gradients(inputs, dy):
    def ours(x, kernel, dy):
        kernel = _turned(kernel)
        dx = _xla(dy, kernel, (2, 2), _AROUND)
        return dx, _turned(_kernel_gradient(dy, x, kernel, (2, 2), _AROUND))

    return _on(ours, _gradients_of(_transposed), *inputs, dy)


for _function, _gradients in (
    (_depthwise, _depthwise_gradients),
    (_dense, _dense_gradients),
    (_upsample, _upsample_gradients),
):
    _function.defvjp(
        lambda x, kernel, *settings, _function=_function: (
            _function(x, kernel, *settings),
            (x, kernel),
        ),
        _gradients,
    )


# How XLA has them.


def _xla(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    groups = x.shape[-1] // kernel.shape[2]
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=groups
    )


def _transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_transpose(x, kernel, (2, 2), "SAME")


def _gradients_of(convolution: Callable, *settings: Any) -> Callable:
    """`(x, kernel, dy) -> (dx, dkernel)`, by automatic differentiation."""
    return lambda x, kernel, dy: jax.vjp(lambda *a: convolution(*a, *settings), x, kernel)[1](dy)


# How the CPU runs them.


def _shifted_sum(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Depthwise: for each pixel of the kernel, one multiplication of the whole image, moved."""
    h, w, _, C = kernel.shape
    kernel, padded = kernel.astype(jnp.float32), _grouped(_pad(x, padding))
    G, B, H, W = padded.shape[0], padded.shape[1], padded.shape[2] - h + 1, padded.shape[3] - w + 1

    # Without a loop XLA would compute what goes in, and what comes out, anew at every use.
    def image(n, y):
        xn = lax.dynamic_index_in_dim(padded, n, axis=1, keepdims=False)
        yn = sum(
            xn[:, i : i + H, j : j + W] * kernel[i, j, 0][None, None, None]
            for i in range(h)
            for j in range(w)
        )
        return lax.dynamic_update_index_in_dim(y, yn.astype(y.dtype), n, axis=1)

    y = lax.fori_loop(0, B, image, jnp.zeros((G, B, H, W, C), x.dtype))
    return y.reshape(G * B, H, W, C)


def _depthwise_kernel_gradient(x, dy, kernel, padding):
    """The sum of row after row of dy times the h rows of x that it sees, at each of w places."""
    h, w = kernel.shape[:2]

    def row(x, dy):
        W = dy.shape[3]
        # Nested like this, XLA compiles the stacks to one fast loop; one stack is ten times slower.
        places = [
            jnp.stack([x[:, 0, i, j : j + W] * dy[:, 0, 0] for j in range(w)]) for i in range(h)
        ]
        return jnp.stack(places)

    total = _sum_over_blocks(row, _pad(x, padding), dy, (h, w), (1, 1), pixels=dy.shape[2])
    return total.sum((2, 3))[:, :, None].astype(kernel.dtype)


def _kernel_gradient(x, dy, kernel, strides, padding):
    """Of a dense convolution: for each block of pixels, x's windows times dy, a matrix product."""
    h, w, inputs, outputs = kernel.shape
    if inputs > outputs and strides == (1, 1):  # the windows of dy are smaller
        turned = _turned(kernel)
        return _turned(_kernel_gradient(dy, x, turned, strides, _adjoint(padding, kernel)))

    def block(x, dy):
        G, _, H, W, _ = dy.shape
        (down, right), places = strides, [(i, j) for i in range(h) for j in range(w)]
        windows = [x[:, :, i : i + H * down : down, j : j + W * right : right] for i, j in places]
        windows = jnp.concatenate(windows, axis=-1).reshape(G, -1, h * w * inputs)
        return jnp.einsum("gpi,gpo->gio", windows, dy.reshape(G, -1, outputs))

    total = _sum_over_blocks(block, _pad(x, padding), dy, (h, w), strides, pixels=_BLOCK)
    return total.sum(0).reshape(kernel.shape).astype(kernel.dtype)


def _by_parity(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed: even and odd rows and columns each see 2×2 pixels, so four small convolutions."""
    B, H, W, _ = x.shape
    quarters = [
        [_xla(x, kernel[a::2, b::2], (1, 1), ((1 - a, a), (1 - b, b))) for b in (0, 1)]
        for a in (0, 1)
    ]
    y = jnp.stack([jnp.stack(row, axis=3) for row in quarters], axis=2)
    return y.reshape(B, 2 * H, 2 * W, -1)


def _sum_over_blocks(
    term: Callable,
    x: jax.Array,
    dy: jax.Array,
    size: tuple[int, int],
    strides: tuple[int, int],
    *,
    pixels: int,
) -> jax.Array:
    """Σ term(x, dy) over blocks of at most so many `pixels` of dy, each with the x that it sees.

    Args:
      term: takes `[G, images, rows, W, C]` of both.
      x: padded, so that a kernel of `size` and `strides` gives images of dy's size.
    """
    x, dy = _grouped(x), _grouped(dy.astype(jnp.float32))
    _, B, H, W, _ = dy.shape
    images = math.gcd(B, max(1, pixels // (H * W)))
    rows = H if pixels >= H * W else math.gcd(H, max(1, pixels // W))
    seen = (rows - 1) * strides[0] + size[0]
    per_image = H // rows

    def block(n):
        image, row = n // per_image * images, n % per_image * rows
        xs = lax.dynamic_slice_in_dim(x, image, images, axis=1)
        xs = lax.dynamic_slice_in_dim(xs, row * strides[0], seen, axis=2)
        dys = lax.dynamic_slice_in_dim(dy, image, images, axis=1)
        return term(xs, lax.dynamic_slice_in_dim(dys, row, rows, axis=2))

    like = jax.eval_shape(block, 0)
    blocks = B // images * per_image
    return lax.fori_loop(0, blocks, lambda n, s: s + block(n), jnp.zeros(like.shape, like.dtype))


def _grouped(x: jax.Array) -> jax.Array:
    """`[G, B / G, ...]`, a group for each device: loops over B / G need nothing of another's."""
    G = math.gcd(len(x), jax.device_count())
    return x.reshape(G, len(x) // G, *x.shape[1:])


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    """In float32, in which all sums are."""
    return jnp.pad(x.astype(jnp.float32), ((0, 0), *padding, (0, 0)))


def _adjoint(padding: Padding, kernel: jax.Array) -> Padding:
    """Of the convolution that takes dy back to dx."""
    sizes = zip(kernel.shape, padding, strict=False)
    return tuple((size - 1 - low, size - 1 - high) for size, (low, high) in sizes)


def _turned(kernel: jax.Array) -> jax.Array:
    """By 180°, inputs for outputs."""
    return kernel[::-1, ::-1].swapaxes(2, 3)
