"""Convolutions of the networks, each in the fastest form for its platform.

1×1 convolutions are matrix products. GPUs and TPUs use XLA's form of the others. XLA's CPU backend
is slow at depthwise and transposed convolutions, so there they are built from faster operations
(docs/performance.md has the figures). Outputs and gradients equal XLA's up to the order of
summation. Forward-mode derivatives are not defined.

Images are `[B, H, W, C]`, kernels `[h, w, I, O]` (depthwise `[h, w, 1, C]`), of one dtype.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

_NONE = ((0, 0), (0, 0))
_AROUND = ((1, 1), (1, 1))  # the padding of a 4×4 kernel that halves an image's size


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Return the convolution of images with a kernel, in C / I groups."""
    h, w, inputs, outputs = kernel.shape
    if inputs == 1 < outputs == x.shape[-1] and stride == 1:
        return _depthwise(x, kernel, padding)
    if h == w == stride == 1 and padding == _NONE:
        # With more than two axes, XLA's CPU backend adds a slow transpose to the kernel's gradient.
        return (x.reshape(-1, inputs) @ kernel[0, 0]).reshape(*x.shape[:-1], outputs)
    return _xla(x, kernel, (stride, stride), padding)


# The convolutions. Each has a gradient rule, `(*settings, (x, kernel), dy)`.


def _with_gradients(convolution: Any, gradients: Callable) -> None:
    """Set `gradients` as the rule of a `jax.custom_vjp`; its residuals are the inputs alone."""
    convolution.defvjp(lambda *inputs: (convolution(*inputs), inputs[:2]), gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Return the convolution of every channel with its own kernel."""
    ours = functools.partial(_shifted_sum, padding=padding)
    theirs = functools.partial(_xla, strides=(1, 1), padding=padding)
    return lax.platform_dependent(x, kernel, cpu=ours, default=theirs)


def _depthwise_gradients(padding, inputs, dy):
    def ours(x, kernel, dy):
        dx = _shifted_sum(dy, kernel[::-1, ::-1], _adjoint(padding, kernel))
        return dx, _depthwise_kernel_gradient(x, dy, kernel, padding)

    theirs = _gradients_of(_xla, (1, 1), padding)
    return lax.platform_dependent(*inputs, dy, cpu=ours, default=theirs)


_with_gradients(_depthwise, _depthwise_gradients)


@jax.custom_vjp
def upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return images of twice the size, by a transposed convolution of a 4×4 kernel, stride 2."""
    return lax.platform_dependent(x, kernel, cpu=_by_parity, default=_transposed)


def _upsample_gradients(inputs, dy):
    # `upsample` is the input gradient of this convolution.
    x, kernel = inputs
    dx, pull = jax.vjp(lambda k: _halved(dy, k), _turned(kernel))
    return dx, _turned(*pull(x))


_with_gradients(upsample, _upsample_gradients)


# XLA's forms.


def _xla(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    groups = x.shape[-1] // kernel.shape[2]
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=groups
    )


def _halved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the convolution with a 4×4 kernel that halves the images' size."""
    return _xla(x, kernel, (2, 2), _AROUND)


def _transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the transpose of `_halved`, in which XLA's GPU backend finds an input gradient.

    `lax.conv_transpose` puts zeros between the pixels there, with four times the multiplications.
    """
    B, H, W, _ = x.shape
    y = jax.ShapeDtypeStruct((B, 2 * H, 2 * W, kernel.shape[3]), x.dtype)
    return jax.linear_transpose(lambda y: _halved(y, _turned(kernel)), y)(x)[0]


def _gradients_of(convolution: Callable, *settings: Any) -> Callable:
    """Return `(x, kernel, dy) -> (dx, dkernel)`, by automatic differentiation."""
    return lambda x, kernel, dy: jax.vjp(lambda *a: convolution(*a, *settings), x, kernel)[1](dy)


# The CPU's forms.


def _shifted_sum(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Return the depthwise convolution as a sum of shifted images, one for each kernel pixel."""
    h, w, _, C = kernel.shape
    kernel, padded = kernel.astype(jnp.float32), _grouped(_pad(x, padding))
    G, B, H, W = padded.shape[0], padded.shape[1], padded.shape[2] - h + 1, padded.shape[3] - w + 1

    # Without a loop XLA would recompute the inputs and outputs at every use.
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


def _depthwise_kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel: jax.Array, padding: Padding
) -> jax.Array:
    """Return the kernel gradient: entry (i, j) is the sum of dy times x moved by (i, j).

    The loop is over rows of dy. Each row is multiplied with the h rows of x that its outputs depend
    on, at all w horizontal offsets.
    """
    h, w, _, C = kernel.shape
    x, dy = _grouped(_pad(x, padding)), _grouped(dy.astype(jnp.float32))
    G, B, H, W = dy.shape[:4]

    def row(n, total):
        image, i = n // H, n % H
        xs = lax.dynamic_slice(x, (0, image, i, 0, 0), (G, 1, h, W + w - 1, C))[:, 0]
        dys = lax.dynamic_slice(dy, (0, image, i, 0, 0), (G, 1, 1, W, C))[:, 0, 0]
        # XLA compiles nested stacks to one fast loop; a single stack is ten times slower.
        places = [jnp.stack([xs[:, a, b : b + W] * dys for b in range(w)]) for a in range(h)]
        return total + jnp.stack(places)

    total = lax.fori_loop(0, B * H, row, jnp.zeros((h, w, G, W, C), jnp.float32))
    return total.sum((2, 3))[:, :, None].astype(kernel.dtype)


def _by_parity(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the transposed convolution as four 2×2 ones, for even and odd rows and columns."""
    B, H, W, _ = x.shape
    quarters = [
        [_xla(x, kernel[a::2, b::2], (1, 1), ((1 - a, a), (1 - b, b))) for b in (0, 1)]
        for a in (0, 1)
    ]
    y = jnp.stack([jnp.stack(row, axis=3) for row in quarters], axis=2)
    return y.reshape(B, 2 * H, 2 * W, -1)


def _grouped(x: jax.Array) -> jax.Array:
    """Return `[G, B / G, ...]`, a group for each device, so that loops over B / G stay local.

    In an exported program B is a symbol, and G = 1.
    """
    B = x.shape[0]
    G = math.gcd(B, jax.device_count()) if isinstance(B, int) else 1
    return x.reshape(G, B // G, *x.shape[1:])


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    """Return padded images in float32, the dtype of all sums."""
    return jnp.pad(x.astype(jnp.float32), ((0, 0), *padding, (0, 0)))


def _adjoint(padding: Padding, kernel: jax.Array) -> Padding:
    """Return the padding of the convolution that computes dx from dy."""
    sizes = zip(kernel.shape, padding, strict=False)
    return tuple((size - 1 - low, size - 1 - high) for size, (low, high) in sizes)


def _turned(kernel: jax.Array) -> jax.Array:
    """Return the kernel turned by 180°, with inputs and outputs swapped."""
    return kernel[::-1, ::-1].swapaxes(2, 3)
