"""Convolutions of the networks, each the way its platform runs it fastest.

GPUs and TPUs run XLA's own convolutions. XLA's CPU backend is slow at three things that the networks
need: depthwise convolutions, kernel gradients, and inputs spread out by zeros, as strides bring them
(docs/performance.md has the measurements). There they are made of what it is fast at. `_on` chooses.
Values and gradients are XLA's but for the order of summation.

All images are `[B, H, W, C]`, kernels `[h, w, I, O]`, of one dtype; sums over a kernel are float32.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_BLOCK = 1024  # pixels whose windows one matrix product takes: what stays in a core's cache
Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int,
    **others: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=convolve)` without dilation."""
    del others  # dimension numbers, dilations and precision: nn.Conv's defaults
    strides, padding = tuple(strides), tuple(map(tuple, padding))
    if kernel.shape[:2] == strides == (1, 1) and feature_group_count == 1:
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
    if feature_group_count > 1:
        return _depthwise(x, kernel, padding)
    return _dense(x, kernel, strides, padding)


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose` of a 4×4 kernel that doubles an image's size, with the same parameters."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, 2H, 2W, features]`."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _upsample(x, kernel) + bias[None, None, None]


def _on(cpu: Callable, elsewhere: Callable, *arguments: Any) -> Any:
    """`cpu(*arguments)` where the program is compiled for a CPU, else `elsewhere(*arguments)`."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=elsewhere)


# A dense convolution.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding):
    return _xla(x, kernel, strides, padding)


def _dense_gradients(strides, padding, inputs, dy):
    x, kernel = inputs

    def cpu(x, kernel, dy):
        if strides == (2, 2) and kernel.shape[:2] == (4, 4):
            dx = _upsample(dy, _turned(kernel))
        else:
            dx = jax.vjp(lambda x: _xla(x, kernel, strides, padding), x)[1](dy)[0]
        return dx, _kernel_gradient(x, dy, kernel, strides, padding)

    return _on(cpu, _gradients_of(_xla, strides, padding), x, kernel, dy)


# A depthwise convolution of stride 1.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, padding: Padding):
    return _on(
        functools.partial(_shifted_sum, padding=padding),
        functools.partial(_xla, strides=(1, 1), padding=padding),
        x,
        kernel,
    )


def _depthwise_gradients(padding, inputs, dy):
    def cpu(x, kernel, dy):
        dx = _shifted_sum(dy, kernel[::-1, ::-1], _adjoint(padding, kernel))
        return dx, _depthwise_kernel_gradient(x, dy, kernel, padding)

    return _on(cpu, _gradients_of(_xla, (1, 1), padding), *inputs, dy)


def _shifted_sum(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """One multiplication of the whole image, moved, for each pixel of the kernel."""
    h, w = kernel.shape[:2]
    x_, kernel = _grouped(_pad(x, padding)), kernel.astype(jnp.float32)
    H, W = x_.shape[2] - h + 1, x_.shape[3] - w + 1

    # The loop keeps XLA from computing what it needs, and what it gives, anew at every use.
    def image(n, y):
        xn = lax.dynamic_index_in_dim(x_, n, axis=1, keepdims=False)
        yn = sum(xn[:, i : i + H, j : j + W] * kernel[i, j, 0] for i in range(h) for j in range(w))
        return lax.dynamic_update_index_in_dim(y, yn.astype(x.dtype), n, axis=1)

    y = lax.fori_loop(0, x_.shape[1], image, jnp.zeros((*x_.shape[:2], H, W, x.shape[-1]), x.dtype))
    return y.reshape(-1, H, W, x.shape[-1])


def _depthwise_kernel_gradient(x, dy, kernel, padding):
    h, w = kernel.shape[:2]

    def term(x, dy):  # one row of dy, h rows of x
        W = dy.shape[3]
        x, dy = x[:, 0], dy[:, 0, 0]
        # Nested so, XLA's loop over the result is fast; with one stack it is ten times slower.
        return jnp.stack(
            [jnp.stack([x[:, i, j : j + W] * dy for j in range(w)]) for i in range(h)]
        )

    total = _sum_over_blocks(term, _pad(x, padding), dy, (h, w), (1, 1), pixels=dy.shape[2])
    return total.sum((2, 3))[:, :, None].astype(kernel.dtype)


# A transposed convolution of a 4×4 kernel and stride 2.


@jax.custom_vjp
def _upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _on(_upsample_by_parity, _upsample_xla, x, kernel)


def _upsample_gradients(inputs, dy):
    def cpu(x, kernel, dy):
        around = ((1, 1), (1, 1))
        dx = _xla(dy, _turned(kernel), (2, 2), around)
        return dx, _turned(_kernel_gradient(dy, x, _turned(kernel), (2, 2), around))

    return _on(cpu, _gradients_of(_upsample_xla), *inputs, dy)


def _upsample_xla(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), "SAME")


def _upsample_by_parity(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Even and odd rows and columns each see 2×2 pixels of x: four small convolutions."""
    B, H, W, _ = x.shape
    quarters = [
        [_xla(x, kernel[a::2, b::2], (1, 1), ((1 - a, a), (1 - b, b))) for b in (0, 1)]
        for a in (0, 1)
    ]
    y = jnp.stack([jnp.stack(row, axis=3) for row in quarters], axis=2)
    return y.reshape(B, 2 * H, 2 * W, -1)


# What they share.


def _kernel_gradient(x, dy, kernel, strides, padding):
    """Of a dense convolution: one matrix product of x's windows and dy for each block of pixels."""
    h, w, I, O = kernel.shape
    if I > O and strides == (1, 1):  # the windows of dy are the smaller ones
        swapped = _kernel_gradient(
            dy, x, _turned(kernel), strides, _adjoint(padding, kernel)
        )
        return _turned(swapped)

    def term(x, dy):
        H, W = dy.shape[2:4]
        windows = jnp.concatenate(
            [
                x[:, :, i : i + H * strides[0] : strides[0], j : j + W * strides[1] : strides[1]]
                for i in range(h)
                for j in range(w)
            ],
            axis=-1,
        )
        G = len(x)
        return jnp.einsum("gpi,gpo->gio", windows.reshape(G, -1, h * w * I), dy.reshape(G, -1, O))

    total = _sum_over_blocks(term, _pad(x, padding), dy, (h, w), strides, pixels=_BLOCK)
    return total.sum(0).reshape(kernel.shape).astype(kernel.dtype)


def _sum_over_blocks(term, x, dy, size, strides, *, pixels):
    """Σ term(x, dy) over blocks of about so many `pixels` of dy, with the part of x that they see.

    Both get a leading axis, of one group of images for each device that may share the batch: the
    loop then takes none from another device.
    """
    x, dy = _grouped(x), _grouped(dy.astype(jnp.float32))
    G, B, H, W, _ = dy.shape
    images = math.gcd(B, max(1, pixels // (H * W)))
    rows = math.gcd(H, max(1, pixels // W)) if images == 1 else H
    seen = (rows - 1) * strides[0] + size[0]

    def block(n):
        image, row = n // (H // rows) * images, n % (H // rows) * rows
        xs = lax.dynamic_slice(
            x, (0, image, row * strides[0], 0, 0), (G, images, seen, *x.shape[3:])
        )
        dys = lax.dynamic_slice(dy, (0, image, row, 0, 0), (G, images, rows, *dy.shape[3:]))
        return term(xs, dys)

    like = jax.eval_shape(block, 0)
    count = (B // images) * (H // rows)
    return lax.fori_loop(0, count, lambda n, s: s + block(n), jnp.zeros(like.shape, like.dtype))


def _grouped(x: jax.Array) -> jax.Array:
    """`[G, B / G, ...]`: a loop over the second axis takes no image from another device."""
    B = len(x)
    G = math.gcd(B, jax.device_count())
    return x.reshape(G, B // G, *x.shape[1:])


def _xla(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """The platform's own; depthwise if the kernel has one input feature."""
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _gradients_of(convolution: Callable, *settings: Any) -> Callable:
    def gradients(x, kernel, dy):
        return jax.vjp(lambda x, kernel: convolution(x, kernel, *settings), x, kernel)[1](dy)

    return gradients


def _adjoint(padding: Padding, kernel: jax.Array) -> Padding:
    """Of the convolution that takes dy back to dx."""
    return tuple(
        (size - 1 - low, size - 1 - high)
        for size, (low, high) in zip(kernel.shape[:2], padding, strict=True)
    )


def _turned(kernel: jax.Array) -> jax.Array:
    """By 180°, inputs for outputs."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x.astype(jnp.float32), ((0, 0), *padding, (0, 0)))


def _keep_inputs(convolution):
    """The forward rule of them all."""
    return lambda x, kernel, *settings: (convolution(x, kernel, *settings), (x, kernel))


_dense.defvjp(_keep_inputs(_dense), _dense_gradients)
_depthwise.defvjp(_keep_inputs(_depthwise), _depthwise_gradients)
_upsample.defvjp(_keep_inputs(_upsample), _upsample_gradients)
